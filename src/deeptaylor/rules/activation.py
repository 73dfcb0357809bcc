"""Rules for activations phi(x)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..ops import Role
from ..step import Cache, Function, Step
from ..symbolic import is_symbolic
from .base import Habits, Redistribution, Relevance, Rule, product_into, where_positive
from .gradient import Gradient


@dataclass(frozen=True)
class Secant(Rule):
    """Passes relevance through: R_x = R_y, which in product form is c_x = phi(x)/x · c_y.

    Where phi(0) ≠ 0 (sigmoid, softplus) the secant runs from there, c_x = (phi(x) − phi(0))/x · c_y, and the constant
    phi(0) is booked. Where phi(0) is infinite (1/x, log) relevance passes unchanged.
    """

    roles: ClassVar[tuple[Role, ...]] = ("activation",)

    def habits(self) -> Habits:
        return Habits(underived=True, once=True)

    def as_function(self, step: Step) -> Function | None:
        return lambda x: _AlongSecant.apply(x, step)

    def __call__(self, step: Step, relevance: Relevance) -> Redistribution:
        if step.x.is_complex():  # R = Re(c̄ x), so c = R x/|x|²
            size = step.x.abs().square()
            c = relevance.total(step.z) * step.x / size.masked_fill(size == 0, float("inf"))
            return Redistribution(
                (Relevance(c, product=True),), {"rule": lambda: relevance.total(step.z) * (size == 0)}
            )
        if step.node.short == "relu" and relevance.product:
            return Redistribution((replace(relevance, tensor=where_positive(relevance.tensor, step.z, relevance.own)),))
        if not step.op.at_zero:
            if not relevance.product:
                return Redistribution((relevance,))
            passed = product_into(slope_of(step, step.x, step.z), relevance.tensor)
            return Redistribution((Relevance(passed, product=True, own=True),))
        zero = _at_zero(step)
        if not relevance.product:
            share = Relevance(zero).over(step.z, step.z, 0.0) * relevance.tensor
            return Redistribution((Relevance(relevance.tensor - share),), {"constant": lambda: share})
        slope = slope_of(step, step.x, step.z)
        gap = step.z - zero - slope * step.x
        return Redistribution(
            (Relevance(slope * relevance.tensor, product=True),), {"constant": lambda: (zero + gap) * relevance.tensor}
        )


def _at_zero(step: Step) -> Tensor:
    zero: Tensor = step.memo.get("phi(0)", lambda: torch.nan_to_num(step.offset(), posinf=0.0, neginf=0.0))
    return zero


def slope_of(step: Step, x: Tensor, z: Tensor) -> Tensor:
    """The secant's slope, (phi(x) − phi(0))/x; 0 where x is 0, as such an input carries no relevance."""
    if step.op.rectifies and step.node.short == "relu":
        return (z > 0).to(z.dtype)
    x = x.masked_fill(x == 0, 1.0) if is_symbolic(x) else x  # 0/0 has no derivative
    if not step.op.at_zero:
        return _without_nan(z / x)
    zero = _at_zero(step)
    slope = _without_nan((z - zero) / x)
    near = (x.abs() < 1e-3) & (zero != 0)
    if is_symbolic(near) or bool(near.any()):  # the difference quotient loses its digits there: the tangent instead
        slope = torch.where(near, step.vjp(torch.ones_like(z))[0], slope)
    return slope


def _without_nan(ratio: Tensor) -> Tensor:
    """The ratio, 0 where it is 0/0; in its place, unless it is being recorded."""
    return torch.nan_to_num(ratio, nan=0.0) if is_symbolic(ratio) else ratio.nan_to_num_(nan=0.0)


class _AlongSecant(torch.autograd.Function):
    """phi(x), with the secant's slope for a derivative."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, step: Step) -> Tensor:
        z: Tensor = step.function(x)
        if x.shape != z.shape:  # one number against many constants; autograd adds up what each gets
            x = x.expand(z.shape)
            step = replace(step, taken=(x,), memo=Cache())
        ctx.save_for_backward(x, z)
        ctx.step = step
        return z

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        slope = slope_of(ctx.step, *ctx.saved_tensors)
        return slope * grads[0] if is_symbolic(slope) else slope.mul_(grads[0]), None


@dataclass(frozen=True)
class Tangent(Rule):
    """The tangent at x: c_x = phi'(x) · c_y, as in gradient × input; phi(x) − phi'(x)·x is booked as the rule's."""

    roles: ClassVar[tuple[Role, ...]] = ("activation",)

    def __call__(self, step: Step, relevance: Relevance) -> Redistribution:
        return Gradient()(step, relevance)
