"""Where Taylor expansions hold on real models: shares of orders, trust radii, residuals, held-out R².

Parts: `concrete` (40 test mixtures, every estimator), `photos` (EfficientNet-Lite0, eight photos, order maps), `fits`
(the same network, fitted pairs), `cnn` and `minilm` (100 short held-out film sentences each: the demo's GloVe network, and
a linear decision on MiniLM's mean states). `fits`, `cnn` and `minilm` go on where they were stopped. Results go to benchmarks/results/taylor_<part>.json; the page docs/taylor_tables.md
is written from whatever parts there are.
"""

from __future__ import annotations

import argparse
import json
import platform
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import deeptaylor as dt
from deeptaylor import demo, taylor_demo
from deeptaylor.demo_language import load_minilm
from deeptaylor.demo_sentiment import Corpus, SentimentCNN, read_corpus, train
from deeptaylor.report.findings import prepare
from deeptaylor.taylor.result import part_of_the_way
from deeptaylor.taylor.segments import each_feature
from deeptaylor.text.encode import encode
from deeptaylor.text.together import stand_in_of

HERE = Path(__file__).parent
PHOTOS = ("coffee", "camera", "chelsea", "motorcycle", "china", "rocket", "flower", "astronaut")
SENTENCES, SHORT = 100, range(4, 9)
"""Held-out sentences, with so many words."""
PROBED = 400
"""Sentences that the linear decision is fitted to."""
MIXTURES = 40
ESTIMATORS = {
    "taylor_terms, at the reference": lambda *a: dt.taylor_terms(*a, at="reference"),
    "taylor_terms, at the input": lambda *a: dt.taylor_terms(*a, at="input"),
    "taylor_terms, order 3, at the reference": lambda *a: dt.taylor_terms(*a, order=3, at="reference"),
    "integrated_terms": dt.integrated_terms,
    "integrated_hessians": dt.integrated_hessians,
    "differences, both ends": dt.differences,
    "gradient_secant, at the input": dt.gradient_secant,
    "gradient_regression": dt.gradient_regression,
    "fit_taylor": lambda *a: dt.fit_taylor(*a, masks=300),
    "shapley_taylor (exact)": dt.shapley_taylor,
}


def concrete() -> dict[str, object]:
    """Per estimator: medians over mixtures, and how its pairs correlate with the exact Shapley-Taylor index."""
    made = taylor_demo.concrete()
    rows: dict[str, dict[str, list[float]]] = {name: {} for name in ESTIMATORS}
    radii: dict[str, list[float]] = {}
    for x in made.test[:MIXTURES].split(1):
        groups = each_feature(x, taylor_demo.NAMES)
        exact = dt.shapley_taylor(made.model, x, "zero", groups, check=False).interactions.flatten()
        for name, estimate in ESTIMATORS.items():
            found = estimate(made.model, x, "zero", groups)
            pairs = found.interactions.flatten()
            both = torch.stack([pairs, exact])
            row = rows[name]
            row.setdefault("residual", []).append(found.relative_residual)
            row.setdefault("correlation", []).append(float(torch.corrcoef(both)[0, 1]) if pairs.any() else 0.0)
            row.setdefault("r2", []).append(found.fidelity.get(2, float("nan")))
            row.setdefault("passes", []).append(found.cost.passes)
        for at in ("reference", "input"):
            for k, r in enumerate(dt.taylor_orders(made.model, x, "zero", at=at).trust_radius.tolist(), 1):
                radii.setdefault(f"{at}, order {k}", []).append(r)
    return {
        "r2_of_the_network": made.r2,
        "mixtures": MIXTURES,
        "estimators": {name: {key: median(values) for key, values in row.items()} for name, row in rows.items()},
        "trust_radius": {key: [min(v), median(v), max(v)] for key, v in radii.items()},
        "top_pairs": [list(pair) for pair in taylor_demo.pairs(made, 6)],
    }


def image(name: str) -> object:
    import skimage.data
    from PIL import Image
    from sklearn.datasets import load_sample_image

    if name in ("china", "flower"):
        pixels = load_sample_image(f"{name}.jpg")
    elif name == "motorcycle":
        pixels = skimage.data.stereo_motorcycle()[0]
    else:
        pixels = getattr(skimage.data, name)()
    return Image.fromarray(pixels)


