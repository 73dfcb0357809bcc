"""One small model of every family of torchvision, timm and transformers, with random weights that exercise every rule.

`CASES` lists them, `build(case, dtype)` gives the model, a batch of inputs by name and what else the model is called with. Convolutional
families are those of `models.py`; the other ones get weights in the same manner: gains around 1, offsets that are not zero, logits of
size 1. The same seed gives the same model.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import architectures_images as images
import architectures_transformers as language
import models
import torch
from torch import Tensor, nn

Inputs = dict[str, Tensor]

ROUNDING = {"exact": 1e-3, "draws": 20}
"""A model whose float32 output is further from its float64 output than `exact` is drawn again, `draws` times at most."""


@dataclass(frozen=True)
class Case:
    """One model: the smallest sensible member of a family."""

    library: str
    name: str
    family: str
    draw: Callable[[int], tuple[nn.Module, Inputs]]
    """The model in float32, by seed, with weights drawn, and its inputs."""
    read: Callable[[Any, Inputs], Tensor] = lambda output, inputs: output
    """(batch, classes) of the model's output, given its inputs."""
    note: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    """What the explainer must be told."""
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    """What the model is called with besides its inputs."""

    def __str__(self) -> str:
        return f"{self.library}:{self.name}"


def build(case: Case, dtype: torch.dtype = torch.float32, *, seed: int = 0) -> tuple[nn.Module, Inputs, dict[str, Any]]:
    """The model in eval mode, its inputs by name, and its other keyword arguments.

    Everything is drawn in float32 and then converted, so that both dtypes explain the same model. A model whose output float32 does not
    determine is drawn again.
    """
    for draw in range(ROUNDING["draws"]):
        model, inputs = case.draw(ROUNDING["draws"] * seed + draw)
        if _rounding(case, model, inputs) < ROUNDING["exact"]:
            return widened(model, dtype), converted(inputs, dtype), dict(case.kwargs)
    raise RuntimeError(f"no draw of {case} is stable enough for float32")


def find(names: list[str]) -> list[Case]:
    """The cases called `library:name` or plain `name`, or all of a library or a family."""
    unknown = [name for name in names if not any(name in _names(case) for case in CASES)]
    if unknown:
        raise SystemExit(f"no such model: {', '.join(unknown)}; known: {' '.join(map(str, CASES))}")
    return [case for case in CASES if any(name in _names(case) for name in names)]


def missing() -> dict[str, list[str]]:
    """By library, families that no case stands for: modules of timm and of torchvision's classifiers with a model of their own."""
    import timm
    import torchvision

    def modules(names: list[str], module_of: Callable[[str], str]) -> set[str]:
        return {module_of(name).rpartition(".")[2] for name in names}

    made = {"timm": {c.family for c in CASES if c.library == "timm"}}
    here = [case.name for case in CASES if case.library == "torchvision" and hasattr(torchvision.models, case.name)]
    of_torchvision = [*torchvision.models.list_models(module=torchvision.models)]
    builder = torchvision.models.get_model_builder
    made["torchvision"] = modules(here, lambda name: builder(name).__module__)
    known = {
        "timm": set(timm.list_modules()),
        "torchvision": modules(of_torchvision, lambda name: builder(name).__module__),
    }
    return {library: sorted(known[library] - made[library]) for library in known}


def converted(inputs: Inputs, dtype: torch.dtype) -> Inputs:
    """The inputs with every floating tensor in `dtype`."""
    return {name: t.to(dtype) if t.is_floating_point() else t for name, t in inputs.items()}


def widened(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """The model in `dtype`, with the tensors that it keeps as plain attributes."""
    for module in model.modules():
        for name, value in vars(module).items():
            if isinstance(value, Tensor) and value.is_floating_point():
                setattr(module, name, value.to(dtype))
    return model.to(dtype)


def _names(case: Case) -> tuple[str, ...]:
    return case.name, str(case), case.library, f"{case.library}/{case.family}"


@torch.no_grad()
def _rounding(case: Case, model: nn.Module, inputs: Inputs) -> float:
    output = case.read(model(**inputs, **case.kwargs), inputs)
    double = widened(copy.deepcopy(model), torch.float64)
    exact = case.read(double(**converted(inputs, torch.float64), **case.kwargs), inputs)
    return ((output - exact).abs().max() / exact.abs().max()).item()


def _convolutional(case: models.Case) -> Callable[[int], tuple[nn.Module, Inputs]]:
    def draw(seed: int) -> tuple[nn.Module, Inputs]:
        model, pixels = models.build(case, seed=seed)
        return model, {_first_parameter(model): pixels}

    return draw


def _attending(image: images.Image) -> Callable[[int], tuple[nn.Module, Inputs]]:
    def draw(seed: int) -> tuple[nn.Module, Inputs]:
        torch.manual_seed(seed)
        model = image.create(models.CLASSES).eval()
        _draw_weights(model)
        models._calibrate(model, torch.randn(8, 3, image.size, image.size))
        low, high = models.BOUNDS
        pixels = torch.randn(image.batch, 3, image.size, image.size).clamp(low, high)
        _scale_logits(model, pixels)
        return model, {_first_parameter(model): pixels}

    return draw


def _transformer(recipe: language.Recipe) -> Callable[[int], tuple[nn.Module, Inputs]]:
    def draw(seed: int) -> tuple[nn.Module, Inputs]:
        torch.manual_seed(seed)
        model = recipe.create().eval()
        _draw_weights(model)
        return model, recipe.inputs()

    return draw


@torch.no_grad()
def _draw_weights(model: nn.Module) -> None:
    """`models.py`'s weights, and what it does not know: tables of positions, stacks of matrices, gains that are stored less 1."""
    models._draw_weights(model)
    for module in model.modules():
        if isinstance(module, nn.modules.conv._ConvNd):
            continue
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.ndim >= 3 and parameter.shape[0] == 1:
                parameter.normal_(0, 0.2)
            elif parameter.ndim >= 3:
                parameter.normal_(0, (2 / parameter.shape[-1]) ** 0.5)
            elif parameter.ndim == 1 and type(module).__name__.startswith("Gemma"):
                parameter.uniform_(-0.2, 0.2)
            elif name == "class_embedding":
                parameter.normal_(0, 0.2)


@torch.no_grad()
def _scale_logits(model: nn.Module, pixels: Tensor) -> None:
    """Scales the last layers so that the logits have standard deviation 1; theirs, unlike those of `models.py`, may have no bias."""
    scale = 1 / model(pixels).std()
    for module in model.modules():
        if isinstance(module, nn.Linear) and module.out_features == models.CLASSES:
            for parameter in module.parameters():
                parameter.mul_(scale)


def _first_parameter(model: nn.Module) -> str:
    return next(iter(inspect.signature(model.forward).parameters))


def _cases() -> Iterator[Case]:
    seen = set()
    for case in models.CASES:
        key = (case.library, case.name if case.library == "torchvision" else case.family)
        if key not in seen:
            seen.add(key)
            yield Case(case.library, case.name, case.family, _convolutional(case))
    for image in images.IMAGES:
        yield Case(image.library, image.name, image.family, _attending(image), note=image.note, options=image.options)
    for name, recipe in language.RECIPES.items():
        yield Case(
            "transformers", name, name, _transformer(recipe), recipe.read, recipe.note, recipe.options, recipe.kwargs
        )


CASES = tuple(_cases())
