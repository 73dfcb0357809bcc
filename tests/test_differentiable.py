"""Relevance can be differentiated by inputs and weights: its derivatives are those of finite differences."""

from __future__ import annotations

import pytest
import torch
from test_one_pass import Words
from torch import Tensor, nn

import deeptaylor as dt
from deeptaylor import rules
from deeptaylor.errors import InputError

STEP = 1e-6


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.TransformerEncoderLayer(4, 2, 6, batch_first=True, activation="gelu"), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x)[:, 0])


def dense():
    return nn.Sequential(nn.Linear(5, 4), nn.SiLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3)), torch.randn(2, 5)


def convolutions():
    layers = [nn.Conv2d(1, 2, 3, padding=1), nn.BatchNorm2d(2), nn.Sigmoid(), nn.MaxPool2d(2), nn.Conv2d(2, 2, 2)]
    model = nn.Sequential(*layers, nn.AvgPool2d(2), nn.Flatten(), nn.Linear(2, 3))
    with torch.no_grad():
        model[-1].weight.abs_()  # z+ hands nothing to weights below 0
        model[4].weight.abs_()
    return model, torch.randn(2, 1, 6, 6)


def encoder():
    return Encoder(), torch.randn(2, 3, 4)


CASES = [
    (dense, rules.Epsilon(1e-2)), (dense, rules.GeneralizedGamma()), (dense, rules.ZPlus()), (dense, rules.AlphaBeta(2.0, 1.0)), (dense, "attn-lrp"),
    (convolutions, rules.Epsilon(1e-2)), (convolutions, rules.Gamma()), (convolutions, rules.ZPlus()), (convolutions, rules.AlphaBeta(2.0, 1.0)),
    (convolutions, "deep-taylor"), (encoder, "gradient-times-input"),
    pytest.param(encoder, "attn-lrp", marks=pytest.mark.slow), pytest.param(encoder, rules.GeneralizedGamma(), marks=pytest.mark.slow),
]  # fmt: skip


@pytest.mark.parametrize(("make", "composite"), CASES)
def test_derivatives_are_those_of_finite_differences(make, composite):
    torch.manual_seed(1)
    model, x = make()
    with torch.no_grad():
        for name, values in model.named_parameters():
            if "bias" in name:  # rules that look at a bias's sign have a kink at 0, where layers begin
                values.normal_()
    model, x = model.double().eval(), x.double()
    target = torch.tensor([0, 2])
    explainer = dt.Explainer(model, x, composite=composite)
    weights = torch.randn_like(x)

    def objective() -> float:
        return float((explainer(x, target=target).relevance * weights).sum())

    leaf = x.clone().requires_grad_()
    found = explainer(leaf, target=target, create_graph=True)
    torch.testing.assert_close(found.relevance, explainer(x, target=target).relevance, rtol=1e-9, atol=1e-12)
    parameters = list(model.parameters())
    gradients = torch.autograd.grad((found.relevance * weights).sum(), [leaf, *parameters], materialize_grads=True)
    assert sum(float(g.abs().sum()) > 0 for g in gradients) >= len(gradients) / 2
    for place, gradient in zip([x, *parameters], gradients, strict=True):
        values, size = place.detach().view(-1), max(1e-2, float(gradient.abs().max()))
        for i in torch.randperm(values.numel())[:2].tolist():
            before = float(values[i])
            values[i] = before + STEP
            above = objective()
            values[i] = before - STEP
            below = objective()
            values[i] = before
            assert abs((above - below) / (2 * STEP) - float(gradient.reshape(-1)[i])) < 1e-5 * size


def test_output_and_explained_value_are_part_of_the_graph_and_ids_work():
    torch.manual_seed(0)
    model, ids = Words().eval(), torch.randint(11, (3, 9))
    explainer = dt.Explainer(model, ids, composite="attn-lrp")
    found = explainer(ids, create_graph=True)
    torch.testing.assert_close(found.relevance, explainer(ids).relevance)
    (through,) = torch.autograd.grad(found.output.sum() + found.explained.sum(), model.head.weight, retain_graph=True)
    assert through.abs().sum() > 0
    (table,) = torch.autograd.grad(found.relevance.square().sum(), model.words.weight)
    assert table.abs().sum() > 0


def test_weights_that_change_are_seen_and_nothing_is_left_on_the_model():
    torch.manual_seed(0)
    model, x = dense()
    model.eval()
    explainer = dt.Explainer(model, x, composite="epsilon")
    explainer(x, create_graph=True).relevance.square().sum().backward()
    assert all(p.grad is not None for p in model[0].parameters())  # asked for, by backward()
    model.zero_grad()
    with torch.no_grad():
        model[0].weight.mul_(2)
    torch.testing.assert_close(explainer(x, create_graph=True).relevance, explainer(x).relevance)
    assert all(p.grad is None for p in model.parameters())


class Cut(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * x.sigmoid().detach()


def test_cuts_and_nothing_to_differentiate_by_are_refused():
    model, x = dense()
    model = nn.Sequential(Cut(), *model).eval()
    with pytest.raises(InputError, match=r"cuts autograd's graph at .*detach"):
        dt.explain(model, x, composite="epsilon", create_graph=True)
    model, x = dense()
    model.eval().requires_grad_(False)
    explainer = dt.Explainer(model, x, composite="epsilon")
    with pytest.raises(InputError, match="requires_grad"):
        explainer(x, create_graph=True)
    with pytest.raises(InputError, match="ledger"):
        explainer(x, create_graph=True, ledger=True)
    assert explainer(x.requires_grad_(), create_graph=True).relevance.requires_grad
