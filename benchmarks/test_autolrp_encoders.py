"""Encoders without biases under cp-lrp and attn-lrp, against autolrp (`make peers`).

autolrp splits sums by magnitude (|a| / (|a| + |b|)), ours by value, which for residual additions is another rule; here
ours is given its own, as a user would. Where the two libraries mean different things it is stated and checked.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import autolrp
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import deeptaylor as dt
from deeptaylor.rules.redistribute import Redistribution, Relevance

pytestmark = pytest.mark.filterwarnings("ignore")  # the peer's own
torch.set_num_threads(1)
NONE = 1e-30
WIDTH, HEADS, LAYERS = 16, 4, 2


@dataclass(frozen=True)
class ByMagnitude(dt.rules.Rule):
    """R_i = |x_i| / Σ|x_j| · R at a sum of two."""

    roles: ClassVar[tuple[str, ...]] = ("sum",)

    def __call__(self, step: Any, relevance: Relevance) -> Redistribution:
        whole = relevance.per(step) * step.z / sum(x.abs() for x in step.xs)
        return Redistribution(tuple(Relevance(whole * x.sign(), product=True) for x in step.xs), {})


class Block(nn.Module):
    """Attention and a perceptron behind RMS norms, with residual additions or without."""

    def __init__(self, residual: bool, fused: bool, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.residual, self.fused, self.activation = residual, fused, activation
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH, bias=False), nn.Linear(WIDTH, WIDTH, bias=False)
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH, bias=False), nn.Linear(2 * WIDTH, WIDTH, bias=False)
        self.gain = nn.Parameter(torch.rand(2, WIDTH) + 0.5)

    def norm(self, x: Tensor, which: int) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.gain[which]

    def attend(self, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        q, k, v = self.qkv(x).view(n, t, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4).unbind(0)
        if self.fused:
            mixed = F.scaled_dot_product_attention(q, k, v)
        else:
            mixed = (q @ k.transpose(-1, -2) * (WIDTH // HEADS) ** -0.5).softmax(-1) @ v
        return self.out(mixed.transpose(1, 2).reshape(n, t, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        found = self.attend(self.norm(x, 0))
        x = x + found if self.residual else found
        found = self.down(self.activation(self.up(self.norm(x, 1))))
        return x + found if self.residual else found


class Encoder(nn.Module):
    """The last token's scores: autolrp splits a mean over tokens by magnitude too."""

    def __init__(self, **block: Any) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*[Block(**block) for _ in range(LAYERS)])
        self.head = nn.Linear(WIDTH, 5, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(x)[:, -1])


def by_autolrp(model: Callable[[Tensor], Tensor], x: Tensor, preset: dict[str, Any]) -> Tensor:
    """Its relevance of the predicted class, started from the class's score."""
    wrapped = autolrp.tensor(x.clone())
    output = model(wrapped)
    best = output.gather(1, torch.as_tensor(output).argmax(1, keepdim=True))[:, 0]
    score = torch.as_tensor(best).detach()
    best.lrp(config=autolrp.LRPConfig(rule={**autolrp.BASE, **preset}, eps=NONE))
    return wrapped.relevance.detach() * score.view(-1, 1, 1)


def ours(model: Any, x: Tensor, name: str, by_magnitude: bool) -> Tensor:
    composite = {"cp-lrp": dt.composites.cp_lrp, "attn-lrp": dt.composites.attn_lrp}[name]()
    first = [(lambda place: place.residual, ByMagnitude())] if by_magnitude else []
    return dt.explain(model, x, composite=dt.Composite([*first, *composite.lines], name)).relevance


PRESETS = {"cp-lrp": autolrp.CPLRP, "attn-lrp": autolrp.ATTNLRP}
TOKENS = torch.randn(3, 6, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def apart(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).abs().max() / theirs.abs().max())


@pytest.mark.parametrize("activation", [F.relu, F.gelu, F.silu], ids=["relu", "gelu", "silu"])
@pytest.mark.parametrize("fused", [False, True], ids=["plain", "fused"])
@pytest.mark.parametrize("residual", [False, True], ids=["chain", "residual"])
@pytest.mark.parametrize("name", PRESETS)
def test_an_encoder_is_explained_as_autolrp_does(
    name: str, residual: bool, fused: bool, activation: Callable[[Tensor], Tensor]
) -> None:
    torch.manual_seed(0)
    model = Encoder(residual=residual, fused=fused, activation=activation).double().eval()
    theirs = by_autolrp(model, TOKENS, PRESETS[name])
    assert apart(ours(model, TOKENS, name, by_magnitude=residual), theirs) < 1e-10
    if residual:
        assert apart(ours(model, TOKENS, name, by_magnitude=False), theirs) > 1e-3  # another rule, not rounding


def test_a_layer_norm_is_centred_by_value_here_and_passed_through_there() -> None:
    """The mean that layer norm subtracts: ours shares it among the entries (the ε rule), autolrp's hands all to its own."""
    head = torch.randn(5, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(2))

    def model(x: Tensor) -> Tensor:
        return F.linear(F.layer_norm(x, (WIDTH,))[:, -1], head)

    theirs = by_autolrp(model, TOKENS, {})
    score = model(TOKENS).amax(1)
    assert torch.allclose(theirs.sum((1, 2)), score)
    found = ours(model, TOKENS, "attn-lrp", by_magnitude=False)
    assert torch.allclose(found.sum((1, 2)), score)
    best = model(TOKENS).argmax(1)
    spread = TOKENS[:, -1].var(-1, unbiased=False, keepdim=True).add(1e-5).sqrt()
    centred = TOKENS[:, -1] - TOKENS[:, -1].mean(-1, keepdim=True)
    assert apart(theirs[:, -1], head[best] * centred / spread) < 1e-10
    assert apart(found[:, -1], TOKENS[:, -1] * (head[best] - head[best].mean(-1, keepdim=True)) / spread) < 1e-10
