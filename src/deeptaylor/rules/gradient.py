"""Gradient × input: every operation expanded at x itself; what that misses is taken as the rule's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from ..ops import Role
from ..step import Factors, Function, Step
from .base import Redistribution, Relevance, Rule, taken


@dataclass(frozen=True)
class Gradient(Rule):
    """Tangent at x: c_x = Jᵀ c_y. For affine layers this is LRP-0; for softmax, the Taylor rule of AttnLRP.

    Products count once per factor (Euler: the sum is their degree times the value), and phi(x) ≠ phi'(x)·x: the ledger
    books the difference, positive or negative, as absorbed by the rule.
    """

    roles: ClassVar[tuple[Role, ...]] = (
        "rearrange", "sum", "affine", "activation", "product", "normalization", "softmax",
    )  # fmt: skip

    def as_function(self, step: Step) -> Function | None:
        return step.function

    def __call__(self, step: Step, relevance: Relevance) -> Redistribution:
        if step.affine is not None:
            c = relevance.per(step)
            message = Relevance(step.affine.transpose(c, step.affine.weight), product=True)
            bias = step.affine.bias
            absorbed: Any = {"rule": lambda: relevance.beyond(c, step.z, step.z)}
            if bias is not None:
                absorbed["bias"] = lambda: c * bias
            return Redistribution((message,), absorbed)
        c = relevance.per(step)
        if step.op.role == "activation" and not step.is_complex:  # elementwise, and some have no second derivative
            slope = step.vjp(torch.ones_like(step.z))[0]
            return Redistribution(
                (Relevance(slope * c, product=True),),
                {"rule": lambda: relevance.total(step.z) - taken(c, slope * step.x)},
            )
        messages = tuple(Relevance(g, product=True) for g in step.vjp(c))
        if (
            step.op.role == "product" and len(step.taken) == 1 and not step.op.attends
        ):  # Euler: J·x is the degree times z
            return Redistribution(
                messages, {"rule": lambda: relevance.total(step.z) - taken(c, step.op.degree * step.z)}
            )
        return Redistribution(messages, {_cause(step): lambda: relevance.total(step.z) - taken(c, step.linear_part())})


def _cause(step: Step) -> Any:
    return "constant" if step.op.role in ("sum", "rearrange") else "rule"


@dataclass(frozen=True)
class HeldConstant(Rule):
    """Hands nothing on: the operation is taken as a constant, and what reaches it is taken."""

    roles: ClassVar[tuple[Role, ...]] = Gradient.roles

    def as_function(self, step: Step) -> Function | None:
        return step.function

    def __call__(self, step: Step, relevance: Relevance) -> Redistribution:
        return Redistribution((None,) * len(step.taken), {"rule": lambda: relevance.total(torch.as_tensor(step.z))})

    def receives(self, count: int, factors: Factors) -> tuple[int, ...]:
        return ()
