"""Planted interactions in trained networks: which estimator finds the pair that a rule was made of? (`make taylor-planted`).

`images`: the sign of two coloured markers' XOR among 49 patches, convolutional networks with GELU, with ReLU, and with
ReLU and max-pooling. `words`: NOT turns the value of the next word round, transformers with GELU and with ReLU.
`table`: a planted function of eight columns, GELU and ReLU. Smooth and piecewise linear networks throughout; all seeds
are in this file. Results go to benchmarks/results/taylor_planted.json, part by part, and the page is written anew each
time.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import deeptaylor as dt
from deeptaylor.taylor import Expansion

HERE = Path(__file__).parent
RESULTS, PAGE = HERE / "results" / "taylor_planted.json", HERE.parent / "docs" / "taylor_planted.md"
SIDE, PATCH = 7, 8
SEEDS = (0, 1)
TESTED = 10
"""Inputs per trained network."""

Estimate = Callable[[nn.Module, Tensor, Any, Any], Expansion]


def smoothed(model: nn.Module, x: Tensor, x0: Any, groups: Any) -> Expansion:
    with dt.smooth_mode(beta=10):
        return dt.integrated_terms(model, x, x0, groups, nodes=3, check=False)


DEFAULT = "interactions (its own choice)"
GRADIENTS: dict[str, Estimate] = {
    "taylor_terms, at the input": lambda *a: dt.taylor_terms(*a, check=False),
    "taylor_terms, halfway": lambda *a: dt.taylor_terms(*a, at="middle", check=False),
    "integrated_terms, 3 nodes": lambda *a: dt.integrated_terms(*a, nodes=3, check=False),
    "the same, softplus for ReLU": smoothed,
    "gradient_secant, at the input": lambda *a: dt.gradient_secant(*a, check=False),
    "gradient_regression": lambda *a: dt.gradient_regression(*a, check=False),
}
VALUES: dict[str, Estimate] = {
    "differences, at the input": lambda *a: dt.differences(*a, at="input", check=False),
    "differences, both ends": lambda *a: dt.differences(*a, check=False),
    "fit_taylor": lambda *a: dt.fit_taylor(*a),
    DEFAULT: lambda *a: dt.interactions(*a),
}

# ---------------------------------------------------------------------------------------------------------------------
# Images


def xor_images(count: int, generator: torch.Generator, both: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """Noise, blue distractors, perhaps a red and a green marker: (N, 3, 56, 56), XOR (N,), the two patches (N, 2)."""
    x = 0.3 * torch.randn(count, 3, SIDE * PATCH, SIDE * PATCH, generator=generator)
    there = torch.ones(count, 2) if both else torch.randint(0, 2, (count, 2), generator=generator)
    places = torch.rand(count, SIDE * SIDE, generator=generator).argsort(1)[:, :5]
    for n in range(count):
        for k, place in enumerate(places[n].tolist()):
            if k < 2 and not there[n, k]:
                continue
            row, column = PATCH * (place // SIDE) + 1, PATCH * (place % SIDE) + 1
            x[n, min(k, 2), row : row + PATCH - 2, column : column + PATCH - 2] += 2.0
    return x, (there.sum(1) == 1).float(), places[:, :2]


def image_net(act: Callable[[], nn.Module], pools: bool) -> nn.Module:
    first = [nn.Conv2d(3, 12, 5, 2, 2), act(), nn.MaxPool2d(2)] if pools else [nn.Conv2d(3, 12, 5, 4, 2), act()]
    last = nn.AdaptiveMaxPool2d(1) if pools else nn.AdaptiveAvgPool2d(1)
    return nn.Sequential(
        *first, nn.Conv2d(12, 24, 3, 2, 1), act(), last, nn.Flatten(), nn.BatchNorm1d(24),
        nn.Linear(24, 48), act(), nn.Linear(48, 1),
    )  # fmt: skip


def images(seed: int, act: Callable[[], nn.Module], pools: bool = False) -> dict[str, Any]:
    rows: dict[str, list[dict[str, Any]]] = {}
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = image_net(act, pools)
    x, label, _ = xor_images(4000, generator)
    trained(model, (x,), label, epochs=15)
    x, label, _ = xor_images(500, generator)
    with torch.no_grad():
        right = float(((model(x)[:, 0] > 0) == (label > 0.5)).float().mean())
    x, _, places = xor_images(TESTED, generator, both=True)
    for n in range(TESTED):
        truth = torch.zeros(SIDE**2, SIDE**2)
        i, j = places[n].tolist()
        truth[i, j] = truth[j, i] = -1.0
        for name, estimate in {**GRADIENTS, **VALUES}.items():
            if name == "fit_taylor":  # what interactions chooses for photos, with the same masks
                continue
            record(rows, name, truth, lambda e=estimate, n=n: e(model, x[n : n + 1], "zero", (SIDE, SIDE)))
    return {"right": right, "methods": summary(rows)}


# ---------------------------------------------------------------------------------------------------------------------
# Words

PAD, NOT, TOKENS, VOCABULARY = 0, 1, 24, 42
"""Ids 2 to 21 are fillers, 22 to 41 carry values."""
WORTH = torch.cat([torch.zeros(22), torch.linspace(-1, 1, 20)])


def sentences(count: int, generator: torch.Generator, padded: bool = True) -> tuple[Tensor, Tensor]:
    """Ids (N, 24) and Σ ± worth (N,): − where NOT stands before. Most are partly blanked, so that a blank is known."""
    ids = torch.randint(2, 22, (count, TOKENS), generator=generator)
    carry = torch.rand(count, TOKENS, generator=generator) < 0.25
    ids = torch.where(carry, torch.randint(22, VOCABULARY, (count, TOKENS), generator=generator), ids)
    for n in range(count):
        for at in torch.randperm(TOKENS // 3, generator=generator)[:2].tolist():
            ids[n, 3 * at] = NOT
            # small worths are hard to tell from none: negated words are worth at least ½
            low = torch.randint(0, 2, (1,), generator=generator)
            ids[n, 3 * at + 1] = int(torch.randint(22, 27, (1,), generator=generator) + 15 * low)
    if padded:
        gone = torch.rand(count, TOKENS, generator=generator) < torch.rand(count, 1, generator=generator)
        ids = ids.masked_fill(gone, PAD)
    return ids, meaning(ids)


def meaning(ids: Tensor) -> Tensor:
    negated = F.pad(ids[:, :-1] == NOT, (1, 0))
    return (WORTH[ids] * torch.where(negated, -1.0, 1.0)).sum(1)


class Reader(nn.Module):
    """A transformer of two layers over tokens, norms first; reads the mean of the last states, as a sum."""

    def __init__(self, act: Callable[[], nn.Module], width: int = 48, heads: int = 4) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(VOCABULARY, width), nn.Embedding(TOKENS, width)
        self.heads, self.blocks = heads, nn.ModuleList()
        self.near = nn.ParameterList()
        """Learned offsets of the attention between places; they begin by looking at the place before."""
        for _ in range(2):
            apart = torch.arange(TOKENS)[:, None] - torch.arange(TOKENS)
            self.near.append(nn.Parameter(-1.5 * (apart - 1).abs().float().expand(heads, -1, -1).clone()))
            parts = {"norm_a": nn.LayerNorm(width), "qkv": nn.Linear(width, 3 * width), "out": nn.Linear(width, width),
                     "norm_f": nn.LayerNorm(width), "f": nn.Sequential(nn.Linear(width, 2 * width), act(), nn.Linear(2 * width, width))}  # fmt: skip
            self.blocks.append(nn.ModuleDict(parts))
        self.norm, self.decide = nn.LayerNorm(width), nn.Linear(width, 1)

    def forward(self, ids: Tensor) -> Tensor:
        return self.read(self.words(ids))

    def read(self, x: Tensor) -> Tensor:
        """Of embeddings (N, 24, width)."""
        x = x + self.places.weight
        for near, b in zip(self.near, self.blocks, strict=True):
            q, k, v = b["qkv"](b["norm_a"](x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
            attention = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5 + near).softmax(-1)
            x = x + b["out"]((attention @ v).transpose(1, 2).flatten(2))
            x = x + b["f"](b["norm_f"](x))
        return self.decide(self.norm(x)).sum(1)


class FromEmbeddings(nn.Module):
    """The same transformer as a function of its embeddings, for estimators that need derivatives."""

    def __init__(self, reader: Reader) -> None:
        super().__init__()
        self.reader = reader

    def forward(self, x: Tensor) -> Tensor:
        return self.reader.read(x)


def words(seed: int, act: Callable[[], nn.Module]) -> dict[str, Any]:
    rows: dict[str, list[dict[str, Any]]] = {}
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = Reader(act)
    ids, value = sentences(12_000, generator)
    trained(model, (ids,), value, epochs=10, regression=True, rate=5e-3)
    ids, value = sentences(500, generator)
    with torch.no_grad():
        right = 1 - float(((model(ids)[:, 0] - value) ** 2).mean() / value.var())
    ids, _ = sentences(TESTED, generator, padded=False)
    tokens = torch.arange(TOKENS)[:, None].expand(TOKENS, 48)
    embedded = FromEmbeddings(model).eval()
    for one in ids.split(1):
        blank = torch.full_like(one, PAD)
        truth = torch.zeros(TOKENS, TOKENS)
        for at in (one[0, :-1] == NOT).nonzero()[:, 0].tolist():
            truth[at, at + 1] = truth[at + 1, at] = -2 * float(WORTH[one[0, at + 1]])
        with torch.no_grad():
            x, x0 = model.words(one), model.words(blank)
        for name, estimate in GRADIENTS.items():
            record(rows, name, truth, lambda e=estimate, x=x, x0=x0: e(embedded, x, x0, tokens))
        for name, estimate in VALUES.items():
            record(rows, name, truth, lambda e=estimate, a=one, b=blank: e(model, a, b, None))
    return {"right": right, "methods": summary(rows)}


# ---------------------------------------------------------------------------------------------------------------------
# A table


def planted(x: Tensor) -> Tensor:
    """2 x₁x₂ − 1.5 x₃x₄x₅ + sin 2x₆ + ½ x₇², and an eighth column that does nothing."""
    return 2 * x[:, 0] * x[:, 1] - 1.5 * x[:, 2] * x[:, 3] * x[:, 4] + (2 * x[:, 5]).sin() + 0.5 * x[:, 6] ** 2


def table(seed: int, act: Callable[[], nn.Module]) -> dict[str, Any]:
    """The truth is the exact Shapley-Taylor index of the function itself."""
    rows: dict[str, list[dict[str, Any]]] = {}
    estimators = {**GRADIENTS, "shapley_taylor (exact)": lambda *a: dt.shapley_taylor(*a, check=False), **VALUES}
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Linear(8, 96), act(), nn.Linear(96, 96), act(), nn.Linear(96, 1))
    x = 4 * torch.rand(20_000, 8, generator=generator) - 2
    trained(model, (x,), planted(x), epochs=30, regression=True, rate=3e-3)
    x = 4 * torch.rand(500, 8, generator=generator) - 2
    with torch.no_grad():
        right = 1 - float(((model(x)[:, 0] - planted(x)) ** 2).mean() / planted(x).var())
    # where the pair has something to say
    for one in x[(x[:, 0] * x[:, 1]).abs() > 1][:TESTED].split(1):
        truth = dt.shapley_taylor(planted, one, "zero", check=False).interactions.float()
        for name, estimate in estimators.items():
            record(rows, name, truth, lambda e=estimate, a=one: e(model, a, "zero", None))
    return {"right": right, "methods": summary(rows)}


# ---------------------------------------------------------------------------------------------------------------------
# Training, measuring, writing


def trained(
    model: nn.Module, inputs: tuple[Tensor], aim: Tensor, epochs: int, regression: bool = False, rate: float = 4e-3
) -> None:
    """Adam with one cycle; left in eval mode, frozen."""
    optimizer = torch.optim.AdamW(model.parameters(), rate, weight_decay=1e-3)
    batches = len(aim) // 100
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=epochs * batches)
    loss_of = F.mse_loss if regression else F.binary_cross_entropy_with_logits
    for _ in range(epochs):
        for chosen in torch.randperm(len(aim))[: 100 * batches].split(100):
            optimizer.zero_grad()
            loss_of(model(inputs[0][chosen])[:, 0], aim[chosen]).backward()
            optimizer.step()
            schedule.step()
    model.eval().requires_grad_(False)


def record(
    rows: dict[str, list[dict[str, float]]], name: str, truth: Tensor, estimate: Callable[[], Expansion]
) -> None:
    """Whether the strongest pair was planted, precision among as many as were, correlation over all pairs, passes."""
    found = estimate()
    upper = torch.triu_indices(len(truth), len(truth), 1)
    own, true = found.interactions[upper[0], upper[1]].float(), truth[upper[0], upper[1]]
    planted_pairs = true.abs() > 1e-6
    ranked = own.abs().argsort(descending=True)
    count = int(planted_pairs.sum())
    flat = not bool(own.any())
    rows.setdefault(name, []).append({
        "first": 0.0 if flat else float(planted_pairs[ranked[0]]) if count < len(own) / 2 else float(ranked[0] == true.abs().argmax()),
        "precision": 0.0 if flat else float(planted_pairs[ranked[:count]].float().mean()),
        "correlation": 0.0 if flat else float(torch.corrcoef(torch.stack([own, true]))[0, 1]),
        "passes": float(found.cost.passes), "residual": found.relative_residual, "method": found.method,
    })  # fmt: skip


def summary(rows: dict[str, list[dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    out: dict[str, dict[str, Any]] = {}
    for name, found in rows.items():
        keys = ("first", "precision", "correlation", "passes")
        out[name] = {key: round(sum(row[key] for row in found) / len(found), 4) for key in keys}
        out[name] |= {"inputs": len(found), "residual": sorted(row["residual"] for row in found)[len(found) // 2]}
        if name == DEFAULT:
            out[name]["chose"] = sorted({row["method"] for row in found})
    return out


PARTS: dict[str, tuple[str, Callable[[int], dict[str, Any]]]] = {
    "images-gelu": ("Images, GELU", lambda seed: images(seed, nn.GELU)),
    "images-relu": ("Images, ReLU", lambda seed: images(seed, nn.ReLU)),
    "images-relu-pool": ("Images, ReLU and max-pooling", lambda seed: images(seed, nn.ReLU, pools=True)),
    "words-gelu": ("Words, GELU", lambda seed: words(seed, nn.GELU)),
    "words-relu": ("Words, ReLU in the feed-forward layers", lambda seed: words(seed, nn.ReLU)),
    "table-gelu": ("A table, GELU", lambda seed: table(seed, nn.GELU)),
    "table-relu": ("A table, ReLU", lambda seed: table(seed, nn.ReLU)),
}
EXPLAINED = {
    "images": "49 patches of noise with blue distractors; the class is whether just one of a red and a green marker is there. "
    "Tested on images with both, against the mean image (0). Planted: that one of 1176 pairs.",
    "words": "24 tokens; the value is the sum of the words' worths, that of a word after NOT turned round. The network saw "
    "blanks in training, so that the truth, −2 × worth for each of two planted pairs of 276, is known at the corners. "
    "Derivatives are of the embeddings.",
    "table": "2x₁x₂ − 1.5x₃x₄x₅ + sin 2x₆ + ½x₇² of eight columns. The truth is the function's own exact Shapley-Taylor index; "
    "planted: four of 28 pairs, first is the strongest of them.",
}


def page(known: dict[str, Any]) -> str:
    parts = known["parts"]
    own = [seed["methods"][DEFAULT] for part in parts.values() for seed in part.values()]
    hits, inputs = sum(one["first"] * one["inputs"] for one in own), sum(one["inputs"] for one in own)
    lines = [
        "# Planted interactions in trained networks",
        "",
        "Written by `benchmarks/taylor_planted.py` (`make taylor-planted`); numbers in `benchmarks/results/taylor_planted.json`.",
        "",
        "Networks are trained on rules that make certain pairs of inputs act together, so that it is known which. *First*: how often "
        "the strongest pair that an estimator names was planted (of a table: the strongest planted). *Precision*: share of planted "
        "pairs among as many strongest. *r*: correlation with the truth over all pairs. *Passes*: forwards, gradients and tangents. "
        f"Seeds {' and '.join(map(str, SEEDS))}.",
        "",
        f"**`dt.interactions` named a planted pair first on {hits / inputs:.1%} of {inputs:.0f} inputs.**",
        "",
        "What the tables say: values at the corners of the cube find planted pairs in every kind of network. Second derivatives find "
        "them in smooth networks of images and tables and find nothing at all in piecewise linear ones, unless kinks are made soft; "
        "differences of gradients need neither. Between words what derivatives find depends on where they are taken, and they leave "
        "most of f(x) − f(x₀) unexplained: a word is there or not, and nothing lies between. Being first is one thing, being right in size another: the fit's penalty shrinks a lone pair among "
        "1176, and its correlation with the truth is the lowest of those that find it.",
        "",
    ]
    for name, (title, _) in PARTS.items():
        if name not in parts:
            continue
        seeds = parts[name].values()
        right = " and ".join(f"{seed['right']:.3f}" for seed in seeds)
        count = sum(seed["methods"][DEFAULT]["inputs"] for seed in seeds)
        measure = "accuracy" if name.startswith("images") else "R²"
        lines += [
            f"## {title}", "", f"{EXPLAINED[name.split('-')[0]]} Held-out {measure} {right}; {count} inputs.", "",
            "| estimator | first | precision | r | residual | passes |", "|---|---|---|---|---|---|",
        ]  # fmt: skip
        for method in next(iter(seeds))["methods"]:
            rows = [seed["methods"][method] for seed in seeds]
            first, precision, r, passes = (
                sum(row[key] for row in rows) / len(rows) for key in ("first", "precision", "correlation", "passes")
            )
            left = max(row["residual"] for row in rows)
            what = f"interactions, which chose {', '.join(rows[0]['chose'])}" if method == DEFAULT else method
            lines.append(f"| {what} | {first:.2f} | {precision:.2f} | {r:.2f} | {left:.2g} | {passes:.0f} |")
        lines.append("")
    versions = known["versions"]
    lines += [
        f"Residual: median of |residual| / |f(x) − f(x₀)|. torch {versions['torch']}, Python {versions['python']}, one thread.",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}; all by default")
    parser.add_argument("--missing", action="store_true", help="only what the results do not hold yet")
    asked = parser.parse_args()
    known = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {"parts": {}}
    parts = known["parts"]
    for name in asked.parts or PARTS:
        for seed in SEEDS:
            if asked.missing and str(seed) in parts.get(name, {}):
                continue
            started = time.process_time()
            parts.setdefault(name, {})[str(seed)] = PARTS[name][1](seed)
            print(f"{name}, seed {seed}: {time.process_time() - started:.0f} CPU seconds", flush=True)
            versions = {"deeptaylor": dt.__version__, "torch": torch.__version__, "python": platform.python_version()}
            known = {"parts": parts, "versions": versions}
            RESULTS.write_text(json.dumps(known, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    PAGE.write_text(page(known), encoding="utf-8")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
