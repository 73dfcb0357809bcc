"""Which words did the sentiment models use? Removing the words that a method names must move the score (`make sentiment`).

For 500 held-out sentences: ERASER's comprehensiveness and sufficiency (DeYoung et al. 2020) on the logit of the
predicted class; AUAC and AU-MSE (Ali et al. 2022). A removed word becomes the unknown word; special tokens stay. The
other methods are written here, on autograd alone. Means with 95 % intervals from 2,000 bootstrap draws over sentences,
and paired differences to deeptaylor's default.

    python benchmarks/sentiment.py cnn             # minutes
    python benchmarks/sentiment.py minilm          # half an hour; --keep DIR goes on where it stopped, --seconds stops
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
from torch import Tensor, nn

import deeptaylor as dt
from deeptaylor.demo_sentiment import LABELS, PLACE, UNKNOWN, read_corpus, train

RESULTS, PAGE = Path(__file__).parent / "results", Path(__file__).parents[1] / "docs" / "sentiment.md"
QUANTILES = (0.01, 0.05, 0.10, 0.20, 0.50)
FRACTIONS = np.linspace(0, 1, 11)
STEPS, SENTENCES, DRAWS = 32, 500, 2000
METRICS = {"comprehensiveness": 1, "sufficiency": -1, "AUAC": 1, "AU-MSE": -1}
"""Whether more (1) or less (-1) is better."""


class Judge:
    """A classifier with everything that the methods need: ids, which of them may go, scores of changed ids."""

    def __init__(self, model: nn.Module, tokenizer: Any, embedding: nn.Embedding, unknown: int) -> None:
        self.model, self.tokenizer, self.embedding, self.unknown = model, tokenizer, embedding, unknown

    def scores(self, ids: Tensor) -> Tensor:
        takes_mask = isinstance(self.tokenizer, dt.Vocabulary)
        return self.model(ids) if takes_mask else self.model(ids, torch.ones_like(ids))

    def from_vectors(self, vectors: Tensor, ids: Tensor) -> Tensor:
        """Scores with other word vectors in place of those looked up."""
        hook = self.embedding.register_forward_hook(lambda *_: vectors)
        try:
            return self.scores(ids.expand(len(vectors), -1))
        finally:
            hook.remove()

    def gradient(self, vectors: Tensor, ids: Tensor, target: int) -> Tensor:
        vectors = vectors.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(self.from_vectors(vectors, ids)[:, target].sum(), vectors)
        return gradient


Method = Callable[[Judge, Tensor, int, str], Tensor]


def by_deeptaylor(composite: str) -> Method:
    def explained(judge: Judge, ids: Tensor, target: int, text: str) -> Tensor:
        options = {"target": target, "composite": composite, "max_length": 64}
        return dt.explain_text(judge.model, judge.tokenizer, text, **options)[0].relevance

    return explained


def gradient_times_input(judge: Judge, ids: Tensor, target: int, text: str) -> Tensor:
    vectors = judge.embedding(ids)
    return (judge.gradient(vectors, ids, target) * vectors).sum(-1)[0]


def integrated_gradients(judge: Judge, ids: Tensor, target: int, text: str) -> Tensor:
    vectors = judge.embedding(ids)
    base = judge.embedding(torch.full_like(ids, judge.unknown))
    shares = ((torch.arange(STEPS) + 0.5) / STEPS)[:, None, None]
    mean = judge.gradient(base + shares * (vectors - base), ids, target).mean(0)
    return (mean * (vectors - base)[0]).sum(-1)


def occlusion(judge: Judge, ids: Tensor, target: int, text: str) -> Tensor:
    n = ids.shape[1]
    each = torch.where(torch.eye(n, dtype=torch.bool), judge.unknown, ids.expand(n, n))
    with torch.no_grad():
        return judge.scores(ids)[0, target] - judge.scores(each)[:, target]


def random_order(judge: Judge, ids: Tensor, target: int, text: str) -> Tensor:
    return torch.rand(ids.shape[1], generator=torch.Generator().manual_seed(len(text)))


METHODS: dict[str, dict[str, Method]] = {
    "cnn": {
        "deeptaylor auto": by_deeptaylor("auto"),
        "deeptaylor epsilon-gamma-box": by_deeptaylor("epsilon-gamma-box"),
        "deeptaylor deep-taylor": by_deeptaylor("deep-taylor"),
        "gradient × input": gradient_times_input,
        f"integrated gradients, {STEPS} steps": integrated_gradients,
        "occlusion": occlusion,
        "random": random_order,
    },
    "minilm": {
        "deeptaylor auto": by_deeptaylor("auto"),
        "gradient × input": gradient_times_input,
        f"integrated gradients, {STEPS} steps": integrated_gradients,
        "occlusion": occlusion,
        "random": random_order,
    },
}


def measure(
    judge: Judge, ids: Tensor, removable: Tensor, target: int, relevance: Tensor, seen: dict[Any, Tensor]
) -> list[float]:
    """The four metrics of one sentence, in the order of METRICS. `seen` keeps the scores of changed sentences."""
    places = removable.nonzero()[:, 0]
    n = len(places)
    best = places[relevance[places].argsort(descending=True, stable=True)]
    least = places[relevance[places].abs().argsort(stable=True)]

    def without(gone: Tensor) -> tuple[int, ...]:
        return tuple(sorted(gone.tolist()))

    counts = [max(1, int(np.ceil(q * n))) for q in QUANTILES]
    shares = [round(f * n) for f in FRACTIONS]
    whole = ()
    dropped = [without(best[:k]) for k in counts]
    kept = [without(best[k:]) for k in counts]
    built = [without(best[k:]) for k in shares]
    pruned = [without(least[:k]) for k in shares]
    missing = [gone for gone in dict.fromkeys([whole, *dropped, *kept, *built, *pruned]) if gone not in seen]
    if missing:
        changed = ids.repeat(len(missing), 1)
        for row, gone in enumerate(missing):
            changed[row, list(gone)] = judge.unknown
        with torch.no_grad():
            seen.update(zip(missing, judge.scores(changed).double(), strict=True))
    full = seen[whole]
    average = len(QUANTILES) + 1
    comprehensiveness = sum(float(full[target] - seen[gone][target]) for gone in dropped) / average
    sufficiency = sum(float(full[target] - seen[gone][target]) for gone in kept) / average
    chances = [float(seen[gone].softmax(0)[target]) for gone in built]
    errors = [float(((full - seen[gone]) ** 2).sum()) for gone in pruned]
    return [
        comprehensiveness,
        sufficiency,
        float(np.trapezoid(chances, FRACTIONS)),
        float(np.trapezoid(errors, FRACTIONS)),
    ]


def judge_of(name: str, corpus: Any, keep: Path | None) -> tuple[Judge, dict[str, Any]]:
    if name == "cnn":
        trained = _stored(keep, "cnn", lambda: train(corpus))
        judge = Judge(trained.model, trained.vocabulary, trained.model.words, trained.vocabulary.table[UNKNOWN])
        return judge, {"accuracy": trained.accuracy, "trained on": len(corpus.train.texts)}
    from deeptaylor.demo_language import TUNED_ON, tuned_minilm
    from deeptaylor.text.hub import transformers_ready

    transformers_ready()
    model, tokenizer = _stored(keep, "minilm", lambda: tuned_minilm(corpus.train))
    accuracy = _stored(keep, "minilm_accuracy", lambda: _accuracy(model, tokenizer, corpus.held_out))
    embedding = model.encoder.get_input_embeddings()
    return Judge(model, tokenizer, embedding, tokenizer.unk_token_id), {"accuracy": accuracy, "trained on": TUNED_ON}


def _accuracy(model: nn.Module, tokenizer: Any, held_out: Any) -> float:
    from deeptaylor.demo_language import padded

    ids = tokenizer(list(held_out.texts), truncation=True, max_length=64)["input_ids"]
    with torch.no_grad():
        said = torch.cat([model(*padded(ids[i : i + 50])).argmax(1) for i in range(0, len(ids), 50)])
    return float((said == torch.tensor(held_out.positive)).float().mean())


def _stored(keep: Path | None, name: str, make: Callable[[], Any]) -> Any:
    """What `make` gives, kept in a folder of ours where one is named."""
    if keep is None:
        return make()
    path = keep / f"{name}.pt"
    if not path.exists():
        torch.save(make(), path)
    return torch.load(path, weights_only=False)


def judged(judge: Judge, text: str) -> tuple[Tensor, Tensor, int]:
    """A sentence's ids, which of them may be removed, and the class that the judge gives it."""
    encoded = dt.text.encode.encode(judge.tokenizer, text, limit=64)
    ids = torch.tensor([encoded.ids])
    with torch.no_grad():
        target = int(judge.scores(ids)[0].argmax())
    return ids, torch.tensor([not token.special for token in encoded.tokens]), target


