"""Rules for sums: additions, averages, batch norm of its own, scaling and shifting by constants."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ..graph import is_plain_sum
from ..ops import Role
from ..step import Function, Step
from .base import Cause, Habits, Redistribution, Relevance, Rule, taken, where_positive
from .pooling import share_by


@dataclass(frozen=True)
class Proportional(Rule):
    """Share by summand: R_i = x_i a_i / (z + ε sign z) · R, whatever the signs. LRP-ε of a sum.

    `bias="absorb"` lets added constants keep their share; "ignore" leaves them out of the denominator. Given to a
    max-pool, it is the sum-pool rule: by value within the window.

    Below a layer whose rule does not weigh by value (w², flat, z^B), scaling and shifting by constants (a model that
    normalises its own input) pass relevance unchanged: it belongs to the place there, not to the value.
    """

    epsilon: float = 0.0
    bias: Literal["absorb", "ignore"] = "absorb"
    roles: ClassVar[tuple[Role, ...]] = ("sum", "rearrange")

    def habits(self) -> Habits:
        return Habits(local=True, weighs=self.epsilon > 0 or self.bias == "ignore", once=True)

    def as_function(self, step: Step) -> Function | None:
        passes = step.op.role == "sum" and self.epsilon == 0 and self.bias == "absorb"
        return step.function if passes else None

    def __call__(self, step: Step, relevance: Relevance) -> Redistribution:
        if step.op.role == "rearrange":
            return share_by(step.x, step, relevance, self.epsilon)
        if step.op.coefficients == "single" and not relevance.product:
            return unchanged(step, relevance)
        offset = step.offset() if step.op.offset else None
        absorbed: dict[Cause, Callable[[], Tensor]] = {}
        if self.epsilon == 0 and (self.bias == "absorb" or offset is None):
            s = relevance.per(step)
            absorbed["stabilizer"] = lambda: relevance.beyond(s, step.z, step.z)
        else:
            z = step.z - offset if self.bias == "ignore" and offset is not None else step.z
            s = relevance.over(z, step.z, self.epsilon)
            absorbed["stabilizer"] = lambda: relevance.beyond(s, z, step.z)
        if self.bias == "absorb" and offset is not None:
            absorbed["constant"] = lambda: taken(s, offset)
        return Redistribution(tuple(Relevance(g, product=True) for g in _handed(step, s)), absorbed)


@dataclass(frozen=True)
class PositiveProportional(Rule):
    """Share by positive summand: the z⁺ rule of a sum, with added constants ignored. Roots in R₊.

    Sums with coefficients of both signs (a difference, bicubic upsampling) share as `Proportional` does.
    """

    roles: ClassVar[tuple[Role, ...]] = ("sum",)

    def habits(self) -> Habits:
        return Habits(local=True, once=True)

    def __call__(self, step: Step, relevance: Relevance) -> Redistribution:
        if step.is_complex:
            return Proportional(bias="ignore")(step, relevance)
        if step.op.coefficients == "single":
            return self._one_to_one(step, relevance) if relevance.product else unchanged(step, relevance)
        if step.op.coefficients == "mixed" or _negated(step):
            return Proportional(bias="ignore")(step, relevance)
        if step.nonnegative:
            return Proportional()(step, relevance)
        z = step.memo.get("z⁺", lambda: step.function(*(x.clamp(min=0) for x in step.xs)))
        s = relevance.over(z, step.z, 0.0)
        parts = zip(step.vjp(s), step.xs, strict=True)
        messages = tuple(Relevance(where_positive(g, x), product=True) for g, x in parts)
        return Redistribution(messages, {"rule": lambda: relevance.booked(step.z) - s.double() * z.double()})

    def _one_to_one(self, step: Step, relevance: Relevance) -> Redistribution:
        """One summand and a constant: all relevance goes to the summand where its contribution is positive."""
        own = step.z - step.offset() if step.op.offset else step.z
        negative = own <= 0 if step.op.offset else torch.zeros_like(own, dtype=torch.bool)
        total = relevance.total(step.z)
        s = torch.where(negative, 0, total) / torch.where(own == 0, 1, own)
        messages = tuple(Relevance(g * x) for g, x in zip(step.vjp(s), step.xs, strict=True))
        return Redistribution(messages, {"constant": lambda: total - s * own})


def _handed(step: Step, s: Tensor) -> tuple[Tensor, ...]:
    """Jᵀ·s: s itself to both, where tensors of its shape are added, which autograd would add once more to find out."""
    plain = is_plain_sum(step.node) and len(step.taken) == 2
    if plain and all(isinstance(x, Tensor) and x.shape == s.shape and x.dtype == s.dtype for x in step.taken):
        return s, s
    return step.vjp(s)


def _negated(step: Step) -> bool:
    alpha = step.node.kwargs.get("alpha", 1)
    return not isinstance(alpha, int | float) or alpha < 0


def unchanged(step: Step, relevance: Relevance) -> Redistribution:
    """R as it is, gathered where one value was broadcast to many places."""
    return Redistribution((Relevance(relevance.tensor.sum_to_size(step.x.shape)),))


@dataclass(frozen=True)
class ResidualGamma(Rule):
    """Favours the summand of the sum's own sign: R_i = w_i x_i / Σ w_j x_j · R, w = 1 + γ·1[x·z > 0].

    For residual additions z = x + f(x), where opposite signs cancel: Σ|R_i| ≤ (1 + 2/γ)|R|.
    ResLRP (Berend et al. 2026), in its conserving form.
    """

    gamma: float = 1.0
    roles: ClassVar[tuple[Role, ...]] = ("sum",)

    def __call__(self, step: Step, relevance: Relevance) -> Redistribution:
        alpha = step.node.kwargs.get("alpha", 1)
        terms = [step.xs[0], step.xs[1] * alpha if alpha != 1 else step.xs[1]]
        weights = [1 + self.gamma * (x * step.z > 0) for x in terms]
        denominator = weights[0] * terms[0] + weights[1] * terms[1]
        c = relevance.per(step)
        ratio = torch.where(denominator == 0, 1.0, step.z / denominator.masked_fill(denominator == 0, 1.0)) * c
        factors = (1, alpha)
        messages = tuple(
            Relevance((ratio * w * factor).sum_to_size(x.shape), product=True)
            for w, factor, x in zip(weights, factors, step.xs, strict=True)
        )
        return Redistribution(messages, {"rule": lambda: relevance.beyond(c, step.z, step.z)})
