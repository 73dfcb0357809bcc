"""Rules for products of data: gates, attention, division by a statistic."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..errors import CompositeError
from ..ops import Role
from ..step import Factors, Function, Step
from .base import Redistribution, Relevance, Rule, taken


class ProductRule(Rule):
    """A rule for products of data tensors."""

    roles: ClassVar[tuple[Role, ...]] = ("product",)


@dataclass(frozen=True)
class SignalTakesAll(ProductRule):
    """All relevance to the signal; gates, attention weights and statistics are held constant. Root (0, gate).

    Which factor is a gate, `facts.Gates` tells; where none is, or all are, each gets an equal share. With `readouts`,
    a state takes all where one layer's output reads it (state-space models). Arras et al. 2017; for attention, Ali et
    al. 2022; for states, Rezaei Jafari et al. 2024.
    """

    readouts: bool = False

    def __call__(self, step: Step, relevance: Relevance) -> Redistribution:
        return _shared(step, relevance, _equal(step, self.receives(len(step.taken), step.factors)))

    def as_function(self, step: Step) -> Function | None:
        return _weighed(step, _equal(step, self.receives(len(step.taken), step.factors)))

    def receives(self, count: int, factors: Factors) -> tuple[int, ...]:
        gates = factors.gates if factors.kind < 4 or self.readouts else ()
        return _but(count, {*gates, *factors.statistics}) or _but(count, factors.statistics) or tuple(range(count))


@dataclass(frozen=True)
class Uniform(ProductRule):
    """Equal shares to the factors: R/2 each for x·y, the mean over the roots (x, 0) and (0, y). AttnLRP, prop. 3.3.

    Statistics (a divisor, 1/sqrt) are held constant. Fused attention: half to the values, and the attention weights'
    half through softmax (expanded at x) to query and key, a quarter each: attention's own gradient, scaled.
    """

    def __call__(self, step: Step, relevance: Relevance) -> Redistribution:
        return _shared(step, relevance, _equal(step, self.receives(len(step.taken), step.factors)))

    def as_function(self, step: Step) -> Function | None:
        return _weighed(step, _equal(step, self.receives(len(step.taken), step.factors)))

    def receives(self, count: int, factors: Factors) -> tuple[int, ...]:
        return _but(count, factors.statistics) or tuple(range(count))


def _but(count: int, held: Collection[int]) -> tuple[int, ...]:
    return tuple(i for i in range(count) if i not in held)


def _equal(step: Step, receivers: tuple[int, ...]) -> dict[int, float]:
    """Weights of the receivers' terms x·∂z/∂x, so that together they are z: each counts z once, by its degree."""
    if not step.op.attends:
        added = [i for i in receivers if step.factors.positions[i] in step.op.added]
        factors = [i for i in receivers if i not in added]
        return dict.fromkeys(added, 1.0) | dict.fromkeys(factors, 1 / (len(factors or [0]) * step.op.degree))
    where = {step.factors.positions[i]: i for i in receivers}
    scores = [position for position in (0, 1) if position in where]
    weights = {where[2]: 1.0} if 2 in where else {}
    halves = 2 if weights and (scores or 3 in where) else 1
    weights = {i: 1 / halves for i in weights}
    weights |= {where[position]: 1 / (halves * len(scores)) for position in scores}
    return weights | ({where[3]: 1 / halves} if 3 in where else {})


def _weighed(step: Step, weights: Mapping[int, float]) -> Function:
    """The product with its derivatives weighed: at the output where all weigh the same."""
    different = set(weights.values())
    if different == {1.0}:
        return step.function
    if len(different) == 1:
        return lambda *xs: _weigh(step.function(*xs), *different)
    return lambda *xs: step.function(
        *(x if weights.get(i, 1.0) == 1 else _weigh(x.view_as(x), weights[i]) for i, x in enumerate(xs))
    )


def _weigh(x: Tensor, weight: float) -> Tensor:
    """x, whose gradient is multiplied by a number."""
    if x.requires_grad:
        x.register_hook(lambda gradient: gradient * weight)
    return x


def _shared(step: Step, relevance: Relevance, weights: Mapping[int, float]) -> Redistribution:
    """c_i = weight_i · Jᵀc: shares of z in product form."""
    s = relevance.per(step)
    receivers = sorted(weights)
    shares = dict(zip(receivers, step.vjp(s, only=receivers), strict=True))
    messages = tuple(
        Relevance(shares[i] if weights[i] == 1 else shares[i] * weights[i], product=True) if i in shares else None
        for i in range(len(step.taken))
    )

    def kept() -> Tensor:
        values_only = step.op.attends and all(step.factors.positions[i] == 2 for i in receivers)
        if values_only or not (step.op.attends or step.op.offset or step.op.added):
            return relevance.beyond(s, step.z, step.z)
        return relevance.total(step.z) - taken(s, step.linear_part(weights=weights))

    return Redistribution(messages, {"rule": kept})


@dataclass(frozen=True)
class ProportionalProduct(ProductRule):
    """Shares by the factors' sizes: R_i = |x_i| / Σ |x_j| · R, for elementwise products."""

    def __call__(self, step: Step, relevance: Relevance) -> Redistribution:
        if step.node.short != "mul":
            raise CompositeError(
                f"{step.node.kind} at {step.node.file}:{step.node.line} is no elementwise product, so its factors have "
                "no sizes to share by; give it Uniform or SignalTakesAll"
            )
        sizes = [x.abs().expand_as(step.z) for x in step.xs]
        total = torch.stack(sizes).sum(0)
        s = relevance.over(total, step.z, 0.0)
        messages = tuple(Relevance((size * s).sum_to_size(x.shape)) for size, x in zip(sizes, step.xs, strict=True))
        return Redistribution(messages, {"rule": lambda: relevance.beyond(s, total, step.z)})


@dataclass(frozen=True)
class StatisticConstant(Rule):
    """Normalizations as linear maps: the scale 1/sqrt(var + eps) is held constant, centering is shared as the linear
    map it is, and the bias keeps its share. Ali et al. 2022 (LN rule); RMSNorm's identity rule (AttnLRP).
    """

    roles: ClassVar[tuple[Role, ...]] = ("normalization",)

    def as_function(self, step: Step) -> Function | None:
        return step.linearized

    def __call__(self, step: Step, relevance: Relevance) -> Redistribution:
        function = step.linearized
        s = relevance.per(step)
        messages = tuple(Relevance(g, product=True) for g in step.vjp(s, function))
        return Redistribution(
            messages,
            {
                "constant": lambda: s * (step.z - step.linear_part(function)),
                "rule": lambda: relevance.beyond(s, step.z, step.z),
            },
        )
