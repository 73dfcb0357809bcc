"""Similarity, data set coefficients and smooth mode: closed forms, identities, counted costs."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

import deeptaylor as dt
from deeptaylor.taylor import choose_beta, plot_evolution

D = torch.float64


class Flops(TorchDispatchMode):
    """Counts floating-point operations of products and convolutions, also inside function transforms."""

    total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func._overloadpacket in flop_registry:
            self.total += flop_registry[func._overloadpacket](*args, **(kwargs or {}), out_val=out)
        return out


def flops(run):
    with Flops() as count:
        run()
    return count.total


def one_gradient(f, x):
    def run():
        leaf = x.clone().requires_grad_()
        torch.autograd.grad(f(leaf).sum(), leaf)

    return flops(run)


def mlp(seed, *sizes, activation=nn.ReLU, bias=True):
    torch.manual_seed(seed)
    layers = [nn.Linear(sizes[0], sizes[1], bias=bias)]
    for a, b in pairwise(sizes[1:]):
        layers += [activation(), nn.Linear(a, b, bias=bias)]
    return nn.Sequential(*layers).double().eval().requires_grad_(False)


# Similarity


@pytest.mark.parametrize("method", ["gradient", "integrated", "shapley", "lrp"])
def test_pairs_of_a_bias_free_relu_encoder_add_up_to_the_product(method):
    encoder = mlp(0, 6, 20, 5, bias=False)
    x, y = torch.randn(1, 6, dtype=D), torch.randn(1, 6, dtype=D)
    found = dt.similarity(encoder, x, y, method=method, norm="none", composite="gradient-times-input")
    assert found.explained == pytest.approx(float(encoder(x)[0] @ encoder(y)[0]), abs=1e-14)
    assert found.value == pytest.approx(found.explained, abs=1e-14)
    cosine = dt.similarity(encoder, x, y, method=method, composite="gradient-times-input")
    assert cosine.explained == pytest.approx(float(torch.cosine_similarity(encoder(x), encoder(y))), abs=1e-14)


def test_gradient_pairs_are_the_cross_derivative():
    encoder = mlp(1, 4, 12, 3, activation=nn.GELU)
    x, y = torch.randn(1, 4, dtype=D), torch.randn(1, 4, dtype=D)
    cross = torch.func.jacfwd(torch.func.grad(lambda a, b: encoder(a)[0] @ encoder(b)[0]), argnums=1)(x, y)[0, :, 0]
    found = dt.similarity(encoder, x, y, method="gradient", norm="none")
    assert torch.allclose(found.matrix(), x.T * cross * y, atol=1e-12)
    assert "unexplained" in found.warnings[0]


@pytest.mark.parametrize("method", ["integrated", "shapley"])
def test_complete_methods_give_the_product_of_differences(method):
    encoder = mlp(2, 5, 16, 4, activation=nn.GELU)
    x, y, x0 = (torch.randn(1, 5, dtype=D) for _ in range(3))
    found = dt.similarity(encoder, x, y, reference_x=x0, reference_y=0.5, method=method, norm="none", rtol=1e-6)
    expected = (encoder(x) - encoder(x0))[0] @ (encoder(y) - encoder(torch.full_like(y, 0.5)))[0]
    assert found.explained == pytest.approx(float(expected), rel=1e-5)
    assert found.references_part == pytest.approx(float(encoder(x)[0] @ encoder(y)[0] - expected), rel=1e-9)


def test_the_full_cosine_of_a_homogeneous_encoder_sums_to_zero():
    encoder = mlp(3, 6, 20, 5, bias=False)
    x, y = torch.randn(1, 6, dtype=D), torch.randn(1, 6, dtype=D)
    tiny = dict(reference_x=x * 0 + 1e-30, reference_y=y * 0 + 1e-30)
    assert abs(dt.similarity(encoder, x, y, method="gradient", norm="full", **tiny).explained) < 1e-15


def test_segments_are_block_sums_and_the_order_of_entries_does_not_matter():
    encoder = mlp(4, 6, 16, 4, activation=nn.Tanh)
    x, y = torch.randn(1, 6, dtype=D), torch.randn(1, 6, dtype=D)
    labels, order = torch.tensor([0, 0, 1, 2, 1, 2]), torch.tensor([3, 1, 5, 0, 2, 4])
    fine = dt.similarity(encoder, x, y, nodes=8)
    coarse = dt.similarity(encoder, x, y, groups_x=labels, nodes=8)
    sums = torch.zeros(3, 6, dtype=D).index_add(0, labels, fine.matrix())
    assert torch.allclose(coarse.matrix(), sums, atol=1e-12)
    moved = dt.similarity(lambda v: encoder(v[:, order.argsort()]), x[:, order], y[:, order], nodes=8)
    assert torch.allclose(moved.matrix(), fine.matrix()[order][:, order], atol=1e-12)
    ranked = fine.matrix().flatten().abs().sort(descending=True).values[:7]
    assert torch.allclose(torch.tensor([abs(v) for _, v in fine.top(7, chunk=2)], dtype=D), ranked)


class Encoder(nn.Module):
    """Two layers of attention, mean pooled, as sentence encoders are."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, activation="gelu") for _ in range(2)
        )

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x.mean(1)


