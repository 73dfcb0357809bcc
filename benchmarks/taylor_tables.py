"""Where Taylor expansions hold on real models: shares of orders, trust radii, residuals, held-out R².

Parts: `concrete` (40 test mixtures, every estimator), `photos` (EfficientNet-Lite0, eight photos, order maps), `fits`
(the same network, two photos, fitted pairs). Results go to benchmarks/results/taylor_<part>.json; the page docs/taylor_tables.md
is written from whatever parts there are.
"""

from __future__ import annotations

import argparse
import json
import platform
from pathlib import Path
from statistics import median

import torch

import deeptaylor as dt
from deeptaylor import demo, taylor_demo
from deeptaylor.report.findings import prepare
from deeptaylor.taylor.result import part_of_the_way
from deeptaylor.taylor.segments import each_feature

HERE = Path(__file__).parent
PHOTOS = ("coffee", "camera", "chelsea", "motorcycle", "china", "rocket", "flower", "astronaut")
FITTED = ("coffee", "camera")
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
    model, found = demo.load_demo_model().model, {}
    for name in chosen:
        x = prepare(image(name), name, demo.PREPROCESSING, "").inputs
        result = dt.fit_taylor(model, x, "blur", (7, 7))
        size = float(result.pair_shares.abs().sum()) / 2
        found[name] = {"total": result.total, "r2": dict(result.fidelity), "sum_of_sizes": size,
                       "residual": result.residual, **result.details}  # fmt: skip
        print(name, found[name], flush=True)
    return found


def page() -> str:
    lines = [
        "# Where Taylor expansions hold",
        "",
        "Written by `make taylor-tables`; every number is from one run of it.",
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
    lines += [f"torch {torch.__version__}, Python {platform.python_version()}, one thread.", ""]
    return "\n".join(lines)


def _read(part: str) -> dict | None:
    path = HERE / "results" / f"taylor_{part}.json"
    return json.loads(path.read_text()) if path.exists() else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", default=["concrete", "photos", "fits"])
    parser.add_argument("--only", nargs="*", help="photos, where not all")
    asked = parser.parse_args()
    made = {
        "concrete": concrete,
        "photos": lambda: photos(list(asked.only or PHOTOS)),
        "fits": lambda: fits(list(asked.only or FITTED)),
    }
    for part in asked.parts:
        found = made[part]()
        old = _read(part) if asked.only else None
        path = HERE / "results" / f"taylor_{part}.json"
        path.write_text(json.dumps({**(old or {}), **found}, indent=1) + "\n")
    (HERE.parent / "docs" / "taylor_tables.md").write_text(page())


if __name__ == "__main__":
    main()
