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
    z, indices = aten.max_pool2d_with_indices.default(x, *settings)
    return z, lambda c: aten.max_pool2d_with_indices_backward.default(c, x, *settings, indices)


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
