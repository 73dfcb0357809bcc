"""The min-max relevance model of Montavon et al. (2017), trained layer by layer from the top.

    R̂_k = Σ_j y_j,   y_j = max(0, Σ_i x_i v_ij + a_j),   a_j = min(0, Σ_l R_l u_lj + d_j)

A unit's relevance is modelled as a sum of a few detectors of the layer below, inhibited by what the layer above already
knows (a_j ≤ 0, held constant in the expansion). Then R_j = y_j, and the detectors' own weights send it down: z^B at the
input, z⁺ elsewhere. Conserving only as well as the model fits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ..errors import InputError
from .recursion import Layer, layers_of

PARTS = 4
"""Detectors per unit."""


class RelevanceModel(nn.Module):
    """Relevance of the units of one layer, modelled from the activations below.

    Args:
        inputs: activations below.
        units: units whose relevance is modelled, which are also the context.
        parts: detectors per unit.
    """

    def __init__(self, inputs: int, units: int, parts: int = PARTS) -> None:
        super().__init__()
        self.detect = nn.Linear(inputs, units * parts, bias=False)
        self.inhibit = nn.Linear(units, units * parts)
        self.units = units

    def detectors(self, x: Tensor, context: Tensor) -> Tensor:
        """y: (N, units · parts)."""
        return torch.relu(self.detect(x) + self.inhibit(context).clamp(max=0))

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """R̂: (N, units)."""
        return self.detectors(x, context).unflatten(-1, (self.units, -1)).sum(-1)


class MinMax:
    """Deep Taylor decomposition with trained relevance models: `deep-taylor-minmax`.

    Args:
        model: an `nn.Sequential` of affine layers, each with ReLU and perhaps sum-pooling after it, and one output;
            only read.
        x: (N, inputs) samples to train the relevance models on; the relevances are their own aims.
        low: lower bound of the input.
        high: upper bound of the input.
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
        epochs: int = 10,
        rate: float = 1e-3,
        tell: Callable[[float], None] | None = None,
    ) -> None:
        self.layers, self.low, self.high = layers_of(model), low, high
        if x.dim() != 2 or len(self.layers) < 2:
            raise InputError(f"relevance models need two layers and vectors (N, inputs), got x {tuple(x.shape)}")
        if float(x.min()) < low or float(x.max()) > high or not low <= 0 <= high:
            raise InputError(f"inputs run from {float(x.min()):g} to {float(x.max()):g}, bounds {low:g} to {high:g}")
        activations = self._activations(x)
        relevance = self._from_top(activations)
        self.models: list[RelevanceModel] = []
        """From the top down."""
        with torch.random.fork_rng():
            torch.manual_seed(0)
            for level in range(len(self.layers) - 2, -1, -1):
                below = activations[level]
                relevance_model = RelevanceModel(below.shape[1], relevance.shape[1])
                fit(relevance_model, below, relevance, epochs, rate, tell)
                self.models.append(relevance_model)
                relevance = self._handed_down(relevance_model, below, relevance, first=level == 0)

    def __call__(self, x: Tensor) -> Tensor:
        """Relevance of the inputs, shaped like x."""
        activations = self._activations(x)
        relevance = self._from_top(activations)
        for level, model in zip(range(len(self.layers) - 2, -1, -1), self.models, strict=True):
            relevance = self._handed_down(model, activations[level], relevance, first=level == 0)
        return relevance

    def _activations(self, x: Tensor) -> list[Tensor]:
        found = [x]
        with torch.no_grad():
            for layer in self.layers:
                found.append(layer(found[-1]))
        return found

    def _from_top(self, activations: Sequence[Tensor]) -> Tensor:
        """Relevance of the last layer's inputs, by z⁺ through its affine map: its units sum to the output."""
        top = self.layers[-1]
        inside = top.modules() if isinstance(top, nn.Module) else ()
        affine = next((m for m in inside if isinstance(m, nn.Linear)), None)
        if affine is None or activations[-1].shape[1] != 1:
            raise InputError("the last layer must hold an nn.Linear and end in one output, a sum of its units")
        with torch.no_grad():
            units = torch.relu(affine(activations[-2]))
        return shares(activations[-2], affine.weight.detach().clamp(min=0), units)

    def _handed_down(self, model: RelevanceModel, below: Tensor, context: Tensor, first: bool) -> Tensor:
        with torch.no_grad():
            y = model.detectors(below, context)
            weight = model.detect.weight
            if not first:
                return shares(below, weight.clamp(min=0), y)
            plus, minus = weight.clamp(min=0), weight.clamp(max=0)
            total = below @ weight.T - self.low * plus.sum(1) - self.high * minus.sum(1)
            s = y / total.masked_fill(total <= 0, float("inf"))
            return below * (s @ weight) - self.low * (s @ plus) - self.high * (s @ minus)


def shares(x: Tensor, weight: Tensor, relevance: Tensor) -> Tensor:
    """R_i = x_i Σ_j w_ij R_j / Σ_i' x_i' w_i'j, for x and w ≥ 0; units without inputs keep theirs."""
    total = x @ weight.T
    return x * ((relevance / total.masked_fill(total == 0, float("inf"))) @ weight)


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