def test_similarity_of_texts_takes_a_tangent_per_word_and_node_where_backward_passes_take_one_per_output():
    torch.manual_seed(0)
    encoder = Encoder().eval().requires_grad_(False)
    x, y = torch.randn(1, 9, 32), torch.randn(1, 7, 32)
    words = torch.arange(9)[:, None].expand(9, 32) - 1  # the first token stays
    call = dict(groups_x=words, groups_y=(torch.arange(7)[:, None].expand(7, 32)), norm="none")
    cost = flops(lambda: dt.similarity(encoder, x, y, nodes=2, **call)) - flops(
        lambda: dt.similarity(encoder, x, y, nodes=1, **call)
    )
    # 8 and 7 segments: a forward and a tangent each, in units of a gradient (two forwards).
    assert cost <= 6 * max(one_gradient(encoder, x), one_gradient(encoder, y)) * 2
    found = dt.similarity(encoder, x, y, nodes=1, **call)
    assert found.cost.tangents == 15
    assert found.A.shape == (8, 32)


@settings(max_examples=5, deadline=None)
@given(st.integers(0, 10_000))
def test_a_linear_encoder_is_explained_by_its_gram_matrix(seed):
    torch.manual_seed(seed)
    w = torch.randn(5, 3, dtype=D)
    x, y = torch.randn(1, 5, dtype=D), torch.randn(1, 5, dtype=D)
    expected = (x.T * (w @ w.T)) * y
    for method in ("integrated", "gradient", "shapley"):
        found = dt.similarity(lambda v: v @ w, x, y, method=method, norm="none", permutations=2)
        assert torch.allclose(found.matrix(), expected, atol=1e-12)


@pytest.mark.parametrize(("change", "says"), [
    ({"method": "magic"}, "method 'magic'"), ({"norm": "l1"}, "norm 'l1'"),
    ({"y": torch.zeros(1, 4, dtype=D)}, "equals y"), ({"x": torch.ones(2, 4, dtype=D)}, "holds 2 samples"),
    ({"x": torch.ones(1, 4).long()}, "floating-point"), ({"phi": lambda v: v * 0}, "no cosine"),
    ({"phi": lambda v: v.sum(1)}, "vectors"), ({"phi": lambda v: v, "norm": "full"}, "length 0"),
    ({"y": torch.ones(1, 3, dtype=D), "phi": lambda v: v}, "4 numbers for x and 3 for y"),
])  # fmt: skip
def test_similarities_that_make_no_sense_are_refused(change, says):
    call = {"phi": mlp(0, 4, 3), "x": torch.ones(1, 4, dtype=D), "y": 2 * torch.ones(1, 4, dtype=D)} | change
    with pytest.raises(dt.errors.InputError, match=says):
        dt.similarity(call.pop("phi"), call.pop("x"), call.pop("y"), **call)


# Data sets


def planted(x):
    return 3 * x[:, 0] * x[:, 1] + x[:, 2].sin() + x[:, 0] ** 3 / 2 + x[:, 0] * x[:, 1] * x[:, 2]


