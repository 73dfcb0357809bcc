"""What theory says of whole families of inputs and networks, tried with hypothesis (theory's properties P-1 to P-16).

Most networks are recorded and not exported: recording a small one takes a millisecond.
"""

from __future__ import annotations

import itertools
import math
from functools import cache

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
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

pytestmark = pytest.mark.filterwarnings("ignore::deeptaylor.errors.RelevanceWarning")

bounded = settings(
    max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow], database=None
)

WIDTHS = (4, 7, 6, 3)
BOX = ZBox(-4.0, 4.0)

# Rules whose denominators leave the bias out: what a neuron has, its inputs get.
CONSERVATIVE = {
    "LRP-0": LRPZero(bias="ignore"),
    "gamma": Gamma(0.25, bias="ignore"),
    "generalised gamma": GeneralizedGamma(0.25, bias="ignore"),
    "z+": ZPlus(),
    "alpha-beta": AlphaBeta(2.0, 1.0),
    "w^2": WSquare(),
    "flat": Flat(),
    "z^B": BOX,
}
POSITIVE = {name: CONSERVATIVE[name] for name in ("z+", "w^2", "flat", "z^B")}

numbers = st.integers(-3000, 3000).map(lambda n: n / 1000)  # a grid: no subnormals, and zero occurs
nets = st.integers(0, 3)


def vectors(n: int, minimum: int = -3000) -> st.SearchStrategy[Tensor]:
    entries = st.integers(minimum, 3000).map(lambda k: k / 1000)
    return st.lists(entries, min_size=n, max_size=n).map(lambda v: torch.tensor([v], dtype=torch.float64))


def random_(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@cache
def net(seed: int, biases: str = "any", last: str = "linear") -> nn.Sequential:
    """A small ReLU network whose biases are `any`, `negative`, or `none`; its last layer `linear` or `relu`."""
    layers: list[nn.Module] = []
    for k, (n_in, n_out) in enumerate(itertools.pairwise(WIDTHS)):
        layer = nn.Linear(n_in, n_out, bias=biases != "none", dtype=torch.float64)
        layer.weight.data = random_((n_out, n_in), 100 * seed + k)
        if biases != "none":
            bias = 0.3 * random_((n_out,), 100 * seed + 50 + k)
            layer.bias.data = -bias.abs() if biases == "negative" else bias
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*(layers if last == "relu" else layers[:-1])).eval()


def first_then(first: object, hidden: object) -> dt.Composite:
    return dt.Composite([(dt.composites.first("affine"), first), (dt.composites.role("affine"), hidden)])


@cache
def explainer(model: nn.Module, rule: object, first: object = None) -> dt.Explainer:
    width = next(p.shape[1] for p in model.parameters() if p.ndim == 2)
    composite = first_then(first, rule) if first is not None else rule
    return dt.Explainer(model, torch.ones(2, width, dtype=torch.float64), composite=composite, record=True)


def close(a: Tensor, b: Tensor, tolerance: float = 1e-9) -> bool:
    scale = max(float(a.abs().max()), float(b.abs().max()), 1e-30)
    return float((a - b).abs().max()) <= tolerance * max(scale, 1.0)


# P-1 ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONSERVATIVE)
@bounded
@given(seed=nets, x=vectors(WIDTHS[0]), top=vectors(WIDTHS[1]))
def test_a_layer_hands_on_all_it_has_whatever_its_bias(name: str, seed: int, x: Tensor, top: Tensor) -> None:
    layer = net(seed)[0]
    result = explainer(nn_only(seed), CONSERVATIVE[name])(x, target=top, ledger=True)
    lost = result.ledger.absorbed
    positive_side_empty = bool(((layer.weight * x).clamp(min=0).sum(1) == 0).any())
    if not (x == 0).all() and not (positive_side_empty and name in ("z+", "alpha-beta")):
        assert lost.abs().max() < 1e-9 * (1 + float(result.relevance.abs().max()))
    assert close(result.relevance.sum(1) + lost, top.sum(1), 1e-9 * (1 + float(result.relevance.abs().max())))


