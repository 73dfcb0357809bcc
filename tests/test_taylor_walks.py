"""Walks through layers and the adaptive path: closed forms, identities, refusals."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_taylor_pairs import Encoder, mlp
from torch import nn

import deeptaylor as dt
from deeptaylor.taylor import Segments, query
from deeptaylor.taylor.queries import parse

D = torch.float64


# Walks


class Gcn(nn.Module):
    def __init__(self, adjacency, width):
        super().__init__()
        self.adjacency, self.w = adjacency, nn.Parameter(torch.randn(width, width, dtype=D))

    def forward(self, x):
        return self.adjacency @ x @ self.w


def linear_graph(seed, nodes=5, blocks=3, width=4):
    torch.manual_seed(seed)
    adjacency = torch.rand(nodes, nodes, dtype=D)
    net = nn.Sequential(*(Gcn(adjacency, width) for _ in range(blocks))).eval()
    readout = torch.randn(width, dtype=D)

    def subgraph(x, chosen):
        h = x[0, chosen]
        for block in net:
            h = adjacency[chosen][:, chosen] @ h @ block.w.detach()
        return float(h.sum(0) @ readout)

    return net, (lambda out: out.sum(1) @ readout), subgraph, torch.randn(1, nodes, width, dtype=D)


def test_subgraphs_of_a_linear_graph_network_have_their_closed_form():
    net, head, subgraph, x = linear_graph(0)
    walks = dt.walk_relevance(net, x, list(net), head=head)
    for chosen in ([0], [1, 3], [0, 2, 4], list(range(5))):
        assert walks.subset(chosen) == pytest.approx(subgraph(x, chosen), abs=1e-11)
    mu = walks.terms(5)
    assert sum(mu.values()) == pytest.approx(walks.value, abs=1e-10)
    assert abs(walks.residual) < 1e-10
    assert abs(mu[0, 1, 2, 3, 4]) < 1e-10  # five nodes can't be on a walk of four steps
    assert walks.cost.gradients == 31


@pytest.mark.parametrize("expression", ["#0 & !#3", "#0 | (#1 & #2)", "!(#0 | #4)", "#2", "!#1 & (#0 | !#2)"])
def test_a_query_is_the_sum_of_all_terms_on_which_it_holds(expression):
    net, head, _, x = linear_graph(1, nodes=5, blocks=2)
    walks = dt.walk_relevance(net, x, ["0", "1"], head=head)
    quick = walks.query(expression)
    # The empty set holds nothing; 2^k gradients for k names.
    assert walks.cost.gradients <= 2 ** len(set(parse(expression, int)[1]))
    assert quick == pytest.approx(query(walks.terms(5), expression, walks.names), abs=1e-10)


def test_pairs_and_layer_pairs_add_up():
    net, head, _, x = linear_graph(2)
    walks = dt.walk_relevance(net, x, list(net), head=head, names=["a", "b", "c", "d", "e"])
    pairs = walks.pairs()
    assert walks.subset(["b", "d"]) == pytest.approx(float(pairs[1, 1] + pairs[3, 3] + pairs[1, 3]), abs=1e-10)
    for layer in range(3):
        table = walks.layer_pairs(layer)
        assert float(table.sum()) == pytest.approx(walks.total, abs=1e-10)
    singles = torch.autograd.functional.jacobian(lambda v: head(net(v)).sum(), x)
    assert torch.allclose(table.sum(0), (singles * x)[0].sum(1), atol=1e-10)


def test_frozen_walks_of_a_transformer_lose_only_biases():
    torch.manual_seed(0)
    encoder = Encoder().double().eval()
    for name, parameter in encoder.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
    x = torch.randn(1, 4, 32, dtype=D)
    frozen = dt.walk_relevance(encoder, x, list(encoder.layers), target=3, rule="frozen")
    plain = dt.walk_relevance(encoder, x, list(encoder.layers), target=3)
    assert abs(frozen.residual) < 1e-12
    assert not frozen.warnings
    assert "biases, norms" in plain.warnings[0]


def test_walks_leave_the_model_as_it_was_also_when_they_fail():
    net, head, _, x = linear_graph(3)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    dt.walk_relevance(net, x, list(net), head=head).subset([0, 1])
    calls = []

    def failing(out):
        calls.append(out)
        if len(calls) > 1:
            raise RuntimeError("no")
        return head(out)

    walks = dt.walk_relevance(net, x, list(net), head=failing)
    with pytest.raises(RuntimeError, match="no"):
        walks.subset([0])
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in net.modules())
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in net.parameters())


@pytest.mark.parametrize(("options", "says"), [
    ({"blocks": ["9"]}, "no module '9'"), ({"blocks": []}, "no blocks"), ({"rule": "magic"}, "rule 'magic'"),
    ({"names": ["a"]}, "1 names for 5"), ({"blocks": [nn.Linear(1, 1)]}, "not part of the model"),
])  # fmt: skip
def test_walks_that_make_no_sense_are_refused(options, says):
    net, head, _, x = linear_graph(4)
    with pytest.raises(dt.errors.InputError, match=says):
        dt.walk_relevance(net, x, **{"blocks": list(net), "head": head} | options)


@pytest.mark.parametrize(("expression", "says"), [
    ("good &", "the end"), ("(good", r"should be \)"), ("good bad", "should be & or"), ("fine", "is no token"), ("the", "say which"),
    ("#9", "out of range"), ("", "should be a token"),
])  # fmt: skip
def test_queries_that_can_not_be_read_are_refused(expression, says):
    net, head, _, x = linear_graph(5)
    walks = dt.walk_relevance(net, x, list(net), head=head, names=["the", "good", "not", "bad", "the"])
    with pytest.raises(dt.errors.InputError, match=says):
        walks.query(expression)


# Adaptive path


def test_the_path_of_a_cubic_takes_three_gradients_and_is_its_integrated_gradient():
    f = lambda v: v[:, 0] ** 2 * v[:, 1] + 3 * v[:, 0] * v[:, 1]  # noqa: E731
    path = dt.taylor_path(f, torch.tensor([[2.0, 3.0]], dtype=D), 0.0)
    assert torch.allclose(path.maps.sum(0), torch.tensor([17.0, 13.0], dtype=D), atol=1e-12)
    assert path.cost.gradients == 3
    assert path.residual == pytest.approx(0, abs=1e-12)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([1e-1, 1e-2, 1e-3]))
def test_the_path_meets_its_tolerance(seed, rtol):
    net = mlp(seed, 3, 12, 12, 1)
    x = 3 * torch.randn(1, 3, dtype=D)
    if abs(float(net(x) - net(0 * x))) < 1e-2:
        return
    path = dt.taylor_path(net, x, 0.0, rtol=rtol)
    assert path.relative_residual <= rtol
    assert path.details["spread"] <= rtol
    assert not path.maps[1].any()


def test_the_path_approaches_the_integrated_gradient():
    """The tolerance is one of sums, in which single entries may cancel: so the median over networks."""
    errors = []
    for seed in range(20):
        net = mlp(seed, 3, 12, 12, 1)
        x = 3 * torch.randn(1, 3, dtype=D)
        path = dt.taylor_path(net, x, 0.0, rtol=1e-3)
        t = ((torch.arange(4000, dtype=D) + 0.5) / 4000)[:, None]
        leaf = (t * x).requires_grad_()
        exact = torch.autograd.grad(net(leaf).sum(), leaf)[0].mean(0) * x[0]
        errors.append(float((path.maps.sum(0) - exact).abs().sum() / exact.abs().sum()))
    assert sorted(errors)[10] < 0.01, errors


def test_the_path_steps_where_the_function_bends():
    """A sigmoid of steepness 400 at 0.03 of the way: what fixed rules miss or meet by chance."""
    f = lambda v: torch.sigmoid(400 * (v.sum(1) - 0.03))  # noqa: E731
    x = torch.full((1, 2), 0.5, dtype=D)
    path = dt.taylor_path(f, x, 0.0)
    shortest = min(zip(path.details["widths"], path.details["centres"], strict=True))
    assert abs(shortest[1] - 0.03) < 0.02
    assert path.relative_residual <= 0.01
    for n in (path.cost.gradients, 2 * path.cost.gradients):
        t = ((torch.arange(n, dtype=D) + 0.5) / n)[:, None]
        leaf = (t * x).requires_grad_()
        midpoints = float((torch.autograd.grad(f(leaf).sum(), leaf)[0] * x).sum(1).mean())
        assert abs(midpoints - path.total) / abs(path.total) > 0.01


def test_a_path_that_ends_too_early_says_so_and_one_through_nan_says_where():
    x = torch.ones(1, 1, dtype=D)
    f = lambda v: torch.sin(300 * v).sum(1)  # noqa: E731
    assert "was not met with 5 gradients" in dt.taylor_path(f, x, 0.0, max_gradients=5).warnings[0]
    with pytest.raises(dt.errors.InputError, match=r"at 0\.5 of the way"):
        dt.taylor_path(lambda v: (v - 0.5).abs().log().sum(1), x, 0.0)
    for wrong in ({"rtol": 0.0}, {"rtol": 2.0}, {"max_gradients": 1}):
        with pytest.raises(dt.errors.InputError):
            dt.taylor_path(f, x, 0.0, **wrong)
    with pytest.raises(dt.errors.InputError, match="equals the input"):
        dt.taylor_path(f, x, x)


def test_a_path_sums_over_segments():
    x = torch.randn(1, 4, dtype=D)
    net = mlp(9, 4, 10, 1, activation=nn.GELU)
    path = dt.taylor_path(net, x, 0.0, groups=Segments(torch.tensor([0, 1, 1, 0]), ("ends", "middle")))
    sums = path.maps.sum(0)
    assert path.to_features().tolist() == pytest.approx([float(sums[0] + sums[3]), float(sums[1] + sums[2])])
