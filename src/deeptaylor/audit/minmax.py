"""The min-max relevance model of Montavon et al. (2017), trained layer by layer from the top.

    R̂_k = Σ_j y_j,   y_j = max(0, Σ_i x_i v_ij + a_j),   a_j = min(0, Σ_l R_l u_lj + d_j)

A unit's relevance is modelled as a sum of a few detectors of the layer below, inhibited by what the layer above already
knows (a_j ≤ 0, held constant in the expansion). Then R_j = y_j, and the detectors' own weights send it down: z^B at the
input, z⁺ elsewhere. Conserving only as well as the model fits. Of a convolution, detectors are convolutions of the same
kernel, and a unit's are those of its whole pooling window.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..attribution import Attribution
from ..composites import MINMAX, Composite, deep_taylor
from ..errors import InputError
from ..inputs import Call
from ..ledger import Ledger
from ..unwrap import unwrapped
from .recursion import Layer, layers_of

if TYPE_CHECKING:
    from ..explainer import Explainer

PARTS = 4
"""Detectors per unit."""
CONVOLUTIONS: dict[type[nn.Module], Any] = {nn.Conv1d: F.conv1d, nn.Conv2d: F.conv2d, nn.Conv3d: F.conv3d}
Affine = Callable[[Tensor, Tensor], Tensor]
"""(x, weight) to what a layer's affine map makes of them, without bias."""


@dataclass(frozen=True)
class Geometry:
    """How one layer's units look at the activations below."""

    apply: Affine
    weight: torch.Size
    """Shape of the layer's own weight, units first."""
    before: torch.Size
    """Activations below, of one sample, as the affine map takes them."""
    maps: torch.Size
    """What the affine map makes of them."""
    units: torch.Size
    """What the layer hands on, before it is flattened: smaller maps where it pools."""

    @property
    def convolves(self) -> bool:
        return len(self.weight) > 2

    def pooled(self, y: Tensor) -> Tensor:
        """Sums over the pooling windows: (N, units, *maps) to (N, *units)."""
        axes = len(self.units) - 1
        if not self.convolves or self.units[1:] == self.maps[1:]:
            return y
        pools: Any = (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d)
        means: Tensor = pools[axes - 1](y, list(self.units[1:]))
        return means * (self.maps[1:].numel() / self.units[1:].numel())

    def spread(self, context: Tensor) -> Tensor:
        """What is known of each pooled unit, at every place of its window."""
        if not self.convolves or self.units[1:] == self.maps[1:]:
            return context
        return F.interpolate(context, size=list(self.maps[1:]), mode="nearest")


class RelevanceModel(nn.Module):
    """Relevance of the units of one layer, modelled from the activations below.

    Args:
        geometry: of the layer.
        parts: detectors per unit.
    """

    def __init__(self, geometry: Geometry, parts: int = PARTS) -> None:
        super().__init__()
        self.geometry, self.parts = geometry, parts
        self.channels = geometry.units[0] if geometry.convolves else geometry.units.numel()
        bound = geometry.weight[1:].numel() ** -0.5
        self.detect = nn.Parameter(torch.empty(self.channels * parts, *geometry.weight[1:]).uniform_(-bound, bound))
        self.inhibit = nn.Linear(self.channels, self.channels * parts)

    def detectors(self, x: Tensor, context: Tensor) -> Tensor:
        """y: (N, units · parts), or such maps."""
        known = self.inhibit(context.movedim(1, -1)).clamp(max=0).movedim(-1, 1)
        return torch.relu(self.geometry.apply(x, self.detect) + self.geometry.spread(known))

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """R̂, shaped like the context."""
        y = self.detectors(x, context).unflatten(1, (self.channels, self.parts)).sum(2)
        return self.geometry.pooled(y)