@cache
def nn_only(seed: int) -> nn.Module:
    """The first layer of the network, alone."""
    return nn.Sequential(net(seed)[0]).eval()


@pytest.mark.parametrize("name", CONSERVATIVE)
@bounded
@given(seed=nets, x=vectors(WIDTHS[0], minimum=0))
def test_a_network_with_non_positive_biases_conserves_its_output(name: str, seed: int, x: Tensor) -> None:
    model = net(seed, "negative", "relu")
    result = explainer(model, CONSERVATIVE["z+"], CONSERVATIVE[name])(x, target=0)
    assume(bool((x > 0).any()))
    assert close(result.relevance.sum(1), result.explained)


# P-2 ------------------------------------------------------------------------------------------------------------------


@bounded
@given(seed=nets, x=vectors(WIDTHS[0]), stabilizer=st.sampled_from([0.0, 0.1, 1.0]))
def test_a_bias_in_the_denominator_leaks_what_the_formula_says(seed: int, x: Tensor, stabilizer: float) -> None:
    layer = net(seed)[0]
    z = layer(x).detach()
    rule = Epsilon(stabilizer) if stabilizer else LRPZero()
    for j in range(WIDTHS[1]):
        top = torch.zeros_like(z)
        top[:, j] = 1.0
        handed = explainer(nn_only(seed), rule)(x, target=top).relevance.sum()
        sign = -1.0 if z[0, j] < 0 else 1.0
        assert close(handed, ((z - layer.bias)[0, j] / (z[0, j] + stabilizer * sign)).detach(), 1e-8)


@bounded
@given(seed=nets, x=vectors(WIDTHS[0]), target=st.integers(0, 2))
def test_a_network_under_lrp_zero_leaks_its_biases_times_their_gradients(seed: int, x: Tensor, target: int) -> None:
    model = net(seed)
    biases = [layer.bias for layer in model if isinstance(layer, nn.Linear)]
    f = model(x)[0, target]
    leak = sum((b * g).sum() for b, g in zip(biases, torch.autograd.grad(f, biases), strict=True)).detach()
    result = explainer(model, LRPZero())(x, target=target, ledger=True)
    assert close(result.relevance.sum(), f.detach() - leak)
    assert close(result.ledger.absorbed, leak.reshape(1))


# P-3 ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", POSITIVE)
@bounded
@given(seed=nets, x=vectors(WIDTHS[0], minimum=0), target=st.integers(0, 2))
def test_deep_taylor_is_positive_and_consistent(first: str, seed: int, x: Tensor, target: int) -> None:
    model = net(seed, "negative", "relu")
    result = explainer(model, ZPlus(), POSITIVE[first])(x, target=target)
    assert (result.relevance >= 0).all()
    if result.explained.item() == 0:
        assert (result.relevance == 0).all()


# P-4 ------------------------------------------------------------------------------------------------------------------


class Mixed(nn.Module):
    """ReLU, leaky ReLU, max- and average-pooling, with or without biases."""

    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 3, 3, padding=1, bias=bias), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(3, 4, 3, padding=1, bias=bias), nn.LeakyReLU(0.2), nn.AvgPool2d(2), nn.Flatten(),
            nn.Linear(4, 3, bias=bias),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


@cache
def mixed(bias: bool, rule: object) -> tuple[nn.Module, dt.Explainer]:
    torch.manual_seed(0)
    model = Mixed(bias).double().eval()
    composite = dt.Composite(
        [(dt.composites.role("affine"), rule), (dt.composites.role("sum"), Proportional(epsilon=0.0))]
    )
    return model, dt.Explainer(model, torch.rand(2, 1, 4, 4).double(), composite=composite)