def test_coefficients_of_a_data_set_are_those_derived_by_hand():
    x = torch.randn(50, 3, dtype=D)
    a, b, c = x.unbind(1)
    by_hand = {
        (0,): 3 * b + 1.5 * a**2 + b * c, (1,): 3 * a + a * c, (2,): c.cos() + a * b, (0, 0): 1.5 * a, (0, 1): 3 + c, (0, 2): b,
        (1, 1): 0 * a, (1, 2): a, (2, 2): -c.sin() / 2, (0, 0, 0): 0.5 + 0 * a, (0, 1, 2): 1 + 0 * a, (2, 2, 2): -c.cos() / 6,
        (0, 0, 1): 0 * a,
    }  # fmt: skip
    found = dt.dataset_coefficients(
        planted, x, order=3, scale=None, reduce=("mean", "mean_abs", "std", "q25"), batch=17
    )
    for index, values in by_hand.items():
        assert found.to_dict("mean")[index] == pytest.approx(float(values.mean()), abs=1e-12)
        assert found.to_dict("mean_abs")[index] == pytest.approx(float(values.abs().mean()), abs=1e-12)
        assert found.to_dict("std")[index] == pytest.approx(float(values.std(unbiased=False)), abs=1e-12)
        assert found.to_dict("q25")[index] == pytest.approx(float(values.abs().quantile(0.25)), abs=1e-12)
    some = dt.dataset_coefficients(planted, x, indices=[(0,), (0, 1)], scale=None)
    assert some.to_dict() == {key: pytest.approx(found.to_dict()[key], abs=1e-12) for key in [(0,), (0, 1)]}
    assert some.cost.tangents == 1


def test_standardised_coefficients_do_not_depend_on_units():
    x, unit = torch.randn(40, 3, dtype=D), torch.tensor([1.0, 100.0, 0.01], dtype=D)
    plain = dt.dataset_coefficients(planted, x).to_dict()
    scaled = dt.dataset_coefficients(lambda v: planted(v / unit), x * unit).to_dict()
    assert all(scaled[key] == pytest.approx(value, rel=1e-9, abs=1e-12) for key, value in plain.items())
    assert dt.dataset_coefficients(planted, x).top(1, order=2)[0][0] == "0 × 1"


def test_predicted_classes_contrasts_and_groups():
    model = mlp(5, 3, 12, 4, activation=nn.Softplus)
    x = torch.randn(60, 3, dtype=D)
    own = model(x).argmax(1)
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model(leaf).gather(1, own[:, None]).sum(), leaf)
    found = dt.dataset_coefficients(model, x, order=1, scale=None, by=own, names=("mass", "angle", "charge"))
    assert found.top(3, "mean")[0][0] in found.names
    for label in own.unique().tolist():
        expected = gradient[own == label].abs().mean(0)
        assert list(found.to_dict(group=str(label)).values()) == pytest.approx(expected.tolist(), abs=1e-12)
    two = dt.dataset_coefficients(model, x, order=2, target=dt.contrast(1, 0), scale=None, reduce=("mean",)).to_dict(
        "mean"
    )
    one, zero = (
        dt.dataset_coefficients(model, x, target=t, scale=None, reduce=("mean",)).to_dict("mean") for t in (1, 0)
    )
    assert all(two[key] == pytest.approx(one[key] - zero[key], abs=1e-12) for key in two)
    odds = dt.dataset_coefficients(model, x, order=1, target=dt.log_odds(2), scale=None, reduce=("mean",)).to_dict(
        "mean"
    )
    (gradient,) = torch.autograd.grad(torch.logit(model(leaf).softmax(1)[:, 2]).sum(), leaf)
    assert list(odds.values()) == pytest.approx(gradient.mean(0).tolist(), abs=1e-9)


def test_intervals_cover_as_often_as_they_say():
    """t of x³/3 is x²: mean 1, median of |t| 0.4549, for normal x; 95 % intervals of 300 data sets."""
    torch.manual_seed(0)
    table = torch.randn(150, 300, dtype=D)  # each column its own data set
    found = dt.dataset_coefficients(lambda v: (v**3).sum(1) / 3, table, order=1, scale=None, reduce=("mean", "q50"))
    for name, truth in (("mean", 1.0), ("q50", 0.454936)):
        inside = [low <= truth <= high for groups in found.rows.values() for _, low, high in [groups["all"][name]]]
        assert 0.9 < sum(inside) / 300 < 0.99, name


def test_two_hundred_features_at_order_two_take_at_most_250_batched_gradients():
    model = mlp(6, 200, 32, 1, activation=nn.Softplus).float()
    x = torch.randn(1000, 200)
    cost = flops(lambda: dt.dataset_coefficients(model, x, reduce=("mean_abs",)))
    assert cost <= 250 * one_gradient(model, x)


def test_tables_go_in_and_out_and_are_drawn():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(torch.randn(30, 3).numpy(), columns=["slag", "age", "water"])
    found = dt.dataset_coefficients(planted, frame)
    table = found.to_frame()
    assert table.loc[table["features"] == "slag × age", "mean_abs"].item() == found.to_dict()[0, 1]
    with pytest.raises(dt.errors.InputError, match="columns kind hold no numbers"):
        dt.dataset_coefficients(planted, frame.assign(kind="a"))


