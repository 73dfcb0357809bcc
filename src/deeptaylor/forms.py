"""Reading operations' arguments: as an `Affine`, and as normalizations whose statistics are held constant."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

import torch
from torch import Tensor

from .affine import Affine, Convolution, Geometry, LeftMatmul, Linear, RightMatmul, VectorProduct
from .local_response import LOCAL_RESPONSE, held
from .symbolic import is_symbolic

aten = torch.ops.aten
Arguments = Mapping[str, Any]


def arguments_of(op: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """An operation's arguments by the names in its schema, defaults included."""
    if not isinstance(op, torch._ops.OpOverload):
        return dict(kwargs)
    names, defaults = _schema(op)
    return {**defaults, **dict(zip(names, args, strict=False)), **kwargs}


@cache
def _schema(op: Any) -> tuple[tuple[str, ...], dict[str, Any]]:
    """The names of an operation's arguments, and the defaults of those that have one."""
    schema = op._schema.arguments
    return tuple(a.name for a in schema), {a.name: a.default_value for a in schema if a.has_default_value()}


@dataclass(frozen=True)
class Form:
    """How an operation's arguments become an `Affine`.

    `data` names the arguments that may carry relevance; where another does, the operation is not affine in its data.
    """

    ops: tuple[Any, ...]
    data: tuple[str, ...]
    build: Callable[[dict[str, Any], str], Affine]


def _linear(arguments: dict[str, Any], data: str) -> Affine:
    return Linear(arguments["weight"], arguments["bias"], tuple(arguments["input"].shape))


def _matmul(arguments: dict[str, Any], data: str) -> Affine:
    left: Tensor = arguments["self"]
    right: Tensor = arguments["other"] if "other" in arguments else arguments["mat2"]
    if 1 in (left.dim(), right.dim()):
        vector, matrix = (right, left) if data == "self" else (left, right)
        return VectorProduct(vector, None, tuple(matrix.shape), axis=-1 if data == "self" else -2)
    if data != "self":
        return LeftMatmul(left, None, tuple(right.shape))
    if right.dim() == 2:
        return Linear(right.mT, None, tuple(left.shape))
    return RightMatmul(right, None, tuple(left.shape))


def _addmm(arguments: dict[str, Any], data: str) -> Affine:
    alpha, beta, bias = arguments["alpha"], arguments["beta"], arguments["self"]
    if data == "mat1":
        return Linear((alpha * arguments["mat2"]).mT, beta * bias, tuple(arguments["mat1"].shape))
    return LeftMatmul(alpha * arguments["mat1"], beta * bias, tuple(arguments["mat2"].shape))


def _convolution(arguments: dict[str, Any], data: str) -> Affine:
    x, weight, bias, padding = arguments["input"], arguments["weight"], arguments["bias"], arguments["padding"]
    axes = weight.dim() - 2
    settings = (arguments["stride"], padding, arguments["dilation"], arguments.get("output_padding", 0))
    geometry = _geometry(
        *(value if isinstance(value, str | int) else tuple(value) for value in settings),
        groups=arguments["groups"],
        transposed=bool(arguments.get("transposed", "output_padding" in arguments)),
        kernel=tuple(weight.shape[2:]) if isinstance(padding, str) else (),
        axes=axes,
    )
    return Convolution(
        weight=weight,
        bias=None if bias is None else bias.view(-1, *[1] * axes),
        shape=tuple(x.shape),
        geometry=geometry,
        # in a program, memory without values is filled with zeros; elsewhere it is one more map that nobody reads
        like=x if not geometry.before and (is_symbolic(x) or x.is_contiguous()) else None,
    )