def photos(chosen: list[str]) -> dict[str, object]:
    """Shares and trust radii of orders 1 to 4 at each photo, towards its blurred copy."""
    model, found = demo.load_demo_model().model, {}
    for name in chosen:
        x = prepare(image(name), name, demo.PREPROCESSING, "").inputs
        result = dt.taylor_orders(model, x, "blur")
        found[name] = {
            "value": result.value, "reference_value": result.reference_value, "shares": result.shares.tolist(),
            "trust_radius": result.trust_radius.tolist(), "relative_residual": result.relative_residual,
            "forwards": result.cost.forwards, "gradients": result.cost.gradients,
        }  # fmt: skip
        print(name, found[name], flush=True)
    return found


def fits(chosen: list[str]) -> dict[str, object]:
    """Held-out R² of one and two orders of a fit on 7 by 7 patches."""
    model, found = demo.load_demo_model().model, _read("fits") or {}
    for name in chosen:
        if name in found:
            continue
        x = prepare(image(name), name, demo.PREPROCESSING, "").inputs
        result = dt.fit_taylor(model, x, "blur", (7, 7))
        size = float(result.pair_shares.abs().sum()) / 2
        found[name] = {"total": result.total, "r2": dict(result.fidelity), "sum_of_sizes": size,
                       "residual": result.residual, **result.details}  # fmt: skip
        print(name, found[name], flush=True)
        _write("fits", found)
    return found


class FromVectors(nn.Module):
    """The demo's network as a function of word vectors (N, words, 50)."""

    def __init__(self, model: SentimentCNN) -> None:
        super().__init__()
        self.convolutions, self.decide = model.convolutions, model.decide

    def forward(self, x: Tensor) -> Tensor:
        x = x.transpose(1, 2)
        return self.decide(torch.cat([F.relu(convolution(x)).amax(2) for convolution in self.convolutions], 1))


