"""Models by name: `torchvision:resnet50`, `timm:resnet50`, `package.module:factory`, and files: .pt2, .onnx, .txt."""

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
from .lrp_toolbox import PICKLES, from_lrp_toolbox
from .onnx_model import from_onnx
from .optional import import_zoo
from .photos import Preprocessing, from_timm, from_torchvision, overridden
from .weights import check_weights_file, load_weights

FORMS = "torchvision:NAME, timm:NAME, package.module:factory, or a file: program.pt2, model.onnx, lrp_toolbox.txt"
FILES = (".pt2", ".onnx", ".txt", *PICKLES)
"""Files that hold a whole model: exported programs, ONNX, and the LRP Toolbox's."""
FOREIGN = {
    ".h5": "Keras", ".keras": "Keras", ".pb": "TensorFlow", ".tflite": "TensorFlow Lite", ".caffemodel": "Caffe",
    ".mat": "MATLAB", ".joblib": "scikit-learn", ".pkl": "pickle",
}  # fmt: skip
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
    shape: tuple[int | None, ...] = ()
    """Of one input, channels first, as the file states it; for exported programs see `stated_shape`."""

    @property
    def stated_shape(self) -> tuple[int | None, ...]:
        """The shape of one input as the model's file states it, None where a size is free; empty where it does not."""
        if isinstance(self.model, ExportedProgram):
            return tuple(size if isinstance(size, int) else None for size in _program_shape(self.model))
        return self.shape

    @property
    def input_size(self) -> int | None:
        """Side of the square input that the file states; None where it is free or not known."""
        shape = self.stated_shape
        return shape[-1] if len(shape) == 4 and shape[-1] == shape[-2] else None

    def input_shape(self, size: int | None = None, channels: int = 3) -> tuple[int, ...]:
        """The shape of one input, `(1, channels, height, width)`, or what else the file states.

        Raises:
            InputError: nobody says how large it is.
        """
        if self.preprocessing is not None:
            return (1, len(self.preprocessing.mean), *((size, size) if size else self.preprocessing.size))
        stated = self.stated_shape
        if len(stated) != 4 and stated and all(stated[1:]):
            return (1, *(n for n in stated[1:] if n))
        if len(stated) == 4:
            channels = stated[1] or channels
            if size is None and stated[2] and stated[3]:
                return (1, channels, stated[2], stated[3])
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
            InputError: neither says how photos become inputs, or the model takes something else.
        """
        stated = self.stated_shape
        if stated and len(stated) != 4:
            shape = ", ".join(str(n) if n else "N" for n in (None, *stated[1:]))
            raise InputError(
                f"{self.name} takes inputs of shape ({shape}), not photos: explain them in Python, with "
                "deeptaylor.importers and deeptaylor.explain"
            )
        channels = (stated[1] if stated else None) or channels
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
    suffix = Path(source).suffix.lower()
    if suffix in FILES and (not rest or Path(source).is_file()):
        if not Path(source).is_file():
            raise ModelLoadError(
                f"no model at {source}: {'that is a folder' if Path(source).is_dir() else 'check the path'}"
            )
        if weights:
            raise ModelLoadError(f"{source} carries its weights: leave --weights out")
        return
    if suffix in (".pt", ".pth", ".safetensors", ".bin", ".ckpt") and not rest:
        raise ModelLoadError(
            f"{source} holds weights without a network: say which model they are for, "
            f"--model torchvision:resnet50 --weights {source}, or save a program with torch.export.save"
        )
    if suffix in FOREIGN and not rest:
        raise ModelLoadError(
            f"{source} is a file of {FOREIGN[suffix]}, which can't be read: export the model to ONNX and pass "
            "the .onnx file"
        )
    if Path(source).is_file() and suffix != ".py":
        raise ModelLoadError(f"{source} is a file of a kind that is not known as a model; the forms are {FORMS}")
    if not prefix or not rest:
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
    suffix = Path(source).suffix.lower()
    if suffix in FILES and Path(source).is_file():
        return {".pt2": _program, ".onnx": _onnx}.get(suffix, _toolbox)(Path(source))
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


class ChannelsLast(nn.Module):
    """Takes `(batch, channels, height, width)` for a network that wants its channels last, as TensorFlow's do."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> Any:
        """The network's output."""
        return self.model(x.permute(0, 2, 3, 1))


def _onnx(path: Path) -> LoadedModel:
    converted = from_onnx(path)
    if len(converted.input_shapes) != 1:
        raise ModelLoadError(
            f"{path} takes {len(converted.input_shapes)} inputs ({', '.join(converted.input_shapes)}): explain it in "
            "Python, deeptaylor.explain(deeptaylor.importers.from_onnx(path), {name: tensor, ...})"
        )
    (shape,) = converted.input_shapes.values()
    if len(shape) == 4 and shape[3] in (1, 3) and shape[1] not in (1, 3):
        note = "channels come last in this file: photos are turned, and relevance is shown with channels first"
        last = ChannelsLast(converted).eval()
        return LoadedModel(
            last, str(path), notes=(*converted.notes, note), shape=(shape[0], shape[3], shape[1], shape[2])
        )
    return LoadedModel(converted, str(path), notes=converted.notes, shape=shape)


def _toolbox(path: Path) -> LoadedModel:
    network = from_lrp_toolbox(path)
    first = next((layer for layer in network if isinstance(layer, nn.Conv2d | nn.Linear)), None)
    shape: tuple[int | None, ...] = ()
    if isinstance(first, nn.Conv2d):
        shape = (None, first.in_channels, None, None)
    elif isinstance(first, nn.Linear) and first is network[0]:
        shape = (None, first.in_features)
    return LoadedModel(network, str(path), notes=network.notes, shape=shape)


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
