"""Moves: lines of plain torch from which random networks are made, for every operation that has a role.

A move takes values (the batch is their first axis) and gives one. It asks `Parts` for the parameters and modules that it
needs. All values stay of the size of 1: no division by what may be near 0, no growth without bound.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from unseen import randomized

aten = torch.ops.aten


class Parts:
    """The parameters and modules of one step, made when first asked for; a reused step is given another one's."""

    def __init__(self, owner: nn.Module, step: int, making: bool) -> None:
        self.owner, self.step, self.making, self.count = owner, step, making, 0

    def __call__(self, *shape: int) -> Tensor:
        fan = shape[-1] if len(shape) > 1 else 4
        return self._held("p", shape, lambda: nn.Parameter(torch.randn(shape, dtype=torch.float64) / fan**0.5))

    def module(self, make: Callable[[], nn.Module], *sizes: int) -> nn.Module:
        """A module; those that share it must ask with the same sizes."""
        return self._held("m", sizes, lambda: randomized(make(), seed=int(torch.randint(10**6, ()))))

    def linear(self, x: Tensor, width: int) -> Tensor:
        """A linear map of the last axis."""
        return F.linear(x, self(width, x.shape[-1]), self(width))

    def fit(self, x: Tensor, shape: Sequence[int]) -> Tensor:
        """`x` mapped to another shape of a sample, or as it is where it has that shape."""
        if tuple(x.shape[1:]) == tuple(shape):
            return x
        flat = x.flatten(1) if x.dim() > 1 else x[:, None]
        return self.linear(flat, math.prod(shape)).reshape(-1, *shape)

    def _held(self, kind: str, sizes: tuple[int, ...], make: Callable[[], Any]) -> Any:
        self.count += 1
        name = f"{kind}{self.step}_{self.count}_" + "x".join(map(str, sizes))
        if not hasattr(self.owner, name):
            if not self.making:
                raise RuntimeError(f"a step asks for other parts than when it was made: {name}")
            setattr(self.owner, name, make())
        return getattr(self.owner, name)


@dataclass(frozen=True)
class Move:
    """A line of torch, from values to a value."""

    run: Callable[..., Tensor]
    """Called with (parts, *values)."""
    ranks: tuple[int, ...]
    """Numbers of axes, the batch included, of a first value that it takes."""
    sources: int = 1


MOVES: dict[str, Move] = {}


def moves(ranks: str, table: dict[str, Callable[..., Tensor]], sources: int = 1) -> None:
    """Adds lines to the table of moves."""
    for name, run in table.items():
        assert name not in MOVES
        MOVES[name] = Move(run, tuple(map(int, ranks)), sources)


def elementwise(*functions: Callable[[Tensor], Tensor]) -> dict[str, Callable[..., Tensor]]:
    return {f.__name__: lambda p, x, f=f: f(x) for f in functions}


def written(x: Tensor, write: Callable[[Tensor], Any]) -> Tensor:
    """`x` after something was written into it."""
    write(x)
    return x


def heads(x: Tensor, n: int) -> Tensor:
    return x.unflatten(-1, (n, -1)).transpose(1, 2)


def stop(x: Tensor) -> Tensor:
    """A constant mask made of data."""
    return (x > 0.1).to(x.dtype)


