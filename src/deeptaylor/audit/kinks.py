"""Where a piecewise linear operation bends: its branch at a point, and how far other points are from leaving it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..forms import Arguments, arguments_of
from ..graph import Node
from ..ops import Op
from ..rules.pooling import window_of
from ..step import Step
from .choices import ADAPTIVE, CHOOSERS, held

aten = torch.ops.aten


@dataclass(frozen=True)
class Kink:
    """One operation held on the linear branch that it takes at a point x."""

    frozen: Callable[..., Any]
    """The branch, as a function of the values that depend on the source."""
    margins: Callable[..., list[Tensor]]
    """Each (points, …): ≥ 0 while the operation stays on that branch; exactly affine in its arguments."""


def _bounds(low: str, high: str) -> Callable[[Arguments], tuple[float, ...]]:
    return lambda a: tuple(float(a[name]) for name in (low, high) if a.get(name) is not None)


ELEMENTWISE: Mapping[Any, Callable[[Arguments], tuple[float, ...]]] = {
    aten.relu.default: lambda a: (0.0,),
    aten.relu6.default: lambda a: (0.0, 6.0),
    aten.leaky_relu.default: lambda a: (0.0,),
    aten.prelu.default: lambda a: (0.0,),
    aten._prelu_kernel.default: lambda a: (0.0,),
    aten.abs.default: lambda a: (0.0,),
    aten.hardtanh.default: _bounds("min_val", "max_val"),
    aten.hardsigmoid.default: lambda a: (-3.0, 3.0),
    aten.clamp.default: _bounds("min", "max"),
    aten.clamp_min.default: _bounds("min", "min_"),
    aten.clamp_max.default: _bounds("max", "max_"),
}
"""Continuous piecewise linear functions of one number, with the points where they bend."""


def is_linear(node: Node, op: Op) -> bool:
    """Whether an operation is affine in what depends on the source."""
    if op.role in ("sum", "affine"):
        return True
    return op.role == "rearrange" and not _selects(node)


def _selects(node: Node) -> bool:
    """Whether which value moves depends on the values."""
    return any(word in node.short for word in ("max", "min", "sort", "topk", "median", "mode", "kth"))


def has_kinks(node: Node) -> bool:
    """Whether `kink_of` knows an operation's linear branches."""
    known = node.op in ELEMENTWISE or node.op in _POOLS or node.op in CHOOSERS or node.op in ADAPTIVE
    return known or node.short in ("maximum", "minimum")


_POOLS = (
    aten.max_pool1d.default, aten.max_pool2d.default, aten.max_pool3d.default,
    aten.max_pool2d_with_indices.default, aten.max_pool3d_with_indices.default,
)  # fmt: skip


def kink_of(node: Node, op: Op, arguments: Arguments, call: Callable[..., Tensor], xs: tuple[Tensor, ...]) -> Kink:
    """The linear branch that an operation takes at `xs`.

    Args:
        node: the operation.
        op: what it is.
        arguments: its arguments by name.
        call: the operation as a function of `xs`.
        xs: the values at the point, one sample.
    """
    if node.op in ELEMENTWISE:
        return _elementwise(call, xs[0], ELEMENTWISE[node.op](arguments))
    if node.op in _POOLS:
        return _pool(Step(node, op, call, xs, call(*xs)[0] if op.first else call(*xs)))
    if node.op in CHOOSERS or node.op in ADAPTIVE:
        return Kink(*held(node.op, arguments, xs[0], call(*xs)))
    return _of_two(node, xs)


def _elementwise(call: Callable[..., Tensor], x: Tensor, kinks: tuple[float, ...]) -> Kink:
    leaf = x.detach().requires_grad_()
    with torch.enable_grad():
        value = call(leaf)
        (slope,) = torch.autograd.grad(value.sum(), leaf)
    value = value.detach()

    def frozen(point: Tensor) -> Tensor:
        return value + slope * (point - x)

    # at a kink itself x counts as below it, as torch's derivative does (but for an upper bound met exactly)
    sides = [torch.where(x > kink, 1.0, -1.0).to(x) for kink in kinks]

    def margins(point: Tensor) -> list[Tensor]:
        return [side * (point - kink) for side, kink in zip(sides, kinks, strict=True)]

    return Kink(frozen, margins)


def _pool(step: Step) -> Kink:
    window = window_of(step)
    winner = window.views(step.x, float("-inf")).argmax(0, keepdim=True)

    def frozen(point: Tensor) -> Any:
        views = window.views(point, float("-inf"))
        value = views.gather(0, winner.expand(1, *views.shape[1:]))[0]
        return (value,) if step.op.first else value

    def margins(point: Tensor) -> list[Tensor]:
        views = window.views(point, float("-inf"))
        own = winner.expand(1, *views.shape[1:])
        ahead = views.gather(0, own) - views
        # neither padding nor the winner itself can win
        return list(torch.where(torch.isinf(views), 1.0, ahead).scatter(0, own, 1.0))

    return Kink(frozen, margins)


def _of_two(node: Node, xs: tuple[Tensor, ...]) -> Kink:
    a, b = xs
    first = (a >= b) if node.short == "maximum" else (a <= b)
    sign = 1.0 if node.short == "maximum" else -1.0

    def frozen(left: Tensor, right: Tensor) -> Tensor:
        return torch.where(first, left, right)

    def margins(left: Tensor, right: Tensor) -> list[Tensor]:
        return [sign * torch.where(first, left - right, right - left)]

    return Kink(frozen, margins)


def arguments_at(node: Node, args: Any, kwargs: Any) -> dict[str, Any]:
    """A node's arguments by name, given their values."""
    return arguments_of(node.op, args, kwargs)
