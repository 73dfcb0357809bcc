"""Exact roots in linear regions: optimal, in the region, or proven not to exist; walks are exact."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from torch import Tensor, nn

import deeptaylor as dt
from deeptaylor.audit.exact_root import exact_nearest_root, pieces_of
from deeptaylor.audit.least_distance import nearest
from deeptaylor.audit.ray import first_boundary, first_root
from deeptaylor.audit.reproduce import rigorous_study


def dense(*sizes: int, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    layers = [m for a, b in pairwise(sizes) for m in (nn.Linear(a, b), nn.ReLU())]
    for layer in layers[::2]:
        nn.init.kaiming_normal_(layer.weight)
    return nn.Sequential(*layers[:-1]).double().eval().requires_grad_(False)


def convolutional() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Flatten(),
        nn.Linear(24, 3),
    ).double().eval()  # fmt: skip


def inputs(n: int, *shape: int) -> Tensor:
    return torch.rand(n, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def described(pieces: object) -> tuple[np.ndarray, np.ndarray]:
    """All rows and offsets of a region."""
    margins = pieces.margins(pieces.x)[0].detach()
    return pieces.rows(torch.arange(len(margins))).numpy(), margins.numpy()


@pytest.mark.parametrize("seed", [0, 1])
def test_few_constraints_give_the_optimum_of_all(seed: int):
    model, x = dense(6, 12, 10, 3, seed=seed), inputs(8, 6)
    lazy = exact_nearest_root(model, x)
    for n, pieces in enumerate(pieces_of(model, x)):
        rows, offsets = described(pieces)
        full = nearest(pieces.gradient.flatten().numpy(), pieces.value, rows, offsets)
        assert (full is not None) == bool(lazy.found[n])
        if full is not None:
            assert np.abs((lazy.point[n] - x[n]).numpy() - full).max() < 1e-8
            assert lazy.constraints[n] <= len(offsets)


@pytest.mark.parametrize("positive", [False, True], ids=["unbounded", "R+"])
def test_no_root_is_said_where_a_linear_programme_over_all_constraints_says_so_and_proven(positive: bool):
    model, x = dense(3, 10, 8, 2, seed=4), inputs(15, 3)
    found = exact_nearest_root(model, x, domain="positive" if positive else None)
    for n, pieces in enumerate(pieces_of(model, x)):
        rows, offsets = described(pieces)
        gradient = pieces.gradient.flatten().numpy() * np.sign(pieces.value)
        bounds = [(-value, None) if positive else (None, None) for value in x[n].tolist()]
        lowest = linprog(gradient, -rows, offsets, bounds=bounds, method="highs")
        reaches = lowest.status == 3 or lowest.fun + abs(pieces.value) <= 1e-9
        assert bool(found.found[n]) == reaches
        if not reaches:
            proof = found.proof[n]
            assert proof.holds
            assert abs(proof.bound) == pytest.approx(lowest.fun + abs(pieces.value), rel=1e-6)
    assert 0 < int(found.found.sum()) < len(x)  # both answers occur


@pytest.mark.parametrize("shape", [(8,), (1, 8, 8)], ids=["dense", "convolutions and max-pool"])
def test_a_root_in_the_region_leaves_no_remainder(shape: tuple[int, ...]):
    model = dense(8, 12, 10, 3) if len(shape) == 1 else convolutional()
    x = inputs(6, *shape)
    found = exact_nearest_root(model, x, target=0)
    assert bool(found.found.any())
    for n in found.found.nonzero()[:, 0].tolist():
        with torch.no_grad():
            assert abs(float(model(found.point[n : n + 1])[0, 0])) < 1e-9
            (pieces,) = pieces_of(model, x[n : n + 1], target=0)
            assert float(pieces.margins(found.point[n : n + 1]).min()) > -1e-9
        assert abs(float(found.relevance[n].sum() - found.start_value[n])) < 1e-9


def test_the_nearest_root_lies_in_its_box():
    model, x = dense(8, 12, 10, 3), inputs(12, 8)
    boxed, free = exact_nearest_root(model, x, domain=(0.0, 1.0)), exact_nearest_root(model, x)
    held = boxed.found
    assert bool(held.any())
    assert float(boxed.point[held].min()) > -1e-12
    assert float(boxed.point[held].max()) < 1 + 1e-12
    assert bool((boxed.distance[held] >= free.distance[held] - 1e-12).all())


@pytest.mark.parametrize("sizes", [(60, 200, 200, 100, 5), (784, 1000, 1000, 500, 10)], ids=str)
def test_memory_grows_with_active_constraints_not_with_the_network(sizes: tuple[int, ...]):
    model, x = dense(*sizes), inputs(1, sizes[0])
    found = exact_nearest_root(model, x)
    assert bool(found.found.all())
    assert found.constraints[0] < 200  # of 500, of 2,500
    assert found.rounds[0] < 10


def test_the_model_must_be_piecewise_linear_and_the_operations_are_named():
    model = nn.Sequential(nn.Linear(3, 4), nn.GELU(), nn.Linear(4, 2)).eval()
    with pytest.raises(dt.errors.InputError, match="gelu"):
        exact_nearest_root(model, torch.rand(1, 3))
    with pytest.raises(dt.errors.DomainError, match="outside the domain"):
        exact_nearest_root(dense(3, 4, 2), -inputs(1, 3), domain="positive")


def test_the_first_boundary_equals_bisection_and_the_pattern_holds_before_it():
    model = dense(5, 9, 7, 2)
    for n in range(5):
        x, v = inputs(n + 1, 5)[n:], torch.randn(1, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(n))
        (pieces,) = pieces_of(model, x, target=0)
        t = first_boundary(pieces, v)

        def pattern(point: Tensor) -> Tensor:
            with torch.no_grad():
                first = model[0](point)
                return torch.cat([first > 0, model[2](first.relu()) > 0], 1)

        own = pattern(x)
        assert all(torch.equal(pattern(x + s * t * v), own) for s in np.linspace(0, 0.999, 50))
        low, high = 0.0, 2 * t
        assert not torch.equal(pattern(x + 1.001 * t * v), own)
        for _ in range(100):
            middle = (low + high) / 2
            same = all(torch.equal(pattern(x + s * middle * v), own) for s in (1.0, 0.7))
            low, high = (middle, high) if same else (low, middle)
        assert t == pytest.approx(low, rel=1e-9)


def test_the_profile_along_a_ray_is_the_network_s_and_its_first_root_is_the_first():
    model, x = dense(5, 12, 9, 2, seed=2), inputs(1, 5)
    v = torch.tensor([[1.0, -2.0, 0.5, 1.5, -1.0]], dtype=torch.float64)
    walk = first_root(model, x, v, target=0)
    ts, values = (torch.tensor(column, dtype=torch.float64) for column in zip(*walk.profile, strict=True))
    with torch.no_grad():
        real = model(x + ts[:, None] * v)[:, 0]
        assert torch.allclose(real, values, rtol=1e-9, atol=1e-9)
        end = walk.t if walk.t is not None else float(ts[-1]) + 5
        dense_values = model(x + torch.linspace(0, 0.999 * end, 2000, dtype=torch.float64)[:, None] * v)[:, 0]
    assert bool((dense_values.sign() == dense_values[0].sign()).all())
    assert walk.t is not None or walk.endless
    downhill = first_root(model, x, target=0)
    assert downhill.point is None or abs(float(model(downhill.point)[0, 0])) < 1e-9


def test_true_roots_of_the_rigorous_study_and_existing_ones_on_forty_inputs():
    network = rigorous_study.Mlp().double()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        x = torch.cat(list(rigorous_study.drawn(rigorous_study.Mlp(), 40))).double()
    found = rigorous_study.samples(network, x)
    table = rigorous_study.true_root_table(network, found)
    assert set(table.column("samples all in %")) == {0.0}  # with 3,000 roots; figures within 8 points with 400
    for row in table.rows:
        assert abs(row[1] - row[2]) < 8
        assert abs(row[7] - row[8]) < 8
    assert bool(exact_nearest_root(network, x, target=0, domain="positive").found.all())


def test_the_study_s_directions_are_the_rules_own_roots():
    network = rigorous_study.Mlp().double()
    layer, x = network.affine()[0], inputs(1, 10)[0]
    rules = {
        "z+": dt.rules.ZPlus(), "w2": dt.rules.WSquare(), "flat": dt.rules.Flat(), "z^B [0, 3]": dt.rules.ZBox(0.0, 3.0),
        "gamma 1": dt.rules.Gamma(1.0, bias="ignore"), "v = x": dt.rules.LRPZero(bias="ignore"),
    }  # fmt: skip
    for name, rule in rules.items():
        ours = rigorous_study.true_roots(name, x, layer.weight, layer.bias)
        assert torch.allclose(ours, rule.root_points(layer, x), rtol=0, atol=1e-10), name


def test_twenty_rows_of_the_published_script_come_out_alike():
    """The notebook's relevance of the first layer's outputs, by a rule of this library."""
    network = rigorous_study.Mlp()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        (x,) = rigorous_study.drawn(network, 1)
    result = dt.explain(
        network, x, target=0, composite=dt.composites.deep_taylor(logits=dt.rules.ZPlus()), inner=["relu"]
    )
    assert torch.allclose(rigorous_study.z_plus_relevance(network, x[0]), result.inner["relu"][0], rtol=1e-5, atol=1e-6)


def test_the_composite_decomposes_at_the_exact_root() -> None:
    torch.manual_seed(3)
    net = nn.Sequential(nn.Linear(5, 12), nn.ReLU(), nn.Linear(12, 3)).eval().double()
    x = torch.rand(2, 5, dtype=torch.double)
    explainer = dt.Explainer(net, x, composite="exact-root")
    result = explainer(x, target=torch.tensor([[0, 1], [2, 0]]), ledger=True)
    assert result.relevance.shape == (2, 2, 5)
    for k, target in enumerate(([0, 2], [1, 0])):
        root = dt.nearest_root(net, x, region="exact", target=target)
        torch.testing.assert_close(result.relevance[:, k], root.relevance)
    torch.testing.assert_close(result.ledger.inputs, result.output.gather(1, result.target))
    assert result.ledger.gap.abs().max() < 1e-9


def test_the_composite_says_where_there_is_no_root_and_where_there_are_no_regions() -> None:
    always = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1)).eval()
    with torch.no_grad():
        always[2].weight.fill_(1.0)
        always[2].bias.fill_(1.0)
    with pytest.raises(dt.errors.InputError, match="no root in its linear region"):
        dt.explain(always, torch.rand(1, 2), composite="exact-root")
    with pytest.raises(dt.errors.InputError, match="gelu"):
        dt.explain(
            nn.Sequential(nn.Linear(2, 2), nn.GELU(), nn.Linear(2, 1)).eval(), torch.rand(1, 2), composite="exact-root"
        )
