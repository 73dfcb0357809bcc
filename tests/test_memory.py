"""What an explanation holds at most, as a ratio to gradient × input: bytes that torch allocates, so the same on every run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import deeptaylor as dt


def peak(run: Callable[[], Any]) -> int:
    """Bytes allocated at most while `run` runs, above what is there before."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        run()
    held = highest = 0
    for event in profile.profiler.kineto_results.events():  # type: ignore[union-attr]
        if event.name() == "[memory]":
            held += event.nbytes()
            highest = max(highest, held)
    return highest


def beside_gradient(model: nn.Module, explainer: dt.Explainer, x: Tensor) -> float:
    """An explanation's peak as a ratio to that of gradient × input; what is kept between calls is there already."""

    def gradient() -> Tensor:
        leaf = x.clone().requires_grad_()
        return x * torch.autograd.grad(model(leaf)[:, 0].sum(), leaf)[0]

    gradient()
    explainer(x)
    return peak(lambda: explainer(x, target=0)) / peak(gradient)


class Rotated(nn.Module):
    """A decoder block by hand: rotary positions, grouped keys, a gated MLP, root mean squares."""

    def __init__(self, width: int = 96, heads: int = 4) -> None:
        super().__init__()
        self.heads, self.size = heads, width // heads
        self.q, self.o = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
        self.k, self.v = nn.Linear(width, width // 2, bias=False), nn.Linear(width, width // 2, bias=False)
        self.gate, self.up = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, 3 * width, bias=False)
        self.down = nn.Linear(3 * width, width, bias=False)
        self.first, self.second = nn.RMSNorm(width), nn.RMSNorm(width)

    def rotate(self, x: Tensor) -> Tensor:
        angle = torch.arange(x.shape[-2])[:, None] / (1 + torch.arange(x.shape[-1]))
        cos, sin = angle.cos().to(x), angle.sin().to(x)
        left, right = x.chunk(2, -1)
        return x * cos + torch.cat([-right, left], -1) * sin

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        q, k, v = (f(y).unflatten(-1, (-1, self.size)).transpose(1, 2) for f in (self.q, self.k, self.v))
        k, v = self.rotate(k).repeat_interleave(2, 1), v.repeat_interleave(2, 1)
        y = nn.functional.scaled_dot_product_attention(self.rotate(q), k, v, is_causal=True)
        x = x + self.o(y.transpose(1, 2).flatten(2))
        y = self.second(x)
        return x + self.down(nn.functional.silu(self.gate(y)) * self.up(y))


class Last(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[:, -1]


@pytest.mark.parametrize(
    ("name", "body", "shape"),
    [
        ("decoder", lambda: [Rotated() for _ in range(4)], (2, 48, 96)),
        ("encoder", lambda: [nn.TransformerEncoderLayer(96, 4, 192, batch_first=True) for _ in range(4)], (2, 48, 96)),
    ],
)
@pytest.mark.parametrize("composite", ["attn-lrp", "cp-lrp", "gradient-times-input"])
def test_attention_costs_no_more_memory_than_its_gradient(
    name: str, body: Callable[[], list[nn.Module]], shape: tuple[int, ...], composite: str
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(*body(), Last(), nn.Linear(96, 5)).eval()
    x = torch.randn(shape)
    explainer = dt.Explainer(model, x, composite=composite)
    assert beside_gradient(model, explainer, x) <= 1.2


@pytest.mark.parametrize("rule", [dt.rules.Epsilon(), dt.rules.ZPlus()])
def test_convolutions_cost_hardly_more_memory_than_their_gradient(rule: dt.rules.Rule) -> None:
    """The first maps are the largest, as in VGG: a copy of one would be a seventh."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for i, o in ((3, 16), (16, 32), (32, 64)):
        layers += [nn.Conv2d(i, o, 3, padding=1), nn.ReLU(), nn.Conv2d(o, o, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(1024, 5)).eval()
    x = torch.randn(4, 3, 32, 32)
    explainer = dt.Explainer(model, x, composite=rule)
    assert beside_gradient(model, explainer, x) <= 1.1


def test_values_made_again_are_those_that_were_seen() -> None:
    """A ledger asks for every value; without one they are made again only where a rule asks."""
    torch.manual_seed(0)
    model = nn.Sequential(Rotated(), Last(), nn.Linear(96, 5)).eval().double()
    x = torch.randn(3, 7, 96, dtype=torch.double)
    for composite in ("attn-lrp", "res-lrp", "deep-taylor", "epsilon-plus-flat"):
        explainer = dt.Explainer(model, x, composite=composite)
        plain, booked = explainer(x, inner=["0.o"]), explainer(x, ledger=True, inner=["0.o"])
        assert torch.equal(plain.relevance, booked.relevance)
        assert torch.equal(plain.inner["0.o"], booked.inner["0.o"])


@pytest.mark.parametrize(
    ("rule", "most"),
    [
        (dt.rules.Epsilon(), 1.1),
        (dt.rules.ZPlus(), 1.1),
        (dt.rules.Flat(), 1.1),
        (dt.rules.WSquare(), 1.1),
        (dt.rules.WSquare(convention="zennit"), 1.1),
        (dt.rules.GeneralizedGamma(), 1.5),
        (dt.rules.AlphaBeta(), 1.5),
    ],
)
def test_a_chain_of_equal_maps_keeps_one_per_layer(rule: dt.rules.Rule, most: float) -> None:
    """Also where relevance arrives at activations of 0: w² and flat read no values, so the ReLU's output serves."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for i in range(8):
        layers += [nn.Conv2d(8 if i else 3, 8, 3, padding=1), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(8 * 24 * 24, 5)).eval()
    x = torch.randn(4, 3, 24, 24)
    explainer = dt.Explainer(model, x, composite=rule)
    assert beside_gradient(model, explainer, x) <= most
    torch.testing.assert_close(explainer(x).relevance, explainer(x, ledger=True).relevance)
