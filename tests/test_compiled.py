"""A compiled explanation is the explanation: one graph, made once for all batches, and none the worse for new weights."""

from __future__ import annotations

import pytest
import torch
from shipped import off
from torch import nn
from torch._dynamo.utils import counters

import deeptaylor as dt
from deeptaylor.errors import CompilerError, InputError, RelevanceWarning
from deeptaylor.origin import live_state
from deeptaylor.shipping.ask import asked
from deeptaylor.shipping.program import record_program


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)).eval(), torch.randn(3, 6)


def test_one_graph_serves_every_batch_and_new_weights():
    model, x = network()
    explainer = dt.Explainer(model, x, composite="epsilon")
    counters.clear()
    compiled = explainer.compile()

    def agrees(n, **target):
        batch = torch.randn(n, 6)
        found, expected = compiled(batch, **target), explainer(batch, **target)
        assert off(found.relevance, expected.relevance) < 1e-5
        assert torch.equal(found.target, expected.target)
        torch.testing.assert_close(found.explained, expected.explained)

    for n in (3, 5, 2, 9):
        agrees(n)
        agrees(n, target=1)
        agrees(n, target=[i % 3 for i in range(n)])
    with torch.no_grad():
        model[0].weight.mul_(1.5)
        model[2].weight.data.neg_()
    agrees(4)
    model[2].bias = nn.Parameter(torch.randn(3))
    agrees(4)
    with torch.no_grad():
        model[2].weight.zero_()
    for run in (compiled, explainer):
        with pytest.warns(RelevanceWarning, match="no relevance reached the inputs") as caught:
            run(torch.randn(4, 6))
        assert caught[0].filename == __file__
    assert counters["stats"]["unique_graphs"] == 1  # nothing was compiled again
    assert not counters["graph_break"]


def test_settings_that_torch_does_not_take_are_refused():
    model, x = network()
    explainer = dt.Explainer(model, x, composite="epsilon")
    with pytest.raises(InputError, match="not both"):
        explainer.compile(mode="reduce-overhead", max_autotune=True)
    with pytest.raises(InputError, match="does not take"):
        explainer.compile(no_such_option=True)
    with pytest.raises(InputError, match="recorded"):
        dt.Explainer(model, x, record=True).compile()


def test_without_a_compiler_the_error_says_what_is_missing(monkeypatch, tmp_path):
    model, x = network()
    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", ("no-such-compiler",))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    with pytest.raises(CompilerError, match=r"C\+\+ compiler"):
        dt.Explainer(model, x, composite="epsilon").compile(fx_graph_cache=False)


@pytest.mark.parametrize("convention", ["paper", "zennit"])
def test_a_program_of_alpha_beta_adds_up_the_contributions_of_each_sign_once(convention, monkeypatch):
    """Two sums and two transposes for inputs of one sign, twice that for those of both; the layer's own sum is theirs."""
    monkeypatch.setattr("deeptaylor.rules.affine.MANY", 1)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 9), nn.ReLU(), nn.Linear(9, 7), nn.ReLU(), nn.Linear(7, 3)).eval()
    x = torch.randn(5, 8)
    explainer = dt.Explainer(model, x, composite=dt.rules.AlphaBeta(convention=convention))
    ask = asked(None, model(x).detach())[0]
    program = record_program(explainer.plan, {"input": x}, live_state(model), ask, portable=False)
    kinds = [str(node.target) for node in program.graph.graph.nodes]
    assert sum("mm" in kind for kind in kinds) == 8 + 4 + 4
    with torch.no_grad():
        found = program.graph(list(program.values(live_state(model))), {"input": x}, model(x).argmax(1))
    expected = explainer(x)
    assert off(found[0], expected.relevance) < 1e-5
    assert off(found[1], expected.output) < 1e-5
