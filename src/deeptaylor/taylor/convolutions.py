"""Convolutions whose second derivative costs two of them: torch's takes three, one for a weight that nobody asks for.

A convolution and its transpose are each other's derivative by the input, at every order.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ..forms import per_axis

aten = torch.ops.aten
_AXES = {torch.conv1d: 1, torch.conv2d: 2, torch.conv3d: 3}


class ConstantWeights(TorchFunctionMode):
    """While it is active, convolutions by weights that no input has made are differentiated by their input alone."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = dict(zip(("input", "weight", "bias", "stride", "padding", "dilation", "groups"), args, strict=False))
        given |= kwargs or {}
        if func not in _AXES or not _serves(_AXES[func], **given):
            return func(*args, **(kwargs or {}))
        return _convolved(_AXES[func], **given)


def _serves(axes: int, input: Tensor, weight: Tensor, bias: Any = None, padding: Any = 0, **_: Any) -> bool:
    made = any(isinstance(value, Tensor) and value.grad_fn is not None for value in (weight, bias))
    return not made and input.dim() == axes + 2 and not isinstance(padding, str)


def _convolved(
    axes: int, input: Tensor, weight: Tensor, bias: Any = None, stride: Any = 1, padding: Any = 0,
    dilation: Any = 1, groups: int = 1,
) -> Tensor:  # fmt: skip
    stride, padding, dilation = (per_axis(value, axes) for value in (stride, padding, dilation))
    settings = (stride, padding, dilation, False, (0,) * axes, groups)
    out: Tensor = _Convolve.apply(input, weight.detach(), settings)
    return out if bias is None else out + bias.detach().view(-1, *[1] * axes)


class _Convolve(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, settings: Any) -> Tensor:
        ctx.weight, ctx.settings, ctx.shape = weight, settings, x.shape
        out: Tensor = aten.convolution.default(x, weight, None, *settings)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return _Transpose.apply(grads[0], ctx.weight, ctx.settings, ctx.shape), None, None


class _Transpose(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, s: Tensor, weight: Tensor, settings: Any, shape: torch.Size) -> Tensor:
        ctx.weight, ctx.settings = weight, settings
        like = s.new_zeros(()).expand(shape)  # only its shape is read
        out: Tensor = aten.convolution_backward.default(s, like, weight, None, *settings, [True, False, False])[0]
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return _Convolve.apply(grads[0], ctx.weight, ctx.settings), None, None, None