class Probe(nn.Module):
    """MiniLM's mean state and a linear decision: scores (N, 2)."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder, self.decide = encoder, nn.Linear(encoder.config.hidden_size, 2)

    def forward(self, input_ids: Tensor | None = None, inputs_embeds: Tensor | None = None) -> Tensor:
        return self.decide(self.encoder(input_ids=input_ids, inputs_embeds=inputs_embeds).last_hidden_state.mean(1))


class FromEmbeddings(nn.Module):
    """The same as a function of word vectors (N, tokens, 384)."""

    def __init__(self, probe: Probe) -> None:
        super().__init__()
        self.probe = probe

    def forward(self, x: Tensor) -> Tensor:
        return self.probe(inputs_embeds=x)


def held_out(data: Path | None) -> tuple[Corpus, list[str]]:
    """The corpus, and the sentences that are looked at."""
    corpus = read_corpus(data) if data is not None else read_corpus()
    return corpus, [text for text in corpus.held_out.texts if len(text.split()) in SHORT][:SENTENCES]


def texts(
    part: str,
    model: nn.Module,
    tokenizer: Any,
    by_vectors: nn.Module,
    lookup: nn.Module,
    chosen: list[str],
    accuracy: float,
) -> dict:
    """Per sentence: orders along its vectors, and pairs of words by the method that `interactions` chooses."""
    found = (_read(part) or {"sentences": {}}) | {"accuracy": accuracy}
    for n, text in enumerate(chosen):
        if text in found["sentences"]:
            continue
        pairs = dt.text_interactions(model, tokenizer, text, target=1)
        ids, blank = pairs_ids(tokenizer, text)
        with torch.no_grad():
            x, x0 = lookup(ids), lookup(blank)
        orders = dt.taylor_orders(by_vectors, x, x0, target=1)
        found["sentences"][text] = {
            "total": orders.total, "shares": orders.shares.tolist(), "trust_radius": orders.trust_radius.tolist(),
            "method": pairs.method, "residual": pairs.relative_residual, "r2": dict(pairs.fidelity),
            "top": [" × ".join(pairs.top(1)[0][0]), pairs.top(1)[0][1]],
        }  # fmt: skip
        if n % 5 == 4:
            _write(part, found)
    _write(part, found)
    return found


def pairs_ids(tokenizer: Any, text: str) -> tuple[Tensor, Tensor]:
    """Ids of a text, and of the same text with every word absent."""
    encoded = encode(tokenizer, text, limit=None)
    stand_in, _ = stand_in_of(tokenizer)
    blank = [token.id if token.special else stand_in for token in encoded.tokens]
    return torch.tensor([encoded.ids]), torch.tensor([blank])


def cnn(data: Path | None) -> dict:
    corpus, chosen = held_out(data)
    trained = train(corpus)
    by_vectors = FromVectors(trained.model).eval()
    found = texts("cnn", trained.model, trained.vocabulary, by_vectors, trained.model.words, chosen, trained.accuracy)
    return found


def minilm(data: Path | None) -> dict:
    corpus, chosen = held_out(data)
    encoder, tokenizer = load_minilm()
    probe = Probe(encoder).eval().requires_grad_(False)
    train_on, truth = corpus.train.texts[:PROBED], torch.tensor(corpus.train.positive[:PROBED]).float()

    def states(some: list[str]) -> Tensor:
        with torch.no_grad():
            return torch.cat([
                encoder(input_ids=torch.tensor([tokenizer(t).input_ids])).last_hidden_state.mean(1) for t in some
            ])  # fmt: skip

    x = states(list(train_on)).double()
    centre, middle = x.mean(0), truth.double().mean()
    gram = (x - centre).T @ (x - centre) + 0.02 * len(x) * torch.eye(x.shape[1], dtype=torch.float64)
    weight = torch.linalg.solve(gram, (x - centre).T @ (truth.double() - middle))
    probe.decide.weight.copy_(torch.stack([-weight, weight]))
    probe.decide.bias.copy_(torch.stack([centre @ weight, -(centre @ weight)]))
    tested = states(chosen)
    wanted = torch.tensor([corpus.held_out.positive[corpus.held_out.texts.index(t)] for t in chosen])
    right = float((probe.decide(tested).argmax(1) == wanted.long()).float().mean())
    found = texts(
        "minilm", probe, tokenizer, FromEmbeddings(probe).eval(), encoder.get_input_embeddings(), chosen, right
    )
    return found


def page() -> str:
    lines = [
        "# Where Taylor expansions hold",
        "",
        "Written by `make taylor-tables`, part by part.",
        "",
    ]
    table = _read("concrete")
    if table:
        lines += [
            "## A table: strength of concrete",
            "",
            f"Mean of five softplus networks (test R² {table['r2_of_the_network']:.3f}); medians over {table['mixtures']} "
            "test mixtures, expanded between the mean mixture and each.",
            "The correlation is with the exact Shapley-Taylor index over all pairs; R² is of order 2 on columns present or "
            "absent at random.",
            "",
            "| estimator | passes | relative residual | correlation of pairs | R² |",
            "|---|---|---|---|---|",
        ]
        for name, row in table["estimators"].items():
            lines.append(
                f"| {name} | {row['passes']:.0f} | {row['residual']:.2g} | {row['correlation']:.3f} | {row['r2']:.3f} |"
            )
        lines += ["", "| trust radius | least | median | most |", "|---|---|---|---|"]
        lines += [f"| at the {k} | {a:.0%} | {b:.0%} | {c:.0%} |" for k, (a, b, c) in table["trust_radius"].items()]
        best = ", ".join(f"{name} {value:.2f}" for name, value in table["top_pairs"])
        lines += ["", f"Strongest pairs over the test rows (mean |∂²f|, MPa per two standard deviations): {best}.", ""]
    table = _read("photos")
    if table:
        lines += [
            "## Photos: EfficientNet-Lite0, predicted class, towards a blurred copy",
            "",
            "Order maps at the photo; 7 gradients each. The shares are of f(x) − f(x₀); the trust radius is the part of the "
            "way on which an order stays within 10 %.",
            "",
            "| photo | f(x) − f(x₀) | shares of orders 1 to 4 | trust radius of orders 1 to 4 |",
            "|---|---|---|---|",
        ]
        for name, row in table.items():
            shares = ", ".join(f"{v:.3g}" for v in row["shares"])
            reach = ", ".join(part_of_the_way(v) for v in row["trust_radius"])
            lines.append(f"| {name} | {row['value'] - row['reference_value']:.2f} | {shares} | {reach} |")
        lines.append("")
    table = _read("fits")
    if table:
        lines += [
            "The same network, a quadratic fitted to 600 random masks of 7 by 7 patches, R² on a fifth of them:",
            "",
            "| photo | f(x) − f(x₀) | R² of order 1 | R² of order 2 | Σ of pairs' sizes |",
            "|---|---|---|---|---|",
        ]
        for name, row in table.items():
            r2 = {str(k): v for k, v in row["r2"].items()}
            lines.append(f"| {name} | {row['total']:.2f} | {r2['1']:.3f} | {r2['2']:.3f} | {row['sum_of_sizes']:.1f} |")
        lines.append("")
    for part, model in (("cnn", "GloVe vectors and a ReLU CNN, the demo's"), ("minilm", "a linear decision on MiniLM")):
        if table := _read(part):
            lines += of_texts(table, model)
    lines += [f"torch {torch.__version__}, Python {platform.python_version()}, one thread.", ""]
    return "\n".join(lines)


def of_texts(table: dict, model: str) -> list[str]:
    """Medians over the sentences."""
    rows = list(table["sentences"].values())
    shares = [median(row["shares"][k] / row["total"] for row in rows if row["total"]) for k in range(4)]
    radii = [sorted(row["trust_radius"][k] for row in rows) for k in range(4)]
    fit = {k: median(row["r2"].get(k, row["r2"].get(int(k), 0.0)) for row in rows) for k in ("1", "2")}
    methods = sorted({row["method"] for row in rows})
    reach = [f"{part_of_the_way(r[len(r) // 10])} to {part_of_the_way(r[-1 - len(r) // 10])}" for r in radii]
    rounded = ", ".join(f"{v:.2g}" for v in shares)
    return [
        f"## Sentences: {model}",
        "",
        f"{len(rows)} held-out sentences of {SHORT.start} to {SHORT.stop - 1} words; the network judges {table['accuracy']:.0%} of what it "
        "has not seen rightly. The score of “positive”, towards absent words. Medians; trust radii from the 10th to the 90th percentile.",
        "",
        "| along the word vectors, at the sentence | order 1 | 2 | 3 | 4 |",
        "|---|---|---|---|---|",
        "| share of f(x) − f(x₀) | " + " | ".join(rounded.split(", ")) + " |",
        "| trust radius | " + " | ".join(reach) + " |",
        "",
        f"Words present or absent ({', '.join(methods)}): residual {median(row['residual'] for row in rows):.1g} of f(x) − f(x₀), "
        f"R² on unseen sets of words {fit['1']:.2f} with words alone, {fit['2']:.2f} with pairs.",
        "",
    ]


def _write(part: str, found: dict) -> None:
    path = HERE / "results" / f"taylor_{part}.json"
    path.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _read(part: str) -> dict | None:
    path = HERE / "results" / f"taylor_{part}.json"
    return json.loads(path.read_text()) if path.exists() else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", default=["concrete", "photos", "fits", "cnn", "minilm"])
    parser.add_argument("--only", nargs="*", help="photos, where not all")
    parser.add_argument("--data", type=Path, help="where the rated sentences lie, if not where `make demo` puts them")
    asked = parser.parse_args()
    made = {
        "concrete": concrete,
        "photos": lambda: photos(list(asked.only or PHOTOS)),
        "fits": lambda: fits(list(asked.only or PHOTOS)),
        "cnn": lambda: cnn(asked.data),
        "minilm": lambda: minilm(asked.data),
    }
    for part in asked.parts:
        found = made[part]()
        old = _read(part) if asked.only else None
        _write(part, {**(old or {}), **found})
    (HERE.parent / "docs" / "taylor_tables.md").write_text(page())


if __name__ == "__main__":
    main()
