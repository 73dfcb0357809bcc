"""Every rule a second time: slow, float64, one neuron after the other, straight from the papers.

Nothing here knows the library. A layer becomes its explicit matrix `w` (one row per output neuron), its bias `b`, and
`joined`, which says what inputs a neuron has at all (a weight that happens to be zero still joins its input). A rule
is a function of one neuron: it says what fraction of the neuron's relevance every input gets, and what the bias takes.

Papers: Bach 2015 (LRP-0, epsilon, alpha-beta), Montavon 2017 (z+, z^B, w^2), Montavon 2019 (gamma), Andeol 2021
(generalised gamma), Lapuschkin 2019 (flat). `convention="zennit"` is what zennit computes under the same name.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

ZENNIT_STABILIZER = 1e-6


@dataclass(frozen=True)
class Neuron:
    """One neuron z = w·x + b, flattened, and what rules may want to know besides."""

    x: Tensor
    w: Tensor
    b: Tensor
    joined: Tensor
    low: Tensor
    high: Tensor
    layer_rms: Tensor

    @property
    def z(self) -> Tensor:
        return self.w @ self.x + self.b


@dataclass(frozen=True)
class Shares:
    """Fractions of one neuron's relevance: to its inputs, to its bias; and how well the denominator was determined."""

    inputs: Tensor
    bias: Tensor
    conditioning: float
    empty: bool = False


Rule = Callable[[Neuron], Shares]


def positive(t: Tensor) -> Tensor:
    return t.clamp(min=0)


def negative(t: Tensor) -> Tensor:
    return t.clamp(max=0)


def in_proportion(
    neuron: Neuron, terms: Tensor, bias_term: Tensor, bias: str, stabilizer: Tensor | float = 0.0
) -> Shares:
    """Terms over their sum: the bias outside it (ignore), inside (absorb), or inside and dealt out (distribute)."""
    zero = torch.zeros((), dtype=torch.float64)
    counted = zero if bias == "ignore" else bias_term
    total = terms.sum() + counted
    size = float(terms.abs().sum() + bias_term.abs())  # also where it is ignored: z - b is taken from z
    total = total + stabilizer * (-1.0 if total < 0 else 1.0)
    if total == 0:
        return Shares(torch.zeros_like(terms), zero, 1.0, empty=True)
    inputs, taken = terms / total, counted / total
    if bias == "distribute" and neuron.joined.any():  # a neuron without inputs keeps its bias's share
        inputs, taken = inputs + taken * neuron.joined / neuron.joined.sum(), zero
    return Shares(inputs, taken, abs(float(total)) / size if size else 1.0)


def mixed(a: float, first: Shares, b: float, second: Shares) -> Shares:
    parts = [share.conditioning for factor, share in ((a, first), (b, second)) if factor]
    return Shares(a * first.inputs + b * second.inputs, a * first.bias + b * second.bias, min(parts))


def lrp_zero(bias: str = "absorb") -> Rule:
    return lambda n: in_proportion(n, n.w * n.x, n.b, bias)


def epsilon(epsilon: float, rms: float = 0.0, bias: str = "absorb") -> Rule:
    return lambda n: in_proportion(n, n.w * n.x, n.b, bias, epsilon + rms * n.layer_rms)


def gamma(gamma: float, bias: str = "absorb") -> Rule:
    def rule(n: Neuron) -> Shares:
        return in_proportion(n, n.x * (n.w + gamma * positive(n.w)), n.b + gamma * positive(n.b), bias)

    return rule


def generalized_gamma(gamma: float, bias: str = "absorb") -> Rule:
    def rule(n: Neuron) -> Shares:
        favoured, other = (positive, negative) if n.z > 0 else (negative, positive)
        terms = positive(n.x) * (n.w + gamma * favoured(n.w)) + negative(n.x) * (n.w + gamma * other(n.w))
        shares = in_proportion(n, terms, n.b + gamma * favoured(n.b), bias)
        if n.z == 0:
            return Shares(torch.zeros_like(terms), torch.zeros_like(n.b), 1.0)
        return shares

    return rule


def alpha_beta(alpha: float, beta: float, convention: str = "paper", bias: str | None = None) -> Rule:
    paper = convention == "paper"
    bias = bias or ("ignore" if paper else "absorb")
    stabilizer = 0.0 if paper else ZENNIT_STABILIZER

    def rule(n: Neuron) -> Shares:
        contributions = n.w * n.x
        plus = in_proportion(n, positive(contributions), positive(n.b), bias, stabilizer)
        minus = in_proportion(n, negative(contributions), negative(n.b), bias, stabilizer)
        if paper and (plus.empty or minus.empty):
            return plus  # alpha = 1, beta = 0; and nothing at all where the positive side is empty
        return mixed(alpha, plus, -beta, minus)

    return rule