@pytest.mark.parametrize("bias", [True, False], ids=["biases", "no biases"])
@pytest.mark.parametrize("rule", [LRPZero(), Epsilon(1e-13)], ids=["LRP-0", "epsilon towards 0"])
@bounded
@given(values=st.integers(0, 10_000))
def test_lrp_zero_is_gradient_times_input(bias: bool, rule: object, values: int) -> None:
    model, explain = mixed(bias, rule)
    x = random_((2, 1, 4, 4), values).requires_grad_()
    f = model(x)[:, 1].sum()
    expected = (x * torch.autograd.grad(f, x)[0]).detach()
    result = explain(x.detach(), target=1)
    assert close(result.relevance, expected, 1e-8)
    if not bias:
        assert close(result.relevance.sum(), f.detach(), 1e-8)


# P-5 ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONSERVATIVE)
@settings(bounded, max_examples=6)  # root_points exports the layer
@given(seed=nets, x=vectors(WIDTHS[0]))
def test_messages_are_a_taylor_expansion_at_the_rule_s_root(name: str, seed: int, x: Tensor) -> None:
    layer, rule = net(seed)[0], CONSERVATIVE[name]
    z = layer(x).detach()[0]
    roots = rule.root_points(layer, x[0])
    assert roots.shape == (WIDTHS[1], WIDTHS[0])
    for j in range(WIDTHS[1]):
        top = torch.zeros(1, WIDTHS[1], dtype=torch.float64)
        top[0, j] = z[j]
        message = explainer(nn_only(seed), rule)(x, target=top).relevance[0]
        step = (layer.weight[j] * (x[0] - roots[j])).detach()
        left = (layer.weight[j] @ roots[j] + layer.bias[j]).detach()
        scale = 1e-9 * (1 + float(message.abs().max()))
        assert torch.allclose(step, message, atol=scale)
        assert torch.allclose(left, z[j] - message.sum(), atol=scale)


def test_roots_of_chosen_neurons_are_those_of_all() -> None:
    layer, x = net(0)[0], random_((WIDTHS[0],), 3)
    every = ZPlus().root_points(layer, x)
    assert torch.equal(ZPlus().root_points(layer, x, neurons=[4, 1]), every[[4, 1]])


# P-6 ------------------------------------------------------------------------------------------------------------------


def agree(seed: int, a: object, b: object, x: Tensor, tolerance: float = 1e-9) -> bool:
    """Whether two rules agree on the first layer, at units that have a positive contribution (others z+ drops)."""
    top = random_((1, WIDTHS[1]), seed + 7).abs() * (net(seed)[0].weight > 0).any(1)
    first, second = (explainer(nn_only(seed), rule)(x, target=top).relevance for rule in (a, b))
    return close(first, second, tolerance * (1 + float(first.abs().max())))


@bounded
@given(seed=nets, x=vectors(WIDTHS[0], minimum=1))
def test_limits_of_the_rules_are_other_rules(seed: int, x: Tensor) -> None:
    assert agree(seed, Gamma(0.0), LRPZero(), x)
    assert agree(seed, Gamma(1e9, bias="ignore"), ZPlus(), x, 1e-6)
    assert agree(seed, AlphaBeta(1.0, 0.0), ZPlus(), x)
    assert agree(seed, Gamma(0.25), GeneralizedGamma(0.25), x) or bool((net(seed)[0](x) < 0).any())
    everything_absorbed = explainer(nn_only(seed), Epsilon(1e14))(x, target=torch.ones(1, WIDTHS[1]).double())
    assert everything_absorbed.relevance.abs().max() < 1e-10


@bounded
@given(seed=nets, x=vectors(WIDTHS[0], minimum=1))
def test_a_box_open_upwards_gives_relevance_to_inhibiting_inputs_only(seed: int, x: Tensor) -> None:
    weight = net(seed)[0].weight
    for j in range(WIDTHS[1]):
        assume(bool((weight[j] < 0).any()))
        top = torch.zeros(1, WIDTHS[1], dtype=torch.float64)
        top[0, j] = 1.0
        found = explainer(nn_only(seed), ZBox(0.0, 1e12))(x, target=top).relevance[0]
        assert found[weight[j] > 0].abs().sum() < 1e-9
        assert math.isclose(found.sum(), 1.0, rel_tol=1e-9)


