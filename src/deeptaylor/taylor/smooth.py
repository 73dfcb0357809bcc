"""Piecewise-linear networks made smooth: kinks become softplus, without touching the model.

The Hessian of a ReLU network is 0 almost everywhere: its curvature sits on the kinks. With relu(z) replaced by
softplus_β(z) = log(1 + e^βz)/β the curvature becomes visible, at the price of another function: |softplus_β − relu| ≤
ln 2/β at each unit. `SmoothMode.change` says what that does to the output.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from ..errors import InputError
from ..inputs import Model
from .pure import check_batch, pure

BETAS = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0)


@dataclass(frozen=True)
class Change:
    """What smoothing does to a model's output."""

    beta: float
    sharp: Tensor
    """The model's own output."""
    smooth: Tensor
    """The smoothed model's."""

    @property
    def largest(self) -> float:
        """max |smooth − sharp|."""
        return float((self.smooth - self.sharp).abs().max())

    @property
    def relative(self) -> float:
        """`largest` over max |sharp|."""
        return self.largest / max(float(self.sharp.abs().max()), 1e-30)

    def __str__(self) -> str:
        return (
            f"softplus with beta {self.beta:g} changes the output by {self.largest:.3g} at most ({self.relative:.2%})"
        )


class smooth_mode(TorchFunctionMode):
    """A context in which kinks are smooth, of every model that runs inside.

        with dt.smooth_mode(beta=10) as smooth:
            result = ...
        print(smooth.change(model, x))

    Replaced: relu, relu6, hardtanh, clamp by numbers, leaky_relu, prelu, hardsigmoid, hardswish and abs. Choices stay
    sharp: max-pooling, maximum, where, sort.

    Args:
        beta: sharpness; log 2/β is the largest change of a unit.
    """

    _sharp: ClassVar[int] = 0
    """Above 0 no instance replaces anything."""

    def __init__(self, beta: float = 10.0) -> None:
        if not (isinstance(beta, int | float) and 0 < beta < float("inf")):
            raise InputError(f"beta {beta!r} must be a positive number")
        super().__init__()
        self.beta = float(beta)
        self.replaced = 0
        """Calls of kinked functions that were replaced so far."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        smooth = _SMOOTH.get(func)
        if smooth is None or smooth_mode._sharp or not _floating(args, kwargs):
            return func(*args, **(kwargs or {}))
        self.replaced += 1
        kwargs = dict(kwargs or {})
        if not kwargs.pop("inplace", False) and not func.__name__.endswith("_"):
            return smooth(self.beta, *args, **kwargs)
        # Whoever reads the overwritten tensor later counts on it.
        target = args[0] if args else kwargs.pop("input")
        return target.copy_(smooth(self.beta, target.clone(), *args[1:], **kwargs))

    def change(self, f: Model, x: Tensor) -> Change:
        """What smoothing changes at x, output by output.

        Args:
            f: the model, in evaluation mode.
            x: (N, ...).
        """
        run, x = pure(f), check_batch(x)
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            with _as_is():
                sharp = run(x.clone())  # a model may write into its input
            with smooth_mode(self.beta):
                smooth = run(x.clone())
        return Change(self.beta, sharp, smooth)


@contextmanager
def _as_is() -> Iterator[None]:
    """Inside, models run with their kinks, whatever modes are active."""
    smooth_mode._sharp += 1
    try:
        yield
    finally:
        smooth_mode._sharp -= 1


def choose_beta(f: Model, x: Tensor, tolerance: float = 0.01) -> float:
    """The smallest of the usual betas (1 to 200) whose change of the output is at most `tolerance` of its size.

    Small betas bend more and need fewer quadrature nodes; large ones are closer to the model.

    Raises:
        InputError: even β = 200 changes more.
    """
    for beta in BETAS:
        change = smooth_mode(beta).change(f, x)
        if change.relative <= tolerance:
            return beta
    raise InputError(f"{change}, more than the tolerance of {tolerance:.2%}; allow more, or use differences instead")


def _softplus(beta: float, z: Tensor) -> Tensor:
    # torch's own is linear above its threshold, where the second derivative would be cut to 0.
    return F.softplus(z, beta, threshold=40.0)


def _relu(beta: float, input: Tensor) -> Tensor:
    return _softplus(beta, input)


def _clamp(beta: float, input: Tensor, min: Any = None, max: Any = None, *, out: Any = None) -> Tensor:
    """min + softplus(z − min) − softplus(z − max): one bend at each end."""
    if isinstance(min, Tensor) or isinstance(max, Tensor) or out is not None:
        raise InputError("smoothing knows clamp between numbers only")
    if min is None and max is None:
        return input
    if max is None:
        return min + _softplus(beta, input - min)
    if min is None:
        return max - _softplus(beta, max - input)
    return min + _softplus(beta, input - min) - _softplus(beta, input - max)


def _hardtanh(beta: float, input: Tensor, min_val: float = -1.0, max_val: float = 1.0) -> Tensor:
    return _clamp(beta, input, min_val, max_val)


def _relu6(beta: float, input: Tensor) -> Tensor:
    return _clamp(beta, input, 0.0, 6.0)


def _leaky(beta: float, input: Tensor, negative_slope: float = 0.01) -> Tensor:
    return negative_slope * input + (1 - negative_slope) * _softplus(beta, input)


def _prelu(beta: float, input: Tensor, weight: Tensor) -> Tensor:
    if weight.numel() > 1:
        weight = weight.view(-1, *[1] * (input.dim() - 2))
    return weight * input + (1 - weight) * _softplus(beta, input)


def _hardsigmoid(beta: float, input: Tensor) -> Tensor:
    return _relu6(beta, input + 3) / 6


def _hardswish(beta: float, input: Tensor) -> Tensor:
    return input * _hardsigmoid(beta, input)


def _abs(beta: float, input: Tensor, *, out: Any = None) -> Tensor:
    return _softplus(beta, input) + _softplus(beta, -input)


_SMOOTH: dict[Any, Callable[..., Tensor]] = {
    **dict.fromkeys((F.relu, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_), _relu),
    **dict.fromkeys((F.relu6,), _relu6),
    **dict.fromkeys((F.hardtanh, F.hardtanh_), _hardtanh),
    **dict.fromkeys((torch.clamp, Tensor.clamp, Tensor.clamp_, torch.clip, Tensor.clip), _clamp),
    **dict.fromkeys((F.leaky_relu, F.leaky_relu_), _leaky),
    **dict.fromkeys((F.prelu, torch.prelu), _prelu),
    **dict.fromkeys((F.hardsigmoid,), _hardsigmoid),
    **dict.fromkeys((F.hardswish,), _hardswish),
    **dict.fromkeys((torch.abs, Tensor.abs), _abs),
}


def _floating(args: Any, kwargs: Any) -> bool:
    input = args[0] if args else (kwargs or {}).get("input")
    return isinstance(input, Tensor) and input.is_floating_point()
