"""Why `auto` takes attn-lrp for attention: the composites on a real transformer, by what removing words does to it.

    python benchmarks/auto_choice_text.py --keep DIR --seconds 240      (goes on where it stopped)

MiniLM with its head tuned on film reviews (`make demo-minilm`), 100 held-out sentences, the metrics of
`benchmarks/sentiment.py` with 95 % bootstrap intervals and paired differences to attn-lrp. Writes
docs/auto_choice_text.md and benchmarks/results/auto_choice_text.json.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import sentiment
import torch
from torch import Tensor

import deeptaylor as dt

ROOT = Path(__file__).resolve().parent.parent
RESULTS, PAGE = ROOT / "benchmarks" / "results" / "auto_choice_text.json", ROOT / "docs" / "auto_choice_text.md"
COMPOSITES = ("attn-lrp", "cp-lrp", "res-lrp", "epsilon", "gradient-times-input")
SENTENCES, DRAWS = 100, 2000


def share(result: dt.text.TextAttribution) -> float:
    """Relevance of the tokens, as a share of the explained score."""
    return float(result[0].relevance.sum()) / result[0].explained


def examined(judge: sentiment.Judge, text: str) -> dict[str, list[float]]:
    """The metrics of one sentence under every composite, and the share that its tokens received."""
    ids, removable, target = sentiment.judged(judge, text)
    seen: dict[Any, Tensor] = {}
    row = {}
    for name in COMPOSITES:
        found = dt.explain_text(judge.model, judge.tokenizer, text, target=target, composite=name, max_length=64)
        row[name] = [*sentiment.measure(judge, ids, removable, target, found[0].relevance, seen), share(found)]
    return row


def page(rows: list[dict[str, list[float]]]) -> str:
    """The table."""
    values = {name: np.array([row[name] for row in rows]) for name in COMPOSITES}
    draws = np.random.default_rng(0).integers(0, len(rows), (DRAWS, len(rows)))
    first = values[COMPOSITES[0]]
    lines = [
        "# What `auto` takes for attention, measured",
        "",
        "Written by `benchmarks/auto_choice_text.py` (`make auto-choice`). MiniLM with its head tuned on film reviews,",
        f"{len(rows)} held-out sentences, the metrics of [sentiment.md](sentiment.md), 95 % bootstrap intervals over sentences.",
        "**Bold**: better than `attn-lrp`, which `auto` takes, by paired intervals; *italic*: worse. Received: median share of",
        "the score that the tokens hold; the rest is absorbed.",
        "",
        "| composite | "
        + " | ".join(f"{m} {'↑' if s > 0 else '↓'}" for m, s in sentiment.METRICS.items())
        + " | received |",
        "|---|" + "---|" * (len(sentiment.METRICS) + 1),
    ]
    for name, own in values.items():
        cells = []
        for n, sign in enumerate(sentiment.METRICS.values()):
            low, high = np.percentile(own[draws, n].mean(1), [2.5, 97.5])
            ends = sign * np.percentile((own - first)[draws, n].mean(1), [2.5, 97.5])
            mark = "**" if ends.min() > 0 else "*" if ends.max() < 0 else ""
            cells.append(f"{mark}{own[:, n].mean():.3f}{mark} ({low:.3f} to {high:.3f})")
        lines.append(f"| `{name}` | {' | '.join(cells)} | {np.median(own[:, -1]):.2f} |")
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sentences", type=int, default=SENTENCES)
    parser.add_argument("--data", type=Path, default=sentiment.PLACE, help="folder with the archive of sentences")
    parser.add_argument("--keep", type=Path, help="folder in which what is done so far is kept")
    parser.add_argument("--seconds", type=float, default=1e9, help="stop after these, to go on later")
    options = parser.parse_args()
    torch.set_num_threads(1)
    started = time.time()
    corpus = sentiment.read_corpus(options.data)
    judge, about = sentiment.judge_of("minilm", corpus, options.keep)
    partial = options.keep / "auto_choice_text.json" if options.keep else None
    rows = json.loads(partial.read_text()) if partial and partial.exists() else []
    for text in corpus.held_out.texts[len(rows) : options.sentences]:
        if time.time() - started > options.seconds:
            break
        rows.append(examined(judge, text))
    if partial:
        partial.write_text(json.dumps(rows))
    print(f"{len(rows)} of {options.sentences} sentences, {time.time() - started:.0f} s")
    if len(rows) >= options.sentences:
        means = {name: np.mean([row[name] for row in rows], 0).round(4).tolist() for name in COMPOSITES}
        told = {"sentences": len(rows), **about, "metrics": [*sentiment.METRICS, "received"], "means": means}
        RESULTS.write_text(json.dumps(told, indent=1) + "\n")
        PAGE.write_text(page(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
