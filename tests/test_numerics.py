"""Each precision stays within the bound that docs/numerics.md states, against float64 with the same weights and inputs.

The measure is ‖R − R64‖/‖R64‖: where bfloat16 makes two values of a window equal, max-pooling sends one pixel's relevance
to its neighbour, which the largest difference would count as if nothing were right.
"""

from __future__ import annotations

import pytest
import torch
from shipped import encoder, lenet
from torch import nn

import deeptaylor as dt

BOUNDS = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.5e-1}
COMPOSITES = ["epsilon-plus", "epsilon-gamma-box", "deep-taylor", "gradient-times-input", "attn-lrp"]


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize(
    ("make", "composite"), [*((lenet, c) for c in COMPOSITES), (encoder, "attn-lrp"), (encoder, "epsilon")]
)
def test_relevance_is_within_the_stated_bound_and_in_float32(make, composite, dtype):
    model, x = make()
    model, x = model.to(dtype), x.to(dtype)
    found = dt.explain(model, x, composite=composite, target=1)
    assert found.relevance.dtype == torch.float32
    wide = dt.explain(model.double(), x.double(), composite=composite, target=1)
    assert wide.relevance.dtype == torch.float64
    assert (found.relevance.double() - wide.relevance).norm() < BOUNDS[dtype] * wide.relevance.norm()


def test_autocast_changes_nothing():
    model, x = lenet()
    explainer = dt.Explainer(model, x, composite="epsilon-plus")
    expected = explainer(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = explainer(x)
        assert torch.is_autocast_enabled("cpu")
    assert torch.equal(found.relevance, expected.relevance)
    assert torch.equal(found.output, expected.output)


def test_positive_rules_keep_every_digit_but_the_last_few():
    """z+ on positive values adds no two numbers of different sign: every single relevance has the a-priori bound."""
    torch.manual_seed(0)
    width, depth = 32, 6
    layers = [m for _ in range(depth) for m in (nn.Linear(width, width, bias=False), nn.ReLU())]
    model, x = nn.Sequential(*layers).eval(), torch.rand(4, width) + 0.1
    found = dt.explain(model, x, composite=dt.rules.ZPlus(), target=0).relevance
    reference = dt.explain(model.double(), x.double(), composite=dt.rules.ZPlus(), target=0).relevance
    bound = 3 * depth * (width + 2) * torch.finfo(torch.float32).eps
    assert ((found.double() - reference).abs() <= bound * reference.abs()).all()


def test_a_rules_numbers_are_not_rounded_to_float32():
    """1.7 and 0.7 have no short binary form; the second unit has no negative contributions and keeps 1 and 0."""
    layer = nn.Linear(3, 2, bias=False).double()
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[2.0, -1.0, 1.0], [1.0, 2.0, 3.0]]))
    explainer = dt.Explainer(layer.eval(), torch.ones(1, 3).double(), composite=dt.rules.AlphaBeta(1.7, 0.7))
    ones = torch.ones(1, 3).double()
    mixed, positive = (explainer(ones, target=i).relevance[0] for i in (0, 1))
    assert mixed.tolist() == pytest.approx([2 * 1.7 * 2 / 3, -2 * 0.7, 2 * 1.7 / 3], rel=1e-14)
    assert abs(float(mixed.sum()) - 2) < 1e-14
    assert positive.tolist() == pytest.approx([1, 2, 3], rel=1e-14)