@cache
def pooled(rule: object) -> dt.Explainer:
    composite = dt.Composite([(dt.composites.op("max_pool2d"), rule), (dt.composites.role("affine"), ZPlus())])
    return dt.Explainer(nn.MaxPool2d(2).eval(), torch.ones(2, 1, 4, 4, dtype=torch.float64), composite=composite)


@bounded
@given(x=vectors(16, minimum=1).map(lambda v: v.reshape(1, 1, 4, 4)))
def test_p_norm_pooling_runs_from_proportional_to_winner_takes_all(x: Tensor) -> None:
    top = torch.ones(1, 1, 2, 2, dtype=torch.float64)
    proportional = Proportional(epsilon=0.0)
    rules = (PNorm(1), proportional, PNorm(2), PNorm(1e5))
    shares = {rule: pooled(rule)(x, target=top).relevance for rule in rules}
    assert close(shares[PNorm(1)], shares[proportional])
    patches = x.reshape(1, 1, 2, 2, 2, 2).transpose(3, 4)
    squares = patches**2 / (patches**2).sum((-1, -2), keepdim=True)
    assert close(shares[PNorm(2)], squares.transpose(3, 4).reshape(1, 1, 4, 4))
    values = patches.reshape(4, 4)
    if all(len(set(patch.tolist())) == 4 for patch in values):  # no ties: there is one winner
        assert close(shares[PNorm(1e5)], pooled(WinnerTakesAll())(x, target=top).relevance, 1e-6)


# P-7 ------------------------------------------------------------------------------------------------------------------


def everywhere(model: nn.Module, name: str) -> dt.Explainer:
    """The rule at every layer; or at the first with z+ above it, where the rule is one for inputs."""
    if name in ("w^2", "flat", "z^B"):
        return explainer(model, ZPlus(), EVERY[name])
    return explainer(model, EVERY[name])


# every rule with the bias where its paper has it
EVERY = {
    **CONSERVATIVE,
    "LRP-0, bias": LRPZero(),
    "gamma, bias": Gamma(0.5),
    "z+ of zennit": ZPlus(convention="zennit"),
}
# not epsilon, whose stabilizer has a scale; nor w^2, flat of a hidden layer: theirs is the first one
RESCALABLE = {name: EVERY[name] for name in ("LRP-0", "gamma", "generalised gamma", "z+", "alpha-beta", "LRP-0, bias")}


@cache
def permuted(seed: int) -> tuple[nn.Module, Tensor]:
    """The network with its inputs and its first hidden units in another order."""
    original, order, hidden = net(seed), torch.tensor([2, 0, 3, 1]), torch.tensor([6, 2, 0, 5, 1, 3, 4])
    layers = [nn.Linear(layer.in_features, layer.out_features).double() for layer in original[::2]]
    for layer, source in zip(layers, original[::2], strict=True):
        layer.load_state_dict(source.state_dict())
    layers[0].weight.data = layers[0].weight.data[hidden][:, order]
    layers[0].bias.data = layers[0].bias.data[hidden]
    layers[1].weight.data = layers[1].weight.data[:, hidden]
    return nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2]).eval(), order


@cache
def rescaled(seed: int) -> nn.Module:
    """The same function: hidden units scaled by positive factors, undone by the weights above them."""
    original, factors = net(seed), torch.tensor([0.5, 2.0, 8.0, 0.25, 1.0, 3.0, 0.7], dtype=torch.float64)
    layers = [nn.Linear(layer.in_features, layer.out_features).double() for layer in original[::2]]
    for layer, source in zip(layers, original[::2], strict=True):
        layer.load_state_dict(source.state_dict())
    layers[0].weight.data *= factors[:, None]
    layers[0].bias.data *= factors
    layers[1].weight.data /= factors
    return nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2]).eval()


