"""The demo's table and its pair of sentences: which ingredients of concrete act together, and which words are alike.

Data: 1,030 mixtures, eight columns and their compressive strength in MPa. I-Cheng Yeh, "Modeling of strength of
high-performance concrete using artificial neural networks", Cement and Concrete Research 28(12), 1998; UCI Machine
Learning Repository (CC BY 4.0), as in the R package modeldata (MIT).
"""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files

import torch
from rich.console import Console
from torch import Tensor, nn

from .errors import MissingExtra
from .report.build import Section
from .report.expansions import Shown, fragment
from .taylor import interactions
from .taylor.dataset import dataset_coefficients
from .taylor.ranking import DatasetCoefficients
from .taylor.result import Expansion
from .taylor.segments import each_feature
from .text import text_similarity

NAMES = ("cement", "slag", "fly ash", "water", "superplasticizer", "coarse aggregate", "fine aggregate", "age")
TEST_ROWS = 206
STEPS = 800
MEMBERS = 5
SENTENCES = ("a man is playing a guitar", "someone strums an acoustic guitar")


@dataclass(frozen=True)
class Concrete:
    """Networks for the strength of concrete and the table they were trained on."""

    model: nn.Module
    """Standardised columns (N, 8) to strength in MPa (N, 1): the mean of softplus networks 64-64, float64."""
    train: Tensor
    """(824, 8), standardised."""
    test: Tensor
    """(206, 8), standardised with the training rows' figures."""
    strength: Tensor
    """(206,): measured strengths of the test rows."""
    r2: float
    """On the test rows."""


class Mean(nn.Module):
    """The mean of several networks, whose second derivatives depend less on chance than one network's."""

    def __init__(self, members: list[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, x: Tensor) -> Tensor:
        """(N, columns) to (N, 1)."""
        return torch.stack([member(x) for member in self.members]).mean(0)


def concrete() -> Concrete:
    """Trains the networks; some seconds."""
    text = files("deeptaylor").joinpath("assets/concrete.csv").read_text(encoding="utf-8")
    cells = [[float(cell) for cell in line] for line in list(csv.reader(text.splitlines()))[1:]]
    table = torch.tensor(cells, dtype=torch.float64)
    table = table[torch.randperm(len(table), generator=torch.Generator().manual_seed(0))]
    columns, strength = table[:, :-1], table[:, -1]
    train = slice(TEST_ROWS, None)
    mean, std = columns[train].mean(0), columns[train].std(0)
    x = (columns - mean) / std
    net = Mean([_trained(x[train], strength[train], seed) for seed in range(MEMBERS)]).eval().requires_grad_(False)
    test = strength[:TEST_ROWS]
    with torch.no_grad():
        left = net(x[:TEST_ROWS])[:, 0] - test
    r2 = 1 - float((left**2).sum() / ((test - test.mean()) ** 2).sum())
    return Concrete(net, x[train], x[:TEST_ROWS], test, r2)


def _trained(x: Tensor, y: Tensor, seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        last = nn.Linear(64, 1)
        net = nn.Sequential(nn.Linear(8, 64), nn.Softplus(), nn.Linear(64, 64), nn.Softplus(), last).double()
    adam = torch.optim.AdamW(net.parameters(), 0.01, weight_decay=0.02)
    with torch.enable_grad():
        for _ in range(STEPS):
            adam.zero_grad()
            loss = ((net(x)[:, 0] - (y - y.mean()) / y.std()) ** 2).mean()
            loss.backward()
            adam.step()
    with torch.no_grad():
        last.weight.mul_(y.std())
        last.bias.mul_(y.std()).add_(y.mean())
    return net


def ranking(made: Concrete) -> DatasetCoefficients:
    """Mean |second derivatives| over the test rows, in MPa per standard deviations."""
    return dataset_coefficients(made.model, made.test, scale=None, names=NAMES)


def pairs(made: Concrete, k: int = 5) -> list[tuple[str, float]]:
    """The k strongest pairs of two different columns."""
    ranked = ranking(made).top(40)
    return [(name, value) for name, value in ranked if len(set(name.split(" × "))) == 2][:k]


def strongest(made: Concrete) -> Expansion:
    """The strongest of the test mixtures against an average one."""
    row = int(made.strength.argmax())
    x = made.test[row : row + 1]
    return interactions(made.model, x, "zero", each_feature(x, NAMES))


def concrete_section(console: Console) -> Section:
    """Which ingredients act together in a section of the demo's page, and on the console."""
    with console.status("training five small networks on 824 mixtures of concrete"):
        made = concrete()
        listed = ", ".join(f"{name} {value:.1f}" for name, value in pairs(made))
        result = strongest(made)
    console.print(f"concrete (test R² {made.r2:.2f}), strongest pairs, mean |∂²f| in MPa: {listed}")
    return Section(
        "Ingredients of concrete that act together",
        f"1,030 mixtures and their strength in MPa, five small networks trained a moment ago (test R² {made.r2:.2f}). "
        f"Over the test mixtures the strongest pairs are, as mean |∂²f| for a standard deviation of each: {listed}. "
        "Below, the strongest mixture against an average one, decomposed along the path between the two.",
        fragment([Shown("The strongest test mixture against an average one", result)]),
    )


def pair_sections(console: Console, note: Callable[[str], None]) -> list[Section]:
    """Which words make two sentences alike to MiniLM; none, and a note that says why, where it is not installed."""
    from .demo_language import load_minilm

    try:
        with console.status("comparing two sentences with MiniLM"):
            model, tokenizer = load_minilm()
            found = text_similarity(model, tokenizer, *SENTENCES)
    except MissingExtra as missing:
        note(f"no pair of sentences: {missing}")
        return []
    (words, value), *_ = found.top(1)
    best = f"{' · '.join(words)} ({value:+.2f})"
    console.print(f"“{SENTENCES[0]}”, “{SENTENCES[1]}”: cosine {found.value:.2f}, most of it by {best}")
    return [
        Section(
            "Words that make two sentences alike",
            "all-MiniLM-L6-v2 gives each sentence a vector; their cosine is shared out among pairs of words, one of "
            "each sentence, by the integrated Jacobian from sentences of mask tokens, in forward mode. Pairs add up to "
            "what the words, and not the masks, have to do with it.",
            fragment([Shown(" · ".join(SENTENCES), found)]),
        )
    ]
