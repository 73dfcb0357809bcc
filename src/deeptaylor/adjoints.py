"""The transposed Jacobians of a few frequent operations, which autograd would have to record one by one.

Each entry runs the operation and says how what arrives at its output goes to its first argument; the values are those
that autograd would give. Other operations are recorded, which takes several times the work of a small operation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten
Back = Callable[[Tensor], Tensor]
Adjoint = Callable[..., tuple[Tensor, Back]]


def _reshaped(operation: Any) -> Adjoint:
    def run(x: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Back]:
        shape = x.shape
        return operation(x, *args, **kwargs), lambda c: c.reshape(shape)

    return run


def _same(operation: Any) -> Adjoint:
    return lambda x, **layout: (operation(x, **layout) if layout else x.view_as(x), lambda c: c)


def _permuted(x: Tensor, dims: Sequence[int]) -> tuple[Tensor, Back]:
    axes = [axis % x.dim() for axis in dims]
    return x.permute(axes), lambda c: c.permute([axes.index(axis) for axis in range(len(axes))])


def _transposed(x: Tensor, dim0: int, dim1: int) -> tuple[Tensor, Back]:
    return x.transpose(dim0, dim1), lambda c: c.transpose(dim0, dim1)


def _max_pooled(
    x: Tensor, kernel_size: Any, stride: Any = (), padding: Any = 0, dilation: Any = 1, ceil_mode: bool = False
) -> tuple[Tensor, Back]:
    settings = kernel_size, stride, padding, dilation, ceil_mode
    if _are_two_by_two(x, settings):
        return _halved(x)
    z, indices = aten.max_pool2d_with_indices.default(x, *settings)
    return z, lambda c: aten.max_pool2d_with_indices_backward.default(c, x, *settings, indices)


def _are_two_by_two(x: Tensor, settings: Sequence[Any]) -> bool:
    """Whether a CPU pools windows of 2 × 2 that cover x: torch takes up to twice as long as a comparison."""
    kernel, stride, padding, dilation = ({*value} if isinstance(value, list) else {value} for value in settings[:4])
    plain = kernel == {2} and stride <= {2} and padding == {0} and dilation == {1}
    covered = x.is_contiguous() and x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64)
    return plain and covered and not x.shape[-1] % 2 and not x.shape[-2] % 2 and x.numel() > 0


def _halved(x: Tensor) -> tuple[Tensor, Back]:
    """Max-pooling of 2 × 2: of neighbours in a row, then of rows; of equal values the first wins, as torch's."""
    rows = torch.maximum(*_neighbours(x, -1))
    return torch.maximum(*_neighbours(rows, -2)), lambda c: _to_larger(_to_larger(c, rows, -2), x, -1)


def _neighbours(x: Tensor, axis: int) -> tuple[Tensor, ...]:
    """The values at even and at odd places along an axis."""
    return x.unflatten(axis, (-1, 2)).unbind(axis)


def _to_larger(c: Tensor, x: Tensor, axis: int) -> Tensor:
    """c to the larger of each two neighbours of x, to the first where they are equal."""
    first, second = _neighbours(x, axis)
    gap = second - first
    later = aten.threshold_backward.grad_input(c, gap, 0, grad_input=gap)
    whole = x.new_empty(x.shape)
    before, after = _neighbours(whole, axis)
    after.copy_(later)
    torch.sub(c, later, out=before)
    return whole


def _averaged(x: Tensor, output_size: Any) -> tuple[Tensor, Back]:
    return aten.adaptive_avg_pool2d.default(x, output_size), lambda c: aten._adaptive_avg_pool2d_backward.default(c, x)


ADJOINTS: dict[Any, Adjoint] = {
    **{op: _reshaped(op) for op in (
        aten.view.default, aten._unsafe_view.default, aten.reshape.default, aten.flatten.using_ints,
        aten.unsqueeze.default, aten.squeeze.dim,
    )},
    **{op: _same(op) for op in (aten.clone.default, aten.alias.default, aten.detach.default)},
    aten.contiguous.default: lambda x, **layout: (x.contiguous(**layout), lambda c: c),
    aten.permute.default: _permuted,
    aten.transpose.int: _transposed,
    aten.max_pool2d.default: _max_pooled,
    aten.adaptive_avg_pool2d.default: _averaged,
}  # fmt: skip
