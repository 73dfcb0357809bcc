"""What no output reads is not computed, and the explanation is the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from counting import LinearOperations
from test_memory import Last, Rotated
from test_unseen_models import GRADIENT
from torch import Tensor, nn
from torch.nn import functional as F

import deeptaylor as dt
from deeptaylor import rows
from deeptaylor.narrow import rows_wanted
from deeptaylor.rules import Redistribution, Relevance
from deeptaylor.step import Step

WIDTH = 12
aten = torch.ops.aten


def shapes(explainer: dt.Explainer) -> dict[str, rows.Shape]:
    graph, held = explainer.plan.graph, dict(explainer.model.state_dict())
    known = {name: tuple(held[qualified].shape) for name, qualified in graph.parameters.items()}
    return {node.name: node.shape for node in graph} | dict(graph.shapes) | known


class Encoder(nn.Module):
    """A block with its own attention, and a head that reads some of its places."""

    def __init__(self, head: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.block = nn.Linear(WIDTH, WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, 4)
        self.places = nn.Parameter(torch.randn(1, 7, WIDTH))
        self.head = head

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = F.silu(self.block(x + self.places))
        q, k, v = (y.unflatten(-1, (3, -1)).transpose(1, 2) for y in self.qkv(x).chunk(3, -1))
        seen = (q @ k.mT / 2).masked_fill(mask[:, None, None] == 0, -1e9).softmax(-1)
        x = x + (seen @ v).transpose(1, 2).flatten(2)
        return self.head(self.out(F.gelu(x) / (1 + x.square().mean(-1, keepdim=True)).sqrt()), mask)


def last_word(y: Tensor, mask: Tensor) -> Tensor:
    last = (torch.arange(7) * mask).argmax(1)
    return y.gather(1, last[:, None, None].expand(-1, 1, 4))[:, 0]


HEADS: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], bool]] = {
    "first": (lambda y, mask: y[:, 0], True),
    "last": (lambda y, mask: y[:, -1], True),
    "some": (lambda y, mask: y[:, 2:4].mean(1), True),
    "some of some": (lambda y, mask: y[:, 1:6][:, 2:4].sum(1), True),
    "last that is no padding": (last_word, True),
    "by index": (lambda y, mask: y[torch.arange(len(y)), (torch.arange(7) * mask).argmax(1)], True),
    "where it is largest": (lambda y, mask: y[torch.arange(len(y)), y.sum(2).argmax(1)], False),
    "mean": (lambda y, mask: y.mean(1), False),
    "first and last": (lambda y, mask: y[:, 0] * y[:, -1], False),
    "every other": (lambda y, mask: y[:, ::2].sum(1), False),
    "a token beside all": (lambda y, mask: y[:, 0] - y.mean(1), False),
}


@pytest.mark.parametrize(("head", "composite"), [*((head, "attn-lrp") for head in HEADS), ("by index", GRADIENT)])
def test_rows_that_the_head_reads_give_what_all_rows_give(head: str, composite: str) -> None:
    torch.manual_seed(0)
    read, fewer = HEADS[head]
    model = Encoder(read).double().eval()
    x, mask = torch.randn(3, 7, WIDTH, dtype=torch.float64), torch.ones(3, 7).long()
    mask[1, 4:], mask[2, 1:] = 0, 0
    explainer = dt.Explainer(model, (x, mask), composite=composite)
    assert bool(rows_wanted(explainer.plan, shapes(explainer)).reads) == fewer
    for inputs in ((x, mask), (x[:1], mask[:1]), (x.repeat(2, 1, 1), mask.repeat(2, 1))):
        for target in (1, torch.tensor([[0, 3]] * len(inputs[0]))):
            passed = explainer(inputs, target=target)
            stepped = explainer(inputs, target=target, ledger=True)
            torch.testing.assert_close(passed.relevance, stepped.relevance, rtol=1e-10, atol=1e-14)
            torch.testing.assert_close(passed.output, model(*inputs).detach(), rtol=1e-12, atol=1e-14)
    if composite == GRADIENT:
        leaf = x.clone().requires_grad_()
        (grad,) = torch.autograd.grad(model(leaf, mask)[:, 1].sum(), leaf)
        torch.testing.assert_close(explainer((x, mask), target=1).relevance, x * grad, rtol=1e-10, atol=1e-14)


def test_a_decoder_computes_its_last_row_only() -> None:
    """Of its linear layers all but keys and values, and all of its causal attention's other queries."""
    torch.manual_seed(0)
    model, x = nn.Sequential(Rotated(), Last(), nn.Linear(96, 5)).eval(), torch.randn(2, 16, 96)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    explainer = dt.Explainer(model, x, composite="attn-lrp")
    explainer(x, target=0)
    with LinearOperations() as ours:
        explainer(x, target=0)
    with LinearOperations() as gradient:
        leaf = x.clone().requires_grad_()
        torch.autograd.grad(model(leaf)[:, 0].sum(), leaf)
    layers, keys_and_values = 96 * 96 * 2 + 3 * 96 * 288, 96 * 96
    rows_read = (keys_and_values * 16 + layers) / ((keys_and_values + layers) * 16)
    assert ours.multiplications < 1.1 * rows_read * gradient.multiplications


