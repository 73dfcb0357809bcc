"""`safe_mode`: while it is active, second and higher derivatives through stock PyTorch modules are right.

torch 2.13 computes wrong higher derivatives through layer_norm, instance_norm and batch_norm with batch statistics
where a forward-mode derivative is innermost, and at order 3 in every nesting (pytorch #196700, #196699, #198017); fused
attention has no second derivative, and some operations lack one nesting or another. The mode replaces these functions
by compositions of elementary ones. It acts on what Python calls; it does not reach into scripted or exported graphs.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from importlib import import_module
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode


@contextmanager
def safe_mode() -> Iterator[None]:
    """Derivatives of every order and nesting come out right inside this block; forward values agree to rounding.

    Fused attention, fast paths of transformers and MKL-DNN recurrences are off; what was set before is set again
    afterwards.
    """
    load_forward_mode()
    fastpath = torch.backends.mha.get_fastpath_enabled()
    with ExitStack() as stack:
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        torch.backends.mha.set_fastpath_enabled(False)
        stack.callback(torch.backends.mha.set_fastpath_enabled, fastpath)
        stack.enter_context(_Exact())
        yield


@cache
def load_forward_mode() -> None:
    """Loads torch's formulas for forward mode, whose first use announces that scripting is deprecated."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        import_module("torch._decomp.decompositions_for_jvp")