class MinMax:
    """Deep Taylor decomposition with trained relevance models: `deep-taylor-minmax`.

    Args:
        model: an `nn.Sequential` of dense layers or convolutions, each with ReLU and perhaps pooling after it.
        x: (N, ...) samples to train the relevance models on; the relevances are their own aims.
        low: lower bound of the input.
        high: upper bound of the input.
        target: the class whose score is decomposed, of a model with several.
        epochs: passes over the samples, per layer.
        rate: of Adam.
        tell: is told the share that is done.

    Raises:
        InputError: the model is not of that form, or x lies outside the bounds.
    """

    def __init__(
        self,
        model: nn.Sequential | Sequence[Layer],
        x: Tensor,
        *,
        low: float,
        high: float,
        target: int | None = None,
        epochs: int = 10,
        rate: float = 1e-3,
        tell: Callable[[float], None] | None = None,
    ) -> None:
        self.layers, self.low, self.high, self.target = layers_of(model), low, high, target
        if not isinstance(x, Tensor) or not x.is_floating_point() or x.dim() < 2 or len(self.layers) < 2:
            raise InputError("relevance models need a network of two layers and samples (N, ...) of numbers")
        if float(x.min()) < low or float(x.max()) > high or not low <= 0 <= high:
            raise InputError(f"inputs run from {float(x.min()):g} to {float(x.max()):g}, bounds {low:g} to {high:g}")
        activations = self._activations(x)
        self.geometry = [_geometry(layer, activations[n][:1], n) for n, layer in enumerate(self.layers[:-1])]
        relevance = self._from_top(activations)
        self.models: list[RelevanceModel] = []
        """From the top down."""
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            torch.manual_seed(0)
            for level in range(len(self.layers) - 2, -1, -1):
                geometry = self.geometry[level]
                below = activations[level].reshape(len(x), *geometry.before)
                context = relevance.reshape(len(x), *geometry.units)
                relevance_model = RelevanceModel(geometry).to(x)
                fit(relevance_model, below, context, epochs, rate, tell)
                self.models.append(relevance_model.requires_grad_(False))
                relevance = self._handed_down(relevance_model, below, context, first=level == 0)

    def __call__(self, x: Tensor) -> Tensor:
        """Relevance of the inputs, shaped like x."""
        activations = self._activations(x)
        relevance = self._from_top(activations)
        for level, model in zip(range(len(self.layers) - 2, -1, -1), self.models, strict=True):
            below = activations[level].reshape(len(x), *model.geometry.before)
            context = relevance.reshape(len(x), *model.geometry.units)
            relevance = self._handed_down(model, below, context, first=level == 0)
        return relevance.reshape(x.shape)

    def _activations(self, x: Tensor) -> list[Tensor]:
        found = [x]
        with torch.no_grad():
            for layer in self.layers:
                found.append(layer(found[-1]))
        return found

    def _from_top(self, activations: Sequence[Tensor]) -> Tensor:
        """Relevance of the last layer's inputs, by z⁺ through its affine map: its units sum to the output."""
        top, a = self.layers[-1], activations[-2].flatten(1)
        inside = top.modules() if isinstance(top, nn.Module) else ()
        affine = next((m for m in inside if isinstance(m, nn.Linear)), None)
        if affine is None or activations[-1].dim() != 2:
            raise InputError("the last layer must hold an nn.Linear and end in one output, or in one per class")
        weight: Tensor = affine.weight.detach()
        bias: Tensor | None = affine.bias
        classes = activations[-1].shape[1]
        if classes > 1 or self.target is not None:
            if self.target is None or not 0 <= self.target < classes or len(weight) != classes:
                raise InputError(f"the model has {classes} outputs; say which is decomposed: target=0 to {classes - 1}")
            weight, bias = weight[self.target, None], None if bias is None else bias[self.target, None]
        with torch.no_grad():
            units = torch.relu(F.linear(a, weight, bias))
            return shares(F.linear, a, weight.clamp(min=0), units)

    def _handed_down(self, model: RelevanceModel, below: Tensor, context: Tensor, first: bool) -> Tensor:
        with torch.no_grad():
            y = model.detectors(below, context)
            weight, apply = model.detect.detach(), model.geometry.apply
            plus, minus = weight.clamp(min=0), weight.clamp(max=0)
            if not first:
                return shares(apply, below, plus, y)
            low, high = torch.full_like(below, self.low), torch.full_like(below, self.high)
            terms = ((below, weight, 1.0), (low, plus, -1.0), (high, minus, -1.0))
            total = sum((sign * apply(a, w) for a, w, sign in terms), torch.zeros_like(y))
            s = y / total.masked_fill(total <= 0, float("inf"))
            return sum((sign * a * _back(apply, a, w, s) for a, w, sign in terms), torch.zeros_like(below))


