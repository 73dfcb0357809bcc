"""Rules for activations phi(x)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..ops import Role
from ..step import Step
from .base import Redistribution, Relevance, Rule
from .gradient import Gradient


@dataclass(frozen=True)
class Secant(Rule):
    """Passes relevance through: R_x = R_y, which in product form is c_x = phi(x)/x · c_y.

    Where phi(0) ≠ 0 (sigmoid, softplus) the secant runs from there, c_x = (phi(x) − phi(0))/x · c_y, and the constant
    phi(0) is booked. Where phi(0) is infinite (1/x, log) relevance passes unchanged.
    """

    roles: ClassVar[tuple[Role, ...]] = ("activation",)

    def __call__(self, step: Step, relevance: Relevance) -> Redistribution:
        if step.x.is_complex():  # R = Re(c̄ x), so c = R x/|x|²
            size = step.x.abs().square()
            c = relevance.total(step.z) * step.x / size.masked_fill(size == 0, float("inf"))
            return Redistribution(
                (Relevance(c, product=True),), {"rule": lambda: relevance.total(step.z) * (size == 0)}
            )
        if not step.op.at_zero:
            return Redistribution((self._through(step, relevance),))
        zero = step.memo.get("phi(0)", lambda: torch.nan_to_num(step.offset(), posinf=0.0, neginf=0.0))
        if not relevance.product:
            share = Relevance(zero).over(step.z, step.z, 0.0) * relevance.tensor
            return Redistribution((Relevance(relevance.tensor - share),), {"constant": lambda: share})
        slope: Tensor = torch.nan_to_num((step.z - zero) / step.x, nan=0.0)
        near = (step.x.abs() < 1e-3) & (zero != 0)
        if bool(near.any()):  # the difference quotient loses its digits there: the tangent instead
            slope = torch.where(near, step.vjp(torch.ones_like(step.z))[0], slope)
        gap = step.z - zero - slope * step.x
        return Redistribution(
            (Relevance(slope * relevance.tensor, product=True),), {"constant": lambda: (zero + gap) * relevance.tensor}
        )

    @staticmethod
    def _through(step: Step, relevance: Relevance) -> Relevance:
        if not relevance.product:
            return relevance
        if step.op.rectifies and step.node.short == "relu":
            return Relevance(relevance.tensor * (step.z > 0), product=True)
        slope = torch.nan_to_num(step.z / step.x, nan=0.0)  # 0/0: an input of exactly 0 carries no relevance
        return Relevance(slope * relevance.tensor, product=True)


@dataclass(frozen=True)
class Tangent(Rule):
    """The tangent at x: c_x = phi'(x) · c_y, as in gradient × input; phi(x) − phi'(x)·x is booked as the rule's."""

    roles: ClassVar[tuple[Role, ...]] = ("activation",)

    def __call__(self, step: Step, relevance: Relevance) -> Redistribution:
        return Gradient()(step, relevance)
