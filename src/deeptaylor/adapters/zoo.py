"""Models by name: `torchvision:resnet50`, `timm:convnext_tiny`, `program.pt2`, `package.module:factory`."""

from __future__ import annotations

import difflib
import importlib
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram

from ..errors import InputError, ModelLoadError
from .labels import Labels
from .optional import import_zoo
from .photos import Preprocessing, from_timm, from_torchvision, overridden
from .weights import check_weights_file, load_weights

FORMS = "torchvision:NAME, timm:NAME, path/to/program.pt2 or package.module:factory"
PRETRAINED = "pretrained"

# Their published weights expect that the model shifts its inputs itself; and both would initialise slowly for nothing.
TORCHVISION_OPTIONS: dict[str, dict[str, Any]] = {
    "inception_v3": {"transform_input": True, "init_weights": False},
    "googlenet": {"transform_input": True, "init_weights": False},
}


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to be explained, and what its makers say about photos and classes."""

    model: nn.Module | ExportedProgram
    name: str
    preprocessing: Preprocessing | None = None
    labels: Labels | None = None
    notes: tuple[str, ...] = ()
    """What a user should know about how it was loaded, for example that its weights are random."""

    @property
    def input_size(self) -> int | None:
        """Side of the square input that an exported program was saved for; None where it is free or not known."""
        shape = _program_shape(self.model) if isinstance(self.model, ExportedProgram) else ()
        return shape[-1] if len(shape) == 4 and isinstance(shape[-1], int) and shape[-1] == shape[-2] else None

    def input_shape(self, size: int | None = None, channels: int = 3) -> tuple[int, ...]:
        """The shape of one input, `(1, channels, height, width)`.

        Raises:
            InputError: nobody says how large it is.
        """
        if self.preprocessing is not None:
            return (1, len(self.preprocessing.mean), *((size, size) if size else self.preprocessing.size))
        size = size or self.input_size
        if size is None:
            raise InputError(f"{self.name} does not say how large its inputs are: pass --size")
        return (1, channels, size, size)

    def told(
        self,
        size: int | None,
        mean: Sequence[float] | None,
        std: Sequence[float] | None,
        *,
        channels: int = 3,
        labels: Labels | None = None,
    ) -> LoadedModel:
        """The model with what a person says about photos and names in place of what its makers say.

        Raises:
            InputError: neither says how photos become inputs.
        """
        preprocessing = overridden(self.preprocessing, size or self.input_size, mean, std, channels)
        if preprocessing is None:
            raise InputError(
                f"{self.name} does not say how photos become its inputs: pass --size, --mean and --std "
                "(for example --size 224 --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225)"
            )
        return replace(self, preprocessing=preprocessing, labels=labels or self.labels)

    def __call__(self, inputs: torch.Tensor) -> Any:
        """The model's output, without gradients."""
        run = self.model.module() if isinstance(self.model, ExportedProgram) else self.model
        with torch.no_grad():
            return run(inputs)


def check_source(source: str, weights: str | None) -> None:
    """Refuse what can't be a model or its weights, without importing or opening anything."""
    prefix, _, rest = source.partition(":")
    if source.endswith(".pt2"):
        if not Path(source).is_file():
            raise ModelLoadError(f"no program at {source}: check the path")
        if weights:
            raise ModelLoadError("a .pt2 program carries its weights: leave --weights out")
    elif Path(source).suffix in (".pt", ".pth", ".safetensors", ".onnx") and not rest:
        raise ModelLoadError(
            f"{source} holds weights, or a format without a graph of ATen operations: say which model they are for, "
            f"--model torchvision:resnet50 --weights {source}, or save a program with torch.export.save"
        )
    elif not prefix or not rest:
        raise ModelLoadError(f"{source!r} is no model; write {FORMS}")
    if weights and weights != PRETRAINED:
        check_weights_file(Path(weights))
    if weights == PRETRAINED and prefix not in ("torchvision", "timm"):
        raise ModelLoadError(
            f"--weights {PRETRAINED} is for torchvision: and timm: models; {source} comes with the weights it has"
        )


def load_model(source: str, weights: str | None = None) -> LoadedModel:
    """A model by name, in evaluation mode.

    Args:
        source: one of the forms at the top of this file.
        weights: a .safetensors or .pt file of tensors; `pretrained` lets torchvision or timm download their own; None
            leaves random weights in torchvision's and timm's models, with a note that says so.

    Raises:
        ModelLoadError: nothing there, a name that is not known (with the nearest), or weights that do not fit.
    """
    check_source(source, weights)
    prefix, _, rest = source.partition(":")
    if source.endswith(".pt2"):
        return _program(Path(source))
    loaded = {"torchvision": _torchvision, "timm": _timm}.get(prefix, _factory)(source, rest, weights)
    model, notes = loaded.model, list(loaded.notes)
    assert isinstance(model, nn.Module)
    if weights and weights != PRETRAINED:
        notes += load_weights(model, Path(weights))
    elif not weights and prefix in ("torchvision", "timm"):
        notes.append(
            f"{source} has random weights, so its pictures mean nothing: pass --weights FILE or --weights {PRETRAINED}"
        )
    model.eval()
    return LoadedModel(model, loaded.name, loaded.preprocessing, loaded.labels, tuple(notes))


