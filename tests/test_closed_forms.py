"""Worked examples whose answers are known exactly, as fractions."""

from __future__ import annotations

import math
from fractions import Fraction
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
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

EXACT = {"rtol": 1e-12, "atol": 1e-12}


def exactly(text: str) -> Tensor:
    """`"4/3 -4/3 2"` as a float64 tensor."""
    return torch.tensor([float(Fraction(number)) for number in text.split()], dtype=torch.float64)


def linear(rows: list[str], bias: str | None = None) -> nn.Linear:
    weight = torch.stack([exactly(row) for row in rows])
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, dtype=torch.float64)
    layer.weight.data = weight
    if bias is not None:
        layer.bias.data = exactly(bias)
    return layer.eval()


def network(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(*layers).eval()


# ---------------------------------------------------------------------------------------------------------------------
# One neuron: x = (2, 1, 3), w = (1, -2, 1). With b = -1, z = 2; with b = 1, z = 4. Relevance = z.

X = exactly("2 1 3").reshape(1, 3)

# bias, rule, relevance, root (where it is a root: w·root + b = 0)
NEURON = {
    "LRP-0 with the bias in the denominator": ("-1", LRPZero(), "2 -2 3", "0 0 0"),
    "LRP-0 without the bias": ("-1", LRPZero(bias="ignore"), "4/3 -4/3 2", "2/3 1/3 1"),
    "epsilon 1/2": ("-1", Epsilon(0.5), "8/5 -8/5 12/5", "2/5 1/5 3/5"),
    "gamma 1 without the bias": ("-1", Gamma(1.0, bias="ignore"), "1 -1/2 3/2", "1 3/4 3/2"),
    "gamma 1 with the bias in the denominator": ("-1", Gamma(1.0), "8/7 -4/7 12/7", "6/7 5/7 9/7"),
    "gamma 1/4 without the bias": ("-1", Gamma(0.25, bias="ignore"), "20/17 -16/17 30/17", "14/17 9/17 21/17"),
    "gamma 100 is nearly z+": ("-1", Gamma(100.0, bias="ignore"), "404/503 -4/503 606/503", None),
    "z+": ("-1", ZPlus(), "4/5 0 6/5", "6/5 1 9/5"),
    "alpha 1, beta 0 is z+": ("-1", AlphaBeta(1.0, 0.0), "4/5 0 6/5", "6/5 1 9/5"),
    "w^2": ("-1", WSquare(), "1/3 4/3 1/3", "5/3 5/3 8/3"),
    "z^B on [0, 4]": ("-1", ZBox(0.0, 4.0), "4/11 12/11 6/11", "18/11 17/11 27/11"),
    "z^B on [-1, 5]": ("-1", ZBox(-1.0, 5.0), "2/5 16/15 8/15", "8/5 23/15 37/15"),
    "flat": ("-1", Flat(), "2/3 2/3 2/3", "4/3 4/3 7/3"),
    "alpha 2, beta 1": ("-1", AlphaBeta(2.0, 1.0), "8/5 -2 12/5", "2/5 0 3/5"),
    "z+ beside a positive bias": ("1", ZPlus(), "8/5 0 12/5", "2/5 1 3/5"),
    "z+ with the positive bias in the denominator": ("1", ZPlus(bias="absorb"), "4/3 0 2", "2/3 1 1"),
    "w^2 beside a positive bias": ("1", WSquare(), "2/3 8/3 2/3", "4/3 7/3 7/3"),
    "gamma 1 without the positive bias": ("1", Gamma(1.0, bias="ignore"), "2 -1 3", None),
    "gamma 1 with the positive bias": ("1", Gamma(1.0), "8/5 -4/5 12/5", None),
}


@pytest.mark.parametrize("row", NEURON)
def test_one_neuron_shares_its_relevance_as_in_the_table(row: str) -> None:
    bias, rule, expected, _ = NEURON[row]
    layer = linear(["1 -2 1"], bias)
    z = layer(X).detach()
    result = dt.explain(layer, X, target=z, composite=rule, ledger=True)
    assert torch.allclose(result.relevance[0], exactly(expected), **EXACT)
    assert torch.allclose(result.ledger.absorbed, z[0] - exactly(expected).sum(), **EXACT)


@pytest.mark.parametrize("row", [row for row, entry in NEURON.items() if entry[3]])
def test_one_neuron_has_the_root_of_the_table(row: str) -> None:
    bias, rule, relevance, root = NEURON[row]
    layer = linear(["1 -2 1"], bias)
    found = rule.root_points(layer, X[0])
    assert found.shape == (1, 3)
    assert torch.allclose(found[0], exactly(root), **EXACT)
    # the value left at the root is what the rule does not hand on: 0 for every conservative rule
    left = layer(X)[0] - exactly(relevance).sum()
    assert torch.allclose(layer(found)[0], left, **EXACT)


@pytest.mark.parametrize(
    ("rule", "by_bias", "by_stabilizer"),
    [(LRPZero(), "-1", "0"), (Epsilon(0.5), "-4/5", "2/5"), (Gamma(1.0), "-2/7", "0"), (ZPlus(), "0", "0")],
)
def test_the_ledger_names_who_absorbed_what_at_one_neuron(rule: object, by_bias: str, by_stabilizer: str) -> None:
    layer = linear(["1 -2 1"], "-1")
    result = dt.explain(layer, X, target=exactly("2").reshape(1, 1), composite=rule, ledger=True)
    rows = result.ledger.rows
    assert math.isclose(sum(row.bias for row in rows), exactly(by_bias), abs_tol=1e-12)
    assert math.isclose(sum(row.stabilizer for row in rows), exactly(by_stabilizer), abs_tol=1e-12)


def test_the_bias_s_share_can_be_dealt_out_to_the_inputs() -> None:
    layer = linear(["1 -2 1"], "-1")
    result = dt.explain(layer, X, target=exactly("2").reshape(1, 1), composite=LRPZero(bias="distribute"), ledger=True)
    assert torch.allclose(result.relevance[0], exactly("5/3 -7/3 8/3"), **EXACT)
    assert torch.allclose(result.ledger.absorbed, exactly("0"), **EXACT)


# What zennit returns for the same neuron, written out with its stabilizer.
TINY = 1e-6
ZENNIT = {
    "z+": ("-1", ZPlus(convention="zennit"), [4 / (5 + TINY), 0, 6 / (5 + TINY)]),
    "alpha-beta": (
        "-1",
        AlphaBeta(2.0, 1.0, convention="zennit"),
        [8 / (5 + TINY), -4 / (3 + TINY), 12 / (5 + TINY)],
    ),
    "w^2": ("-1", WSquare(convention="zennit"), [2 / (7 + TINY), 8 / (7 + TINY), 2 / (7 + TINY)]),
    "z+, positive bias": ("1", ZPlus(convention="zennit"), [8 / (6 + TINY), 0, 12 / (6 + TINY)]),
    "w^2, positive bias": ("1", WSquare(convention="zennit"), [4 / (7 + TINY), 16 / (7 + TINY), 4 / (7 + TINY)]),
}


@pytest.mark.parametrize("row", ZENNIT)
def test_one_neuron_under_the_zennit_convention(row: str) -> None:
    bias, rule, expected = ZENNIT[row]
    layer = linear(["1 -2 1"], bias)
    found = dt.explain(layer, X, target=layer(X).detach(), composite=rule).relevance
    assert torch.allclose(found[0], torch.tensor(expected, dtype=torch.float64), **EXACT)


def test_generalised_gamma_on_inputs_of_both_signs() -> None:
    layer, x = linear(["1 1 -2"]), exactly("-1 2 -1").reshape(1, 3)
    rule = GeneralizedGamma(1.0)
    found = dt.explain(layer, x, target=exactly("3").reshape(1, 1), composite=rule).relevance
    assert torch.allclose(found[0], exactly("-3/7 12/7 12/7"), **EXACT)
    root = rule.root_points(layer, x[0])
    assert torch.allclose(root[0], exactly("-4/7 2/7 -1/7"), **EXACT)
    assert torch.allclose(layer(root)[0], exactly("0"), **EXACT)


def test_z_plus_on_inputs_of_both_signs_takes_the_positive_contributions() -> None:
    layer, x = linear(["1 1 -2"]), exactly("-1 2 -1").reshape(1, 3)
    found = dt.explain(layer, x, target=exactly("3").reshape(1, 1), composite=ZPlus()).relevance
    assert torch.allclose(found[0], exactly("0 3/2 3/2"), **EXACT)


# ---------------------------------------------------------------------------------------------------------------------
# A: a two-layer network without biases. x = (2, 1), hidden (1, 3, 0), f = 7, gradient (3, 1).


def two_layers() -> nn.Module:
    return network(linear(["1 -1", "1 1", "-1 2"]), nn.ReLU(), linear(["1 2 -1"]))


def first_then(first: object, hidden: object) -> dt.Composite:
    return dt.Composite([(dt.composites.first("affine"), first), (dt.composites.role("affine"), hidden)])


ZERO = LRPZero()
TWO_LAYERS = {
    "LRP-0": (ZERO, ZERO, "6 1"),
    "z+": (ZPlus(), ZPlus(), "5 2"),
    "z+, then w^2": (WSquare(), ZPlus(), "7/2 7/2"),
    "z+, then flat": (Flat(), ZPlus(), "7/2 7/2"),
    "gamma 1": (Gamma(1.0), Gamma(1.0), "16/3 5/3"),
    "z+, then z^B on [0, 3]": (ZBox(0.0, 3.0), ZPlus(), "9/2 5/2"),
    "alpha 2, beta 1, with the fallback": (AlphaBeta(2.0, 1.0), AlphaBeta(2.0, 1.0), "6 1"),
}


@pytest.mark.parametrize("row", TWO_LAYERS)
def test_two_layers_without_biases(row: str) -> None:
    first, hidden, expected = TWO_LAYERS[row]
    result = dt.explain(two_layers(), exactly("2 1").reshape(1, 2), target=0, composite=first_then(first, hidden))
    assert torch.allclose(result.explained, exactly("7"), **EXACT)
    assert torch.allclose(result.relevance[0], exactly(expected), **EXACT)


def test_alpha_beta_without_the_fallback_makes_26_out_of_7() -> None:
    rule = AlphaBeta(2.0, 1.0, convention="zennit")
    found = dt.explain(two_layers(), exactly("2 1").reshape(1, 2), target=0, composite=rule).relevance
    assert torch.allclose(found[0], exactly("20 6"), rtol=3e-6)  # zennit's stabilizer, 1e-6, twice


@pytest.mark.parametrize(("rule", "hidden"), [(ZPlus(), "1 6 0"), (AlphaBeta(2.0, 1.0), "1 6 0"), (ZERO, "1 6 0")])
def test_the_relevance_of_the_hidden_units_can_be_asked_for(rule: object, hidden: str) -> None:
    x = exactly("2 1").reshape(1, 2)
    result = dt.explain(two_layers(), x, target=0, composite=rule, inner=("1",))
    assert torch.allclose(result.inner["1"][0], exactly(hidden), **EXACT)


# ---------------------------------------------------------------------------------------------------------------------
# B: f = max(x1, x2) on the positive quadrant, written in two ways.


def maximum() -> nn.Module:
    return network(linear(["1 -1", "-1 1", "1 1"]), nn.ReLU(), linear(["1/2 1/2 1/2"]), nn.ReLU())


@cache
def explain_maximum(rule: object) -> dt.Explainer:
    return dt.Explainer(maximum(), torch.ones(2, 2, dtype=torch.float64), composite=rule)


def maximum_otherwise() -> nn.Module:
    return network(linear(["1 -1", "0 1"]), nn.ReLU(), linear(["1 1"]), nn.ReLU())


@pytest.mark.parametrize(
    ("x", "expected"), [("3 1", "5/2 1/2"), ("2 2", "1 1"), ("1 3", "1/2 5/2"), ("5 0", "5 0"), ("7 6", "4 3")]
)
def test_z_plus_explains_the_maximum_without_a_jump(x: str, expected: str) -> None:
    found = dt.explain(maximum(), exactly(x).reshape(1, 2), target=0, composite=ZPlus()).relevance
    assert torch.allclose(found[0], exactly(expected), **EXACT)


def test_z_plus_depends_on_how_the_same_function_is_written() -> None:
    x = exactly("3 1").reshape(1, 2)
    assert torch.equal(maximum()(x), maximum_otherwise()(x))
    found = dt.explain(maximum_otherwise(), x, target=0, composite=ZPlus()).relevance
    assert torch.allclose(found[0], exactly("2 1"), **EXACT)


@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(values=st.lists(st.integers(1, 3000).map(lambda n: n / 1000), min_size=4, max_size=4))
def test_z_plus_on_the_maximum_has_the_lipschitz_constant_root_two(values: list[float]) -> None:
    x = torch.tensor(values, dtype=torch.float64).reshape(2, 2)
    one, other = explain_maximum(ZPlus())(x, target=0).relevance
    assert (one - other).abs().sum() <= math.sqrt(2) * (x[0] - x[1]).norm() + 1e-12


def test_at_the_kink_of_the_maximum_lrp_zero_jumps_and_z_plus_does_not() -> None:
    x = torch.tensor([[2.0, 2.0 + 1e-9], [2.0, 2.0 - 1e-9]], dtype=torch.float64)
    jump = {}
    for rule in (LRPZero(), ZPlus()):
        left, right = explain_maximum(rule)(x, target=0).relevance
        jump[type(rule)] = float((left - right).abs().sum())
    assert jump[ZPlus] < 1e-8
    assert jump[LRPZero] > 3.9


# ---------------------------------------------------------------------------------------------------------------------
# C: with biases, f = sum_i x_i df/dx_i + sum_j b_j df/dz_j.


@pytest.mark.parametrize("seed", range(5))
def test_lrp_zero_books_every_bias_with_its_gradient(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    net = network(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 5), nn.LeakyReLU(), nn.Linear(5, 1)).double()
    for parameter in net.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    x = torch.randn(1, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    biases = [parameter for name, parameter in net.named_parameters() if "bias" in name]
    f = net(x).sum()
    gradients = torch.autograd.grad(f, (x, *biases))
    result = dt.explain(net, x.detach(), target=0, composite=LRPZero(), ledger=True)
    assert torch.allclose(result.relevance, (x * gradients[0]).detach(), **EXACT)
    booked = [row.bias for row in result.ledger.rows if row.op == "linear"]
    shares = [(b * g).sum().item() for b, g in zip(biases, gradients[1:], strict=True)]
    assert booked == pytest.approx(shares, abs=1e-12)
    assert torch.allclose(result.relevance.sum() + result.ledger.absorbed.sum(), f.detach(), **EXACT)


# ---------------------------------------------------------------------------------------------------------------------
# p-norm pooling of (1, 2, 2).


def max_pool_by(rule: object) -> Tensor:
    x = exactly("1 2 2").reshape(1, 1, 1, 3)
    composite = dt.Composite([(dt.composites.op("max_pool2d"), rule), (dt.composites.role("affine"), ZPlus())])
    return dt.explain(
        nn.MaxPool2d((1, 3)).eval(), x, target=torch.ones(1, 1, 1, 1).double(), composite=composite
    ).relevance


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (PNorm(1), "1/5 2/5 2/5"),
        (Proportional(epsilon=0.0), "1/5 2/5 2/5"),
        (PNorm(2), "1/9 4/9 4/9"),
        (PNorm(100), "0 1/2 1/2"),
    ],
)
def test_p_norm_pooling_shares_by_powers(rule: object, expected: str) -> None:
    assert torch.allclose(max_pool_by(rule).reshape(-1), exactly(expected), **EXACT)


