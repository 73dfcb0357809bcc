"""Backward operations of autograd in terms that every runtime knows: transposed convolutions, scatters, windows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ..affine import Window
from ..forms import per_axis

aten = torch.ops.aten


def _convolution_backward(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Any, stride: Sequence[int], padding: Sequence[int],
    dilation: Sequence[int], transposed: bool, output_padding: Sequence[int], groups: int, wanted: Sequence[bool],
) -> Any:  # fmt: skip
    """The transpose of a convolution towards its input, which is a convolution the other way round."""
    if list(wanted) != [True, False, False]:
        return NotImplemented
    axes = weight.dim() - 2
    stride, padding, dilation = (per_axis(v, axes) for v in (stride, padding, dilation))
    if transposed:
        return (
            aten.convolution.default(grad, weight, None, stride, padding, dilation, False, [0] * axes, groups),
            None,
            None,
        )
    missing = [
        x.shape[i + 2]
        - ((grad.shape[i + 2] - 1) * stride[i] - 2 * padding[i] + dilation[i] * (weight.shape[i + 2] - 1) + 1)
        for i in range(axes)
    ]
    whole = [min(n, s - 1) for n, s in zip(missing, stride, strict=True)]
    made = aten.convolution.default(grad, weight, None, stride, padding, dilation, True, whole, groups)
    return made, None, None


def _max_pool_backward(grad: Tensor, x: Tensor, *settings: Any) -> Tensor:
    """To the place of each window's largest value."""
    indices, axes = settings[-1], len(settings[0])
    lead = x.shape[:-axes]
    none = torch.zeros_like(x).reshape(*lead, -1)
    return none.scatter_add(-1, indices.reshape(*lead, -1), grad.reshape(*lead, -1)).reshape(x.shape)


def _avg_pool_backward(axes: int) -> Callable[..., Tensor]:
    def backward(
        grad: Tensor, x: Tensor, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int],
        ceil_mode: bool, count_include_pad: bool, divisor: int | None = None,
    ) -> Tensor:  # fmt: skip
        kernel = per_axis(kernel, axes)
        window = Window(
            tuple(x.shape[-axes:]), tuple(grad.shape[-axes:]), kernel, per_axis(stride or kernel, axes),
            per_axis(padding, axes), (1,) * axes,
        )  # fmt: skip
        return window.spread(grad / _counts(window, x, count_include_pad, divisor))

    return backward


def _counts(window: Window, x: Tensor, count_include_pad: bool, divisor: int | None) -> Tensor:
    """How many values each window averages; what lies beyond the padding never counts."""
    axes = len(window.kernel)
    if divisor is not None:
        return x.new_full((), divisor)
    ones = x.new_ones((1, 1, *window.shape))
    if not count_include_pad:
        return window.sum(ones).reshape(window.out)
    pads = [n for p in reversed(window.padding) for n in (p, p)]
    padded = Window(
        tuple(n + 2 * p for n, p in zip(window.shape, window.padding, strict=True)), window.out, window.kernel,
        window.stride, (0,) * axes, window.dilation,
    )  # fmt: skip
    return padded.sum(functional.pad(ones, pads, value=1.0)).reshape(window.out)


def _known() -> dict[Any, Callable[..., Any]]:
    """Those backward operations that torch itself can open."""
    table = torch._decomp.decomposition_table
    return {op: made for op, made in table.items() if isinstance(op, torch._ops.OpOverload) and "backward" in str(op)}


EXPLICIT: dict[Any, Callable[..., Any]] = {
    **_known(),
    aten.convolution_backward.default: _convolution_backward,
    aten.max_pool2d_with_indices_backward.default: _max_pool_backward,
    aten.max_pool3d_with_indices_backward.default: _max_pool_backward,
    aten.avg_pool2d_backward.default: _avg_pool_backward(2),
    aten.avg_pool3d_backward.default: _avg_pool_backward(3),
}
