"""Rules for max-pooling; average pooling is a sum."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..affine import Window
from ..errors import CompositeError
from ..forms import arguments_of, per_axis
from ..step import Step
from .base import Redistribution, Relevance
from .rearrange import Move, RearrangeRule


@dataclass(frozen=True)
class WinnerTakesAll(Move):
    """All relevance to the largest value of the window; of equal ones, to the one that torch picks."""


@dataclass(frozen=True)
class PNorm(RearrangeRule):
    """Max-pooling as p-norm pooling: R_i = |x_i|^p / Σ |x_i|^p · R over the window. Montavon et al. 2017, appendix.

    p = 1 shares by size; p = inf gives all to the largest, ties sharing evenly.
    """

    p: float = 2.0

    def __call__(self, step: Step, relevance: Relevance) -> Redistribution:
        if self.p == float("inf"):
            window = window_of(step)
            largest = step.vjp(relevance.total(step.z), lambda x: window.views(x, float("-inf")).amax(0))
            return Redistribution((Relevance(largest[0]),))
        values = window_of(step).views(step.x.abs(), 0.0)
        # scaled by each window's largest value: powers must neither overflow nor vanish
        weights = (values / values.amax(0).clamp(min=torch.finfo(values.dtype).tiny)) ** self.p
        z = weights.sum(0)
        s = relevance.over(z, step.z, 0.0)
        (message,) = step.vjp(weights * s, lambda x: window_of(step).views(x, 0.0))
        return Redistribution((Relevance(message),), {"rule": lambda: relevance.total(step.z) - s * z})


def share_by(weights: Tensor, step: Step, relevance: Relevance, epsilon: float = 0.0) -> Redistribution:
    """Shares a max-pool's relevance within each window in proportion to `weights`, which are shaped like x."""
    window = window_of(step)
    z = window.sum(weights)
    s = relevance.over(z, step.z, epsilon)
    message = Relevance(weights * window.spread(s))
    return Redistribution((message,), {"rule": lambda: relevance.total(step.z) - s * z})


def window_of(step: Step) -> Window:
    """The sliding window of a max-pool; refuses operations that have none."""
    arguments = arguments_of(step.node.op, step.node.args, step.node.kwargs)
    if not step.node.short.startswith("max_pool"):
        raise CompositeError(
            f"{step.node.kind} at {step.node.file}:{step.node.line} has no sliding window; give it WinnerTakesAll"
        )
    axes = int(step.node.short.removeprefix("max_pool")[0])
    kernel = per_axis(arguments["kernel_size"], axes)
    return Window(
        shape=tuple(step.x.shape[-axes:]),
        out=tuple(step.z.shape[-axes:]),
        kernel=kernel,
        stride=per_axis(arguments["stride"] or kernel, axes),
        padding=per_axis(arguments["padding"], axes),
        dilation=per_axis(arguments["dilation"], axes),
    )