def _torchvision(source: str, name: str, weights: str | None) -> LoadedModel:
    import_zoo("torchvision")
    from torchvision import models

    if name not in models.list_models():
        raise ModelLoadError(_unknown("torchvision", name, models.list_models()))
    published = models.get_model_weights(name).DEFAULT
    if not hasattr(published.transforms(), "crop_size"):
        raise ModelLoadError(f"{source} is not a classifier of photos")
    options = {} if weights == PRETRAINED else TORCHVISION_OPTIONS.get(name, {})
    model = _build(
        source, lambda: models.get_model(name, weights="DEFAULT" if weights == PRETRAINED else None, **options)
    )
    notes = [f"{name} is built with transform_input=True, as for torchvision's published weights"] if options else []
    preprocessing = from_torchvision(published.transforms(), f"torchvision {published}")
    return LoadedModel(model, source, preprocessing, tuple(published.meta["categories"]), tuple(notes))


def _timm(source: str, name: str, weights: str | None) -> LoadedModel:
    timm = import_zoo("timm")
    if not timm.is_model(name.split(".")[0]):
        raise ModelLoadError(_unknown("timm", name, timm.list_models()))
    model = _build(source, lambda: timm.create_model(name, pretrained=weights == PRETRAINED))
    preprocessing, labels = _from_config(model, source)
    return LoadedModel(model, source, preprocessing, labels)


def built(source: str) -> Any:
    """What `package.module:factory` gives: the object itself, or what a function without arguments returns."""
    package, _, name = source.partition(":")
    # As `python -m` does: a script beside you is importable.
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        module = importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name and package.startswith(error.name):
            raise ModelLoadError(f"no module {error.name!r} for --model {source}; the forms are {FORMS}") from error
        raise ModelLoadError(f"importing {package} failed: {error}") from error
    except Exception as error:
        raise ModelLoadError(f"importing {package} failed: {type(error).__name__}: {error}") from error
    if not hasattr(module, name):
        raise ModelLoadError(_unknown(package, name, [key for key in vars(module) if not key.startswith("_")]))
    made = getattr(module, name)
    return made if isinstance(made, nn.Module | ExportedProgram | tuple) else _build(source, made)


def _factory(source: str, name: str, weights: str | None) -> LoadedModel:
    model = built(source)
    if isinstance(model, ExportedProgram):
        raise ModelLoadError(
            f"{source} gives an exported program: save it with torch.export.save and pass the .pt2 file"
        )
    if not isinstance(model, nn.Module):
        raise ModelLoadError(
            f"{source} gives a {type(model).__name__}; it must give an nn.Module and need no arguments"
        )
    preprocessing, labels = _from_config(model, source)
    return LoadedModel(model, source, preprocessing, labels)


def _program(path: Path) -> LoadedModel:
    try:
        program = torch.export.load(path)
    except Exception as error:  # torch raises whatever its readers meet
        raise ModelLoadError(
            f"{path} is not a program saved by torch.export.save ({type(error).__name__}: {error})"
        ) from error
    return LoadedModel(program, str(path))


def _program_shape(program: ExportedProgram) -> tuple[Any, ...]:
    """The shape of a program's first input; sizes that are free are not ints."""
    names = program.graph_signature.user_inputs
    for node in program.graph.nodes:
        if node.op == "placeholder" and names and node.name == names[0]:
            return tuple(node.meta["val"].shape)
    return ()


def _build(source: str, build: Callable[[], Any]) -> Any:
    """What a builder returns; whatever it raises becomes one error of ours."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # model zoos warn about their own past
            return build()
    except Exception as error:
        raise ModelLoadError(f"building {source} failed: {type(error).__name__}: {error}") from error


def _from_config(model: Any, source: str) -> tuple[Preprocessing | None, Labels | None]:
    """Preprocessing and labels of a model that carries timm's configuration; both None without one."""
    config = getattr(model, "pretrained_cfg", None)
    if not isinstance(config, dict) or not config.get("mean"):
        return None, None
    try:
        preprocessing = from_timm(config, f"timm configuration of {source}")
    except InputError:
        preprocessing = None
    if "timm" not in sys.modules:
        return preprocessing, None
    from timm.data import ImageNetInfo, infer_imagenet_subset

    subset = infer_imagenet_subset(model)
    if subset is None:
        return preprocessing, None
    info = ImageNetInfo(subset)
    return preprocessing, tuple(info.index_to_description(index) for index in range(info.num_classes()))


def _unknown(where: str, name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)
    return f"{where} has no {name!r}" + (f"; did you mean {' or '.join(near)}?" if near else "")
