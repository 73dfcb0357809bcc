"""One backward pass of autograd gives what the steps give, one by one, wherever it is taken."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from counting import LinearOperations
from test_memory import Last, Rotated
from torch import Tensor, nn

import deeptaylor as dt
from deeptaylor import explainer as engine


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(11, 96), nn.Embedding(9, 96)
        self.body = nn.TransformerEncoderLayer(96, 4, 64, batch_first=True)
        self.head = nn.Linear(96, 3)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.words(ids) + self.places(torch.arange(ids.shape[1]))
        return torch.log_softmax(self.head(self.body(x).mean(1).sigmoid()), -1)


class StepsTaken(Exception): ...


def no_steps(*_: object, **__: object) -> None:
    raise StepsTaken


def decoder() -> tuple[nn.Module, Tensor]:
    return nn.Sequential(Rotated(), Last(), nn.Linear(96, 5)), torch.randn(3, 7, 96)


def convolutions() -> tuple[nn.Module, Tensor]:
    layers = [nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.SiLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(54, 4)]
    return nn.Sequential(*layers), torch.randn(3, 3, 8, 8)


def words() -> tuple[nn.Module, Tensor]:
    return Words(), torch.randint(11, (3, 9))


MODELS: list[Callable[[], tuple[nn.Module, Tensor]]] = [decoder, convolutions, words]
ONE_PASS = ["attn-lrp", "cp-lrp", "mamba-lrp", "gradient-times-input"]


@pytest.mark.parametrize("make", MODELS)
@pytest.mark.parametrize("composite", ONE_PASS)
def test_one_pass_gives_what_the_steps_give(
    make: Callable[[], tuple[nn.Module, Tensor]], composite: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model, x = make()
    model = model.double().eval()
    x = x.double() if x.is_floating_point() else x
    explainer = dt.Explainer(model, x, composite=composite)
    for target in (None, 1, torch.tensor([[0, 1], [1, 2], [2, 0]]), dt.contrast(0, 1), dt.log_odds()):
        passed = explainer(x, target=target)
        assert passed.relevance.abs().sum() > 0
        stepped = explainer(x, target=target, ledger=True)
        torch.testing.assert_close(passed.relevance, stepped.relevance, rtol=1e-10, atol=1e-14)
        torch.testing.assert_close(passed.output, stepped.output, rtol=1e-12, atol=1e-14)
    monkeypatch.setattr(engine, "forward", no_steps)
    explainer(x)


def test_rules_that_weigh_by_value_take_the_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = convolutions()
    explainer = dt.Explainer(model.eval(), x, composite="epsilon-plus")
    monkeypatch.setattr(engine, "forward", no_steps)
    with pytest.raises(StepsTaken):
        explainer(x)


def test_half_precision_takes_the_steps_and_gives_float32() -> None:
    torch.manual_seed(0)
    model, x = decoder()
    wide = dt.explain(model.eval(), x, composite="attn-lrp", target=0).relevance
    half = dt.explain(model.bfloat16(), x.bfloat16(), composite="attn-lrp", target=0).relevance
    assert half.dtype == torch.float32
    assert torch.cosine_similarity(wide.flatten(), half.flatten(), 0) > 0.99


def test_attention_takes_the_matrix_products_of_one_gradient() -> None:
    torch.manual_seed(0)
    model, x = decoder()
    for parameter in model.eval().parameters():
        parameter.requires_grad_(False)
    explainer = dt.Explainer(model, x, composite="attn-lrp")
    explainer(x)
    with LinearOperations() as ours:
        explainer(x, target=0)
    with LinearOperations() as gradient:
        leaf = x.clone().requires_grad_()
        torch.autograd.grad(model(leaf)[:, 0].sum(), leaf)
    assert ours.multiplications <= gradient.multiplications
