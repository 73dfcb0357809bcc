"""References are what their names say; nearest roots are roots, near, within the domain, or said to be none."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import deeptaylor as dt
from deeptaylor import nearest_root
from deeptaylor.taylor.references import blur, delete_tokens, reference, replace_tokens

D = torch.float64


def relu_net(seed, *sizes, scale=2.0):
    torch.manual_seed(seed)
    layers = [m for a, b in pairwise(sizes) for m in (torch.nn.Linear(a, b), torch.nn.ReLU())][:-1]
    net = torch.nn.Sequential(*layers).double().eval()
    for parameter in net.parameters():
        parameter.data *= scale
    return net


# References


def test_zero_mean_number_tensor_and_function():
    x = torch.rand(2, 3, 4, 5)
    assert not reference(x, "zero").any()
    assert torch.allclose(reference(x, "mean")[0, 1], x[0, 1].mean().expand(4, 5))
    assert (reference(x, 0.25) == 0.25).all()
    assert torch.equal(reference(x, torch.arange(5.0)), torch.arange(5.0).expand(x.shape))
    assert torch.equal(reference(x, lambda v: v.flip(0)), x.flip(0))
    table = torch.rand(7, 4)
    assert torch.allclose(reference(table[:2], "mean", data=table), table.mean(0).expand(2, 4))


def test_blur_equals_a_gaussian_filter_and_keeps_a_constant():
    from scipy.ndimage import gaussian_filter

    x = torch.rand(1, 2, 40, 30, dtype=D)
    expected = torch.stack([torch.from_numpy(gaussian_filter(c.numpy(), 2.0, mode="mirror", radius=7)) for c in x[0]])
    assert torch.allclose(blur(x, 2.0)[0], expected, atol=1e-12)
    assert torch.allclose(blur(torch.ones(1, 3, 5, 9, dtype=D)), torch.ones(1, 3, 5, 9, dtype=D), atol=1e-12)


def test_inpainting_continues_a_plane_and_does_not_look_inside():
    row = torch.linspace(0, 1, 12, dtype=D)
    plane = (row[:, None] + 2 * row).expand(1, 2, 12, 12).clone()
    labels = torch.full((12, 12), -1)
    labels[4:8, 4:8] = 0
    labels[9:11, 2:5] = 1
    noisy = plane.clone()
    noisy[..., 4:8, 4:8] += torch.rand(4, 4, dtype=D)
    filled = reference(noisy, "inpaint", groups=labels)
    assert torch.allclose(filled[..., 4:8, 4:8], plane[..., 4:8, 4:8], atol=1e-6)
    assert torch.equal(filled[..., labels < 0], noisy[..., labels < 0])
    filled = reference(torch.rand(1, 3, 12, 12), "inpaint", groups=(3, 3))
    assert bool(torch.isfinite(filled).all())


def test_tokens_are_replaced_or_deleted():
    ids = torch.tensor([[101, 7, 8, 9, 102]])
    assert replace_tokens(ids, 103, keep=(101, 102)).tolist() == [[101, 103, 103, 103, 102]]
    kept = torch.tensor([[1, 0, 1, 0, 1], [1, 1, 1, 1, 1]]).bool()
    left, mask = delete_tokens(ids, kept, pad=0)
    assert left.tolist() == [[101, 8, 102, 0, 0], [101, 7, 8, 9, 102]]
    assert mask.tolist() == [[1, 1, 1, 0, 0], [1] * 5]


@pytest.mark.parametrize(("kind", "options", "says"), [
    ("grey", {}, "no reference is called 'grey'"),
    (torch.zeros(3), {}, "the reference has shape"),
    (float("nan"), {}, "NaN"),
    ("inpaint", {}, "pass groups"),
    ("inpaint", {"groups": torch.zeros(4, 5).long()}, "one segment covers the whole image"),
    ("mean", {"data": torch.rand(3, 9)}, "data has shape"),
    (lambda v: None, {}, "returned a NoneType"),
])  # fmt: skip
def test_bad_references_are_refused(kind, options, says):
    with pytest.raises(dt.errors.InputError, match=says):
        reference(torch.rand(2, 3, 4, 5), kind, **options)


def test_ids_and_tables_are_refused_where_they_make_no_sense():
    for wrong in (lambda: reference(torch.ones(1, 3).long(), "zero"), lambda: reference(torch.rand(2, 4), "mean"),
                  lambda: reference(torch.rand(2, 4), "blur"), lambda: replace_tokens(torch.rand(1, 2), 0),
                  lambda: delete_tokens(torch.ones(1, 2).long(), torch.zeros(1, 2), 0)):  # fmt: skip
        with pytest.raises(dt.errors.InputError):
            wrong()


# Roots


def test_the_nearest_root_of_a_neuron_is_that_of_the_w_squared_rule():
    w, x = torch.tensor([1.0, -2, 1], dtype=D), torch.tensor([[2.0, 1, 3]], dtype=D)
    for f in (lambda v: v @ w - 1, lambda v: (v @ w - 1).relu()):
        root = nearest_root(f, x)
        assert torch.allclose(root.point, torch.tensor([[5, 5, 8]], dtype=D) / 3, atol=1e-12)
        assert torch.allclose(root.relevance, torch.tensor([[1, 4, 1]], dtype=D) / 3, atol=1e-9)
        assert float(root.alignment) == pytest.approx(1, abs=1e-9)
        assert float(root.residual) == pytest.approx(0, abs=1e-9)


def test_the_nearest_root_of_a_sphere_is_on_the_ray():
    x = torch.tensor([[3.0, 1, 0], [0.1, 0.2, 0.3]], dtype=D)
    root = nearest_root(lambda v: v.square().sum(1) - 1, x)
    assert torch.allclose(root.point, x / x.norm(dim=1, keepdim=True), atol=1e-6)
    assert bool(root.found.all())
    assert not root.warnings


@pytest.mark.parametrize("domain", ["positive", (0.0, 4.0), (torch.tensor([0.5, 0.0, 2.9]), 4.0)])
def test_roots_stay_in_the_domain_and_are_nearest_in_it(domain):
    # The plane w·ξ = 1 within a box: the projection has a closed form by its multiplier; scipy solves it independently.
    from scipy.optimize import minimize

    w, x = torch.tensor([1.0, -0.3, 2.0], dtype=D), torch.tensor([[0.6, 1.0, 3.0]], dtype=D)
    offset = 6.2
    root = nearest_root(lambda v: v @ w - offset, x, domain=domain)
    low, high = (0.0, None) if domain == "positive" else domain
    bounds = [(float(torch.as_tensor(low).expand(3)[i]), high) for i in range(3)]
    best = minimize(lambda v: ((v - x[0].numpy()) ** 2).sum(), x[0].numpy(), bounds=bounds, tol=1e-14,
                    constraints={"type": "eq", "fun": lambda v: v @ w.numpy() - offset})  # fmt: skip
    assert bool(root.found)
    assert float(root.distance) == pytest.approx(best.fun**0.5, rel=1e-6)


def test_a_point_that_is_no_root_is_called_so():
    root = nearest_root(lambda v: v.square().sum(1) + 1, torch.tensor([[3.0, 1.0]], dtype=D))
    assert not bool(root.found)
    assert float(root.value) >= 1
    assert "no root" in root.warnings[0]
    assert "NO root" in str(root)
    # A softplus network has no zeros: f > 0 everywhere.
    assert not bool(nearest_root(lambda v: torch.nn.functional.softplus(v.sum(1)), torch.zeros(1, 2, dtype=D)).found)
    # Roots exist, but not in this box.
    assert not bool(nearest_root(lambda v: v.sum(1), torch.ones(1, 2, dtype=D), domain=(0.5, 2.0)).found)


def test_roots_of_the_margin_lie_on_the_decision_boundary():
    net = relu_net(3, 5, 16, 4)
    x = torch.randn(6, 5, dtype=D)
    root = nearest_root(net, x, margin=True)
    top = net(root.point).topk(2).values
    assert bool(root.found.all())
    assert torch.allclose(top[:, 0], top[:, 1], atol=1e-9)
    score = nearest_root(net, x, target=2)
    assert torch.allclose(net(score.point)[:, 2][score.found], torch.zeros(int(score.found.sum()), dtype=D), atol=1e-9)


def test_roots_in_the_plane_are_close_to_the_nearest_on_a_dense_grid():
    """Every root that a grid of 201 × 201 shows is found, at a median distance within 3 % of the nearest."""
    grid = torch.linspace(-3, 3, 201, dtype=D)
    points = torch.cartesian_prod(grid, grid)
    ratios = []
    for seed in (2, 4):
        net = relu_net(seed, 2, 12, 12, 1)
        values = net(points).detach().reshape(201, 201)
        change = torch.zeros_like(values, dtype=torch.bool)
        change[1:] |= values[1:] * values[:-1] <= 0
        change[:, 1:] |= values[:, 1:] * values[:, :-1] <= 0
        x = torch.rand(6, 2, dtype=D) * 4 - 2
        root = nearest_root(net, x, domain=(-3.0, 3.0))
        assert bool(root.found.all()), seed
        ratios.append(root.distance / torch.cdist(x, points[change.flatten()]).min(1).values)
    ratios = torch.cat(ratios)
    assert float(ratios.median()) < 1.03
    assert float(ratios.max()) < 2


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 10_000))
def test_gradient_times_input_is_the_limit_of_the_root_on_the_ray(seed):
    """Bias-free ReLU networks: εx is a root for ε → 0, so the nearest root is at most as far as 0 is."""
    torch.manual_seed(seed)
    net = (
        torch.nn.Sequential(torch.nn.Linear(4, 8, bias=False), torch.nn.ReLU(), torch.nn.Linear(8, 1, bias=False))
        .double()
        .eval()
    )
    x = torch.randn(1, 4, dtype=D)
    if float(net(x).detach().abs()) < 1e-3:
        return
    root = nearest_root(net, x, steps=10)
    assert float(root.distance) <= float(x.norm()) * (1 + 1e-9) or not bool(root.found)
    if bool(root.found):
        assert float(net(root.point).detach().abs()) <= 1e-6 * float(net(x).detach().abs())


@pytest.mark.parametrize(("x", "options", "says"), [
    (torch.ones(1, 3).long(), {}, "floating-point"),
    (torch.ones(3), {}, "batch axis"),
    (torch.tensor([[1.0, float("nan"), 0]]), {}, "NaN"),
    (torch.ones(1, 3), {"domain": (2.0, 3.0)}, "outside the domain"),
    (torch.ones(1, 3), {"domain": (3.0, 2.0)}, "empty"),
    (torch.ones(1, 3), {"domain": "round"}, "domain 'round'"),
    (torch.ones(1, 3), {"region": "square"}, "region 'square'"),
    (torch.ones(1, 3), {"region": "exact", "margin": True}, "takes head"),
    (torch.ones(1, 3), {"target": 7}, "does not fit"),
    (torch.ones(1, 3), {"target": 0.5}, "no class index"),
])  # fmt: skip
def test_bad_requests_are_refused(x, options, says):
    with pytest.raises(dt.errors.DeepTaylorError, match=says):
        nearest_root(torch.nn.Linear(3, 2).eval(), x, **options)


def test_the_model_is_left_as_it_was():
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2)).eval()
    x = torch.rand(2, 3)
    before, state = {k: v.clone() for k, v in net.state_dict().items()}, torch.random.get_rng_state()
    nearest_root(net, x)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in net.parameters())
    assert torch.equal(torch.random.get_rng_state(), state)
    with pytest.raises(dt.errors.InputError, match="train mode"):
        nearest_root(net.train(), x)


def test_one_door_leads_to_both_searches():
    """Of this network's roots; elsewhere the search of the whole domain may stop at a local optimum."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 1)).eval().double()
    x = torch.rand(2, 3, dtype=D)
    exact, anywhere = dt.nearest_root(net, x, region="exact"), dt.nearest_root(net, x)
    assert bool((exact.distance[exact.found] >= anywhere.distance[exact.found] - 1e-6).all())
