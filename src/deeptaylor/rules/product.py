"""Rules for products of data: gates, attention, division by a statistic."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from ..errors import CompositeError
from ..ops import Role
from ..step import Step
from .base import Redistribution, Relevance, Rule


class ProductRule(Rule):
    """A rule for products of data tensors."""

    roles: ClassVar[tuple[Role, ...]] = ("product",)


@dataclass(frozen=True)
class SignalTakesAll(ProductRule):
    """All relevance to the signal; gates, attention weights and denominators are held constant.

    Root (0, gate). A factor is a gate where it comes from a sigmoid, softmax or 1/sqrt, and the other does not; a
    divisor always is, and so are query and key. Where no factor is a gate, or all are, each gets an equal share.
    Arras et al. 2017; for attention, Ali et al. 2022.
    """

    def __call__(self, step: Step, relevance: Relevance) -> Redistribution:
        receivers = self.receives(len(step.xs), step.gates)
        s = relevance.over(step.z, step.z, 0.0)
        shares = dict(zip(receivers, step.vjp(s, only=receivers), strict=True))
        messages = tuple(
            Relevance(shares[i] / _parts(step, len(receivers)), product=True) if i in receivers else None
            for i in range(len(step.xs))
        )
        return Redistribution(messages, {"rule": lambda: relevance.total(step.z) - s * step.z})

    def receives(self, count: int, gates: tuple[int, ...]) -> tuple[int, ...]:
        signals = tuple(i for i in range(count) if i not in gates)
        return signals if signals and gates else tuple(range(count))


def _parts(step: Step, receivers: int) -> int:
    """How often Σ x·∂z counts z: once per receiving factor, and by the degree of each."""
    return receivers * step.op.degree


@dataclass(frozen=True)
class Uniform(ProductRule):
    """Equal shares to the factors: R/2 each for x·y, the mean over the roots (x, 0) and (0, y). AttnLRP, prop. 3.3."""

    def __call__(self, step: Step, relevance: Relevance) -> Redistribution:
        if step.node.short == "div":
            raise CompositeError(
                f"{step.node.kind} at {step.node.file}:{step.node.line}: a quotient has no equal shares; "
                "use SignalTakesAll"
            )
        s = relevance.over(step.z, step.z, 0.0)
        messages = tuple(Relevance(g / _parts(step, len(step.xs)), product=True) for g in step.vjp(s))
        return Redistribution(messages, {"rule": lambda: relevance.total(step.z) - s * step.z})


@dataclass(frozen=True)
class StatisticConstant(Rule):
    """Normalizations as linear maps: the scale 1/sqrt(var + eps) is held constant, centering is shared as the linear
    map it is, and the bias keeps its share. Ali et al. 2022 (LN rule); RMSNorm's identity rule (AttnLRP).
    """

    roles: ClassVar[tuple[Role, ...]] = ("normalization",)

    def __call__(self, step: Step, relevance: Relevance) -> Redistribution:
        function = step.linearized
        s = relevance.over(step.z, step.z, 0.0)
        messages = tuple(Relevance(g, product=True) for g in step.vjp(s, function))
        return Redistribution(
            messages,
            {
                "constant": lambda: s * (step.z - step.linear_part(function)),
                "rule": lambda: relevance.total(step.z) - s * torch.as_tensor(step.z),
            },
        )