def run(name: str, count: int, data: Path, keep: Path | None, seconds: float) -> None:
    started = time.time()
    corpus = read_corpus(data)
    judge, about = judge_of(name, corpus, keep)
    partial = keep / f"sentiment_{name}.json" if keep else None
    rows: dict[str, list[list[float]]] = {method: [] for method in METHODS[name]}
    if partial and partial.exists():
        rows = json.loads(partial.read_text())
    done = len(next(iter(rows.values())))
    for text in corpus.held_out.texts[done:count]:
        if time.time() - started > seconds:
            break
        ids, removable, target = judged(judge, text)
        seen: dict[Any, Tensor] = {}
        for method, explain in METHODS[name].items():
            relevance = explain(judge, ids, target, text).detach()
            rows[method].append(measure(judge, ids, removable, target, relevance, seen))
    if partial:
        partial.write_text(json.dumps(rows))
    done = len(next(iter(rows.values())))
    print(f"{name}: {done} of {count} sentences, {time.time() - started:.0f} s")
    if done >= min(count, len(corpus.held_out.texts)):
        write(name, rows, about)


def write(name: str, rows: dict[str, list[list[float]]], about: dict[str, Any]) -> None:
    """Adds a model's table to the results, and writes the page of all."""
    values = {method: np.array(row) for method, row in rows.items()}
    first = values["deeptaylor auto"]
    draws = np.random.default_rng(0).integers(0, len(first), (DRAWS, len(first)))

    def interval(sample: np.ndarray) -> list[list[float]]:
        means = sample[draws].mean(1)
        low, high = np.percentile(means, [2.5, 97.5], axis=0)
        return [[round(float(v), 4) for v in triple] for triple in zip(sample.mean(0), low, high, strict=True)]

    table = {m: {"mean": interval(v), "deeptaylor less this": interval(first - v)} for m, v in values.items()}
    path = RESULTS / "sentiment.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    known[name] = {
        "sentences": len(first), **about, "metrics": list(METRICS), "methods": table,
        "versions": {"deeptaylor": dt.__version__, "torch": torch.__version__, "python": platform.python_version()},
    }  # fmt: skip
    path.write_text(json.dumps(known, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    PAGE.write_text(page(known), encoding="utf-8")


NAMES = {"cnn": "GloVe + CNN (`make demo`)", "minilm": "MiniLM, last two layers and head tuned (`make demo-minilm`)"}


def page(known: dict[str, Any]) -> str:
    lines = [
        "# Which words did the sentiment models use?",
        "",
        "Written by `benchmarks/sentiment.py` (`make sentiment`). The words that a method names are removed (they become the",
        "unknown word) from sentences that the model has not seen, and the score of the predicted class is watched.",
        "Comprehensiveness: how far the logit falls when the most relevant 1, 5, 10, 20 and 50 % are gone (more is better).",
        "Sufficiency: how far it falls when only those are left (less is better). Both divided by 6, as ERASER does. AUAC: area",
        "under the probability while the most relevant words are added to an empty sentence (more is better). AU-MSE: area under",
        "the squared change of the logits while the least relevant words are removed (less is better). In brackets 95 %",
        f"intervals from {DRAWS:,} bootstrap draws over sentences. **Bold**: the paired difference to deeptaylor's default",
        "excludes zero, in favour of the method printed bold.",
        "",
    ]
    for name, found in known.items():
        lines += [
            f"## {NAMES[name]}",
            "",
            f"{found['sentences']} held-out sentences; the model is right about {found['accuracy']:.1%} of 1,000 and learned from {found['trained on']:,}.",
            "",
            "| method | " + " | ".join(f"{m} {'↑' if METRICS[m] > 0 else '↓'}" for m in found["metrics"]) + " |",
            "|---|" + "---|" * len(found["metrics"]),
        ]
        for method, row in found["methods"].items():
            cells = []
            for n, metric in enumerate(found["metrics"]):
                mean, low, high = row["mean"][n]
                _, worse, better = (METRICS[metric] * value for value in row["deeptaylor less this"][n])
                wins = method != "deeptaylor auto" and max(worse, better) < 0
                cell = f"{mean:.3f}"
                cells.append((f"**{cell}**" if wins else cell) + f" ({low:.3f} to {high:.3f})")
            lines.append(f"| {method} | " + " | ".join(cells) + " |")
        lines += ["", _verdict(found), ""]
    return "\n".join(lines)


def _verdict(found: dict[str, Any]) -> str:
    """What the paired differences say of deeptaylor's default, metric by metric."""
    said = []
    for method, row in found["methods"].items():
        if method.startswith(("deeptaylor", "random")):
            continue
        words = []
        for n, metric in enumerate(found["metrics"]):
            _, *ends = (METRICS[metric] * value for value in row["deeptaylor less this"][n])
            words.append(f"{metric} {'better' if min(ends) > 0 else 'worse' if max(ends) < 0 else 'no different'}")
        said.append(f"than {method}: {', '.join(words)}")
    return "deeptaylor's default is, by paired intervals, " + "; ".join(said) + "."


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("model", choices=list(METHODS))
    parser.add_argument("--sentences", type=int, default=SENTENCES)
    parser.add_argument("--data", type=Path, default=PLACE, help="folder with the archive of sentences")
    parser.add_argument("--keep", type=Path, help="folder in which what is done so far is kept")
    parser.add_argument("--seconds", type=float, default=1e9, help="stop after these, to go on later")
    options = parser.parse_args()
    torch.set_num_threads(1)
    assert LABELS == ("negative", "positive")
    run(options.model, options.sentences, options.data, options.keep, options.seconds)