def test_p_norm_pooling_stays_finite_for_a_large_p() -> None:
    assert torch.allclose(max_pool_by(PNorm(math.inf)).reshape(-1), exactly("0 1/2 1/2"), **EXACT)


def test_p_norm_pooling_sees_a_quiet_window_beside_a_loud_one() -> None:
    x = torch.tensor([1.0, 2.0, 2.0, 1e-5, 2e-5, 2e-5]).reshape(1, 1, 1, 6)  # float32: 1e-5 to the tenth is 0
    composite = dt.Composite([(dt.composites.op("max_pool2d"), PNorm(10))])
    pool, seed = nn.MaxPool2d((1, 3)).eval(), torch.ones(1, 1, 1, 2)
    shares = dt.explain(pool, x, target=seed, composite=composite).relevance.reshape(2, 3)
    assert torch.allclose(shares[1], shares[0], rtol=1e-5)


def test_winner_takes_all_gives_the_losers_nothing() -> None:
    shares = max_pool_by(WinnerTakesAll()).reshape(-1)
    assert shares[0] == 0
    assert torch.allclose(shares.sum(), exactly("1"), **EXACT)


def test_lp_pooling_shares_by_powers_on_its_own() -> None:
    x = exactly("1 2 2").reshape(1, 1, 3)
    result = dt.explain(nn.LPPool1d(2, 3).eval(), x, target=exactly("3").reshape(1, 1, 1), composite="epsilon")
    assert torch.allclose(result.relevance.reshape(-1), exactly("1/3 4/3 4/3"), rtol=1e-5)  # epsilon
