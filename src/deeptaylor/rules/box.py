"""z^B: the rule for inputs in a box."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from ..errors import DomainError
from ..step import Step
from ..symbolic import is_symbolic
from .affine import SignRule
from .base import Habits, Redistribution, Relevance
from .maps import IDENTITY, MINUS, ONE, PLUS, SAME, WeightMap, shifted
from .redistribute import Part, affine_of, forward_of, redistribute, total_of, weight_of

NOISE = 16
"""So many units in the last place of its terms, a difference that can't be negative is taken for 0."""


@dataclass(frozen=True)
class ZBox(SignRule):
    """Share within a box l ≤ x ≤ h, l ≤ 0 ≤ h: R_{i←j} ∝ x_i w_ij − l_i w_ij⁺ − h_i w_ij⁻ ≥ 0. Montavon et al. 2017.

    Direction x − l·1[w>0] − h·1[w<0]. Bounds are numbers, or tensors that broadcast to one sample, such as (3, 1, 1);
    None takes each sample's own range, widened to hold 0.

    Raises:
        DomainError: an input outside [low, high], or a box without 0.
    """

    low: Tensor | float | None = None
    high: Tensor | float | None = None

    def habits(self) -> Habits:
        return Habits(local=True, weighs=True, once=True)

    def __call__(self, step: Step, relevance: Relevance) -> Redistribution:
        low, high = step.memo.get("box", lambda: self._box(step))
        marked = _marked(step, low, high) if is_symbolic(step.x) else low
        parts = [Part(shifted(marked), PLUS), Part(shifted(high), MINUS)]
        native = forward_of(step, Part(IDENTITY, SAME))

        def denominator() -> Tensor:
            corners = self._corners(step, low, high)
            z = native - corners
            size = native.abs() + corners.abs() + cast(Tensor, step.z).abs()  # native is z without its bias
            return torch.where(z <= NOISE * torch.finfo(z.dtype).eps * size, 0.0, z)

        return redistribute(step, relevance, parts, denominator=denominator)

    def _box(self, step: Step) -> tuple[Tensor, Tensor]:
        x = step.x
        axes = tuple(axis for axis in range(x.dim()) if axis != step.batch_axis)
        low = (
            x.amin(axes, keepdim=True).clamp(max=0)
            if self.low is None
            else torch.as_tensor(self.low, dtype=x.dtype, device=x.device)
        )
        high = (
            x.amax(axes, keepdim=True).clamp(min=0)
            if self.high is None
            else torch.as_tensor(self.high, dtype=x.dtype, device=x.device)
        )
        where = f"at {step.node.file}:{step.node.line} {step.node.source}"
        for bound in (low, high):
            if not _broadcasts(bound, x):
                raise DomainError(
                    f"bounds of shape {tuple(bound.shape)} do not fit an input of shape {tuple(x.shape)} ({where}); "
                    "pass numbers, or tensors that broadcast to one sample, such as (channels, 1, 1)"
                )
        if is_symbolic(x):
            return low, high
        slack = _slack(low, high)
        if bool((low > 0).any()) or bool((high < 0).any()):
            raise DomainError(
                f"z^B needs low <= 0 <= high, got low up to {low.max():g}, high down to {high.min():g} ({where})"
            )
        if bool((x < low - slack).any()) or bool((x > high + slack).any()):
            raise DomainError(
                f"the box of z^B excludes the input of the layer {where}: values run from {x.min():g} to {x.max():g}, "
                f"bounds from {low.min():g} to {high.max():g}; give the bounds of the normalised input, per channel: "
                "bounds=((0 - mean) / std, (1 - mean) / std), each of shape (channels, 1, 1)"
            )
        return low, high

    def _corners(self, step: Step, low: Tensor, high: Tensor) -> Tensor:
        """Σ_i l_i w_ij⁺ + h_i w_ij⁻; cached, unless the box is each sample's own."""
        own = self.low is None or self.high is None
        parts = ((low, PLUS), (high, MINUS))

        def corner(bound: Tensor, weights: WeightMap) -> Tensor:
            if bound.numel() == 1:
                return bound.reshape(()) * forward_of(step, Part(ONE, weights))
            if own and bound.numel() == bound.shape[step.batch_axis]:  # a number per sample
                batch_axis = step.node.batch_dim or 0
                shape = [-1 if axis == batch_axis else 1 for axis in range(step.z.dim())]
                return bound.reshape(shape) * forward_of(step, Part(ONE, weights))
            narrow = bound.dim() < step.x.dim() or bound.shape[0] == 1
            full = bound.expand(affine_of(step).one().shape) if narrow else bound
            return affine_of(step).forward(full, weight_of(step, weights))

        if own:
            return total_of([corner(bound, weights) for bound, weights in parts])
        return step.cache.get(("corners", str(step.x.shape[1:])), lambda: total_of([corner(b, w) for b, w in parts]))


def _slack(low: Tensor, high: Tensor) -> Tensor:
    """So far outside of a box rounding may carry an input."""
    return 1e-5 * (high - low).abs().max()


def _marked(step: Step, low: Tensor, high: Tensor) -> Tensor:
    """The lower bound, NaN for samples outside the box: a program can't raise, so their relevance is NaN."""
    x, slack = step.x, _slack(low, high)
    axes = tuple(axis for axis in range(x.dim()) if axis != step.batch_axis)
    outside = ((x < low - slack) | (x > high + slack)).any(axes, keepdim=True)
    return torch.where(outside, torch.nan, low)


def _broadcasts(bound: Tensor, x: Tensor) -> bool:
    sizes = zip(bound.shape[::-1], x.shape[::-1], strict=False)
    return bound.dim() <= x.dim() and all(own in (1, size) for own, size in sizes)
