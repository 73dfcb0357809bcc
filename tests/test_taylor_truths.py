"""Taylor estimators against answers that are known exactly: closed forms, enumeration, identities."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import deeptaylor as dt

EXACT = {"rtol": 1e-9, "atol": 1e-9}
Function = Callable[[Tensor], Tensor]


def row(*numbers: float) -> Tensor:
    return torch.tensor([numbers], dtype=torch.float64)


def close(a: Tensor, b: object, **tolerance: float) -> bool:
    return torch.allclose(a, torch.as_tensor(b, dtype=torch.float64), **(EXACT | tolerance))


def seeded(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def adds_up(result: dt.taylor.Expansion) -> None:
    """Every unit is accounted for, in each of the forms in which a result can be read."""
    total = result.constant + float(result.shares.sum()) + result.residual
    assert total == pytest.approx(result.value, abs=1e-9)
    whole = sum(result.to_dict().values())
    assert whole + result.residual == pytest.approx(result.value, abs=1e-9)
    if result.order > 1 and result.coefficients:
        for split in ("equal", "powers"):
            assert float(result.to_features(split).sum()) == pytest.approx(float(result.shares.sum()), abs=1e-9)
        if result.order == 2:
            assert float(result.matrix().sum()) == pytest.approx(float(result.shares.sum()), abs=1e-9)


# ---------------------------------------------------------------------------------------------------------------------
# x₁x₂ + sin x₃ at (1.5, −2, 0.7) from 0


def mixed(x: Tensor) -> Tensor:
    return x[:, 0] * x[:, 1] + torch.sin(x[:, 2])


X, ZERO = row(1.5, -2, 0.7), row(0, 0, 0)


def test_orders_of_a_product_and_a_sine() -> None:
    result = dt.taylor_terms(mixed, X, ZERO, order=3)
    assert result.total == pytest.approx(-2.355782312762, abs=1e-12)
    assert close(result.coefficients[0], [0, 0, 0.7])
    assert float(result.interactions[0, 1]) == pytest.approx(-3)
    assert close(result.shares, [0.7, -3, -0.343 / 6])
    assert result.residual == pytest.approx(0.0013843539, abs=1e-9)
    adds_up(result)


def test_the_remainder_of_order_one_is_shared_by_an_integral() -> None:
    result = dt.integrated_terms(mixed, X, ZERO, nodes=16)
    want = torch.zeros(3, 3, dtype=torch.float64)
    want[0, 1] = want[1, 0] = -1.5
    want[2, 2] = -0.055782312762
    assert close(result.coefficients[1], want)
    assert abs(result.residual) < 1e-12
    adds_up(result)


def test_integrated_hessians_put_half_of_a_product_on_the_diagonal() -> None:
    result = dt.integrated_hessians(mixed, X, ZERO, nodes=16)
    want = torch.diag(torch.tensor([-0.75, -0.75, 0.644217687238], dtype=torch.float64))
    want[0, 1] = want[1, 0] = -0.75
    assert close(result.coefficients[1], want)
    adds_up(result)


# ---------------------------------------------------------------------------------------------------------------------
# Monomials


def monomial(powers: list[int]) -> Function:
    return lambda x: math.prod((x[:, i] ** k for i, k in enumerate(powers)), start=torch.ones_like(x[:, 0]))


def test_square_times_a_variable() -> None:
    f, x = monomial([2, 1]), row(2, 3)
    assert close(dt.integrated_terms(f, x, "zero").coefficients[1], [[4, 4], [4, 0]])
    assert close(dt.integrated_hessians(f, x, "zero").coefficients[1], [[16 / 3, 8 / 3], [8 / 3, 4 / 3]])


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=2, max_size=4).filter(lambda k: sum(k) >= 2), st.integers(0, 99))
def test_factors_are_drawn_without_and_with_replacement(powers: list[int], seed: int) -> None:
    f, x, n = monomial(powers), seeded(1, len(powers), seed=seed).abs() + 0.5, sum(powers)
    value, k = float(f(x)[0]), torch.tensor(powers, dtype=torch.float64)
    nodes = max(2, n // 2 + 1)
    without = (k[:, None] * k - torch.diag(k)) / (n * (n - 1)) * value
    assert close(dt.integrated_terms(f, x, "zero", nodes=nodes, check=False).coefficients[1], without)
    found = dt.integrated_hessians(f, x, "zero", nodes=nodes, check=False)
    assert close(found.coefficients[1], k[:, None] * k / n**2 * value)


def test_a_triple_product() -> None:
    f, x = monomial([1, 1, 1]), row(1, 1, 1)
    terms = dt.taylor_terms(f, x, "zero", order=3)
    assert terms.triples is not None
    assert float(terms.triples[0, 1, 2]) == pytest.approx(1)
    off = 1 - torch.eye(3, dtype=torch.float64)
    assert close(dt.integrated_terms(f, x, "zero").coefficients[1], off / 6)
    assert close(dt.shapley_taylor(f, x, "zero").interactions, off / 3)
    third = dt.integrated_terms(f, x, "zero", order=3)
    assert float(third.to_dict()[(0, 1, 2)]) == pytest.approx(1)
    assert not bool(third.interactions.abs().gt(1e-12).any())
    for result in (terms, third):
        adds_up(result)


def test_exponential_of_a_sum() -> None:
    a, x = row(0.3, -0.7, 1.1), row(1, 0.5, 0.8)
    u = (a * x)[0]
    c = float(u.sum())
    result = dt.integrated_terms(lambda z: (z @ a.T).exp()[:, 0], x, "zero", nodes=12)
    assert close(result.coefficients[1], u[:, None] * u * (math.exp(c) - 1 - c) / c**2)


def test_how_a_mixed_polynomial_is_split() -> None:
    """f = x²y + 3xy at (2, 3): terms 12 and 18 (theory, "higher orders")."""
    x = row(2, 3)
    result = dt.taylor_terms(lambda z: z[:, 0] ** 2 * z[:, 1] + 3 * z[:, 0] * z[:, 1], x, "zero", order=3)
    assert result.total == pytest.approx(30)
    assert close(result.to_features("powers"), [17, 13])  # integrated gradients
    assert close(result.to_features("equal"), [15, 15])  # Shapley
    assert close(result.to_features("full"), [30, 30])  # occlusion
    assert close(result.to_features("alone"), [0, 0])
    at_root = dt.taylor_terms(lambda z: z[:, 0] ** 2 * z[:, 1] + 3 * z[:, 0] * z[:, 1], x, row(1, 0))
    assert at_root.reference_value == 0
    assert close(at_root.coefficients[0], [0, 12])
    assert close(at_root.matrix() - torch.diag(at_root.coefficients[0]), [[0, 7.5], [7.5, 0]])
    assert at_root.residual == pytest.approx(3)


# ---------------------------------------------------------------------------------------------------------------------
# Multilinear functions, quadratic forms, XOR


def multilinear(n: int, seed: int) -> Function:
    subsets = [s for k in range(n + 1) for s in itertools.combinations(range(n), k)]
    weights = seeded(len(subsets), seed=seed)
    return lambda x: sum(
        (w * x[:, list(s)].prod(1) for w, s in zip(weights, subsets, strict=True)), torch.zeros_like(x[:, 0])
    )


def shapley_taylor_by_orders(f: Function, x: Tensor, x0: Tensor) -> Tensor:
    """Second differences given the segments before both, over all n! orders: slow, and nothing shared with ours."""
    n = x.shape[1]
    value = {s: float(f(torch.where(torch.tensor([i in s for i in range(n)]), x, x0))[0])
             for k in range(n + 1) for s in itertools.combinations(range(n), k)}  # fmt: skip
    out = torch.zeros(n, n, dtype=torch.float64)
    orders = list(itertools.permutations(range(n)))
    for order in orders:
        for a, b in itertools.combinations(range(n), 2):
            i, j, before = order[a], order[b], order[:a]
            v = [value[tuple(sorted((*before, *more)))] for more in ((i, j), (i,), (j,), ())]
            out[i, j] += (v[0] - v[1] - v[2] + v[3]) / len(orders)
    return out + out.T


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 10_000))
def test_of_multilinear_functions_the_remainder_is_the_shapley_taylor_index(seed: int) -> None:
    f, x, x0 = multilinear(4, seed), seeded(1, 4, seed=seed + 1), seeded(1, 4, seed=seed + 2)
    by_orders = shapley_taylor_by_orders(f, x, x0)
    exact = dt.shapley_taylor(f, x, x0)
    path = dt.integrated_terms(f, x, x0, nodes=2, check=False)
    for result in (exact, path):
        assert close(result.interactions, by_orders)
        assert close(result.coefficients[0], path.coefficients[0])
        assert abs(result.residual) < 1e-9
        adds_up(result)


def test_sampled_shapley_taylor_agrees_within_its_standard_errors_and_is_always_complete() -> None:
    f, x, x0 = multilinear(6, 5), seeded(1, 6, seed=6), seeded(1, 6, seed=7)
    exact, sampled = dt.shapley_taylor(f, x, x0), dt.shapley_taylor(f, x, x0, permutations=400)
    assert abs(sampled.residual) < 1e-9
    error = 2 * sampled.errors[1]
    off = (exact.interactions - sampled.interactions).abs()[~torch.eye(6, dtype=torch.bool)]
    z = off / error[~torch.eye(6, dtype=torch.bool)]
    assert float((z**2).mean()) < 4  # of standard normal z, the mean square is 1
    adds_up(sampled)


def test_every_estimator_returns_the_matrix_of_a_quadratic_form() -> None:
    a = seeded(5, 5)
    hessian = a + a.T
    f: Function = lambda z: torch.einsum("ni,ij,nj->n", z, a, z) + z[:, 0]  # noqa: E731
    x, x0 = seeded(1, 5, seed=1), seeded(1, 5, seed=2)
    delta = (x - x0)[0]
    want = delta[:, None] * hessian * delta
    want = want - torch.diag(want.diagonal())
    found = {
        f"{estimate.__name__} {at}": estimate(f, x, x0, at=at).interactions
        for estimate in (dt.taylor_terms, dt.gradient_secant)
        for at in ("input", "reference", "middle")
    }
    found |= {
        f"differences {at}": dt.differences(f, x, x0, at=at).interactions for at in ("input", "reference", "both")
    }
    found |= {e.__name__: e(f, x, x0).interactions for e in (
        dt.gradient_regression, dt.integrated_terms, dt.fit_taylor, dt.shapley_taylor)}  # fmt: skip
    wrong = [name for name, matrix in found.items() if not close(matrix, want, atol=1e-8)]
    assert not wrong
    for at in ("input", "reference", "middle"):
        adds_up(result := dt.taylor_terms(f, x, x0, at=at))
        assert abs(result.residual) < 1e-9
    assert dt.taylor_terms(f, x, x0, at="input").signs == (1, -1)
    assert close(dt.taylor_terms(f, x, x0, at="middle").shares, [float((f(x) - f(x0))[0]), 0])


def test_central_secants_are_exact_for_cubics() -> None:
    c = seeded(4, 4, 4)
    f: Function = lambda z: torch.einsum("ni,nj,nk,ijk->n", z, z, z, c)  # noqa: E731
    x, x0 = seeded(1, 4, seed=1), seeded(1, 4, seed=2)
    secant, exact = (e(f, x, x0, at="middle").interactions for e in (dt.gradient_secant, dt.taylor_terms))
    assert close(secant, exact)


def test_xor() -> None:
    result = dt.taylor_terms(lambda z: z[:, 0] + z[:, 1] - 2 * z[:, 0] * z[:, 1], row(1, 1), "zero")
    assert close(result.coefficients[0], [1, 1])
    assert float(result.interactions[0, 1]) == pytest.approx(-2)
    assert result.total == 0
    assert any("cancel" in text for text in result.warnings)


# ---------------------------------------------------------------------------------------------------------------------
# Piecewise-linear functions


W, BIAS = row(1.0, 2.0, -0.5), -1.5


def softplus_neuron(beta: float) -> Function:
    return lambda z: nn.functional.softplus((z * W).sum(1) + BIAS, beta=beta, threshold=1e9)


def test_a_softplus_path_integral_reaches_the_closed_form_of_a_relu_neuron() -> None:
    """M_ij = (1 − t*) u_i u_j / C for a neuron that becomes active at t* of the way."""
    x = row(1, 1, 1)
    u = W[0]
    c = float(u.sum())
    t_star = -BIAS / c
    want = (1 - t_star) * u[:, None] * u / c
    assert float(want.sum()) == pytest.approx(1.0)  # f(x) − f(x₀) = relu(2.5 − 1.5)
    found = dt.integrated_terms(softplus_neuron(15), x, "zero", nodes=64, check=False)
    assert close(found.coefficients[1], want, atol=1e-6)


def test_a_zero_hessian_of_a_relu_network_raises_the_warning() -> None:
    f: Function = lambda z: torch.relu((z * W).sum(1) + BIAS)  # noqa: E731
    for estimate in (dt.taylor_terms, dt.integrated_terms):
        result = estimate(f, row(1, 1, 1), "zero")
        assert not bool(result.interactions.any())
        assert any("piecewise linear" in text for text in result.warnings)
        assert result.relative_residual == pytest.approx(1.0)
        assert any("residual" in text for text in result.warnings)
    linear = dt.taylor_terms(lambda z: (z * W).sum(1), row(1, 1, 1), "zero")
    assert not linear.warnings  # a Hessian of zero is right where f is linear


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10_000))
def test_relu_networks_are_accounted_for_and_estimates_from_corners_stay_complete(seed: int) -> None:
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(4, 12), nn.ReLU(), nn.Linear(12, 1)).double().eval()
    x, x0 = seeded(1, 4, seed=seed), seeded(1, 4, seed=seed + 1)
    exact = dt.shapley_taylor(net, x, x0)
    assert abs(exact.residual) < 1e-9
    for result in (exact, dt.taylor_terms(net, x, x0), dt.integrated_terms(net, x, x0), dt.differences(net, x, x0)):
        adds_up(result)
    # ∫ H(x₀ + tδ) δ dt = ∇f(x) − ∇f(x₀) holds for ReLU networks too: secants see the kinks.
    rows = dt.gradient_secant(net, x, x0, groups=torch.zeros(4, dtype=torch.long)).coefficients[1].sum() * 2
    gradients = [float((dt.taylor.Score(net, z).gradients(z) * (x - x0)).sum()) for z in (x, x0)]
    assert float(rows) == pytest.approx(gradients[0] - gradients[1], abs=1e-9)


def test_softplus_series_diverge_where_theory_says_so() -> None:
    """Softplus_b expanded at 0: 2.193 at order 2, 2.110 at order 4 (true 2.127) for b = 1; 3.64 and −6.78 for b = 5."""
    x = row(2)
    reach = []
    for beta, sums in ((1, (2.193, 2.110)), (5, (3.64, -6.78)), (20, (11.0, -655.6))):
        f: Function = lambda z, b=beta: nn.functional.softplus(z[:, 0], beta=b, threshold=1e9)  # noqa: E731
        result = dt.taylor_orders(f, x, "zero", at="reference", autodiff=True)
        partial = result.constant + result.shares.cumsum(0)
        assert close(partial[[1, 3]], sums, atol=6e-2)
        assert result.trust_radius is not None
        reach.append(float(result.trust_radius[-1]))
        assert reach[-1] < 1.1 * math.pi / beta / 2 or beta == 1  # within the radius of convergence, π/b of |z| = 2
    assert reach[0] == 1 > reach[1] > reach[2]
    assert any("valid for" in text for text in result.warnings)


# ---------------------------------------------------------------------------------------------------------------------
# Order maps


def polynomial(degree: int, n: int, seed: int) -> Function:
    tensors = [seeded(*[n] * k, seed=seed + k) for k in range(1, degree + 1)]

    def f(z: Tensor) -> Tensor:
        out = torch.zeros_like(z[:, 0])
        for t in tensors:
            value = t.expand(len(z), *t.shape)
            for _ in range(t.dim()):
                value = torch.einsum("n...i,ni->n...", value, z)
            out = out + value
        return out

    return f


def integrated_gradients(f: Function, x: Tensor, x0: Tensor, nodes: int) -> Tensor:
    places, weights = dt.taylor.quadrature.gauss("1", nodes)
    out = torch.zeros_like(x)
    for t, w in zip(places, weights, strict=True):
        leaf = (x0 + t * (x - x0)).requires_grad_()
        out = out + w * torch.autograd.grad(f(leaf).sum(), leaf)[0]
    return out * (x - x0)


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(["reference", "input", "middle"]))
def test_order_maps_of_a_quartic_add_up_to_f_and_to_integrated_gradients(seed: int, at: str) -> None:
    f, x, x0 = polynomial(4, 6, seed), seeded(1, 6, seed=seed + 10), seeded(1, 6, seed=seed + 11)
    nested = dt.taylor_orders(f, x, x0, at=at, autodiff=True)
    size = float(nested.shares.abs().max())
    assert abs(nested.residual) < 1e-12 * max(size, 1)
    gradients = dt.taylor_orders(f, x, x0, at=at, radius=0.3)
    assert torch.allclose(gradients.maps, nested.maps, atol=1e-10 * max(size, 1), rtol=1e-9)
    if at != "middle":  # halfway the even orders are shared between the two ends
        assert close(nested.terms, integrated_gradients(f, x, x0, 2)[0], atol=1e-11 * max(size, 1))


def test_terms_and_maps_agree_order_by_order() -> None:
    f, x, x0 = polynomial(3, 5, 3), seeded(1, 5, seed=1), seeded(1, 5, seed=2)
    for at in ("reference", "input", "middle"):
        maps, terms = dt.taylor_orders(f, x, x0, order=3, at=at), dt.taylor_terms(f, x, x0, order=3, at=at)
        assert close(maps.shares, terms.shares, atol=1e-7)
        assert close(maps.terms.flatten(), terms.to_features("powers"), atol=1e-7)
        adds_up(terms)


def test_rows_of_the_remainder_are_integrated_gradients_without_the_first_order() -> None:
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 1)).double().eval()
    x, x0 = seeded(1, 5, seed=3), seeded(1, 5, seed=4)
    want = integrated_gradients(lambda z: net(z)[:, 0], x, x0, 24)[0]
    remainder = dt.integrated_terms(net, x, x0, nodes=24, check=False)
    assert close(remainder.coefficients[1].sum(1), want - remainder.coefficients[0])
    assert close(remainder.to_features("powers"), want)
    assert close(dt.integrated_hessians(net, x, x0, nodes=16, check=False).coefficients[1].sum(1), want)


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 10_000))
def test_quadrature_is_exact_for_paths_of_degree_2n_plus_1(seed: int) -> None:
    f, x, x0 = polynomial(5, 3, seed), seeded(1, 3, seed=seed + 1), seeded(1, 3, seed=seed + 2)
    result = dt.integrated_terms(f, x, x0, nodes=2, check=False)
    assert abs(result.residual) < 1e-10 * max(1.0, float(result.shares.abs().max()))


# ---------------------------------------------------------------------------------------------------------------------
# Segments and symmetries


def net_of(n: int, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(n, 10), nn.Tanh(), nn.Linear(10, 1)).double().eval()


SEGMENTED = [dt.taylor_terms, dt.integrated_terms, dt.integrated_hessians]


@pytest.mark.parametrize("estimate", SEGMENTED, ids=lambda e: e.__name__)
def test_segments_are_block_sums_of_features(estimate: Callable[..., dt.taylor.Expansion]) -> None:
    net, x, x0 = net_of(6), seeded(1, 6, seed=1), seeded(1, 6, seed=2)
    labels = torch.tensor([0, 1, 1, 2, 0, 2])
    fine, coarse = (estimate(net, x, x0, groups, check=False) for groups in (None, labels))
    block = (labels[:, None] == torch.arange(3)).double()
    assert close(block.T @ fine.coefficients[1] @ block, coarse.coefficients[1], atol=1e-7)
    assert close(block.T @ fine.coefficients[0], coarse.coefficients[0])


ALL = [*SEGMENTED, dt.differences, dt.shapley_taylor, dt.fit_taylor, dt.gradient_secant, dt.gradient_regression]


@pytest.mark.parametrize("estimate", ALL, ids=lambda e: e.__name__)
def test_dummies_get_nothing_and_additive_functions_have_no_interactions(
    estimate: Callable[..., dt.taylor.Expansion],
) -> None:
    x, x0 = seeded(1, 4, seed=1), seeded(1, 4, seed=2)
    additive = estimate(lambda z: torch.sin(z[:, 0]) + z[:, 1] ** 2, x, x0)
    tolerance = 1e-2 if estimate in (dt.fit_taylor, dt.gradient_regression) else 1e-6
    assert close(additive.interactions, torch.zeros(4, 4), atol=tolerance)
    assert close(additive.terms[2:], [0, 0], atol=tolerance)
    adds_up(additive)
    dummy = estimate(lambda z: torch.exp(z[:, 0] * z[:, 1] / 4), x, x0)
    assert close(dummy.interactions[2:], torch.zeros(2, 4), atol=tolerance)


@pytest.mark.parametrize("estimate", [*SEGMENTED, dt.differences, dt.shapley_taylor, dt.gradient_secant],
                         ids=lambda e: e.__name__)  # fmt: skip
def test_permuting_and_scaling_features_changes_nothing_else(estimate: Callable[..., dt.taylor.Expansion]) -> None:
    net, x, x0 = net_of(5), seeded(1, 5, seed=1), seeded(1, 5, seed=2)
    order, scale = torch.tensor([3, 0, 4, 1, 2]), torch.tensor([1, 2, 0.5, -3, 1], dtype=torch.float64)
    plain = estimate(net, x, x0).matrix()
    moved = estimate(lambda z: net(z[:, order.argsort()])[:, 0], x[:, order], x0[:, order]).matrix()
    assert close(moved, plain[order][:, order])
    scaled = estimate(lambda z: net(z / scale)[:, 0], x * scale, x0 * scale).matrix()
    assert close(scaled, plain)
    doubled = estimate(lambda z: 2 * net(z)[:, 0] + z[:, 0], x, x0).matrix()
    extra = torch.zeros(5, 5, dtype=torch.float64)
    extra[0, 0] = float((x - x0)[0, 0])
    assert close(doubled, 2 * plain + extra, atol=1e-5)  # linear in f, up to quadrature


def test_entries_outside_all_segments_stay_as_they_are() -> None:
    net, x, x0 = net_of(4), seeded(1, 4, seed=1), seeded(1, 4, seed=2)
    part = dt.integrated_terms(net, x, x0, torch.tensor([0, -1, 1, -1]), nodes=16)
    mixed = torch.where(torch.tensor([True, False, True, False]), x0, x)
    assert part.reference_value == pytest.approx(float(net(mixed)[0, 0].detach()))
    assert abs(part.residual) < 1e-9