class _Exact(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in REPLACED:
            return REPLACED[func](*args, **kwargs)
        if getattr(func, "__name__", "") == "lstm":
            # MKL-DNN's recurrence has no forward derivative; its convolutions may stay.
            # (torch.backends.mkldnn.flags warns about settings that it does not change.)
            enabled = torch._C._get_mkldnn_enabled()
            torch._C._set_mkldnn_enabled(False)
            try:
                return func(*args, **kwargs)
            finally:
                torch._C._set_mkldnn_enabled(enabled)
        return func(*args, **kwargs)


def layer_norm(
    x: Tensor, normalized_shape: Any, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    """(x − mean) / sqrt(mean((x − mean)²) + eps), scaled and shifted."""
    shape = [normalized_shape] if isinstance(normalized_shape, int) else list(normalized_shape)
    out = _standardized(x, tuple(range(-len(shape), 0)), eps)
    out = out if weight is None else out * weight
    return out if bias is None else out + bias


def native_layer_norm(x: Tensor, shape: Any, weight: Tensor | None, bias: Tensor | None, eps: float) -> Any:
    """`torch.native_layer_norm`, which returns the statistics too."""
    dims = tuple(range(-len(shape), 0))
    mean = x.mean(dims, keepdim=True)
    spread = ((x - mean).square().mean(dims, keepdim=True) + eps).rsqrt()
    return layer_norm(x, shape, weight, bias, eps), mean, spread


def group_norm(x: Tensor, num_groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5) -> Tensor:
    """Group norm by its formula; torch's own is right, but can't be batched over tangents everywhere."""
    grouped = x.reshape(x.shape[0], num_groups, -1)
    out = _standardized(grouped, (-1,), eps).reshape(x.shape)
    return _per_channel(out, weight, bias)


def instance_norm(
    x: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Each sample's channels standardized over their places, or by running statistics."""
    if not use_input_stats:
        return batch_norm(x, running_mean, running_var, weight, bias, False, momentum, eps)
    return _per_channel(_standardized(x, tuple(range(2, x.dim())), eps), weight, bias)


def batch_norm(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """By running statistics, or by the batch's own; running statistics are not updated."""
    if training or running_mean is None or running_var is None:
        out = _standardized(x, (0, *range(2, x.dim())), eps)
    else:
        shape = (1, -1, *[1] * (x.dim() - 2))
        out = (x - running_mean.view(shape)) * (running_var.view(shape) + eps).rsqrt()
    return _per_channel(out, weight, bias)


def glu(x: Tensor, dim: int = -1) -> Tensor:
    """The first half times the sigmoid of the second."""
    signal, gate = x.chunk(2, dim)
    return signal * gate.sigmoid()


def hardsigmoid(x: Tensor, inplace: bool = False) -> Tensor:
    """A line from 0 to 1 between −3 and 3."""
    return (x / 6 + 0.5).clamp(0, 1)


def cdist(x: Tensor, y: Tensor, p: float = 2.0, compute_mode: str = "") -> Tensor:
    """Distances between rows, by their formula."""
    apart = x[..., :, None, :] - y[..., None, :, :]
    if p == 2.0:
        return apart.square().sum(-1).sqrt()
    return apart.abs().pow(p).sum(-1).pow(1 / p)


def normalize(x: Tensor, p: float = 2.0, dim: Any = 1, eps: float = 1e-12, out: Any = None) -> Tensor:
    """x over its norm along `dim`."""
    return x / vector_norm(x, p, dim, keepdim=True).clamp_min(eps)


def cosine_similarity(x1: Tensor, x2: Tensor, dim: int = 1, eps: float = 1e-8) -> Tensor:
    """The product of two unit vectors."""
    sizes = vector_norm(x1, 2, dim).clamp_min(eps) * vector_norm(x2, 2, dim).clamp_min(eps)
    return (x1 * x2).sum(dim) / sizes


def vector_norm(x: Tensor, ord: Any = 2, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Tensor:
    """The 2-norm by its formula; other norms as torch has them."""
    if ord != 2 or x.is_complex():
        return torch.linalg.vector_norm(x, ord, dim, keepdim, dtype=dtype)
    x = x if dtype is None else x.to(dtype)
    squares = x.square()
    return (squares.sum() if dim is None else squares.sum(dim, keepdim=keepdim)).sqrt()


def norm(
    x: Tensor, p: Any = "fro", dim: Any = None, keepdim: bool = False, dtype: Any = None, out: Any = None
) -> Tensor:
    """`torch.norm`: the Frobenius norm is a 2-norm."""
    return vector_norm(x, 2 if p in ("fro", None) else p, dim, keepdim, dtype=dtype)


def std(x: Tensor, dim: Any = None, *args: Any, **kwargs: Any) -> Tensor:
    """The root of the variance."""
    return (torch.var(x, dim, *args, **kwargs) if dim is not None or args or kwargs else torch.var(x)).sqrt()


def _standardized(x: Tensor, dims: tuple[int, ...], eps: float) -> Tensor:
    centred = x - x.mean(dims, keepdim=True)
    return centred * (centred.square().mean(dims, keepdim=True) + eps).rsqrt()


def _per_channel(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    shape = (1, -1, *[1] * (x.dim() - 2))
    x = x if weight is None else x * weight.view(shape)
    return x if bias is None else x + bias.view(shape)


def _batch_norm_positional(x: Tensor, weight: Any, bias: Any, mean: Any, var: Any, training: bool,
                           momentum: float, eps: float, cudnn: bool) -> Tensor:  # fmt: skip
    return batch_norm(x, mean, var, weight, bias, training, momentum, eps)


REPLACED: dict[Any, Callable[..., Any]] = {
    F.layer_norm: layer_norm,
    torch.layer_norm: lambda x, shape, weight=None, bias=None, eps=1e-5, *_, **__: layer_norm(
        x, shape, weight, bias, eps
    ),
    torch.native_layer_norm: native_layer_norm,
    F.group_norm: group_norm,
    F.instance_norm: instance_norm,
    F.batch_norm: batch_norm,
    torch.batch_norm: _batch_norm_positional,
    F.glu: glu,
    F.hardsigmoid: hardsigmoid,
    torch.cdist: cdist,
    F.normalize: normalize,
    F.cosine_similarity: cosine_similarity,
    torch.cosine_similarity: cosine_similarity,
    torch.linalg.vector_norm: vector_norm,
    torch.linalg.norm: lambda x, ord=None, dim=None, keepdim=False, **k: (
        vector_norm(x, 2, dim, keepdim)
        if ord is None or (ord == 2 and x.dim() == 1)
        else torch.linalg.norm(x, ord, dim, keepdim, **k)
    ),
    torch.norm: norm,
    Tensor.norm: norm,
    torch.std: std,
    Tensor.std: std,
}
"""What the mode replaces, by the function that Python calls."""
