"""Explanations that fit into memory: batches in parts, and steps made again."""

from __future__ import annotations

import pytest
import torch
from counting import LinearOperations
from test_memory import Last, Rotated, peak
from torch import nn

import deeptaylor as dt
from deeptaylor.errors import InputError, MemoryExhausted


def network():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.SiLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 5)]
    return nn.Sequential(*layers).double().eval(), torch.randn(7, 3, 8, 8, dtype=torch.float64)


@pytest.mark.parametrize(
    "target",
    [None, 2, [0, 1, 2, 3, 4, 0, 1], torch.arange(14).reshape(7, 2) % 5, dt.log_odds(), torch.randn(7, 5).double()],
)
@pytest.mark.parametrize("size", [1, 3, 100, "auto"])
def test_a_batch_in_parts_is_the_batch(target, size):
    model, x = network()
    explainer = dt.Explainer(model, x, composite="epsilon-gamma-box")
    whole = explainer(x, target=target, ledger=True, inner=["0"])
    parts = explainer(x, target=target, ledger=True, inner=["0"], batch_size=size)
    for a, b in (
        (whole.relevance, parts.relevance),
        (whole.explained, parts.explained),
        (whole.inner["0"], parts.inner["0"]),
    ):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(whole.ledger.absorbed, parts.ledger.absorbed, rtol=1e-9, atol=1e-9)


class Small(nn.Module):
    """A network on a machine that holds three samples."""

    def __init__(self, error):
        super().__init__()
        self.layer, self.error, self.room = nn.Linear(4, 3), error, 3

    def forward(self, x):
        return self.layer(x)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes"),
    ],
)
def test_auto_halves_until_it_fits_and_remembers(error, monkeypatch):
    model = Small(error).eval()
    x = torch.randn(10, 4)
    explainer = dt.Explainer(model, x[:2], composite="epsilon")
    tried, at_once = [], explainer._at_once

    def limited(call, *rest):
        tried.append(call.tensors["x"].shape[0])
        if tried[-1] > model.room:
            raise error
        return at_once(call, *rest)

    expected = explainer(x)
    monkeypatch.setattr(explainer, "_at_once", limited)
    found = explainer(x, batch_size="auto")
    assert torch.equal(found.target, expected.target)
    torch.testing.assert_close(found.relevance, expected.relevance)
    assert tried == [10, 5, 3, 3, 3, 1]
    assert explainer.fits == 3
    tried.clear()
    explainer(x, batch_size="auto")
    assert tried == [3, 3, 3, 1]
    with pytest.raises(type(error)):  # only "auto" tries again
        explainer(x, batch_size=5)
    model.room = 0
    with pytest.raises(MemoryExhausted, match="checkpoint=True"):
        explainer(x, batch_size="auto")


def test_other_errors_pass_and_sizes_are_checked():
    model, x = network()
    explainer = dt.Explainer(model, x)
    for size in (0, -1, 2.5, True, "all"):
        with pytest.raises(InputError, match="batch_size"):
            explainer(x, batch_size=size)
    with pytest.raises(dt.errors.TargetError):
        explainer(x, target=9, batch_size="auto")


def deep():
    layers = [m for _ in range(12) for m in (nn.Conv2d(6, 6, 3, padding=1), nn.ReLU())]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(6 * 144, 5)), torch.randn(3, 6, 12, 12)


def decoder():
    return nn.Sequential(*[Rotated() for _ in range(3)], Last(), nn.Linear(96, 5)), torch.randn(2, 7, 96)


@pytest.mark.parametrize(
    ("make", "composite"),
    [(deep, "epsilon-plus-flat"), (deep, "deep-taylor"), (decoder, "attn-lrp"), (decoder, "epsilon")],
)
def test_checkpointing_gives_the_same_at_one_forward_pass_more(make, composite):
    torch.manual_seed(0)
    model, x = make()
    explainer = dt.Explainer(model.eval().requires_grad_(False), x, composite=composite)
    for target in (None, dt.top(2), torch.randn(len(x), 5)):
        plain, again = (explainer(x, target=target, checkpoint=on).relevance for on in (False, True))
        rounding = 1e-5 if composite == "attn-lrp" else 0.0  # one pass leaves out rows, so that sums are others
        torch.testing.assert_close(plain, again, rtol=rounding, atol=rounding * float(again.abs().max()))
    counts, whole = [], [explainer.plan.rows[-1].name]
    for run in (lambda: explainer(x, inner=whole), lambda: explainer(x, checkpoint=True), lambda: model(x)):
        with LinearOperations() as counted:
            run()
        counts.append(counted.multiplications)
    assert counts[0] < counts[1] <= counts[0] + counts[2]


def test_checkpointing_halves_the_memory_of_a_deep_network():
    torch.manual_seed(0)
    layers = [m for _ in range(24) for m in (nn.Conv2d(6, 6, 3, padding=1), nn.SiLU())]
    model, x = nn.Sequential(*layers, nn.Flatten(), nn.Linear(6 * 144, 5)).eval(), torch.randn(3, 6, 12, 12)
    explainer = dt.Explainer(model, x, composite="epsilon-plus")
    explainer(x)
    assert peak(lambda: explainer(x, checkpoint=True)) < 0.5 * peak(lambda: explainer(x))


def test_checkpointing_explains_ids_and_refuses_what_it_lets_go():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(10, 8), nn.Linear(8, 8), nn.ReLU(), nn.Flatten(), nn.Linear(40, 3)).eval()
    ids = torch.randint(10, (3, 5))
    explainer = dt.Explainer(model, ids, composite="epsilon")
    assert torch.equal(explainer(ids).relevance, explainer(ids, checkpoint=True).relevance)
    for asked in ({"ledger": True}, {"inner": ["1"]}, {"create_graph": True}):
        with pytest.raises(InputError, match="checkpoint"):
            explainer(ids, checkpoint=True, **asked)
