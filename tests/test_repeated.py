"""Several classes of one sample go back as the rows of one pass; `test_generated_models` holds it against each alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from counting import LinearOperations
from torch import Tensor, nn

import deeptaylor as dt
from deeptaylor import repeated
from deeptaylor.rules import Redistribution, Relevance, Rule, ZPlus
from deeptaylor.step import Step


def picture_model() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3), nn.ReLU())
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(72, 10)).eval().double(), torch.randn(1, 3, 10, 10).double()


def calls(run: Callable[[], object]) -> int:
    with LinearOperations() as counted:
        run()
    return len(counted.calls)


@pytest.mark.parametrize("composite", ["epsilon", "deep-taylor", "epsilon-alpha2-beta1", "epsilon-gamma-box"])
def test_ten_classes_take_two_backward_passes(composite: str) -> None:
    model, x = picture_model()
    explainer = dt.Explainer(model, x, composite=composite, bounds=(-9.0, 9.0))
    ten = torch.arange(10)[None]
    explainer(x, target=ten)
    assert calls(lambda: explainer(x, target=ten)) == calls(lambda: explainer(x, target=ten[:, :2]))


@pytest.mark.parametrize("room", [0, 800, 2000, 3200])
def test_passes_hold_as_many_classes_as_there_is_room_for(room: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest map holds 800 numbers."""
    model, x = picture_model()
    targets = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6, 5]])
    explainer = dt.Explainer(model, x, composite="epsilon-plus")
    alone = [explainer(x, target=int(n)).relevance for n in targets[0]]
    monkeypatch.setattr(repeated, "ROOM", room)
    explainer.plan.prepared.held.clear()
    seen: list[int] = []
    waves = repeated.waves

    def watched(*args: Any) -> list[tuple[Relevance, int]]:
        found = list(waves(*args))
        seen.extend(rows for _, rows in found)
        return found

    monkeypatch.setattr("deeptaylor.explainer.waves", watched)
    found = explainer(x, target=targets).relevance
    assert torch.allclose(found, torch.stack(alone, 1), rtol=1e-10, atol=1e-14)
    assert seen == {0: [1] * 9, 800: [1] * 9, 2000: [1, 2, 2, 2, 2], 3200: [1, 4, 4]}[room]


def test_a_batch_and_what_looks_between_go_class_by_class() -> None:
    model, x = picture_model()
    explainer = dt.Explainer(model, x, composite="epsilon-plus")
    targets = torch.tensor([[3, 1, 4]])
    plain = explainer(x, target=targets).relevance
    for result in (
        explainer(x, target=targets, ledger=True),
        explainer(x, target=targets, inner=("3",)),
        explainer(x, target=targets, checkpoint=True),
    ):
        assert torch.allclose(result.relevance, plain, rtol=1e-9, atol=1e-12)
    both = explainer(torch.cat([x, x]), target=targets.repeat(2, 1)).relevance
    assert torch.allclose(both, plain.repeat(2, 1, 1, 1, 1), rtol=1e-9, atol=1e-12)


@dataclass(frozen=True)
class Halves(ZPlus):
    """A rule of someone else's, which looks at shapes and values."""

    def __call__(self, step: Step, relevance: Relevance) -> Redistribution:
        assert relevance.tensor.shape == step.z.shape
        total = relevance.total(step.z)
        z = step.memo.get("mine", lambda: step.z.abs() + 1)
        (back,) = step.vjp(total / z, lambda x: step.function(x / 2))
        assert back.shape == step.x.shape
        return Redistribution((Relevance(back * step.x),))


def test_a_rule_of_ones_own_sees_a_batch_of_equal_samples() -> None:
    model, x = picture_model()
    explainer = dt.Explainer(model, x, composite=Halves())
    targets = torch.tensor([[3, 1, 4, 0]])
    alone = [explainer(x, target=int(n)).relevance for n in targets[0]]
    assert torch.allclose(explainer(x, target=targets).relevance, torch.stack(alone, 1), rtol=1e-10)


@dataclass(frozen=True)
class Moved(dt.rules.Move):
    """Moves relevance by calling the operation on values of its own."""

    def __call__(self, step: Step, relevance: Relevance) -> Redistribution:
        ones = step.function(*(torch.ones_like(x) for x in step.xs))
        assert ones.shape == step.z.shape == relevance.tensor.shape
        return dt.rules.Move()(step, relevance)


class Sized(nn.Module):
    """Reads the size of its batch."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 8).double(), nn.Linear(8, 5).double()

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).reshape(x.shape[0], 2, 4).relu()
        return self.last(x.view(x.size(0), -1))


def test_an_operation_that_holds_the_size_of_its_batch() -> None:
    torch.manual_seed(0)
    model, x = Sized().eval(), torch.randn(1, 6).double()
    lines = [(dt.composites.role("rearrange"), Moved()), (dt.composites.role("affine"), ZPlus())]
    explainer = dt.Explainer(model, x, composite=dt.Composite(lines))
    alone = [explainer(x, target=n).relevance for n in range(5)]
    found = explainer(x, target=torch.arange(5)[None]).relevance
    assert repeated._rows_at_most(explainer.plan) > 4
    assert torch.allclose(found, torch.stack(alone, 1), rtol=1e-10)


@dataclass(frozen=True)
class Broken(ZPlus):
    """NaN for the second class."""

    def __call__(self, step: Step, relevance: Relevance) -> Redistribution:
        broken = torch.where(relevance.tensor[:, 1:] != 0, torch.nan, 0.0)
        return Redistribution((Relevance(broken.expand(step.x.shape)),))


@pytest.mark.parametrize("targets", [[[0, 1]], [[0, 1, 0]], [[0, 0, 1]]])
def test_a_class_that_nothing_reaches_hides_no_nan_of_another(targets: list[list[int]]) -> None:
    rule: Rule = Broken()
    with pytest.raises(dt.errors.NonFiniteRelevance):
        dt.explain(nn.Linear(3, 2).eval(), torch.ones(1, 3), target=torch.tensor(targets), composite=rule)
