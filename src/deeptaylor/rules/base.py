"""What rules take and give: `Relevance`, `Redistribution`, `Rule`."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from ..ops import Role
from ..step import Factors, Step
from ..symbolic import is_symbolic

aten = torch.ops.aten
Bias = Literal["ignore", "absorb", "distribute"]
Convention = Literal["paper", "zennit"]
Cause = Literal["bias", "constant", "stabilizer", "rule"]


@dataclass(frozen=True)
class Relevance:
    """Relevance of one tensor: R itself, or in product form c with R = value · c.

    The product form is the induction hypothesis of deep Taylor decomposition (Montavon et al. 2017): where rules keep
    it, nothing is divided by a small activation on the way back.
    """

    tensor: Tensor
    product: bool = False
    own: bool = False
    """Whether nothing else reads the tensor, so that it may be written to."""

    def shared(self) -> Relevance:
        """The same, not to be written to."""
        return replace(self, own=False) if self.own else self

    def times(self, factor: Tensor) -> Tensor:
        """The tensor times a factor of its shape, in its place where that is allowed."""
        return product_into(self.tensor, factor) if self.own else self.tensor * factor

    def total(self, value: Tensor) -> Tensor:
        """R, given the value of the tensor that it belongs to."""
        return taken(self.tensor, value) if self.product else self.tensor

    def booked(self, value: Tensor) -> Tensor:
        """R in float64, for the ledger: where R is large beside what is explained, one rounding of it would show."""
        return taken(self.tensor.double(), value.double()) if self.product else self.tensor.double()

    def over(self, z: Tensor, value: Tensor, epsilon: Tensor | float) -> Tensor:
        """R / (z + epsilon·sign(z)), and 0 where that is 0/0 or a division by exactly 0.

        Args:
            z: the denominator.
            value: the value of the tensor that the relevance belongs to, often z itself.
            epsilon: the stabilizer, ≥ 0.
        """
        if self.product and z is value:
            return self.tensor if is_zero(epsilon) else self.times(kept_share(z, epsilon))
        if z.is_complex():
            return self.total(value) * z / z.abs().square().masked_fill(z == 0, float("inf"))
        total = self.total(value)
        return divided(total, z, epsilon, own=self.own and total is self.tensor and may_write(total, z))

    def beyond(self, s: Tensor, z: Tensor, value: Tensor) -> Tensor:
        """R − s·z: what a rule with denominator z does not hand on; exactly 0 where s is the relevance itself."""
        total = self.total(value)
        return torch.zeros_like(total) if s is self.tensor and z is value else total - taken(s, z)

    def plus(self, other: Relevance, value: Callable[[], Tensor]) -> Relevance:
        """The sum of two messages to one tensor, whose value is asked for only where their forms differ."""
        if self.product == other.product:
            for a, b in ((self, other), (other, self)):
                if a.own and a.tensor.shape == b.tensor.shape:
                    return replace(a, tensor=sum_into(a.tensor, b.tensor))
            return Relevance(self.tensor + other.tensor, self.product, own=True)
        return Relevance(self.total(value()) + other.total(value()))

    def per(self, step: Step) -> Tensor:
        """c = R / z of a step's output, without a look at z where the relevance is c already."""
        return self.tensor if self.product else self.over(step.z, step.z, 0.0)


def may_write(*tensors: Tensor | float) -> bool:
    """Whether no derivative is asked for of any of them, so that what nobody else reads may be overwritten."""
    return not any(isinstance(tensor, Tensor) and tensor.requires_grad for tensor in tensors)


def product_into(own: Tensor, factor: Tensor | float) -> Tensor:
    """own · factor, in the place of `own`, which nobody else reads; new memory costs more than the product."""
    if not isinstance(factor, Tensor) and factor == 1:
        return own
    return own.mul_(factor) if may_write(own, factor) else own * factor


def sum_into(own: Tensor, other: Tensor, weight: float = 1.0) -> Tensor:
    """own + weight · other, in the place of `own`, which nobody else reads."""
    return own.add_(other, alpha=weight) if may_write(own, other) else own + weight * other


def is_zero(epsilon: Tensor | float) -> bool:
    """Whether there is no stabilizer."""
    return not isinstance(epsilon, Tensor) and epsilon == 0


def kept_share(z: Tensor, epsilon: Tensor | float, nonnegative: bool = False) -> Tensor:
    """|z| / (|z| + epsilon): what a stabilizer leaves. `nonnegative` says that z is ≥ 0."""
    size = z if nonnegative else z.abs()
    total = size + epsilon
    return torch.div(size, total, out=total) if may_write(total) and not is_symbolic(total) else size / total


def divided(share: Tensor, z: Tensor, epsilon: Tensor | float, nonnegative: bool = False, own: bool = False) -> Tensor:
    """share / (z + epsilon·sign(z)); without epsilon 0 where z is 0. `nonnegative` says that z is ≥ 0.

    `own` says that nothing else reads `share` and no derivative is asked for, so that the result may take its place.
    """
    if not is_zero(epsilon):
        z = z + epsilon if nonnegative else stabilize(z, epsilon)
        return share.div_(z) if own else share / z
    if share.requires_grad or z.requires_grad or is_symbolic(z):  # 0/0, masked afterwards, has no derivative
        return share / z.masked_fill(z == 0, float("inf"))
    ratio = share.div_(z) if own else share / z
    if nonnegative:
        return where_positive(ratio, z, own=True)
    if z.device.type == "cpu" and math.isfinite(float(ratio.sum())):  # a sum, which a division by 0 would show in,
        return ratio  # costs a fifth of a mask
    return ratio.masked_fill_(z == 0, 0.0)


