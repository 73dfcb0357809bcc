"""`frozen_mode`: what passes through norms, attention and activations is made linear (Ali et al. 2022).

Statistics of norms and weights of attention are constants, activations secants φ(x)/x: gradient × input then loses
nothing but the shares of biases. It acts on what Python calls, as `safe_mode` does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


class frozen_mode(TorchFunctionMode):
    """Norms and attention with constant statistics and weights, activations as secants: linear in what passes."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = _FROZEN.get(func)
        return func(*args, **(kwargs or {})) if made is None else made(func, *args, **(kwargs or {}))


def _layer_norm(
    func: Any, x: Tensor, shape: Any, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    dims = tuple(range(-len(shape), 0))
    centred = x - x.mean(dims, keepdim=True)
    out = centred * (centred.square().mean(dims, keepdim=True) + eps).rsqrt().detach()
    out = out if weight is None else out * weight
    return out if bias is None else out + bias


def _rms_norm(func: Any, x: Tensor, shape: Any, weight: Tensor | None = None, eps: float | None = None) -> Tensor:
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    out = x * (x.square().mean(tuple(range(-len(shape), 0)), keepdim=True) + eps).rsqrt().detach()
    return out if weight is None else out * weight


def _constant(func: Any, *args: Any, **kwargs: Any) -> Tensor:
    return func(*args, **kwargs).detach()


def _attention(func: Any, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
    return func(query.detach(), key.detach(), value, *args, **kwargs)


def _secant(func: Any, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    value = input.detach()
    out = func(value.clone(), *args, **kwargs)
    return input * torch.where(value == 0, torch.zeros_like(out), out / torch.where(value == 0, 1, value))


_F = nn.functional
_FROZEN: dict[Any, Callable[..., Any]] = {
    _F.layer_norm: _layer_norm,
    _F.rms_norm: _rms_norm,
    **dict.fromkeys((_F.softmax, torch.softmax, Tensor.softmax, torch.rsqrt, Tensor.rsqrt), _constant),
    **dict.fromkeys((_F.scaled_dot_product_attention, _F.multi_head_attention_forward), _attention),
    **dict.fromkeys((_F.gelu, _F.silu, torch.tanh, Tensor.tanh, _F.tanh), _secant),
}
