"""Savings that must not show in a value: tensors written over, ReLUs standing in for z, graphs used again."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

import deeptaylor as dt
from deeptaylor.rules import (
    AlphaBeta,
    Epsilon,
    Flat,
    GeneralizedGamma,
    LRPZero,
    Redistribution,
    Relevance,
    Rule,
    WSquare,
    ZBox,
    ZPlus,
)
from deeptaylor.step import Step


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(4, 4, 3, padding=1) for _ in range(3))
        self.out = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x).relu()
        x = (x + self.c(self.b(x).relu())).relu()
        return self.out(x.mean((2, 3)))


@pytest.fixture
def case() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return Residual().eval().double(), torch.randn(2, 4, 5, 5, dtype=torch.double)


RULES = [LRPZero(), LRPZero("ignore"), Epsilon(0.1), Epsilon(1e-6, rms=0.25), ZPlus(), ZPlus("zennit"), AlphaBeta(), GeneralizedGamma(), WSquare(),
         "epsilon", "epsilon-plus", "deep-taylor", "epsilon-gamma-box", "res-lrp"]  # fmt: skip


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_the_savings_change_nothing(case: tuple[nn.Module, Tensor], rule: object) -> None:
    """A ledger and a seed of R read every value, so neither saves; several targets share what one would write over."""
    model, x = case
    explainer = dt.Explainer(model, x, composite=rule)
    plain = explainer(x, target=1)
    close = {"rtol": 1e-10, "atol": 1e-12}
    assert torch.allclose(plain.relevance, explainer(x, target=1, ledger=True).relevance, **close)
    seed = torch.zeros_like(plain.output)
    seed[:, 1] = plain.output[:, 1]
    assert torch.allclose(plain.relevance, explainer(x, target=seed).relevance, **close)
    several = explainer(x, target=torch.tensor([[0, 1, 1], [2, 1, 1]]))
    assert torch.allclose(plain.relevance, several.relevance[:, 1], **close)
    assert torch.equal(several.relevance[:, 1], several.relevance[:, 2])
    inner = explainer(x, target=1, inner=("a", "b", "c"))
    booked = explainer(x, target=1, inner=("a", "b", "c"), ledger=True)
    assert torch.allclose(plain.relevance, inner.relevance, **close)
    assert all(torch.allclose(inner.inner[name], booked.inner[name], **close) for name in inner.inner)
    assert torch.equal(plain.relevance, explainer(x, target=1).relevance)


@dataclass(frozen=True)
class Mean(ZPlus):
    """A rule of someone else's: z⁺ and epsilon in equal parts, and the size of z looked at everywhere."""

    def __call__(self, step: Step, relevance: Relevance) -> Redistribution:
        before = relevance.tensor.clone()
        half = Relevance(relevance.tensor * (step.z.mean() / step.z.mean()) / 2, relevance.product)
        both = [rule(step, half).messages[0] for rule in (ZPlus(), Epsilon())]
        assert torch.equal(relevance.tensor, before)
        assert bool((step.z < 0).any()), "z has to be the layer's own"
        return Redistribution((both[0].plus(both[1], lambda: step.x),))  # type: ignore[union-attr, arg-type]


@pytest.mark.filterwarnings("ignore::deeptaylor.errors.RelevanceWarning")
@pytest.mark.parametrize("above", [Flat(), WSquare(), ZBox(-9.0, 9.0), Epsilon(0.1, bias="distribute")], ids=str)
@pytest.mark.parametrize("below", [Epsilon(1e-6), ZPlus(), AlphaBeta(), GeneralizedGamma(), LRPZero()], ids=str)
def test_relevance_by_place_reaches_units_that_a_relu_has_cut_off(
    case: tuple[nn.Module, Tensor], above: Rule, below: Rule
) -> None:
    """Flat shares by place, with units of value 0 too; below the ReLU, their own z counts, which no saving may lose."""
    model, x = case
    composite = dt.Composite([(dt.composites.module("b*"), above), (dt.composites.role("affine"), below)])
    explainer = dt.Explainer(model, x, composite=composite)
    told = explainer(x, target=1, ledger=True)
    torch.testing.assert_close(explainer(x, target=1).relevance, told.relevance, rtol=1e-9, atol=1e-12)
    assert told.ledger is not None
    assert float(told.ledger.gap.abs().max()) <= 1e-9 * max(1.0, float(told.relevance.abs().sum()))


def test_a_rule_of_ones_own_sees_z_and_keeps_its_relevance(case: tuple[nn.Module, Tensor]) -> None:
    model, x = case
    layers = nn.Sequential(model.a, nn.ReLU(), model.b, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    layers.eval()
    shallow = nn.Sequential(*list(layers)[2:]).eval()
    result = dt.explain(layers, x, target=0, composite=Mean())
    assert result.relevance.isfinite().all()
    a = model.a(x).relu().detach()
    parts = [dt.explain(shallow, a, target=0, composite=rule).relevance for rule in (ZPlus(), Epsilon())]
    assert torch.allclose(dt.explain(shallow, a, target=0, composite=Mean()).relevance, (parts[0] + parts[1]) / 2)


def test_a_second_explainer_traces_nothing(case: tuple[nn.Module, Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = case
    calls = []
    export = torch.export.export
    monkeypatch.setattr(torch.export, "export", lambda *a, **k: (calls.append(1), export(*a, **k))[1])
    first = dt.Explainer(model, x, composite="epsilon")
    once = len(calls)
    second = dt.Explainer(model, x, composite=ZPlus())
    assert (once, len(calls)) == (1, 1)
    assert len(first.plan.rows) == len(second.plan.rows)
