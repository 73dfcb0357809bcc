"""Planted tokens: does relevance find the tokens that a rule was made of? (`make planted`).

Two-layer transformers learn rules over synthetic sequences, so that the tokens that decide are known (evaluation after
Arras et al. 2022: relevance rank accuracy, the share of the planted tokens among as many top-ranked ones by |R|; and
AUAC, AU-MSE after Ali et al. 2022). Methods: LRP (deeptaylor's `auto`), gradient × input, attention of the last layer
from the reading token, random. Three seeds a task, means with 95 % bootstrap intervals over test sequences.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import deeptaylor as dt

RESULTS, PAGE = Path(__file__).parent / "results", Path(__file__).parents[1] / "docs" / "planted_tokens.md"
WORDS, LENGTH, READ, BLANK, MARK = 32, 16, 0, 1, 2
"""Ids: 0 reads the answer off, 1 is a blank, 2 a marker, 3 to 6 are keys, the rest is filler."""
KEYS, FILLER = (3, 4, 5, 6), range(7, WORDS)
TESTED, SEEDS, STEPS, DRAWS = 200, 3, 600, 2000
METRICS = {"rank accuracy": 1, "AUAC": 1, "AU-MSE": -1}


class Block(nn.Module):
    """Attention and a feed-forward layer, norms first, written out so that attention can be looked at."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_a, self.norm_f = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        q, k, v = self.qkv(self.norm_a(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)
        x = x + self.out((weights @ v).transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm_f(x)))), weights