def test_rankings_and_evolutions_are_drawn():
    tables = {epoch: dt.dataset_coefficients(lambda v, e=epoch: e * planted(v), torch.randn(30, 3)) for epoch in (1, 2)}
    axes = tables[1].plot_ranking(4).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()][-1] == tables[1].top(1)[0][0]
    assert len(plot_evolution(tables, k=3).axes[0].lines) == 3


@pytest.mark.parametrize(("data", "options", "says"), [
    (torch.randn(5, 3, 2), {}, "table is"), (torch.randn(1, 3), {}, "two rows"), (torch.full((4, 3), float("nan")), {}, "NaN"),
    (torch.randn(5, 3), {"order": 4}, "order 4"), (torch.randn(5, 3), {"reduce": ("max",)}, "'max' is not known"),
    (torch.randn(5, 3), {"indices": [(3,)]}, "numbers from 0 to 2"), (torch.randn(5, 3), {"by": [1, 2]}, "2 labels for 5 rows"),
    (torch.randn(5, 3), {"names": ["a"]}, "1 names for 3"), (torch.randn(5, 3), {"scale": "max"}, "scale 'max'"),
    (torch.randn(5, 200), {"order": 3}, "60,501 batched gradients"), (torch.randn(5, 3), {"confidence": 95}, "confidence"),
    (torch.zeros(5, 3), {"order": 1}, "NaN or Inf at row 0"),
])  # fmt: skip
def test_tables_that_make_no_sense_are_refused(data, options, says):
    with pytest.raises(dt.errors.InputError, match=says):
        dt.dataset_coefficients(lambda v: v.abs().sqrt().sum(1), data, **options)


def test_piecewise_linear_networks_are_told_from_smooth_ones():
    model, x = mlp(7, 3, 8, 1), torch.randn(20, 3, dtype=D)
    assert "smooth_mode" in dt.dataset_coefficients(model, x).warnings[0]
    with dt.smooth_mode(10):
        assert not dt.dataset_coefficients(model, x).warnings


# Smooth mode


@pytest.mark.parametrize("module", [
    nn.ReLU(), nn.ReLU(inplace=True), nn.ReLU6(), nn.Hardtanh(), nn.LeakyReLU(0.2), nn.PReLU().double(), nn.Hardswish(), nn.Hardsigmoid(),
], ids=str)  # fmt: skip
def test_kinks_become_smooth_and_change_as_little_as_said(module):
    x = torch.linspace(-8, 8, 400, dtype=D)[:, None]
    with dt.smooth_mode(10) as smooth:
        change = smooth.change(module.eval().requires_grad_(False), x)
        bend = torch.func.hessian(lambda v: module(v.clone()).sum())(x[190:210, 0]).diagonal().abs().max()
    assert smooth.replaced > 0
    assert 0 < change.largest <= torch.log(torch.tensor(2.0)) / 10 + 1e-9
    assert float(bend) > 0.1


def test_the_integrated_interaction_of_one_neuron_is_its_closed_form():
    """relu(w·x + b), inactive at 0: M_ij = (1 − t*) u_i u_j / C, u = w x, crossing at t* (higher-order notes, section 3)."""
    w, b, x = torch.tensor([3.0, 1.0, -0.5], dtype=D), -1.0, torch.ones(1, 3, dtype=D)
    u, total = w * x[0], float((w * x[0]).sum())
    exact = (1 + b / total) * u[:, None] * u / total
    with dt.smooth_mode(20):
        found = dt.integrated_terms(lambda v: (v @ w + b).relu(), x, torch.zeros_like(x), max_nodes=256, rtol=1e-9)
    assert torch.allclose(found.coefficients[1], exact, atol=1e-6)


def test_beta_is_chosen_by_the_change_of_the_output():
    model, x = mlp(8, 4, 16, 2), torch.randn(5, 4, dtype=D)
    betas = [choose_beta(model, x, tolerance) for tolerance in (0.5, 0.05, 0.01)]
    assert betas == sorted(betas)
    assert dt.smooth_mode(betas[2]).change(model, x).relative <= 0.01
    with pytest.raises(dt.errors.InputError, match="more than the tolerance"):
        choose_beta(model, x, 1e-6)
    with pytest.raises(dt.errors.InputError, match="positive"):
        dt.smooth_mode(0)
