"""Where float32 is too coarse for an account, it is made in float64, and said."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import Tensor, nn

import deeptaylor as dt
from deeptaylor import errors, rounding
from deeptaylor.attribution import Attribution


@pytest.fixture(autouse=True)
def strict(monkeypatch: pytest.MonkeyPatch) -> None:
    """A limit that the small network below is sure to miss."""
    monkeypatch.setattr(rounding, "CLOSED", 3e-5)


class Cancels(nn.Module):
    """A large value and its opposite, next to a small one: what is explained is lost in their rounding."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(6, 400), nn.Linear(400, 400)
        self.last = nn.Linear(400, 3)
        with torch.no_grad():
            self.last.weight.mul_(3e-4)
            self.last.bias.zero_()
            self.second.bias.add_(40.0)

    def forward(self, x: Tensor) -> Tensor:
        h = self.second(self.first(x))
        return self.last(h - h.mean(1, keepdim=True))


def _missing(result: Attribution) -> float:
    assert result.ledger is not None
    size = result.relevance.double().flatten(1).abs().sum(1) / 1000
    gap = result.relevance.double().flatten(1).sum(1) + result.ledger.absorbed - result.explained.double()
    return float((gap.abs() / torch.maximum(result.explained.double().abs(), size)).max())


def _explain(model: nn.Module, x: Tensor, **options: object) -> tuple[Attribution, list[str]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = dt.explain(model, x, composite="epsilon-alpha2-beta1", target=0, ledger=True, **options)
    return result, [str(warning.message) for warning in caught if warning.category is errors.RelevanceWarning]


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("record", [False, True])
def test_an_account_that_float32_leaves_open_is_made_in_float64(
    batch: int, record: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x = Cancels().eval(), torch.randn(batch, 6, generator=torch.Generator().manual_seed(1))
    state = copy.deepcopy(model.state_dict())
    result, said = _explain(model, x, record=record)
    assert any("float64" in message and "test_rounding.py" in message for message in said)
    assert result.settings["computed_in"] == "float64"
    assert _missing(result) <= 1e-4
    exact, _ = _explain(copy.deepcopy(model).double(), x.double(), record=record)
    if record:  # sample by sample: those that float32 serves stay in it
        assert torch.allclose(
            result.relevance, exact.relevance.float(), rtol=0, atol=1e-3 * float(exact.relevance.abs().max())
        )
    else:
        assert torch.equal(result.relevance, exact.relevance.float())
    assert result.relevance.dtype == result.output.dtype == torch.float32
    assert torch.allclose(result.output, model(x), rtol=1e-4)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    limit = rounding.CLOSED
    monkeypatch.setattr(rounding, "CLOSED", float("inf"))
    plain, _ = _explain(model, x, record=record)
    assert "computed_in" not in plain.settings
    assert _missing(plain) > limit


def test_where_there_is_no_float64_the_gap_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(values: object) -> dict[str, Tensor]:
        raise TypeError("Cannot convert a MPS Tensor to float64 dtype")

    model, x = Cancels().eval(), torch.randn(3, 6, generator=torch.Generator().manual_seed(1))
    explainer = dt.Explainer(model, x, composite="epsilon-alpha2-beta1")
    monkeypatch.setattr("deeptaylor.explainer.wide", refuse)
    with pytest.warns(errors.RelevanceWarning, match="left so.*MPS"):
        result = explainer(x, target=0, ledger=True)
    assert _missing(result) > rounding.CLOSED


def test_ordinary_accounts_stay_in_float32() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 5)).eval()
    result = dt.explain(model, torch.randn(2, 3, 8, 8), ledger=True)
    assert "computed_in" not in result.settings
    assert _missing(result) <= rounding.CLOSED
