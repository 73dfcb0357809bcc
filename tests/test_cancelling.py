"""Few chosen units summed term by term: what z+ falls back to where positive and negative contributions cancel."""

from __future__ import annotations

import pytest
import replica
import torch
from counting import forward_work, work
from test_rules_twice import LAYERS, case, closeness
from torch import Tensor, nn

import deeptaylor as dt
from deeptaylor.origin import live_state
from deeptaylor.propagate import forward
from deeptaylor.rules import ZPlus


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")  # torch's own, of the model
@pytest.mark.parametrize("layer", LAYERS)
def test_terms_are_the_rows_of_the_layers_matrix_times_the_input(layer: str) -> None:
    module, model, x, _ = case(layer, bias=True)
    explainer = dt.Explainer(model, x, record=True)
    run = forward(explainer.plan, {explainer.plan.explained[0]: x}, live_state(model))
    (affine,) = [step.affine for step in run.steps.values() if step.affine is not None]
    z = module(x)
    units = torch.ones_like(z, dtype=torch.bool).nonzero(as_tuple=True)
    terms = affine.terms(x, units)
    matrix, bias = replica.matrix_of(module, tuple(x.shape[1:]))
    expected = (matrix[None] * x.flatten(1)[:, None]).flatten(0, 1)
    assert torch.allclose(terms.sum(1), (z - bias.view(z.shape[1:])).flatten(), atol=1e-12)
    assert torch.allclose(terms.clamp(min=0).sum(1), expected.clamp(min=0).sum(1), atol=1e-12)
    assert torch.allclose(terms.square().sum(1), expected.square().sum(1), atol=1e-12)


@pytest.mark.parametrize("side", ["left", "right"])
def test_terms_of_a_batched_matrix_product(side: str) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = nn.Parameter(torch.randn(3, 4, 5, generator=generator))
    x = torch.randn(2, 1, *((5, 6) if side == "left" else (6, 4)), generator=generator)

    class Product(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = weight

        def forward(self, x: Tensor) -> Tensor:
            return self.weight @ x if side == "left" else x @ self.weight

    explainer = dt.Explainer(Product().eval(), x, head=lambda out: out.flatten(1))
    run = forward(explainer.plan, {"x": x}, {"weight": weight.detach()})
    (affine,) = [step.affine for step in run.steps.values() if step.affine is not None]
    z = affine.forward(x, weight.detach())
    terms = affine.terms(x, torch.ones_like(z, dtype=torch.bool).nonzero(as_tuple=True))
    assert torch.allclose(terms.sum(1), z.flatten(), atol=1e-5)


def nearly_negative() -> tuple[nn.Module, Tensor]:
    """A layer most of whose units are ordinary; three have hardly anything positive."""
    torch.manual_seed(0)
    layer = nn.Linear(400, 200, bias=False).eval()
    x = torch.randn(2, 400)
    with torch.no_grad():
        rare = -x[0].sign() * layer.weight[:3].abs()
        rare[:, :2] *= -1e-4
        layer.weight[:3] = rare
    return layer, x


def test_z_plus_keeps_its_digits_in_float32_where_contributions_cancel() -> None:
    layer, x = nearly_negative()
    seed = torch.zeros(2, 200)
    seed[0, :3] = torch.tensor([1.0, -2.0, 3.0])
    found = dt.explain(layer, x, target=seed, composite=ZPlus()).relevance
    expected = replica.propagate(replica.z_plus(), layer.double(), x.double(), seed.double()).relevance
    assert closeness(found.double(), expected) < 1e-6


def test_a_few_cancelling_units_cost_no_further_operation() -> None:
    layer, x = nearly_negative()
    explainer = dt.Explainer(layer, x, composite=ZPlus())
    explainer(x, target=0)
    reading = layer.weight.numel()  # the check that the weights are still the same reads each once
    assert work(lambda: explainer(x, target=0)) <= 4 * forward_work(layer, x) + reading