def rotary(x: Tensor) -> Tensor:
    angle = torch.arange(x.shape[1], dtype=x.dtype)[:, None] * torch.ones(x.shape[-1] // 2, dtype=x.dtype)
    cos, sin = torch.cat([angle, angle], 1).cos(), torch.cat([angle, angle], 1).sin()
    one, other = x.chunk(2, -1)
    return x * cos + torch.cat([-other, one], -1) * sin


def axes(x: Tensor) -> tuple[int, ...]:
    """All axes but the batch."""
    return tuple(range(1, x.dim()))


def parts_of(z: Tensor) -> Tensor:
    """A real tensor of both parts of a complex one."""
    return z.real + 0.5 * z.imag


def there_and_back(x: Tensor, axis: int) -> Tensor:
    there = aten._conj_physical(aten._fft_c2c(aten._fft_r2c(x, [axis], 0, True), [axis], 0, True))
    return aten._fft_c2r(there, [axis], 0, x.shape[axis])


def turn(x: Tensor) -> Tensor:
    angle = torch.arange(x.shape[-1] // 2, dtype=x.dtype)
    return torch.polar(torch.ones_like(angle), angle)


def scan(x: Tensor, cell: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    state, states = torch.zeros_like(x[:, 0]), []
    for one in x.unbind(1):
        state = cell(state, one)
        states.append(state)
    return torch.stack(states, 1)


def add_to_slice(p: Parts, x: Tensor) -> Tensor:
    x[..., 1:] += 0.5 * x[..., :-1].clone()
    return x


def loop_into_buffer(p: Parts, x: Tensor) -> Tensor:
    filled, state = x.new_zeros(x.shape), torch.zeros_like(x[:, 0])
    for t in range(x.shape[1]):
        state = torch.tanh(x[:, t] + 0.5 * state)
        filled[:, t] = state
    return filled


def attention(p: Parts, x: Tensor, **options: Any) -> Tensor:
    q, k, v = (heads(p.linear(x, 4), 2) for _ in range(3))
    return F.scaled_dot_product_attention(q, k, v, **options).transpose(1, 2).flatten(2)


def grouped(p: Parts, x: Tensor) -> Tensor:
    q, k, v = heads(p.linear(x, 8), 4), heads(p.linear(x, 4), 2), heads(p.linear(x, 4), 2)
    return F.scaled_dot_product_attention(q, k, v, enable_gqa=True).transpose(1, 2).flatten(2)


def by_hand(p: Parts, x: Tensor, mask: str = "") -> Tensor:
    q, k, v = (p.linear(x, 4) for _ in range(3))
    scores, n = q @ k.transpose(1, 2) / 2.0, x.shape[1]
    future = torch.ones(n, n, dtype=torch.bool).triu(1)
    if mask == "fill":
        scores = scores.masked_fill(future, float("-inf"))
    if mask == "add":
        scores = scores + torch.zeros(n, n, dtype=x.dtype).masked_fill(future, float("-inf"))
    return torch.einsum("nij,njc->nic", scores.softmax(-1), v)


def routed(p: Parts, x: Tensor) -> Tensor:
    best, which = p.linear(x, 4).softmax(-1).topk(2, -1)
    weights = (
        torch.zeros_like(x[..., :1]).expand(*x.shape[:-1], 4).scatter(-1, which, best / best.sum(-1, keepdim=True))
    )
    return sum(weights[..., i : i + 1] * torch.tanh(p.linear(x, x.shape[-1])) for i in range(4))


def upsampled(p: Parts, x: Tensor, mode: str, **options: Any) -> Tensor:
    size = {"size": [n + 1 for n in x.shape[2:]]} if "scale_factor" not in options else {}
    return F.interpolate(x, mode=mode, **size, **options)


# fmt: off
ANY = "12345"
BY_AXES = {3: "1d", 4: "2d", 5: "3d"}


def named(prefix: str, x: Tensor, *args: Any, space: Any = F, **options: Any) -> Tensor:
    """The function called `prefix` + 1d, 2d or 3d."""
    return getattr(space, prefix + BY_AXES[x.dim()])(x, *args, **options)


moves(ANY, elementwise(
    F.relu, F.relu6, F.leaky_relu, F.elu, F.selu, F.celu, F.gelu, F.silu, F.mish, F.hardswish, F.softshrink, F.hardshrink,
    F.hardtanh, F.hardsigmoid, F.softplus, F.logsigmoid, F.rrelu, F.softsign, F.tanhshrink, torch.tanh, torch.sigmoid,
    torch.sin, torch.cos, torch.asinh, torch.atan, torch.erf, torch.abs, torch.square, torch.neg, torch.clone,
    torch.nan_to_num, torch.deg2rad, torch.erfc, torch.sinc, torch.frac,
))
moves(ANY, {
    "sinh": lambda p, x: torch.sinh(x.tanh()), "cosh": lambda p, x: torch.cosh(x.tanh()), "exp": lambda p, x: torch.exp(-x.abs()),
    "expm1": lambda p, x: torch.expm1(x.tanh()), "log1p": lambda p, x: torch.log1p(x.square()), "log": lambda p, x: torch.log(x.abs() + 0.5),
    "sqrt": lambda p, x: torch.sqrt(x.square() + 1), "rsqrt": lambda p, x: torch.rsqrt(x.square() + 1), "reciprocal": lambda p, x: 1 / (1 + x.abs()),
    "acos": lambda p, x: torch.acos(0.8 * x.tanh()), "acosh": lambda p, x: torch.acosh(1.5 + x.square()), "asin": lambda p, x: torch.asin(0.8 * x.tanh()),
    "atanh": lambda p, x: torch.atanh(0.8 * x.tanh()), "tan": lambda p, x: torch.tan(x.tanh()), "log2": lambda p, x: torch.log2(x.abs() + 0.5),
    "log10": lambda p, x: torch.log10(x.abs() + 0.5), "power of 2": lambda p, x: 2 ** x.tanh(), "power of parameters": lambda p, x: (x.abs() + 0.5) ** p(1).sigmoid() + p(1).exp() ** x.tanh(),
    "fmax": lambda p, x: torch.fmax(x, x.sin()), "fmin": lambda p, x: torch.fmin(x.cos(), x), "exp2": lambda p, x: torch.exp2(-x.abs()),
    "gelu tanh": lambda p, x: F.gelu(x, approximate="tanh"), "threshold": lambda p, x: F.threshold(x, 0.1, -0.5), "pow": lambda p, x: x**3,
    "pow 1.5": lambda p, x: (x.abs() + 0.2) ** 1.5, "clamp": lambda p, x: x.clamp(-0.7, 0.9), "clamp_min": lambda p, x: x.clamp_min(-0.2),
    "clamp_max": lambda p, x: x.clamp_max(0.3), "clamp tensor": lambda p, x: x.clamp(min=torch.tensor(-0.3, dtype=x.dtype)),
    "prelu": lambda p, x: F.prelu(x, p(1)), "affine numbers": lambda p, x: 2 - 1.5 * x / 3, "rsub": lambda p, x: torch.rsub(x, 1.3),
    "add number": lambda p, x: x + 0.7, "twice": lambda p, x: x + x, "squared": lambda p, x: x * x, "a difference": lambda p, x: x.tanh() - 0.5 * x,
    "heaviside": lambda p, x: x * stop(x), "sign": lambda p, x: x * x.sign() + x.floor(), "maximum constant": lambda p, x: torch.maximum(x, x.new_tensor(0.1)),
    "minimum": lambda p, x: torch.minimum(x, x.sin()), "max other": lambda p, x: torch.max(x, -0.3 * x), "min other": lambda p, x: torch.min(x.cos(), x),
    "where": lambda p, x: torch.where(x > 0, x, 0.3 * x), "where number": lambda p, x: torch.where(x > 0, x, 0.5),
    "where other": lambda p, x: torch.where(x > 0, 0.5, x), "masked_fill": lambda p, x: x.masked_fill(x > 0.2, 0.3),
    "masked_fill tensor": lambda p, x: x.masked_fill(x < 0, x.new_tensor(-0.2)), "dropout": lambda p, x: F.dropout(F.alpha_dropout(x, 0.5, False), 0.5, False),
    "type_as": lambda p, x: x.type_as(x).contiguous(), "to": lambda p, x: x.to("cpu", torch.float64, copy=True),
    "to dtype": lambda p, x: x.to(torch.float64, copy=True), "to layout": lambda p, x: x.to(memory_format=torch.contiguous_format, copy=True),
    "alias": lambda p, x: aten.alias(x) * 1.1, "sigmoid gate": lambda p, x: x * torch.sigmoid(x + 0.3),
    "gate of gates": lambda p, x: x.sigmoid() * (1 - x.sin().sigmoid()), "three factors": lambda p, x: x.sin() * x.cos() * x,
    "quotient": lambda p, x: x / (1 + x.square()), "number over data": lambda p, x: 1.5 / (1 + x.exp()), "lerp": lambda p, x: torch.lerp(x, x.sin(), 0.3),
    "addcmul": lambda p, x: torch.addcmul(x, x.sin(), x.cos(), value=0.5),
    "aten scalars": lambda p, x: aten.div.Scalar(aten.mul.Scalar(aten.sub.Scalar(aten.add.Scalar(x, 1.5), 0.3), 2.0), 1.7),
    "aten prelu": lambda p, x: aten._prelu_kernel(x, x.new_full((1,) * x.dim(), 0.3)),
    "rsub tensor": lambda p, x: aten.rsub.Scalar(aten.rsub.Tensor(x, x.sigmoid(), alpha=2), 0.4), "relu_": lambda p, x: x.relu_(),
    "chain_": lambda p, x: x.mul_(0.7).add_(0.2).neg_().div_(1.5), "masked_fill_": lambda p, x: x.masked_fill_(x > 0.4, 0.3),
    "set where": lambda p, x: written(x, lambda y: y.__setitem__(y > 0.4, 0.3)), "copy_": lambda p, x: written(x, lambda y: y.copy_(y.tanh())),
})
moves("2345", {
    "layer_norm": lambda p, x: F.layer_norm(x, x.shape[-1:], p(x.shape[-1]), p(x.shape[-1])), "layer_norm all": lambda p, x: F.layer_norm(x, x.shape[1:]),
    "rms_norm": lambda p, x: F.rms_norm(x, x.shape[-1:], p(x.shape[-1])), "normalize": lambda p, x: F.normalize(x, dim=-1),
    "softmax": lambda p, x: 3 * x.softmax(-1), "aten softmax": lambda p, x: aten._softmax(x, -1, False) * 2,
    "aten log_softmax": lambda p, x: aten._log_softmax(x, -1, False), "safe softmax": lambda p, x: aten._safe_softmax(x, -1) * 2,
    "softmax weights": lambda p, x: x * x.sin().softmax(-1), "log_softmax": lambda p, x: x.log_softmax(-1),
    "logsumexp": lambda p, x: x.logsumexp(-1, keepdim=True) - x,
    "layer norm by hand": lambda p, x: (x - x.mean(-1, keepdim=True)) / torch.sqrt(x.var(-1, keepdim=True, unbiased=False) + 1e-3) * p(x.shape[-1]),
    "layer norm by std": lambda p, x: (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True) + 0.1),
    "rms by hand": lambda p, x: p(x.shape[-1]) * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-3)),
    "softmax by hand": lambda p, x: (lambda e: e / e.sum(-1, keepdim=True))((x - x.amax(-1, keepdim=True)).exp()),
    "gates in all": lambda p, x: (lambda g: g / g.sum(-1, keepdim=True))(x.sigmoid()), "mean": lambda p, x: x.mean(-1, keepdim=True),
    "sum": lambda p, x: x.sum(-1, keepdim=True) / x.shape[-1], "cumsum": lambda p, x: x.cumsum(-1) / x.shape[-1],
    "centred": lambda p, x: x - x.mean(-1, keepdim=True), "var": lambda p, x: x.var(-1, keepdim=True),
    "var correction": lambda p, x: torch.var(x, -1, correction=0, keepdim=True), "std": lambda p, x: x.std(-1, keepdim=True),
    "std correction": lambda p, x: torch.std(x, -1, correction=0, keepdim=True), "amax": lambda p, x: x.amax(-1, keepdim=True),
    "amin": lambda p, x: x.amin(-1, keepdim=True),
    "max and where": lambda p, x: (lambda top: top[0] + x.gather(-1, (top[1] + 1) % x.shape[-1]))(x.max(-1, keepdim=True)),
    "min dim": lambda p, x: x.min(-1, keepdim=True)[0], "topk": lambda p, x: x.topk(2, -1)[0],
    "topk and where": lambda p, x: (lambda top: top[0] * x.sin().gather(-1, top[1]))(x.topk(2, -1)), "sort": lambda p, x: x.sort(-1)[0],
    "sort stable": lambda p, x: torch.sort(x, stable=True, dim=-1, descending=True)[0], "norm": lambda p, x: x.norm(dim=-1, keepdim=True),
    "cummax": lambda p, x: x.cummax(-1)[0], "cummin": lambda p, x: x.cummin(-1)[0], "median": lambda p, x: x.median(-1, keepdim=True)[0],
    "nanmedian": lambda p, x: x.nanmedian(-1, keepdim=True)[0], "kthvalue": lambda p, x: x.kthvalue(2, -1, keepdim=True)[0], "mode": lambda p, x: x.mode(-1, keepdim=True)[0],
    "aten norm": lambda p, x: aten.norm.ScalarOpt_dim(x, 2, [-1], True), "scatter_add": lambda p, x: x.scatter_add(-1, x.argsort(-1), x.sin()),
    "fourier": lambda p, x: parts_of(torch.fft.fft(x)), "fourier back": lambda p, x: parts_of(torch.fft.ifft(x)), "fourier n": lambda p, x: parts_of(torch.fft.fftn(x, dim=axes(x))) / 4,
    "fourier n back": lambda p, x: parts_of(torch.fft.ifftn(x, dim=axes(x))), "power spectrum": lambda p, x: (lambda f: (f * f.conj()).real)(torch.fft.rfft(x)) / x.shape[-1],
    "filter": lambda p, x: torch.fft.irfft(torch.fft.rfft(x) * torch.view_as_complex(p(x.shape[-1] // 2 + 1, 2)), n=x.shape[-1]),
    "filter n": lambda p, x: torch.fft.irfftn(torch.fft.rfftn(x, dim=axes(x)) * p(1), s=x.shape[1:], dim=axes(x)), "hermitian": lambda p, x: torch.fft.hfft(x) / x.shape[-1],
    "hermitian back": lambda p, x: parts_of(torch.fft.ihfft(x)), "shifted": lambda p, x: torch.fft.ifftshift(torch.fft.fftshift(x, dim=-1) * p(x.shape[-1]), dim=-1),
    "complex turn": lambda p, x: torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous()) * turn(x)).flatten(-2),
    "conjugates": lambda p, x: parts_of(aten.conj_physical(torch.fft.fft(x))) + parts_of(torch.fft.fft(x).conj().resolve_conj()),
    "aten fourier": lambda p, x: there_and_back(x, x.dim() - 1) / x.shape[-1],
    "linear": lambda p, x: p.linear(x, 5), "linear module": lambda p, x: p.module(lambda: nn.Linear(x.shape[-1], 4), x.shape[-1])(x),
    "matmul": lambda p, x: x @ p(x.shape[-1], 3), "matmul vector": lambda p, x: (x @ p(x.shape[-1]))[:, None],
    "parameters": lambda p, x: (x + p(x.shape[-1])) * p(x.shape[-1]) / (1 + p(x.shape[-1]).abs()),
    "weight of parts": lambda p, x: F.linear(x, F.normalize(p(4, x.shape[-1]), dim=1) * p(4, 1).exp(), p(4)),
    "parameter over": lambda p, x: p(x.shape[-1]) / (1 + x.abs()), "flatten": lambda p, x: x.flatten(1), "unflatten": lambda p, x: x.unflatten(-1, (2, -1)),
    "reshape": lambda p, x: x.reshape(x.shape[0], -1, 2), "view": lambda p, x: x.contiguous().view(x.shape[0], 1, -1), "unsqueeze": lambda p, x: x.unsqueeze(1),
    "squeeze": lambda p, x: x[..., None].squeeze(-1), "squeeze dims": lambda p, x: x[:, None, ..., None].squeeze((1, -1)),
    "expand": lambda p, x: x.unsqueeze(1).expand(-1, 2, *x.shape[1:]), "expand_as": lambda p, x: x[..., :1].expand_as(x),
    "repeat": lambda p, x: x.repeat(1, 2, *[1] * (x.dim() - 2)), "tile": lambda p, x: x.tile(2)[..., 1:],
    "repeat_interleave": lambda p, x: x.repeat_interleave(2, -1), "slice": lambda p, x: x[..., 1::2],
    "select": lambda p, x: x[..., -1:] + x.select(-1, 0).unsqueeze(-1), "narrow": lambda p, x: x.narrow(-1, 1, 2), "index list": lambda p, x: x[..., [1, 0, 1]],
    "index rows": lambda p, x: x[torch.arange(x.shape[0]), x.flatten(1).argmax(1) % x.shape[1]].reshape(x.shape[0], -1),
    "index_select": lambda p, x: x.index_select(-1, torch.tensor([1, 1, 0])), "gather": lambda p, x: x.gather(-1, x.argsort(-1)),
    "roll": lambda p, x: x.roll(1, -1), "flip": lambda p, x: x.flip(-1), "split": lambda p, x: torch.cat(x.split(2, -1)[::-1], -1),
    "split sizes": lambda p, x: (lambda a, b: a * b.mean(-1, keepdim=True))(*x.split([1, x.shape[-1] - 1], -1)), "chunk": lambda p, x: x.chunk(2, -1)[0],
    "unbind": lambda p, x: torch.stack([(i + 1) * a for i, a in enumerate(x.unbind(-1))], 1), "glu": lambda p, x: F.glu(x, -1),
    "swiglu": lambda p, x: F.silu(p.linear(x, 4)) * p.linear(x, 4), "cat": lambda p, x: torch.cat([x, x.sin(), torch.ones_like(x[..., :1])], -1),
    "stack": lambda p, x: torch.stack([x, x.cos()], 1), "pad": lambda p, x: F.pad(x, (1, 0), value=0.5), "pad less": lambda p, x: F.pad(x, (-1, 1)),
    "aten pad": lambda p, x: aten.constant_pad_nd(x, [0, 1]), "unfold": lambda p, x: x.unfold(-1, 2, 1), "diff": lambda p, x: x.diff(dim=-1),
    "movedim": lambda p, x: x[:, :, None].movedim(1, -1),
    "as_strided": lambda p, x: (lambda y: y.as_strided((x.shape[0], 2), (y.shape[1], 1), 1))(x.flatten(1).contiguous()),
    "select_scatter": lambda p, x: x.select_scatter(x[..., 0].sin(), -1, 1), "slice_scatter": lambda p, x: x.slice_scatter(x[..., :1].cos(), -1, 1, 2),
    "scatter": lambda p, x: x.scatter(-1, x.argsort(-1)[..., :1], x[..., :1].sin()), "scatter number": lambda p, x: x.scatter(-1, x.argsort(-1)[..., :1], 0.5),
    "index_put": lambda p, x: x.index_put((torch.arange(x.shape[0])[:, None], torch.tensor([0])), 0.5 * x[:, -1:]),
    "index_add": lambda p, x: x.index_add(-1, torch.tensor([0, 0]), x[..., :2].sin()), "routed": routed,
    "one hot": lambda p, x: x * F.one_hot(x.argmax(-1), x.shape[-1]),
    "add to slice_": add_to_slice,
    "set slice": lambda p, x: written(x, lambda y: y.__setitem__((..., 0), y[..., -1].tanh())),
    "set number": lambda p, x: written(x, lambda y: y.__setitem__((slice(None), 0), 0.5)),
    "fill_ view": lambda p, x: written(x, lambda y: y[..., -1].fill_(0.3)), "write view_": lambda p, x: written(x, lambda y: y.flatten(1)[:, 1:].mul_(1.5)),
    "zeros then write": lambda p, x: written(torch.zeros_like(x), lambda y: y[:, :1].copy_(x[:, :1])),
    "batch norm": lambda p, x: F.batch_norm(x, p(x.shape[1]).detach(), p(x.shape[1]).detach().exp(), p(x.shape[1]), p(x.shape[1])),
    "one by one": lambda p, x: torch.cat([x[..., i : i + 1] * (i + 1) for i in range(x.shape[-1])], -1) / x.shape[-1],
    "embedding": lambda p, x: x[..., :1] + p.module(lambda: nn.Embedding(4, 3))(torch.tensor([2])),
})
moves("1", {
    "column": lambda p, x: x[:, None], "waves": lambda p, x: torch.sin(x[:, None] * p(4)),
})
moves("2", {
    "mm": lambda p, x: torch.mm(x, p(x.shape[-1], 4)), "transposed": lambda p, x: (p(4, x.shape[-1]) @ x.t()).t(),
    "addmm": lambda p, x: torch.addmm(p(4), x, p(x.shape[-1], 4), beta=0.5, alpha=2), "addmm data": lambda p, x: torch.addmm(x[:, :1], x, p(x.shape[-1], 4)),
    "outer": lambda p, x: x[:, :, None] * x.sin()[:, None], "batch norm module": lambda p, x: p.module(lambda: nn.BatchNorm1d(x.shape[1]), x.shape[1])(x),
    "linear, batch norm": lambda p, x: p.module(lambda: nn.Sequential(nn.Linear(x.shape[1], 4), nn.BatchNorm1d(4), nn.ReLU(inplace=True)), x.shape[1])(x),
    "sort of columns": lambda p, x: x.t().sort(0)[0].t(),
    "weight norm": lambda p, x: p.module(lambda: nn.utils.parametrizations.weight_norm(nn.Linear(x.shape[1], 4)), x.shape[1])(x),
    "bilinear": lambda p, x: F.bilinear(x, x.sin(), p(3, x.shape[1], x.shape[1]), p(3)), "bilinear of one": lambda p, x: F.bilinear(x, p(1, 2).expand(x.shape[0], -1), p(3, x.shape[1], 2)),
    "bilinear form": lambda p, x: torch.einsum("ni,ijk,nj->nk", x, p(x.shape[1], x.shape[1], 3), x.sin()),
    "cosine": lambda p, x: F.cosine_similarity(x[:, None], p(3, x.shape[1]), dim=-1),
})
moves("3", {
    "fourier of planes": lambda p, x: parts_of(torch.fft.ifft2(torch.fft.fft2(x) * p(1))), "filter of planes": lambda p, x: torch.fft.irfft2(torch.fft.rfft2(x) * p(1), s=x.shape[1:]),
    "left matmul": lambda p, x: p(3, x.shape[1]) @ x, "vector matmul": lambda p, x: p(x.shape[1]) @ x,
    "batched weight": lambda p, x: x.unsqueeze(1) @ p(2, x.shape[2], 3), "bmm": lambda p, x: torch.bmm(x, p(x.shape[2], 3).expand(x.shape[0], -1, -1)),
    "baddbmm": lambda p, x: torch.baddbmm(p(1, 3).expand(x.shape[0], x.shape[1], 3), x, p(x.shape[2], 3).expand(x.shape[0], -1, -1), beta=0.5),
    "baddbmm data": lambda p, x: torch.baddbmm(x[..., :1], x, x.sin().transpose(1, 2)), "gram": lambda p, x: x @ x.mT, "sdpa": attention,
    "sdpa causal": lambda p, x: attention(p, x, is_causal=True),
    "sdpa mask": lambda p, x: attention(p, x, attn_mask=torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril()),
    "sdpa float mask": lambda p, x: attention(p, x, attn_mask=p(x.shape[1], x.shape[1]), scale=0.4),
    "sdpa mask of data": lambda p, x: attention(p, x, attn_mask=p.linear(x, x.shape[1])[:, None]), "sdpa grouped": grouped,
    "sdpa itself": lambda p, x: F.scaled_dot_product_attention(x, x, x),
    "sdpa parameter queries": lambda p, x: F.scaled_dot_product_attention(p(1, 2, x.shape[2]).expand(x.shape[0], -1, -1), x, x.sin()),
    "sdpa parameter values": lambda p, x: F.scaled_dot_product_attention(x, p(1, 3, x.shape[2]).expand(x.shape[0], -1, -1), p(1, 3, x.shape[2]).expand(x.shape[0], -1, -1)),
    "attention by hand": by_hand, "causal by hand": lambda p, x: by_hand(p, x, "fill"), "causal by sum": lambda p, x: by_hand(p, x, "add"),
    "attention of sigmoids": lambda p, x: torch.sigmoid(x @ p.linear(x, x.shape[-1]).transpose(1, 2)) @ x / x.shape[1],
    "linear attention": lambda p, x: (lambda q, k: q @ (k.mT @ x) / (q @ k.sum(1, keepdim=True).mT))(F.elu(p.linear(x, 3)) + 1.1, F.elu(p.linear(x, 3)) + 1.1),
    "pooled by a vector": lambda p, x: ((x @ p(x.shape[2])).softmax(1)[..., None] * x).sum(1), "rotary": lambda p, x: rotary(x),
    "multihead": lambda p, x: p.module(lambda: nn.MultiheadAttention(x.shape[2], 1, batch_first=True), x.shape[2])(x, x, x)[0],
    "encoder": lambda p, x: p.module(lambda: nn.TransformerEncoderLayer(x.shape[2], 1, 5, batch_first=True, norm_first=True), x.shape[2])(x),
    "lstm": lambda p, x: p.module(lambda: nn.LSTM(x.shape[2], 3, batch_first=True), x.shape[2])(x)[0],
    "gru": lambda p, x: p.module(lambda: nn.GRU(x.shape[2], 3, batch_first=True, bidirectional=True), x.shape[2])(x)[1].transpose(0, 1),
    "rnn": lambda p, x: p.module(lambda: nn.RNN(x.shape[2], 3), x.shape[2])(x.transpose(0, 1))[0].transpose(0, 1),
    "scan": lambda p, x: scan(x, lambda h, one: 0.8 * h + one * torch.sigmoid(h)),
    "recurrence": lambda p, x: (lambda w: scan(x, lambda h, one: torch.tanh(one + h @ w)))(p(x.shape[2], x.shape[2])), "loop into buffer": loop_into_buffer,
    "tokens": lambda p, x: torch.cat([p(1, 1, x.shape[2]).expand(x.shape[0], -1, -1), x + p(1, x.shape[1], x.shape[2])], 1),
    "transpose": lambda p, x: x.transpose(1, 2), "sequence first": lambda p, x: F.relu(p.linear(x.transpose(0, 1), 3)).mean(0),
    "diagonal": lambda p, x: x.diagonal(0, 1, 2), "tril": lambda p, x: x.tril(), "triu": lambda p, x: x.triu(),
    "diagonal_scatter": lambda p, x: x.diagonal_scatter(x.diagonal(0, 1, 2).sin(), 0, 1, 2),
    "diagonal add_": lambda p, x: written(x, lambda y: y.diagonal(0, 1, 2).add_(0.5)),
    "dynamic filter": lambda p, x: torch.einsum("nlc,nlk->nck", x, p.linear(x, 3).softmax(1)),
    "conv same even": lambda p, x: F.conv1d(x, p(2, x.shape[1], 2), p(2), padding="same"),
    "causal conv": lambda p, x: F.conv1d(F.pad(x, (2, 0)), p(3, x.shape[1], 2), p(3), dilation=2),
    "fold": lambda p, x: F.fold(p.linear(x.transpose(1, 2), 4).transpose(1, 2)[..., :2], (2, 3), 2),
})
moves("345", {
    "first place": lambda p, x: x[:, 0], "last place": lambda p, x: x[:, -1], "places": lambda p, x: x[:, 1:] if x.shape[1] > 1 else x,
    "last column": lambda p, x: x[:, :, -1],
    "place of each": lambda p, x: x.gather(1, x.flatten(2).sum(2).argmax(1).view(-1, *[1] * (x.dim() - 1)).expand(-1, 1, *x.shape[2:])),
    "place of each by index": lambda p, x: x[torch.arange(x.shape[0]), x.flatten(2).sum(2).argmax(1)],
    "conv": lambda p, x: named("conv", x, p(3, x.shape[1], *[2] * (x.dim() - 2)), p(3), 1, 1),
    "conv strided": lambda p, x: named("conv", x, p(2, x.shape[1], *[3] * (x.dim() - 2)), None, 2, 1),
    "conv padding": lambda p, x: named("conv", x, p(2, x.shape[1], *[3] * (x.dim() - 2)), p(2), padding="same"),
    "depthwise": lambda p, x: named("conv", x, p(x.shape[1], 1, *[2] * (x.dim() - 2)), p(x.shape[1]), groups=x.shape[1]),
    "conv transposed": lambda p, x: named("conv_transpose", x, p(x.shape[1], 2, *[2] * (x.dim() - 2)), p(2), 2, 1),
    "aten convolution": lambda p, x: aten.convolution(x, p(2, x.shape[1], *[1] * (x.dim() - 2)), None, [1], [0], [1], False, [0], 1),
    "conv, batch norm": lambda p, x: p.module(lambda: nn.Sequential(getattr(nn, f"Conv{BY_AXES[x.dim()]}")(x.shape[1], 3, 1), getattr(nn, f"BatchNorm{BY_AXES[x.dim()]}")(3), nn.ReLU(inplace=True)), x.dim(), x.shape[1])(x),
    "batch norm, conv": lambda p, x: p.module(lambda: nn.Sequential(getattr(nn, f"BatchNorm{BY_AXES[x.dim()]}")(x.shape[1]), getattr(nn, f"Conv{BY_AXES[x.dim()]}")(x.shape[1], 3, 3, padding=1)), x.dim(), x.shape[1])(x),
    "group_norm": lambda p, x: F.group_norm(x, 1, p(x.shape[1]), p(x.shape[1])),
    "instance_norm": lambda p, x: F.instance_norm(x, weight=p(x.shape[1]), eps=0.01), "local response": lambda p, x: F.local_response_norm(x, 2),
    "max_pool": lambda p, x: named("max_pool", x, 2), "max_pool ceil": lambda p, x: named("max_pool", x, 3, 2, 1, ceil_mode=True),
    "max_pool and where": lambda p, x: named("max_pool", x, 2, return_indices=True)[0],
    "unpooled": lambda p, x: named("max_unpool", *named("max_pool", x, 2, return_indices=True), 2, 2, 0, x.shape[2:]), "avg_pool": lambda p, x: named("avg_pool", x, 2),
    "avg_pool open": lambda p, x: named("avg_pool", x, 3, 2, 1, True, False), "adaptive_avg_pool": lambda p, x: named("adaptive_avg_pool", x, 2),
    "adaptive_max_pool": lambda p, x: named("adaptive_max_pool", x, 2), "global mean": lambda p, x: x.mean(tuple(range(2, x.dim()))),
    "channel gate": lambda p, x: x * torch.sigmoid(p.linear(x.flatten(2).mean(2), x.shape[1])).reshape(*x.shape[:2], *[1] * (x.dim() - 2)),
    "nearest": lambda p, x: upsampled(p, x, "nearest"), "nearest twice": lambda p, x: upsampled(p, x, "nearest", scale_factor=2),
    "nearest exact": lambda p, x: upsampled(p, x, "nearest-exact"),
    "linear up": lambda p, x: upsampled(p, x, {3: "linear", 4: "bilinear", 5: "trilinear"}[x.dim()], align_corners=bool(x.shape[1] % 2)),
    "reflect": lambda p, x: F.pad(x, (1, 0) * (x.dim() - 2), mode="reflect"), "replicate": lambda p, x: F.pad(x, (1, 2) * (x.dim() - 2), mode="replicate"),
    "circular": lambda p, x: F.pad(x, (1, 1) * (x.dim() - 2), mode="circular"),
    "aten pads": lambda p, x: named("replication_pad", named("reflection_pad", x, [1, 0] * (x.dim() - 2), space=aten), [0, 1] * (x.dim() - 2), space=aten),
    "aten nearest": lambda p, x: named("upsample_nearest", x, [n + 1 for n in x.shape[2:]], space=aten),
    "aten linear up": lambda p, x: getattr(aten, {3: "upsample_linear1d", 4: "upsample_bilinear2d", 5: "upsample_trilinear3d"}[x.dim()])(x, [n + 1 for n in x.shape[2:]], False),
    "channel dropout": lambda p, x: F.feature_alpha_dropout(named("dropout", x, 0.5, False), 0.5, False),
    "max_pool aten": lambda p, x: named("max_pool", x, [2] * (x.dim() - 2), space=aten), "prelu by channel": lambda p, x: F.prelu(x, p(x.shape[1])),
})
moves("4", {
    "bicubic": lambda p, x: upsampled(p, x, "bicubic"), "aten bicubic": lambda p, x: aten.upsample_bicubic2d(x, [n + 1 for n in x.shape[2:]], True),
    "bilinear, smooth": lambda p, x: F.interpolate(x, size=(2, 2), mode="bilinear", antialias=True),
    "bicubic, smooth": lambda p, x: F.interpolate(x, size=(2, 2), mode="bicubic", antialias=True), "pixel_shuffle": lambda p, x: F.pixel_shuffle(x[:, :4], 2),
    "pixel_unshuffle": lambda p, x: F.pixel_unshuffle(x[..., :2, :2], 2), "channel_shuffle": lambda p, x: F.channel_shuffle(x[:, :2], 2),
    "permute": lambda p, x: x.permute(0, 2, 3, 1), "rot90": lambda p, x: x.rot90(1, (2, 3)), "im2col": lambda p, x: F.unfold(x, 2),
    "windows": lambda p, x: x.unfold(2, 2, 1).unfold(3, 2, 2).permute(0, 2, 3, 1, 4, 5).flatten(3),
    "aten pool": lambda p, x: aten._adaptive_avg_pool2d(x, [2, 2]),
    "filters of data": lambda p, x: F.conv2d(x.reshape(1, -1, *x.shape[2:]), F.adaptive_avg_pool2d(x, 2).flatten(0, 1)[:, None], groups=x.shape[0] * x.shape[1]).unflatten(1, (x.shape[0], -1))[0],
})
moves("5", {
    "aten pool 3d": lambda p, x: aten._adaptive_avg_pool3d(x, [2, 2, 1]),
})
moves(ANY, {
    "add": lambda p, x, y: x + y, "subtract": lambda p, x, y: torch.sub(x, y, alpha=0.5), "multiply": lambda p, x, y: x * y.tanh(),
    "divide": lambda p, x, y: x / (1 + y.square()), "maximum": lambda p, x, y: torch.maximum(x, y), "choose": lambda p, x, y: torch.where(x > y, x, y.sin()),
    "gate by": lambda p, x, y: x * torch.sigmoid(y), "add_": lambda p, x, y: x.add_(y), "lerp by": lambda p, x, y: torch.lerp(x, y, torch.sigmoid(x)),
}, sources=2)
moves("2345", {
    "cat two": lambda p, x, y: torch.cat([x, y], 1), "broadcast": lambda p, x, y: x[..., :1] * y[:, :1].sin() + y,
    "dot": lambda p, x, y: (x * y).sum(-1, keepdim=True), "fitted": lambda p, x, y: x + p.fit(y, x.shape[1:]),
    "queried": lambda p, x, y: (x.flatten(1)[:, None] * p.fit(y, (3, x.flatten(1).shape[1]))).mean(-1).softmax(-1),
    "cross attention": lambda p, x, y: F.scaled_dot_product_attention(x.reshape(x.shape[0], -1, x.shape[-1]), p.fit(y, (3, x.shape[-1])), p.fit(y, (3, x.shape[-1]))),
    "product of matrices": lambda p, x, y: x @ p.fit(y, (x.shape[-1], 3)) if x.dim() == 3 else x * p.fit(y, x.shape[1:]),
    "write into": lambda p, x, y: written(x, lambda z: z[:, :1].copy_(y[:, :1])),
}, sources=2)
# fmt: on