def where_positive(values: Tensor, z: Tensor, own: bool = False) -> Tensor:
    """The values where z > 0, else 0, whatever stands there; in their place where they may be written to."""
    if own and may_write(values):
        written: Tensor = aten.threshold_backward.grad_input(values, z, 0, grad_input=values)
        return written
    found: Tensor = aten.threshold_backward(values, z, 0)
    return found


def where_negative(own: Tensor, x: Tensor) -> Tensor:
    """The values where x < 0, else 0, in the place of `own`, which nobody else reads."""
    if is_symbolic(x):  # a program's formats know this one
        return where_positive(own, -x)
    bounds = -math.inf, 0  # masks by comparisons branch at every element; derivatives of clamps do not
    if not may_write(own):
        found: Tensor = aten.hardtanh_backward(own, x, *bounds)
        return found
    written: Tensor = aten.hardtanh_backward.grad_input(own, x, *bounds, grad_input=own)
    return written


def taken(c: Tensor, value: Tensor) -> Tensor:
    """value · c; for complex values the real part of value · conj(c), which is what torch's gradients stand for."""
    share = (value * c.conj()).real if c.is_complex() or value.is_complex() else value * c
    return torch.where(c == 0, 0.0, share)  # nothing where c is 0, even of an infinite value: a mask of -inf


def stabilize(z: Tensor, epsilon: Tensor | float) -> Tensor:
    """z + epsilon·sign(z)."""
    # sign(0) counts as +1: otherwise a dead unit would divide by zero
    if is_symbolic(z):  # a program's formats know no copysign
        return z + torch.where(z < 0, -1.0, 1.0).to(z.dtype) * epsilon
    size = epsilon if isinstance(epsilon, Tensor) else z.new_full((), epsilon)
    return sum_into(torch.copysign(size, z), z)


@dataclass(frozen=True)
class Redistribution:
    """What a rule hands on to each of a step's xs, and what it absorbs."""

    messages: tuple[Relevance | None, ...]
    absorbed: Mapping[Cause, Callable[[], Tensor]] = field(default_factory=dict)
    """By cause, shaped like z (or summing to the same per sample); computed only when a ledger asks."""


@dataclass(frozen=True)
class Habits:
    """What a rule does and doesn't do, beyond its formula."""

    underived: bool = False
    """It hardly asks for the operation's vector-Jacobian product, so that none is recorded beforehand."""
    local: bool = False
    """It reads z only where relevance arrives: before a ReLU, the ReLU's output can stand in for z."""
    blind: bool = False
    """It reads neither x nor z, given R: a ReLU's output can stand in for z wherever relevance arrives."""
    weighs: bool = False
    """It multiplies c by z before all else: behind a ReLU, c needs no mask."""
    once: bool = False
    """It reads relevance once, so that relevance nobody else reads may be overwritten."""


NO_HABITS = Habits()


@dataclass(frozen=True)
class Rule(ABC):
    """Sends relevance from an operation's output to its data inputs.

    A subclass is a frozen dataclass with the formula in `__call__`, and says in `roles` what it can serve.
    """

    roles: ClassVar[tuple[Role, ...]] = ()
    signs: ClassVar[bool] = False
    """Whether it asks for signs or sizes, so that it can't serve complex values."""

    def habits(self) -> Habits:
        """What the engine may rely on to save work; of no effect on a subclass with a `__call__` of its own."""
        return Habits()

    def as_function(self, step: Step) -> Callable[..., Any] | None:
        """A function with the operation's value whose vector-Jacobian product is this rule in product form, or None.

        It is a function of `step.xs`, of which those in `receives` get a derivative. Only the step's operation may be
        looked at, not its values. Where there is one, the values of sums, rearrangements and affine operations are not
        kept for the way back, and a plan made of such rules runs as one backward pass of autograd.
        """
        return None

    @abstractmethod
    def __call__(self, step: Step, relevance: Relevance) -> Redistribution:
        """Messages to `step.xs`, given the relevance of `step.z`."""

    def added_up(self, step: Step) -> Tensor | None:
        """z as the sum of what this rule adds up anyway, before `step.z` is there; None: as the operation makes it.

        Asked in programs only, which can't look where a difference would cancel.
        """
        return None

    def receives(self, count: int, factors: Factors) -> tuple[int, ...]:
        """Which of the `count` arguments that carry relevance get a share; decided once, in the plan."""
        return tuple(range(count))

    def __str__(self) -> str:
        values = ", ".join(f"{name}={_short(value)}" for name, value in vars(self).items() if value is not None)
        return f"{type(self).__name__}({values})"

    def root_points(self, layer: Any, x: Tensor, neurons: Any = None) -> Tensor:
        """The points at which this rule is a first-order Taylor expansion; see `deeptaylor.roots.root_points`."""
        from ..roots import root_points

        return root_points(self, layer, x, neurons)


def habits_of(rule: Rule) -> Habits:
    """A rule's habits, where they are said of the very `__call__` that it has."""
    for cls in type(rule).__mro__:
        if "habits" in vars(cls):
            return rule.habits()
        if "__call__" in vars(cls):
            return NO_HABITS
    return NO_HABITS


def _short(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{value.item():g}" if value.numel() == 1 else f"tensor{tuple(value.shape)}"
    return f"{value:g}" if isinstance(value, float) else repr(value)


def sample_mean(values: Tensor, batch_axis: int = 0) -> Tensor:
    """Mean over everything but the batch axis; all axes are kept for broadcasting."""
    axes = tuple(axis for axis in range(values.dim()) if axis != batch_axis)
    return values.mean(axes, keepdim=True) if axes else values
