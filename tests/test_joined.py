"""Operations that tracing leaves in pieces, as one: local response normalization with its Taylor rule, and softmax."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import deeptaylor as dt
from deeptaylor.composites import op, role
from deeptaylor.rules import LocalResponseTaylor, LRPZero

TAYLOR = dt.Composite([(op("local_response_norm"), LocalResponseTaylor()), (role("affine"), LRPZero())], "taylor")


def columns(x: Tensor, size: int, alpha: float, beta: float, k: float) -> Tensor:
    """z_ik by the formula, (N, i, k), one entry at a time."""
    n, channels = x.shape
    a = alpha / size
    z = torch.zeros(n, channels, channels, dtype=x.dtype)
    for j in range(channels):
        near = range(max(0, j - size // 2), min(channels, j + (size - 1) // 2 + 1))
        total = k + a * sum(x[:, i] ** 2 for i in near)
        for i in near:
            own = x[:, j] / (k + a * x[:, j] ** 2) ** beta
            z[:, i, j] = own if i == j else -2 * a * beta * x[:, j] * x[:, i] ** 2 / total ** (beta + 1)
    return z


def test_two_channels_give_the_published_columns() -> None:
    x = torch.tensor([[1.0, 2.0]], dtype=torch.double)
    layer = nn.LocalResponseNorm(3, alpha=1.5, beta=0.75, k=1.0)  # alpha / size = 1/2
    y = layer(x[..., None])[..., 0]
    assert y[0].tolist() == pytest.approx([0.39079, 0.78159], abs=5e-6)
    assert columns(x, 3, 1.5, 0.75, 1.0).sum(1)[0].tolist() == pytest.approx([0.40282, 0.70990], abs=5e-6)


@pytest.mark.parametrize("size", [2, 3, 4, 5])
@pytest.mark.parametrize("places", [(1,), (2, 3), (2, 2, 2)])
def test_the_rule_shares_by_the_formula(size: int, places: tuple[int, ...]) -> None:
    torch.manual_seed(size)
    alpha, beta, k = 2.5, 0.75, 1.3
    x = torch.randn(2, 6, *places, dtype=torch.double)
    model = nn.Sequential(nn.LocalResponseNorm(size, alpha, beta, k), nn.Flatten()).eval()
    seed = torch.randn(2, x[0].numel(), dtype=torch.double)
    result = dt.explain(model, x, composite=TAYLOR, target=seed, ledger=True)
    flat, arrived = x.flatten(2).movedim(2, 1).flatten(0, 1), seed.view(x.shape).flatten(2).movedim(2, 1).flatten(0, 1)
    z = columns(flat, size, alpha, beta, k)
    expected = (z / z.sum(1, keepdim=True) * arrived[:, None]).sum(2)
    found = result.relevance.flatten(2).movedim(2, 1).flatten(0, 1)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    assert result.ledger.gap.abs().max() < 1e-10


def test_the_plan_shows_one_node_and_presets_pass_relevance_unchanged() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.LocalResponseNorm(5), nn.ReLU(), nn.Flatten(), nn.Linear(96, 3)).eval()
    x = torch.randn(2, 3, 6, 6)
    for composite in ("auto", "deep-taylor", "epsilon-plus", "gradient-times-input"):
        explainer = dt.Explainer(model, x, composite=composite)
        result = explainer(x, ledger=True, inner=["0", "1"])
        assert [row.op for row in explainer.plan.rows].count("local_response_norm") == 1
        assert result.ledger.gap.abs().max() < 1e-5
        if composite != "gradient-times-input":
            torch.testing.assert_close(result.inner["0"], result.inner["1"])
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model(leaf)[:, 0].sum(), leaf)
    torch.testing.assert_close(dt.explain(model, x, target=0, composite="gradient-times-input").relevance, x * gradient)


def test_other_divisions_stay_in_pieces_and_the_rule_refuses_other_norms() -> None:
    class Own(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x / (1 + 0.1 * x.square().sum(1, keepdim=True)) ** 0.5).flatten(1)

    x = torch.randn(2, 4, 3, 3)
    plan = dt.Explainer(Own().eval(), x).plan
    assert "local_response_norm" not in str(plan)
    composite = dt.Composite([(role("normalization"), LocalResponseTaylor())], "wrong")
    with pytest.raises(dt.errors.CompositeError, match="StatisticConstant"):
        dt.explain(nn.Sequential(nn.Flatten(), nn.LayerNorm(36)).eval(), x, composite=composite)


@pytest.mark.parametrize("shift", [False, True])
def test_a_softmax_written_out_is_a_softmax(shift: bool) -> None:
    class Attention(nn.Module):
        def __init__(self, own: bool) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.own, self.qkv, self.head = own, nn.Linear(6, 18), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = self.qkv(x).chunk(3, -1)
            scores = q @ k.transpose(1, 2)
            if not self.own:
                return self.head((scores.softmax(-1) @ v).mean(1))
            weights = torch.exp(scores - scores.amax(-1, keepdim=True) if shift else scores)
            return self.head((weights / weights.sum(-1, keepdim=True) @ v).mean(1))

    x = torch.randn(2, 4, 6, dtype=torch.double)
    ours, torchs = (
        dt.explain(Attention(own).double().eval(), x, composite="attn-lrp", ledger=True) for own in (True, False)
    )
    torch.testing.assert_close(ours.relevance, torchs.relevance, rtol=1e-10, atol=1e-13)
    assert ours.ledger.gap.abs().max() < 1e-12
