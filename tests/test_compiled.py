"""A compiled explanation is the explanation: one graph, made once for all batches, and none the worse for new weights."""

from __future__ import annotations

import pytest
import torch
from shipped import off
from torch import nn
from torch._dynamo.utils import counters

import deeptaylor as dt
from deeptaylor.errors import CompilerError, InputError


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