@lru_cache(maxsize=1024)
def _geometry(
    stride: Any,
    padding: Any,
    dilation: Any,
    output_padding: Any,
    *,
    groups: int,
    transposed: bool,
    kernel: tuple[int, ...],
    axes: int,
) -> Geometry:
    dilation = per_axis(dilation, axes)
    before: tuple[int, ...] = ()
    if isinstance(padding, str):
        padding, before = _same(padding, kernel, dilation)
    stride, padding, output_padding = (per_axis(value, axes) for value in (stride, padding, output_padding))
    return Geometry(stride, padding, dilation, transposed, output_padding, groups, before)


def per_axis(value: Any, axes: int) -> tuple[int, ...]:
    """A setting for every spatial axis: one number counts for all."""
    values = tuple(value) if isinstance(value, list | tuple) else (value,)
    return values * axes if len(values) == 1 else values


def _same(padding: str, kernel: tuple[int, ...], dilation: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(padding, padding to be done before): 'same' pads one more on the right where the total is odd."""
    none = (0,) * len(kernel)
    if padding == "valid":
        return none, ()
    totals = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    if all(total % 2 == 0 for total in totals):
        return tuple(total // 2 for total in totals), ()
    return none, tuple(n for total in reversed(totals) for n in (total // 2, total - total // 2))


FORMS = {
    "linear": Form((aten.linear.default,), ("input",), _linear),
    "matmul": Form((aten.matmul.default, aten.mm.default, aten.bmm.default), ("self", "other", "mat2"), _matmul),
    "addmm": Form((aten.addmm.default, aten.baddbmm.default), ("mat1", "mat2"), _addmm),
    "convolution": Form(
        (
            aten.conv1d.default, aten.conv2d.default, aten.conv3d.default, aten.conv1d.padding, aten.conv2d.padding,
            aten.conv3d.padding, aten.conv_transpose1d.default, aten.conv_transpose2d.input,
            aten.conv_transpose3d.input, aten.convolution.default,
        ),
        ("input",),
        _convolution,
    ),
}  # fmt: skip


# --- normalizations: centering is linear, the scale 1/sqrt(var + eps) is held constant (Ali et al. 2022) ----
def _normalize(x: Tensor, dims: Sequence[int], eps: float, *, center: bool = True) -> Tensor:
    if center:
        x = x - x.mean(tuple(dims), keepdim=True)
    return x * torch.rsqrt(x.detach().square().mean(tuple(dims), keepdim=True) + eps)


def _layer_norm(
    x: Tensor,
    shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *_: Any,
) -> Tensor:
    y = _normalize(x, range(-len(shape), 0), eps)
    y = y if weight is None else y * weight
    return y if bias is None else y + bias


def _rms_norm(x: Tensor, shape: Sequence[int], weight: Tensor | None = None, eps: float | None = None) -> Tensor:
    y = _normalize(x, range(-len(shape), 0), torch.finfo(x.dtype).eps if eps is None else eps, center=False)
    return y if weight is None else y * weight


def _group_norm(
    x: Tensor, groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5, *_: Any
) -> Tensor:
    y = x.unflatten(1, (groups, -1))
    y = _normalize(y, range(2, y.dim()), eps).flatten(1, 2)
    return _per_channel(y, weight, bias)


def _instance_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor | None, var: Tensor | None,
    use_input_stats: bool, momentum: float, eps: float, *_: Any,
) -> Tensor:  # fmt: skip
    if use_input_stats or mean is None or var is None:
        return _per_channel(_normalize(x, range(2, x.dim()), eps), weight, bias)
    y = _per_channel(x, None, -mean)
    return _per_channel(_per_channel(y, torch.rsqrt(var + eps), None), weight, bias)


def _per_channel(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    shape = (1, -1, *[1] * (x.dim() - 2))
    x = x if weight is None else x * weight.view(shape)
    return x if bias is None else x + bias.view(shape)


LINEARIZED: dict[Any, Callable[..., Tensor]] = {
    aten.layer_norm.default: _layer_norm,
    aten.rms_norm.default: _rms_norm,
    aten.group_norm.default: _group_norm,
    aten.instance_norm.default: _instance_norm,
    LOCAL_RESPONSE: held,
}
