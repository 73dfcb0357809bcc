"""The recursion of deep Taylor decomposition, its propositions, and what they permit."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import deeptaylor as dt
from deeptaylor.audit.minmax import MinMax
from deeptaylor.audit.propositions import locally_constant, regions_shrink, softplus_sums
from deeptaylor.audit.recursion import (
    Walk,
    constant_roots,
    layers_of,
    recursive_taylor,
    rule_roots,
    scaled_roots,
    train_free,
    z_plus,
)
from deeptaylor.audit.reproduce import NAMES, rank_one, run


def dense(*sizes: int, seed: int = 0, bias: bool = True) -> nn.Sequential:
    torch.manual_seed(seed)
    layers = [m for a, b in pairwise(sizes) for m in (nn.Linear(a, b, bias=bias), nn.ReLU())]
    return nn.Sequential(*layers[:-1]).double().requires_grad_(False)


def hinge() -> nn.Sequential:
    """f(x) = relu(relu(x1) + relu(x2) − 1)."""
    first, second = nn.Linear(2, 2).double(), nn.Linear(2, 1).double()
    with torch.no_grad():
        first.weight.copy_(torch.eye(2))
        first.bias.zero_()
        second.weight.fill_(1.0)
        second.bias.fill_(-1.0)
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU())


def vector(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def gradient(model: nn.Module, x: Tensor, output: int) -> Tensor:
    leaf = x.clone().requires_grad_()
    model(leaf)[output].backward()
    return leaf.grad


def active(*sizes: int) -> tuple[nn.Sequential, Tensor, int]:
    """A network without biases and an input at which an output is positive."""
    for seed in range(20):
        model = dense(*sizes, seed=seed, bias=False)
        x = torch.rand(sizes[0], dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        if float(model(x).max()) > 0.01:
            return model, x, int(model(x).argmax())
    raise AssertionError("no such network")


def test_one_common_locally_constant_root_gives_gradient_times_x_minus_root():
    model, x, output = active(3, 4, 4, 2)
    activations = Walk(layers_of(model), x).activations
    roots = [constant_roots(0.001 * a) for a in activations[:-1]]
    found = recursive_taylor(model, roots)(x, output)
    assert torch.allclose(found[0], gradient(model, x, output) * (x - 0.001 * x), rtol=0, atol=1e-12)


def test_different_constant_roots_give_the_closed_form_and_not_gradient_times_input():
    model, x, output = active(3, 4, 4, 2)
    activations = Walk(layers_of(model), x).activations
    own = [0.001 * (j + 1) * x for j in range(4)]
    roots = [constant_roots(own), *(constant_roots(0.001 * a) for a in activations[1:-1])]
    found = recursive_taylor(model, roots)(x, output)[0]
    assert torch.allclose(found, locally_constant(model, x, own, output), rtol=0, atol=1e-12)
    assert not torch.allclose(found, gradient(model, x, output) * x, atol=1e-5)


def test_roots_on_the_ray_to_the_origin_conserve_in_every_layer():
    model, x, output = active(3, 4, 2)
    found = recursive_taylor(model, [scaled_roots(0.0), scaled_roots(0.0)])(x, output)
    assert all(float(r.sum()) == pytest.approx(float(model(x)[output]), abs=1e-12) for r in found)


def test_the_training_free_recursion_is_the_rule():
    model, x, output = active(4, 6, 5, 2)
    roots = [rule_roots(layer, z_plus) for layer in model if isinstance(layer, nn.Linear)]
    ours = train_free(model, roots, x, output)
    rule = dt.explain(model.eval(), x[None], target=output, composite=dt.rules.ZPlus()).relevance[0]
    assert torch.allclose(ours, rule, rtol=0, atol=1e-12)


def test_regions_only_shrink():
    """Proposition 1: nowhere is the relevance linear where the network is not; and with roots that bend, it is not."""
    model, x, output = active(2, 4, 2)

    def bent(a: Tensor, j: int) -> Tensor:  # on the ray to the origin, with a step that depends on the input
        return a * (0.001 + 100 * torch.relu(a.sum() - turn))

    turn = 1.05 * 0.001 * float(Walk(layers_of(model), x).activations[1].sum())
    generator = torch.Generator().manual_seed(0)
    points = [x + 0.7 * torch.randn(2, generator=generator, dtype=torch.float64) for _ in range(14)]
    straight = regions_shrink(recursive_taylor(model, [scaled_roots(0.001)] * 2), x, points, output)
    curved = regions_shrink(recursive_taylor(model, [scaled_roots(0.001), bent]), x, points, output)
    assert straight.violations == curved.violations == 0
    assert curved.in_relevance < straight.in_relevance <= straight.in_network < 14


@pytest.mark.parametrize("wanted", [(5.0, -4.0), (100.0, -99.0), (0.5, 0.5)])
def test_any_split_of_the_output_is_justified(wanted: tuple[float, float]):
    found = dt.justify(hinge(), vector(1.0, 1.0), vector(*wanted))
    assert torch.allclose(found.relevance, vector(*wanted), rtol=0, atol=1e-9)
    assert found.margin >= -1e-9
    again = recursive_taylor(hinge().requires_grad_(False), found.roots)(vector(1.0, 1.0), 0)
    assert torch.allclose(again[0], vector(*wanted), rtol=0, atol=1e-9)
    with torch.no_grad():  # the roots of the first layer's inputs are in the region, on its side f = 0 or above
        assert float(hinge()(found.common_root)) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(("sizes", "seed"), [((4, 6, 3), 1), ((4, 6, 5, 3), 2)])
def test_arbitrary_explanations_of_random_networks_are_justified(sizes: tuple[int, ...], seed: int):
    model = dense(*sizes, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(3):
        x = torch.randn(sizes[0], generator=generator, dtype=torch.float64)
        value = float(model(x).max())
        wanted = 3 * torch.randn(sizes[0], generator=generator, dtype=torch.float64)
        wanted += (value - wanted.sum()) / len(wanted)
        try:
            found = dt.justify(model, x, wanted)
        except dt.errors.InputError:  # not every region holds a root, and not every input wakes two neurons
            continue
        assert torch.allclose(found.relevance, wanted, rtol=0, atol=1e-9)
        return
    raise AssertionError("no region with a root among three")


def test_numbers_that_do_not_sum_to_the_output_are_refused():
    with pytest.raises(dt.errors.InputError, match="sums to 3 and f"):
        dt.justify(hinge(), vector(1.0, 1.0), vector(1.0, 2.0))
    with pytest.raises(dt.errors.InputError, match="two layers"):
        dt.justify(dense(2, 1), vector(1.0, 1.0), vector(1.0, 2.0))


def test_softplus_sums_are_the_series_and_diverge_beyond_pi_over_beta():
    assert [round(v, 3) for v in softplus_sums(2.0, 1.0, 4)[2::2]] == [2.193, 2.11]
    assert [round(v, 2) for v in softplus_sums(2.0, 5.0, 4)[2::2]] == [3.64, -6.78]
    assert [round(v, 1) for v in softplus_sums(2.0, 20.0, 4)[2::2]] == [11.0, -655.6]
    beta = 2.0
    for z, converges in ((0.9 * math.pi / beta, True), (1.1 * math.pi / beta, False)):
        true = math.log1p(math.exp(beta * z)) / beta
        late = [abs(v - true) for v in softplus_sums(z, beta, 80)]
        assert (late[80] < 1e-4 * late[2]) == converges


def test_a_relevance_model_fits_the_layer_and_sends_relevance_down():
    torch.manual_seed(0)

    class Sum(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.sum(-1, keepdim=True)

    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5), nn.ReLU(), Sum())
    x = torch.rand(400, 6)
    state = torch.get_rng_state()
    value, gaps = model(x).detach()[:, 0], []
    for epochs in (0, 60):
        relevance = MinMax(model, x, low=0.0, high=1.0, epochs=epochs, rate=1e-2)(x)
        assert bool((relevance >= -1e-6).all())
        gaps.append(float((relevance.sum(1) - value).abs().median()))
    assert gaps[1] < gaps[0] / 3
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(dt.errors.InputError, match="bounds"):
        MinMax(model, x, low=0.0, high=0.5)


@pytest.mark.parametrize("kind", ["convolutional", "classes"])
def test_trained_relevance_models_are_a_composite(kind: str):
    torch.manual_seed(0)
    if kind == "convolutional":
        net: list[nn.Module] = [nn.Conv2d(1, 5, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(5, 6, 3), nn.ReLU(),
                                nn.AvgPool2d(2), nn.Flatten(), nn.Linear(6, 3)]  # fmt: skip
        model, x, low = nn.Sequential(*net).eval(), torch.rand(200, 1, 8, 8), 0.0
    else:
        model = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
        x, low = torch.rand(200, 6) - 0.5, -0.5
    with torch.no_grad():
        value, target = model(x).max(0).values.max(0)
        seen = x[model(x)[:, target] > 0.2 * value]
    before = {name: v.clone() for name, v in model.state_dict().items()}
    gaps = []
    for epochs in (0, 150):
        composite = dt.fit_minmax(model, x, bounds=(low, 1.0), target=int(target), epochs=epochs, rate=1e-2)
        found = dt.explain(model, seen, target=int(target), composite=composite, ledger=True)
        assert found.settings["composite"] == "deep-taylor-minmax"
        assert found.relevance.shape == seen.shape
        assert bool((found.relevance >= -1e-6).all())
        gaps.append(float((found.ledger.gap.abs() / found.explained).median()))
        assert torch.allclose(found.ledger.gap.float(), found.explained - found.relevance.flatten(1).sum(1), atol=1e-5)
    assert gaps[1] < gaps[0] / 2
    assert all(torch.equal(v, before[name]) for name, v in model.state_dict().items())
    with pytest.raises(dt.errors.InputError, match="another model"):
        dt.explain(nn.Sequential(*model).eval(), seen, target=int(target), composite=composite)
    with pytest.raises(dt.errors.InputError, match="trained for class"):
        dt.explain(model, seen, target=(int(target) + 1) % 3, composite=composite)
    with pytest.raises(dt.errors.InputError, match="excludes the input"):
        dt.explain(model, seen + 3, target=int(target), composite=composite)


def test_relevance_models_say_what_they_need():
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    with pytest.raises(dt.errors.CompositeError, match="fit_minmax"):
        dt.explain(model, torch.rand(1, 6), composite="deep-taylor-minmax")
    with pytest.raises(dt.errors.InputError, match="say which is decomposed"):
        dt.fit_minmax(model, torch.rand(5, 6), bounds=(0.0, 1.0))
    normed = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2)).eval()
    with pytest.raises(dt.errors.InputError, match="BatchNorm2d"):
        dt.fit_minmax(normed, torch.rand(5, 1, 4, 4), bounds=(0.0, 1.0), target=0)


def test_products_of_non_negative_matrices_converge_and_gaussian_ones_do_not():
    """The figures of a separate program, to the three digits in which they are given, or 10 % below a thousandth."""
    generator = np.random.default_rng(0)
    for chain in rank_one.CHAINS:
        runs = torch.tensor([rank_one.apartness(chain, generator) for _ in range(rank_one.RUNS)])
        found = rank_one.at(runs.median(0).values)
        for value, expected in zip(found, chain.expected, strict=False):
            assert value == pytest.approx(
                expected, rel=0.1 if expected < 0.01 else 0, abs=0.00051 if expected else 1e-12
            )


@pytest.mark.parametrize("name", sorted(rank_one.CLOSED))
def test_chains_of_matrices_begin_at_their_closed_form(name: str):
    chain = next(chain for chain in rank_one.CHAINS if chain.name == name)
    generator = torch.Generator().manual_seed(1)
    starts, weights = (torch.randn(n, 512, generator=generator, dtype=torch.float64) for n in (2000, 512))
    vectors = starts @ chain.matrix(weights)
    vectors = vectors / vectors.norm(dim=1, keepdim=True)
    apart = 1 - float((vectors[:1000] @ vectors[1000:].T).abs().mean())
    assert apart == pytest.approx(rank_one.CLOSED[name], abs=0.02)  # 1,000 by 1,000 vectors, 512 wide


def test_a_reproduction_writes_table_and_figure(tmp_path):
    found = rank_one.reproduce(lambda share, what: None, runs=1, further=2)
    assert [path.name for path in found.write(tmp_path)] == ["rank-one.md", "rank-one.json", "rank-one.png"]
    assert "| α2 β1 " in (tmp_path / "rank-one.md").read_text()
    with pytest.raises(dt.errors.InputError, match=", ".join(NAMES)):
        run("rank-two", lambda share, what: None)