@pytest.mark.parametrize("name", EVERY)
@bounded
@given(seed=st.integers(0, 1), x=vectors(WIDTHS[0]))
def test_relevance_follows_a_reordering_of_inputs_and_units(name: str, seed: int, x: Tensor) -> None:
    model, order = permuted(seed)
    expected = everywhere(net(seed), name)(x, target=1).relevance[:, order]
    found = everywhere(model, name)(x[:, order], target=1).relevance
    assert close(found, expected, 1e-8 * (1 + float(expected.abs().max())))


@pytest.mark.parametrize("name", RESCALABLE)
@bounded
@given(seed=st.integers(0, 1), x=vectors(WIDTHS[0]))
def test_relevance_ignores_a_positive_rescaling_of_hidden_units(name: str, seed: int, x: Tensor) -> None:
    expected = everywhere(net(seed), name)(x, target=1).relevance
    found = everywhere(rescaled(seed), name)(x, target=1).relevance
    assert close(found, expected, 1e-8 * (1 + float(expected.abs().max())))


@pytest.mark.parametrize("name", EVERY)
@bounded
@given(x=vectors(WIDTHS[0]), y=vectors(WIDTHS[0]), a=vectors(3), b=vectors(3), factor=numbers)
def test_relevance_is_linear_in_the_seed_and_independent_across_samples(
    name: str, x: Tensor, y: Tensor, a: Tensor, b: Tensor, factor: float
) -> None:
    explain = everywhere(net(2), name)
    one, other, both = (explain(x, target=seed).relevance for seed in (a, b, a + factor * b))
    scale = 1 + float(one.abs().max()) + float(other.abs().max())
    assert close(both, one + factor * other, 1e-9 * scale)
    together = explain(torch.cat([x, y]), target=torch.cat([a, b])).relevance
    assert close(together, torch.cat([one, explain(y, target=b).relevance]), 1e-9 * scale)


# P-8, P-9 -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["LRP-0", "gamma", "generalised gamma", "z+", "alpha-beta", "w^2", "flat"])
@bounded
@given(seed=nets, x=vectors(WIDTHS[0]), factor=st.sampled_from([0.01, 0.5, 3.0, 100.0]))
def test_without_biases_relevance_scales_with_the_input(name: str, seed: int, x: Tensor, factor: float) -> None:
    explain = everywhere(net(seed, "none"), name)
    expected = factor * explain(x, target=0).relevance
    assert close(explain(factor * x, target=0).relevance, expected, 1e-9 * (1 + float(expected.abs().max())))


@pytest.mark.parametrize("name", ["LRP-0", "LRP-0, bias", "gamma", "generalised gamma", "z+", "alpha-beta"])
@bounded
@given(seed=nets, x=vectors(WIDTHS[0]), zero=st.sets(st.integers(0, 3), min_size=1, max_size=3))
def test_an_input_of_zero_gets_no_relevance(name: str, seed: int, x: Tensor, zero: set[int]) -> None:
    x[:, list(zero)] = 0.0
    found = everywhere(net(seed), name)(x, target=0).relevance
    assert (found[:, list(zero)] == 0).all()


@pytest.mark.parametrize("name", ["w^2", "flat", "z^B"])
def test_w_square_flat_and_z_box_do_give_relevance_to_a_zero(name: str) -> None:
    x = torch.tensor([[0.0, 1.0, 1.0, 1.0]], dtype=torch.float64)
    assert explainer(net(0), ZPlus(), EVERY[name])(x, target=0).relevance[0, 0] != 0


# P-15 -----------------------------------------------------------------------------------------------------------------


def test_gradient_times_input_does_not_conserve_beside_biases() -> None:
    x = random_((1, WIDTHS[0]), 5)
    result = dt.explain(net(1), x, target=0, composite="gradient-times-input", ledger=True)
    assert abs(float(result.relevance.sum() - result.explained)) > 0.05
    assert close(result.relevance.sum(1) + result.ledger.absorbed, result.explained)