@dataclass(frozen=True)
class Across(dt.rules.Rule):
    """An author's rule that looks at all places: x over their mean size."""

    roles: ClassVar[tuple[str, ...]] = ("activation",)

    def as_function(self, step: Step) -> Callable[..., Any]:
        return lambda x: step.function(x).detach() * x / (1 + x.detach().abs().mean(1, keepdim=True))

    def __call__(self, step: Step, relevance: Relevance) -> Redistribution:
        c = relevance.over(step.z, step.z, 0.0)
        return Redistribution((Relevance(step.vjp(c, self.as_function(step))[0], product=True),))


def test_a_rule_of_ones_own_sees_all_rows() -> None:
    torch.manual_seed(0)

    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x).tanh())[:, 0]

    x = torch.randn(2, 5, 6)
    lines = [(dt.composites.role("activation"), Across()), (dt.composites.role("affine"), dt.rules.LRPZero())]
    explainer = dt.Explainer(Tokens().eval(), x, composite=dt.Composite(lines))
    assert rows_wanted(explainer.plan, shapes(explainer)).reads  # the second layer's
    passed, stepped = explainer(x, target=0), explainer(x, target=0, inner=[explainer.plan.rows[0].name])
    torch.testing.assert_close(passed.relevance, stepped.relevance, rtol=1e-10, atol=1e-14)


def test_ledgers_and_inner_relevance_have_all_rows() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(Rotated(), Last(), nn.Linear(96, 5)).double().eval(), torch.randn(2, 9, 96).double()
    found = dt.explain(model, x, composite="attn-lrp", target=0, ledger=True, inner=["0"])
    assert found.inner["0"].shape == (2, 9, 96)
    assert found.ledger is not None
    assert float(found.ledger.gap.abs().max()) < 1e-10