def z_plus(convention: str = "paper", bias: str | None = None) -> Rule:
    paper = convention == "paper"
    bias = bias or ("ignore" if paper else "absorb")
    stabilizer = 0.0 if paper else ZENNIT_STABILIZER

    def rule(n: Neuron) -> Shares:
        terms = positive(n.x) * positive(n.w) + negative(n.x) * negative(n.w)
        return in_proportion(n, terms, positive(n.b), bias, stabilizer)

    return rule


def z_box() -> Rule:
    def rule(n: Neuron) -> Shares:
        terms = n.x * n.w - n.low * positive(n.w) - n.high * negative(n.w)
        return in_proportion(n, terms, torch.zeros_like(n.b), "ignore")

    return rule


def w_square(convention: str = "paper", bias: str | None = None) -> Rule:
    bias = bias or ("ignore" if convention == "paper" else "absorb")
    stabilizer = 0.0 if convention == "paper" else ZENNIT_STABILIZER
    return lambda n: in_proportion(n, n.w**2, n.b**2, bias, stabilizer)


def flat() -> Rule:
    return lambda n: in_proportion(n, n.joined, torch.zeros_like(n.b), "ignore")


def matrix_of(layer: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """The affine map as (w, b), by sending zero and every unit vector through it."""
    n = torch.Size(shape).numel()
    with torch.no_grad():
        at_zero = layer(torch.zeros(1, *shape, dtype=torch.float64)).reshape(-1)
        at_units = layer(torch.eye(n, dtype=torch.float64).reshape(n, *shape)).reshape(n, -1)
    return (at_units - at_zero).T.contiguous(), at_zero


def joined_of(layer: nn.Module, shape: tuple[int, ...]) -> Tensor:
    """1 where an input reaches a neuron, whatever the weight: the matrix of the same layer with weights 1, bias 0."""
    ones = copy.deepcopy(layer)
    for name, parameter in ones.named_parameters():
        parameter.data.fill_(1.0 if "weight" in name else 0.0)
    return (matrix_of(ones, shape)[0] != 0).double()


@dataclass(frozen=True)
class Expected:
    relevance: Tensor
    taken_by_bias: Tensor
    dropped: Tensor
    """Relevance of neurons whose denominator is empty."""
    conditioning: Tensor


def propagate(
    rule: Rule,
    layer: nn.Module,
    x: Tensor,
    seed: Tensor,
    low: Tensor | float = 0.0,
    high: Tensor | float = 0.0,
) -> Expected:
    """Relevance of a batch, sample by sample, neuron by neuron; `low` and `high` broadcast to the batch."""
    layer = copy.deepcopy(layer).double()
    x, seed = x.double(), seed.double()
    shape = tuple(x.shape[1:])
    w, b = matrix_of(layer, shape)
    joined = joined_of(layer, shape)
    lows = torch.as_tensor(low, dtype=torch.float64).expand_as(x).reshape(len(x), -1)
    highs = torch.as_tensor(high, dtype=torch.float64).expand_as(x).reshape(len(x), -1)
    relevance, conditioning = torch.zeros_like(x).reshape(len(x), -1), []
    taken, dropped = torch.zeros(2, len(x), dtype=torch.float64)
    for k, (sample, start) in enumerate(zip(x.reshape(len(x), -1), seed.reshape(len(x), -1), strict=True)):
        z = w @ sample + b
        rms = (z**2).mean().sqrt()
        quality = []
        for j in range(len(w)):
            shares = rule(Neuron(sample, w[j], b[j], joined[j], lows[k], highs[k], rms))
            relevance[k] += shares.inputs * start[j]
            taken[k] += shares.bias * start[j]
            dropped[k] += shares.empty * start[j]
            quality.append(shares.conditioning)
        conditioning.append(quality)
    return Expected(relevance.reshape(x.shape), taken, dropped, torch.tensor(conditioning).reshape(seed.shape))


def max_pool2d(share: Callable[[Tensor], Tensor], pool: nn.MaxPool2d, x: Tensor, seed: Tensor) -> Tensor:
    """Relevance of a max-pool's input: each output's relevance over the values of its window by `share`."""

    def pair(value: int | tuple[int, int]) -> tuple[int, int]:
        return value if isinstance(value, tuple) else (value, value)

    def reach(axis: int, output: int, size: int) -> list[int]:
        kernel, stride, padding, dilation = (
            pair(v)[axis] for v in (pool.kernel_size, pool.stride, pool.padding, pool.dilation)
        )
        places = [output * stride - padding + k * dilation for k in range(kernel)]
        return [place for place in places if 0 <= place < size]

    relevance = torch.zeros_like(x)
    for sample, channel, row, column in torch.cartesian_prod(*[torch.arange(n) for n in seed.shape]).tolist():
        rows, columns = reach(0, row, x.shape[2]), reach(1, column, x.shape[3])
        window = x[sample, channel][rows][:, columns].flatten()
        shares = (share(window) * seed[sample, channel, row, column]).reshape(len(rows), len(columns))
        for i, r in enumerate(rows):
            for j, c in enumerate(columns):
                relevance[sample, channel, r, c] += shares[i, j]
    return relevance
