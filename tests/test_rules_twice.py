"""Every rule of the library equals its slow replica, on every affine layer of torch.nn.

The replica (`replica.py`) builds the layer's matrix and follows the papers neuron by neuron.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import pytest
import replica
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import deeptaylor as dt
from deeptaylor.rules import (
    AlphaBeta,
    Epsilon,
    Flat,
    Gamma,
    GeneralizedGamma,
    LRPZero,
    PNorm,
    Proportional,
    WinnerTakesAll,
    WSquare,
    ZBox,
    ZPlus,
)

pytestmark = [
    pytest.mark.filterwarnings("ignore::deeptaylor.errors.RelevanceWarning"),  # random seeds do explode
    pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning"),  # torch's own
]


class Layer(NamedTuple):
    make: Callable[[bool], nn.Module]
    shape: tuple[int, ...]


LAYERS = {
    "linear": Layer(lambda bias: nn.Linear(7, 5, bias=bias), (7,)),
    "linear at every position": Layer(lambda bias: nn.Linear(4, 3, bias=bias), (3, 4)),
    "conv1d": Layer(lambda bias: nn.Conv1d(3, 4, 3, bias=bias), (3, 8)),
    "conv2d": Layer(lambda bias: nn.Conv2d(2, 3, 3, bias=bias), (2, 5, 5)),
    "conv3d": Layer(lambda bias: nn.Conv3d(2, 2, 2, bias=bias), (2, 3, 3, 3)),
    "padded": Layer(lambda bias: nn.Conv2d(2, 2, 3, padding=1, bias=bias), (2, 4, 4)),
    "strided": Layer(lambda bias: nn.Conv2d(2, 3, 3, stride=2, padding=1, bias=bias), (2, 6, 5)),
    "strided past its end": Layer(lambda bias: nn.Conv1d(2, 3, 2, stride=3, bias=bias), (2, 10)),
    "dilated": Layer(lambda bias: nn.Conv2d(2, 2, (2, 3), dilation=(3, 2), padding=(1, 2), bias=bias), (2, 6, 5)),
    "grouped": Layer(lambda bias: nn.Conv2d(4, 6, 3, groups=2, bias=bias), (4, 4, 4)),
    "depthwise": Layer(lambda bias: nn.Conv2d(3, 6, 3, groups=3, padding=1, bias=bias), (3, 3, 4)),
    "padding same": Layer(lambda bias: nn.Conv2d(2, 2, 3, padding="same", bias=bias), (2, 4, 4)),
    "padding same, even kernel": Layer(lambda bias: nn.Conv2d(2, 2, (2, 4), padding="same", bias=bias), (2, 4, 5)),
    "padding same, conv1d, even kernel": Layer(
        lambda bias: nn.Conv1d(2, 2, 4, padding="same", dilation=3, bias=bias), (2, 11)
    ),
    "transposed conv1d": Layer(
        lambda bias: nn.ConvTranspose1d(3, 2, 3, stride=2, padding=1, output_padding=1, bias=bias), (3, 4)
    ),
    "transposed conv2d, grouped": Layer(
        lambda bias: nn.ConvTranspose2d(4, 6, (3, 2), stride=(2, 1), output_padding=(1, 0), groups=2, bias=bias),
        (4, 2, 3),
    ),
    "transposed conv3d, dilated": Layer(lambda bias: nn.ConvTranspose3d(2, 2, 2, dilation=2, bias=bias), (2, 2, 2, 2)),
}

LOW, HIGH = -3.5, 4.5


def per_channel(shape: tuple[int, ...], start: float, step: float) -> Tensor:
    """A bound for every channel, shaped to broadcast to a sample."""
    return (start + step * torch.arange(shape[0], dtype=torch.float64)).reshape(-1, *[1] * (len(shape) - 1))


def every_entry(shape: tuple[int, ...], start: float, step: float) -> Tensor:
    return start + step * torch.arange(torch.Size(shape).numel(), dtype=torch.float64).reshape(shape)


class Pair(NamedTuple):
    ours: Callable[[tuple[int, ...]], object]
    theirs: replica.Rule
    bounds: Callable[[Tensor], tuple[object, object]] = lambda x: (0.0, 0.0)
    tolerance32: float = 2e-6


def same(ours: object, theirs: replica.Rule, tolerance32: float = 2e-6) -> Pair:
    return Pair(lambda shape: ours, theirs, tolerance32=tolerance32)


def box(bound: Callable[[tuple[int, ...], float, float], object]) -> Pair:
    low, high = (lambda shape: bound(shape, LOW, -0.1)), (lambda shape: bound(shape, HIGH, 0.05))
    return Pair(
        lambda shape: ZBox(low(shape), high(shape)),
        replica.z_box(),
        lambda x: (low(tuple(x.shape[1:])), high(tuple(x.shape[1:]))),
    )


def own_range(x: Tensor) -> tuple[Tensor, Tensor]:
    axes = tuple(range(1, x.ndim))
    return x.amin(axes, keepdim=True).clamp(max=0), x.amax(axes, keepdim=True).clamp(min=0)


POLICIES = ("ignore", "absorb", "distribute")
RULES = {
    **{f"LRP-0, bias {b}": same(LRPZero(bias=b), replica.lrp_zero(b)) for b in POLICIES},
    "epsilon": same(Epsilon(), replica.epsilon(1e-6)),
    **{f"epsilon 0.3, bias {b}": same(Epsilon(0.3, bias=b), replica.epsilon(0.3, bias=b)) for b in POLICIES},
    "epsilon as a fraction of the rms": same(Epsilon(1e-9, rms=0.25), replica.epsilon(1e-9, rms=0.25)),
    **{f"gamma, bias {b}": same(Gamma(0.25, bias=b), replica.gamma(0.25, b)) for b in POLICIES},
    **{
        f"generalised gamma, bias {b}": same(GeneralizedGamma(0.5, bias=b), replica.generalized_gamma(0.5, b))
        for b in POLICIES
    },
    "alpha 2, beta 1": same(AlphaBeta(2.0, 1.0), replica.alpha_beta(2.0, 1.0), 1e-5),
    "alpha 1, beta 0": same(AlphaBeta(1.0, 0.0), replica.alpha_beta(1.0, 0.0), 1e-5),
    "alpha 3, beta 2, bias absorb": same(
        AlphaBeta(3.0, 2.0, bias="absorb"), replica.alpha_beta(3.0, 2.0, bias="absorb"), 1e-5
    ),
    "alpha 2, beta 1, bias distribute": same(
        AlphaBeta(2.0, 1.0, bias="distribute"), replica.alpha_beta(2.0, 1.0, bias="distribute"), 1e-5
    ),
    "alpha 2, beta 1 of zennit": same(
        AlphaBeta(2.0, 1.0, convention="zennit"), replica.alpha_beta(2.0, 1.0, convention="zennit"), 1e-5
    ),
    "z+": same(ZPlus(), replica.z_plus()),
    "z+, bias absorb": same(ZPlus(bias="absorb"), replica.z_plus(bias="absorb")),
    "z+, bias distribute": same(ZPlus(bias="distribute"), replica.z_plus(bias="distribute")),
    "z+ of zennit": same(ZPlus(convention="zennit"), replica.z_plus(convention="zennit")),
    "z+ of zennit, bias ignore": same(
        ZPlus(convention="zennit", bias="ignore"), replica.z_plus(convention="zennit", bias="ignore")
    ),
    "w^2": same(WSquare(), replica.w_square()),
    "w^2 of zennit": same(WSquare(convention="zennit"), replica.w_square(convention="zennit")),
    "flat": same(Flat(), replica.flat()),
    "z^B, numbers": box(lambda shape, start, step: start),
    "z^B, per channel": box(per_channel),
    "z^B, every entry": box(every_entry),
    "z^B, own range": Pair(lambda shape: ZBox(None, None), replica.z_box(), own_range),
}


def test_the_replica_knows_the_worked_example() -> None:
    layer = nn.Linear(3, 1)
    layer.weight.data, layer.bias.data = torch.tensor([[1.0, -2.0, 1.0]]), torch.tensor([-1.0])
    expected = {
        "LRP-0, bias absorb": [2, -2, 3], "LRP-0, bias ignore": [4 / 3, -4 / 3, 2], "z+": [4 / 5, 0, 6 / 5],
        "w^2": [1 / 3, 4 / 3, 1 / 3], "flat": [2 / 3, 2 / 3, 2 / 3], "alpha 2, beta 1": [8 / 5, -2, 12 / 5],
        "gamma, bias ignore": [20 / 17, -16 / 17, 30 / 17],
    }  # fmt: skip
    for name, relevance in expected.items():
        x, seed = torch.tensor([[2.0, 1.0, 3.0]]), torch.tensor([[2.0]])
        found = replica.propagate(RULES[name].theirs, layer, x, seed).relevance
        assert found[0].tolist() == pytest.approx(relevance, abs=1e-12)


# Where a layer stands decides what the library may take for granted: which inputs are ≥ 0, which z carry relevance.
SETTINGS = {"signed input": (False, False), "after a ReLU": (True, False), "between ReLUs": (True, True)}


class Case(NamedTuple):
    """A float64 layer whose weights float32 holds exactly, where it stands, two samples, and a seed of both signs."""

    layer: nn.Module
    model: nn.Module
    x: Tensor
    seed: Tensor


def case(layer: str, bias: bool, setting: str = "signed input") -> Case:
    before, after = SETTINGS[setting]
    generator = torch.Generator().manual_seed(sorted(LAYERS).index(layer))
    module = LAYERS[layer].make(bias).float()
    for parameter in module.parameters():
        parameter.data = 0.6 * torch.randn(parameter.shape, generator=generator)
    x = torch.randn(2, *LAYERS[layer].shape, generator=generator).clamp(-3, 3)
    x = x.relu() if before else x
    z = module(x).detach()
    seed = torch.randn(z.shape, generator=generator)
    seed = seed * (z > 0) if after else seed
    model = nn.Sequential(*[nn.ReLU()] * before, module, *[nn.ReLU()] * after)
    return Case(module.double(), model.double().eval(), x.double(), seed.double())


def closeness(found: Tensor, expected: Tensor) -> float:
    """The largest difference, as a fraction of the largest relevance."""
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(
    ("layer", "bias"),
    list(itertools.product(LAYERS, (True, False))),
    ids=lambda value: value if isinstance(value, str) else ("bias" if value else "no bias"),
)
def test_the_rule_equals_its_replica(layer: str, bias: bool, rule: str) -> None:
    pair = RULES[rule]
    for setting in SETTINGS:
        module, model, x, seed = case(layer, bias, setting)
        low, high = pair.bounds(x)
        expected = replica.propagate(pair.theirs, module, x, seed, low, high)
        ours = pair.ours(LAYERS[layer].shape)
        # recorded, which takes a hundredth of the time of exporting
        explain = partial(dt.explain, model, x, target=seed, composite=ours, record=True)
        assert closeness(explain().relevance, expected.relevance) < 1e-10, setting
        if setting == "signed input":
            result = explain(ledger=True)  # sample by sample: a recorded graph does not know its batch axis
            assert closeness(result.relevance, expected.relevance) < 1e-10
            total = result.relevance.flatten(1).sum(1) + result.ledger.absorbed
            assert torch.allclose(total, seed.flatten(1).sum(1), rtol=1e-9, atol=1e-9), "the ledger does not close"


@pytest.mark.parametrize("rule", ["alpha 2, beta 1 of zennit", "flat"])
@pytest.mark.parametrize(
    ("layer", "bias"),
    list(itertools.product(LAYERS, (True, False))),
    ids=lambda value: value if isinstance(value, str) else ("bias" if value else "no bias"),
)
def test_an_exported_layer_is_the_recorded_one(layer: str, bias: bool, rule: str) -> None:
    _, model, x, seed = case(layer, bias)
    explain = partial(dt.explain, model, x, target=seed, composite=RULES[rule].ours(LAYERS[layer].shape))
    assert closeness(explain().relevance, explain(record=True).relevance) < 1e-12


# One layer of each kind is enough: in float32 the arithmetic is new, not the geometry.
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("layer", ["linear", "conv2d", "depthwise", "padding same, even kernel", "transposed conv1d"])
def test_the_rule_equals_its_replica_in_float32(layer: str, rule: str) -> None:
    pair = RULES[rule]
    for setting in SETTINGS:
        module, model, x, seed = case(layer, True, setting)
        low, high = pair.bounds(x)
        # Relevance only at neurons whose denominator float32 can know: cancellation costs digits in any implementation.
        known = replica.propagate(pair.theirs, module, x, seed, low, high).conditioning > 0.3
        seed = seed * known
        assert known.any()
        expected = replica.propagate(pair.theirs, module, x, seed, low, high)
        ours = pair.ours(LAYERS[layer].shape)
        result = dt.explain(model.float(), x.float(), target=seed.float(), composite=ours, record=True)
        assert result.relevance.dtype == torch.float32
        assert closeness(result.relevance.double(), expected.relevance) < pair.tolerance32, setting


@pytest.mark.parametrize("layer", ["linear", "conv2d", "transposed conv2d, grouped"])
@pytest.mark.parametrize("rule", [name for name in RULES if "absorb" in name or "zennit" in name or "LRP-0" in name])
def test_the_ledger_books_what_the_bias_takes(layer: str, rule: str) -> None:
    pair = RULES[rule]
    module, model, x, seed = case(layer, True)
    low, high = pair.bounds(x)
    expected = replica.propagate(pair.theirs, module, x, seed, low, high)
    ours = pair.ours(LAYERS[layer].shape)
    result = dt.explain(model, x, target=seed, composite=ours, record=True, ledger=True)
    booked = sum(row.bias for row in result.ledger.rows)
    # a neuron with nothing but its bias is active by its bias alone
    assert math.isclose(booked, (expected.taken_by_bias + expected.dropped).sum(), rel_tol=1e-9, abs_tol=1e-10)


def test_a_denominator_of_exactly_zero_drops_its_relevance_and_books_it() -> None:
    layer = nn.Linear(2, 2, bias=False, dtype=torch.float64).eval()
    layer.weight.data = torch.tensor([[-1.0, -2.0], [1.0, 1.0]], dtype=torch.float64)
    x = torch.tensor([[1.0, 1.0]], dtype=torch.float64)
    seed = torch.tensor([[5.0, 3.0]], dtype=torch.float64)
    result = dt.explain(layer, x, target=seed, composite=ZPlus(), ledger=True)
    assert result.relevance.tolist() == [[1.5, 1.5]]
    assert result.ledger.absorbed.tolist() == [5.0]


def test_an_empty_negative_side_is_seen_exactly_also_where_rounding_would_hide_it() -> None:
    layer = nn.Linear(9, 1, bias=False, dtype=torch.float64).eval()
    layer.weight.data = torch.full((1, 9), 0.1, dtype=torch.float64)
    x = torch.linspace(0.1, 0.9, 9, dtype=torch.float64).reshape(1, 9) / 3
    seed = torch.ones(1, 1, dtype=torch.float64)
    found = dt.explain(layer, x, target=seed, composite=AlphaBeta(2.0, 1.0)).relevance
    assert torch.allclose(found, x / x.sum(), rtol=1e-12)


def test_alpha_beta_drops_units_without_positive_contributions_whole() -> None:
    layer = nn.Linear(2, 2, bias=True, dtype=torch.float64).eval()
    layer.weight.data = torch.tensor([[-1.0, -2.0], [2.0, 1.0]], dtype=torch.float64)
    layer.bias.data = torch.tensor([9.0, 0.0], dtype=torch.float64)
    x, seed = torch.ones(1, 2, dtype=torch.float64), torch.tensor([[6.0, 3.0]], dtype=torch.float64)
    result = dt.explain(layer, x, target=seed, composite=AlphaBeta(2.0, 1.0), ledger=True)
    assert torch.allclose(result.relevance, torch.tensor([[2.0, 1.0]], dtype=torch.float64), rtol=1e-12)
    assert torch.allclose(result.ledger.absorbed, torch.tensor([6.0], dtype=torch.float64), rtol=1e-12)


POOLS = {
    "2x2": nn.MaxPool2d(2),
    "overlapping": nn.MaxPool2d(3, 2),
    "padded": nn.MaxPool2d(3, 2, padding=1),
    "dilated": nn.MaxPool2d((2, 3), (1, 2), dilation=(2, 1)),
    "past its end": nn.MaxPool2d(3, 2, padding=1, ceil_mode=True),
}
POOLINGS: dict[str, tuple[object, Callable[[Tensor], Tensor]]] = {
    "winner takes all": (WinnerTakesAll(), lambda v: F.one_hot(v.argmax(), len(v)).double()),
    "proportional": (Proportional(epsilon=0.0), lambda v: v / v.sum()),
    "p = 1": (PNorm(1), lambda v: v.abs() / v.abs().sum()),
    "p = 3": (PNorm(3), lambda v: v.abs() ** 3 / (v.abs() ** 3).sum()),
    "p = inf": (PNorm(math.inf), lambda v: (v == v.max()).double() / (v == v.max()).sum()),
}


@pytest.mark.parametrize("rule", POOLINGS)
@pytest.mark.parametrize("pool", POOLS)
def test_a_pooling_rule_equals_its_replica(pool: str, rule: str) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(2, 2, 7, 6, generator=generator, dtype=torch.float64) + 0.1
    ours, share = POOLINGS[rule]
    layer = POOLS[pool].eval()
    seed = torch.randn(layer(x).shape, generator=generator, dtype=torch.float64)
    composite = dt.Composite([(dt.composites.op("max_pool2d*"), ours)])
    found = dt.explain(layer, x, target=seed, composite=composite).relevance
    assert closeness(found, replica.max_pool2d(share, layer, x, seed)) < 1e-12