def fit_minmax(
    model: nn.Sequential,
    data: Tensor,
    *,
    bounds: tuple[float, float],
    target: int | None = None,
    epochs: int = 10,
    rate: float = 1e-3,
    tell: Callable[[float], None] | None = None,
) -> Composite:
    """The composite `deep-taylor-minmax` of a model: its relevance models trained on data, ready for `explain`.

        composite = dt.fit_minmax(model, images, bounds=(-1.0, 1.0), target=3)
        dt.explain(model, images[:8], target=3, composite=composite, ledger=True)

    The ledger's gap is what the relevance models miss.

    Args:
        model: an `nn.Sequential` of dense layers or convolutions, each with ReLU and perhaps pooling after it.
        data: (N, ...) inputs like those to be explained; some thousands.
        bounds: (low, high) of the input, around 0.
        target: the class whose score is decomposed, of a model with several.
        epochs: passes over the data, per layer.
        rate: of Adam.
        tell: is told the share of one layer that is done.

    Raises:
        InputError: the model is not of that form, or data lie outside the bounds.
    """
    own: Any = unwrapped(model)
    trained = MinMax(own, data, low=bounds[0], high=bounds[1], target=target, epochs=epochs, rate=rate, tell=tell)

    def instead(
        explainer: Explainer, call: Call, asked: Any, result: Attribution, domain: Any, ledger: bool
    ) -> Attribution:
        if explainer.model is not own:
            raise InputError("these relevance models were trained for another model; call dt.fit_minmax for this one")
        if len(call.tensors) != 1:
            raise InputError("relevance models take one input")
        aims = result.target
        if target is not None and (not isinstance(aims, Tensor) or bool((aims != target).any())):
            raise InputError(f"these relevance models were trained for class {target}: explain with target={target}")
        ((name, x),) = call.tensors.items()
        relevance = trained(x.detach())
        explained = result.explained.reshape(len(x), -1)[:, 0]
        inputs = relevance.flatten(1).sum(1).to(explained)
        account = Ledger(explained, inputs, torch.zeros_like(inputs), ()) if ledger else None
        return replace(result, relevances={name: relevance.to(x)}, ledger=account)

    lines = deep_taylor(*bounds).lines
    why = f"relevance models trained on {len(data)} samples"
    return Composite(lines, MINMAX, why, {"samples": len(data), "epochs": epochs, "bounds": bounds}, instead)


def shares(apply: Affine, x: Tensor, weight: Tensor, relevance: Tensor) -> Tensor:
    """R_i = x_i Σ_j w_ij R_j / Σ_i' x_i' w_i'j, for x and w ≥ 0; units without inputs keep theirs."""
    total = apply(x, weight)
    return x * _back(apply, x, weight, relevance / total.masked_fill(total == 0, float("inf")))


def _back(apply: Affine, x: Tensor, weight: Tensor, s: Tensor) -> Tensor:
    """Wᵀs."""
    leaf = x.detach().requires_grad_()
    with torch.enable_grad():
        (found,) = torch.autograd.grad(apply(leaf, weight), leaf, s)
    return found


def _geometry(layer: Any, below: Tensor, number: int) -> Geometry:
    """How a layer looks at one sample below it.

    Raises:
        InputError: it is neither dense nor a convolution, or has a normalization.
    """
    parts = [m for m in layer.modules() if not list(m.children())] if isinstance(layer, nn.Module) else []
    affine = [m for m in parts if getattr(m, "weight", None) is not None]
    if len(affine) != 1 or not isinstance(affine[0], nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
        kinds = ", ".join(type(m).__name__ for m in affine) or type(layer).__name__
        raise InputError(
            f"layer {number + 1} ({kinds}) is neither dense nor a convolution with ReLU and pooling; fold "
            "normalizations into the layers before them: torch.nn.utils.fuse_conv_bn_eval"
        )
    module: Any = affine[0]
    with torch.no_grad():
        if isinstance(module, nn.Linear):
            found = layer(below)
            flat = torch.Size([below[0].numel()])
            return Geometry(F.linear, module.weight.shape, flat, torch.Size([len(module.weight)]), found[0].shape)
        if module.padding_mode != "zeros":
            raise InputError(f"layer {number + 1} pads by {module.padding_mode!r}; relevance models know zeros")
        value, units = below, torch.Size()
        for part in parts:
            value = part(value)
            if value.dim() == below.dim():
                units = value[0].shape
        maps = module(below)[0].shape
    function, groups = CONVOLUTIONS[type(module)], module.groups
    if groups != 1:
        raise InputError(f"layer {number + 1} has {groups} groups of channels; relevance models know one")

    def apply(x: Tensor, weight: Tensor) -> Tensor:
        return function(x, weight, None, module.stride, module.padding, module.dilation)

    return Geometry(apply, module.weight.shape, below[0].shape, maps, units)


def fit(
    model: RelevanceModel,
    x: Tensor,
    relevance: Tensor,
    epochs: int,
    rate: float,
    tell: Callable[[float], None] | None = None,
) -> None:
    """Adam on ‖R̂ − R‖², scaled by the mean square of R; R itself is the context."""
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    generator = torch.Generator().manual_seed(0)
    size = float(relevance.square().mean().clamp(min=1e-12))
    for epoch in range(epochs):
        for chosen in torch.randperm(len(x), generator=generator).split(100):
            optimizer.zero_grad()
            loss = (model(x[chosen], relevance[chosen]) - relevance[chosen]).square().mean() / size
            loss.backward()
            optimizer.step()
        if tell is not None:
            tell((epoch + 1) / epochs)