H, W = 5, WIDTH
LINES: dict[str, Callable[[Tensor], Tensor]] = {
    "pointwise": lambda x: x.exp() * torch.linspace(-1, 1, W) + torch.linspace(0, 1, H)[:, None],
    "where": lambda x: torch.where(x > 0, x, x.sin()),
    "linear": lambda x: F.linear(x, torch.linspace(-1, 1, 4 * W).reshape(4, W)),
    "matmul": lambda x: x @ torch.linspace(-1, 1, 4 * W).reshape(W, 4),
    "matmul of four axes": lambda x: (x[:, None] @ torch.linspace(-1, 1, 8 * W).reshape(2, W, 4)).sum(1),
    "bmm": lambda x: torch.bmm(x, x.sin().mT),
    "layer norm": lambda x: F.layer_norm(x, (W,), torch.linspace(1, 2, W)),
    "root mean square": lambda x: F.rms_norm(x, (W,)),
    "norm of all": lambda x: F.layer_norm(x, (H, W)),
    "softmax": lambda x: x.softmax(-1),
    "softmax of places": lambda x: x.softmax(1),
    "log softmax": lambda x: x.log_softmax(-1),
    "attention": lambda x: F.scaled_dot_product_attention(x, x.sin(), x.cos()),
    "causal": lambda x: F.scaled_dot_product_attention(x, x.sin(), x, is_causal=True),
    "masked": lambda x: F.scaled_dot_product_attention(x, x, x.cos(), attn_mask=torch.ones(H, H).tril() > 0),
    "mask of data": lambda x: F.scaled_dot_product_attention(x, x, x, attn_mask=x[:, :, :H].tanh()),
    "heads": lambda x: x.unflatten(-1, (3, -1)).transpose(1, 2).sigmoid().transpose(1, 2).flatten(2),
    "mean": lambda x: x.exp() / (1 + x.square().mean(-1, keepdim=True)),
    "sum": lambda x: x.unflatten(-1, (2, -1)).tanh().sum(2),
    "mean of places": lambda x: x - x.sin().mean(1, keepdim=True),
    "permute": lambda x: x.permute(2, 0, 1).tanh().permute(1, 2, 0),
    "sequence first": lambda x: x.transpose(0, 1).exp().transpose(0, 1),
    "reshape": lambda x: x.reshape(-1, H, 2, W // 2).sin().reshape(-1, H, W),
    "all places in one": lambda x: x.reshape(-1, H * W).sin().reshape(-1, H, W),
    "repeated": lambda x: x[:, :, None].expand(-1, -1, 2, -1).reshape(-1, H, 2 * W).sin(),
    "unsqueeze": lambda x: x.unsqueeze(2).sin().squeeze(2) * x.unsqueeze(1).cos().squeeze(1),
    "select": lambda x: torch.stack([x, x.exp()], 1)[:, 1],
    "slice": lambda x: x[..., 2:9].exp(),
    "expand": lambda x: x[:, :, :1].expand(-1, -1, W).sin() + x[:, :1].expand(-1, H, -1).cos(),
    "cat": lambda x: torch.cat([x.sin(), x], -1),
    "cat of places": lambda x: torch.cat([x[:, :2].sin(), x[:, 2:]], 1),
    "split": lambda x: (lambda a, b: a * b.sin())(*x.exp().chunk(2, -1)),
    "split in sizes": lambda x: (lambda a, b: a.sum(-1, keepdim=True) * b)(*x.exp().split([4, 8], -1)),
    "split of places": lambda x: torch.cat(x.sin().split([2, 3], 1)[::-1], 1),
    "unbind": lambda x: (lambda a, b: a * b.sin())(*torch.stack([x, x.cos()], 1).unbind(1)),
    "contiguous": lambda x: x.sin().transpose(1, 2).contiguous().transpose(1, 2),
    "cast": lambda x: x.sin().float().exp().double(),
    "cast as": lambda x: x.float().sin().type_as(x),
    "sorted": lambda x: x.sort(-1)[0],
    "largest": lambda x: x.exp() - x.max(1, keepdim=True)[0],
    "unknown": lambda x: x.cumsum(1),
}  # fmt: skip
PICKS: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], Any]] = {
    "first": (lambda y, place: y[:, 0], aten.select.int),
    "last": (lambda y, place: y[:, -1], aten.select.int),
    "some": (lambda y, place: y[:, 1:3], aten.slice.Tensor),
    "last column": (lambda y, place: y[:, :, -1], aten.select.int),
    "each its own": (lambda y, place: y.gather(1, place[:, None, None].expand(-1, 1, y.shape[2])), aten.gather.default),
    "by index": (lambda y, place: y[torch.arange(len(y)), place], aten.index.Tensor),
    "where it is largest": (lambda y, place: y[torch.arange(len(y)), y.sum(2).argmax(1)], None),
}


class Picking(nn.Module):
    """Lines side by side, some places picked of what each makes; the places themselves are constants."""

    def __init__(self, lines: list[str], pick: str) -> None:
        super().__init__()
        self.lines, self.pick = lines, pick

    def forward(self, x: Tensor) -> Tensor:
        made = [LINES[line](x * (n + 1) / 10) for n, line in enumerate(self.lines)]
        picked = [PICKS[self.pick][0](y, x.sum(2).argmax(1)).flatten(1) for y in made]
        return torch.cat([(y * torch.linspace(1, 2, y.shape[1])).sum(1, keepdim=True) for y in picked], 1)


@pytest.fixture(autouse=True)
def wide() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("pick", PICKS)
def test_places_of_every_line(pick: str) -> None:
    """Each sample explains another line."""
    torch.manual_seed(1)
    lines = list(LINES) if pick in ("first", "each its own") else list(LINES)[::4]
    model, x = Picking(lines, pick).eval(), torch.randn(len(lines), H, W)
    explainer = dt.Explainer(model, x[:2], composite=GRADIENT)
    wanted, index = rows_wanted(explainer.plan, shapes(explainer)), explainer.plan.graph.index
    giver, moved = PICKS[pick][1], {index[name].op for name in wanted.reads}
    assert giver is None or giver in {index[name].op for name in wanted.given}
    assert pick != "first" or set(rows.MOVES) <= moved, set(rows.MOVES) - moved
    found = explainer(x, target=torch.arange(len(lines))).relevance
    leaf = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(model(leaf).diagonal().sum(), leaf)
    for n, line in enumerate(lines):
        wide = 1e-5 if line.startswith("cast") else 1e-12
        torch.testing.assert_close(found[n], x[n] * grad[n], rtol=wide, atol=wide, msg=lambda m, n=line: f"{n}: {m}")