class Reader(nn.Module):
    """Two blocks; the first token reads the answer off."""

    def __init__(self, classes: int, width: int = 32, heads: int = 4) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(WORDS, width), nn.Embedding(LENGTH, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(2))
        self.norm, self.decide = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, ids: Tensor) -> Tensor:
        return self.decide(self.norm(self.states(ids)[0][:, 0]))

    def states(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        x = self.words(ids) + self.places(torch.arange(ids.shape[1]))
        weights = x
        for block in self.blocks:
            x, weights = block(x)
        return x, weights


def majority(count: int, draw: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Three keys among fillers; the class is the kind (3 and 4, or 5 and 6) that most of them are of."""
    ids, truth, label = _fillers(count, draw)
    for row in range(count):
        places = draw.choice(np.arange(1, LENGTH), 3, replace=False)
        kinds = draw.integers(0, 2, 3)
        ids[row, places] = torch.tensor([KEYS[2 * kind + draw.integers(0, 2)] for kind in kinds])
        truth[row, places] = True
        label[row] = int(kinds.sum() >= 2)
    return ids, truth, label


def copy(count: int, draw: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """A marker, a key right after it, and three other keys as distractors; the class is the key after the marker."""
    ids, truth, label = _fillers(count, draw)
    for row in range(count):
        at = int(draw.integers(1, LENGTH - 1))
        others = draw.choice([n for n in range(1, LENGTH) if n not in (at, at + 1)], 3, replace=False)
        ids[row, others] = torch.tensor(draw.choice(KEYS, 3))
        label[row] = int(draw.integers(0, 4))
        ids[row, at], ids[row, at + 1] = MARK, KEYS[int(label[row])]
        truth[row, [at, at + 1]] = True
    return ids, truth, label


def both(count: int, draw: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """One of two keys, or both: the class is whether both are there. Tested on sequences with both."""
    ids, truth, label = _fillers(count, draw)
    for row in range(count):
        places = draw.choice(np.arange(1, LENGTH), 2, replace=False)
        label[row] = int(draw.integers(0, 2))
        keys = [KEYS[0], KEYS[1]] if label[row] else [KEYS[int(draw.integers(0, 2))]] * 2
        ids[row, places] = torch.tensor(keys)
        truth[row, places] = True
    return ids, truth, label


TASKS: dict[str, tuple[Callable[..., Any], int]] = {"majority": (majority, 2), "copy": (copy, 4), "both": (both, 2)}


def learned(task: str, seed: int) -> tuple[Reader, float]:
    """A model that has learned the rule, and how often it is right on new sequences."""
    make, classes = TASKS[task]
    draw = np.random.default_rng(seed)
    torch.manual_seed(seed)
    model = Reader(classes)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=STEPS)
    ids, _, label = make(8_000, draw)
    for _ in range(STEPS):
        some = torch.from_numpy(draw.integers(0, len(ids), 64))
        optimizer.zero_grad()
        F.cross_entropy(model(ids[some]), label[some]).backward()
        optimizer.step()
        schedule.step()
    model.eval()
    ids, _, label = make(1_000, draw)
    with torch.no_grad():
        return model, float((model(ids).argmax(1) == label).float().mean())


def by_lrp(model: Reader, ids: Tensor, target: Tensor) -> Tensor:
    return dt.explain(model, ids, target=target).relevance


def by_gradient(model: Reader, ids: Tensor, target: Tensor) -> Tensor:
    vectors: list[Tensor] = []

    def keep(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        vectors.append(output.detach().requires_grad_())
        return vectors[0]

    hook = model.words.register_forward_hook(keep)
    score = model(ids).gather(1, target[:, None]).sum()
    hook.remove()
    return (torch.autograd.grad(score, vectors[0])[0] * vectors[0]).sum(-1).detach()


def by_attention(model: Reader, ids: Tensor, target: Tensor) -> Tensor:
    with torch.no_grad():
        return model.states(ids)[1][:, :, 0].mean(1)


def by_chance(model: Reader, ids: Tensor, target: Tensor) -> Tensor:
    return torch.rand(ids.shape, generator=torch.Generator().manual_seed(0))


METHODS = {"LRP": by_lrp, "gradient × input": by_gradient, "attention": by_attention, "random": by_chance}


def measured(model: Reader, ids: Tensor, truth: Tensor, target: Tensor, relevance: Tensor) -> np.ndarray:
    """(sequences, metrics); the reading token stays and is never ranked."""
    score = relevance[:, 1:]
    ranks = score.abs().argsort(1, descending=True).argsort(1)
    size = truth.sum(1)
    found = ((ranks < size[:, None]) & truth[:, 1:]).sum(1) / size
    n = LENGTH - 1
    best, least = score.argsort(1, descending=True).argsort(1), score.abs().argsort(1).argsort(1)
    chances, errors = [], []
    with torch.no_grad():
        full = model(ids)
        for share in np.linspace(0, 1, 11):
            k = round(share * n)
            built, pruned = ids.clone(), ids.clone()
            built[:, 1:][best >= k] = BLANK
            pruned[:, 1:][least < k] = BLANK
            chances.append(model(built).softmax(1).gather(1, target[:, None])[:, 0])
            errors.append(((model(pruned) - full) ** 2).sum(1))
    shares = np.linspace(0, 1, 11)
    areas = [np.trapezoid(torch.stack(curve, 1).numpy(), shares, axis=1) for curve in (chances, errors)]
    return np.stack([found.numpy(), *areas], 1)


def _fillers(count: int, draw: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
    ids = torch.from_numpy(draw.choice(list(FILLER), (count, LENGTH)))
    # blanks are part of the language, so that removing a token leaves a sequence of the kind that was learned
    ids[torch.from_numpy(draw.random((count, LENGTH)) < 0.3)] = BLANK
    ids[:, 0] = READ
    return ids, torch.zeros(count, LENGTH, dtype=torch.bool), torch.zeros(count, dtype=torch.long)


def main() -> None:
    found: dict[str, Any] = {}
    for task, (make, _) in TASKS.items():
        values: dict[str, list[np.ndarray]] = {method: [] for method in METHODS}
        accuracies = []
        for seed in range(SEEDS):
            started = time.process_time()
            model, accuracy = learned(task, seed)
            accuracies.append(accuracy)
            ids, truth, label = make(3 * TESTED, np.random.default_rng(1000 + seed))
            with torch.no_grad():
                right = model(ids).argmax(1) == label
            chosen = (right & (label == 1) if task == "both" else right).nonzero()[:TESTED, 0]
            ids, truth, label = ids[chosen], truth[chosen], label[chosen]
            for method, explain in METHODS.items():
                values[method].append(measured(model, ids, truth, label, explain(model, ids, label)))
            print(f"{task} {seed}: right {accuracy:.1%}, {time.process_time() - started:.0f} cpu s", flush=True)
        joined = {method: np.concatenate(rows) for method, rows in values.items()}
        count = len(joined["LRP"])
        draws = np.random.default_rng(0).integers(0, count, (DRAWS, count))
        found[task] = {
            "accuracy": accuracies,
            "sequences": count,
            "methods": {
                method: [
                    [
                        round(float(v), 4)
                        for v in (rows[:, n].mean(), *np.percentile(rows[draws, n].mean(1), [2.5, 97.5]))
                    ]
                    for n in range(len(METRICS))
                ]
                for method, rows in joined.items()
            },
        }
    versions = {"deeptaylor": dt.__version__, "torch": torch.__version__, "python": platform.python_version()}
    known = {"tasks": found, "metrics": list(METRICS), "versions": versions}
    (RESULTS / "planted_tokens.json").write_text(
        json.dumps(known, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    PAGE.write_text(page(known), encoding="utf-8")


def page(known: dict[str, Any]) -> str:
    lines = [
        "# Planted tokens",
        "",
        "Written by `benchmarks/planted_tokens.py` (`make planted`). Two-layer transformers learn rules over sequences of 15 tokens,",
        "so that the tokens that decide are known. Rank accuracy: share of the planted tokens among as many top-ranked ones by",
        "|relevance|. AUAC: area under the class's probability while the most relevant tokens are added to blanks. AU-MSE: area under",
        f"the squared change of the logits while the least relevant ones are removed. {SEEDS} seeds a task; in brackets 95 % intervals.",
        "Below each table the methods from best to worst: > where the intervals lie apart, ≥ where they touch.",
        "",
    ]
    for task, found in known["tasks"].items():
        doc = (TASKS[task][0].__doc__ or "").strip()
        right = ", ".join(f"{accuracy:.1%}" for accuracy in found["accuracy"])
        lines += [
            f"## {task}",
            "",
            doc,
            f"The models are right about {right} of new sequences; {found['sequences']} are explained.",
            "",
        ]
        lines += [
            "| method | " + " | ".join(f"{m} {'↑' if s > 0 else '↓'}" for m, s in METRICS.items()) + " |",
            "|---|---|---|---|",
        ]
        for method, row in found["methods"].items():
            lines.append(
                f"| {method} | " + " | ".join(f"{m:.3f} ({low:.3f} to {high:.3f})" for m, low, high in row) + " |"
            )
        lines += ["", *(_order(metric, n, found["methods"]) for n, metric in enumerate(METRICS)), ""]
    return "\n".join(lines)


def _order(metric: str, n: int, methods: dict[str, Any]) -> str:
    """The methods from best to worst; > where their intervals lie apart, ≥ where they touch."""
    sign = METRICS[metric]
    best = sorted(methods, key=lambda method: -sign * methods[method][n][0])
    said = best[0]
    for one, other in itertools.pairwise(best):
        worst = min(sign * end for end in methods[one][n][1:])
        apart = worst > max(sign * end for end in methods[other][n][1:])
        said += f" {'>' if apart else '≥'} {other}"
    return f"* {metric}: {said}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--page", action="store_true", help="write the page anew from the results that are there")
    torch.set_num_threads(1)
    if parser.parse_args().page:
        PAGE.write_text(page(json.loads((RESULTS / "planted_tokens.json").read_text())), encoding="utf-8")
    else:
        main()
