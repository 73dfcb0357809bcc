"""Gradients for 1 % completeness: the adaptive Taylor path against integrated gradients by fixed rules (`make taylor-path`).

EfficientNet-Lite0, eight photos, a blurred reference, the predicted class. The fixed rules, Gauss-Legendre and Riemann sums
with midpoints, get as many gradients as the path took, and twice as many.

Writes benchmarks/results/taylor_path.json (photo by photo; run again to go on) and docs/taylor_path.md.
"""

from __future__ import annotations

import argparse
import json
import platform
from pathlib import Path
from typing import Any

import numpy as np
import skimage.data
import torch
from PIL import Image
from sklearn.datasets import load_sample_image
from torch import Tensor

from deeptaylor.demo import PREPROCESSING, load_demo_model
from deeptaylor.taylor.absence import absent
from deeptaylor.taylor.path import taylor_path
from deeptaylor.taylor.score import Score

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "taylor_path.json"
PAGE = ROOT / "docs" / "taylor_path.md"
RTOL = 0.01
RULES = ("Gauss", "midpoint")
TIMES = (1, 2)
PHOTOS = ("chelsea", "coffee", "camera", "motorcycle", "china", "rocket", "flower", "astronaut")


def photo(name: str) -> Tensor:
    if name in ("china", "flower"):
        pixels = load_sample_image(f"{name}.jpg")
    elif name == "motorcycle":
        pixels = np.asarray(Image.open(Path(skimage.data.__file__).parent / "motorcycle_left.png").convert("RGB"))
    else:
        pixels = getattr(skimage.data, name)()
    return PREPROCESSING.normalise(PREPROCESSING.crop(Image.fromarray(pixels)))


def nodes(rule: str, count: int) -> tuple[np.ndarray, np.ndarray]:
    if rule == "Gauss":
        places, weights = np.polynomial.legendre.leggauss(count)
        return (places + 1) / 2, weights / 2
    return (np.arange(count) + 0.5) / count, np.full(count, 1 / count)


def measure(model: Any, x: Tensor) -> dict[str, Any]:
    x0 = absent(x, "blur")
    score = Score(model, x, batch=8)
    path = taylor_path(model, x, x0, rtol=RTOL)
    slopes: dict[float, float] = {}

    def error(rule: str, count: int) -> float:
        places, weights = nodes(rule, count)
        missing = [float(t) for t in places if float(t) not in slopes]
        for start in range(0, len(missing), 8):
            part = missing[start : start + 8]
            points = x0 + torch.tensor(part, dtype=x.dtype).view(-1, 1, 1, 1) * (x - x0)
            found = (score.gradients(points).double() * (x - x0).double()).flatten(1).sum(1).tolist()
            slopes.update(zip(part, found, strict=True))
        return abs(float(sum(w * slopes[float(t)] for t, w in zip(places, weights, strict=True))) - path.total) / abs(
            path.total
        )

    return {
        "difference": path.total,
        "gradients": path.cost.gradients,
        "forwards": path.cost.forwards,
        "error": path.relative_residual,
        "spread": path.details["spread"],
        "shortest": min(path.details["widths"]),
        "fixed": {rule: [error(rule, times * path.cost.gradients) for times in TIMES] for rule in RULES},
    }


def page(results: dict[str, Any]) -> str:
    lines = [
        "# Adaptive Taylor path against fixed rules",
        "",
        "Written by `benchmarks/taylor_path.py` (`make taylor-path`); numbers in `benchmarks/results/taylor_path.json`.",
        "",
        "EfficientNet-Lite0, predicted class, reference: the photo blurred by an eighth of its side. The path is asked for a",
        f"completeness error of {RTOL:.0%}, and for remainders whose squares do not add up to more; besides gradients it reads",
        "values of f at the ends of its stretches (a value costs half a gradient). Integrated gradients by a fixed rule get as",
        "many gradients as the path took, and twice as many: about what the path's gradients and values cost together, and more.",
        "A fixed rule does not say which of its counts is enough: below 1 % at one count and above at a larger one is luck.",
        "",
        "| photo | f(x) − f(x₀) | path: gradients | values | error | shortest step | Gauss, as many | Gauss, twice | midpoint, as many | midpoint, twice |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, row in results["photos"].items():
        fixed = " | ".join(f"{error:.1%}" for rule in RULES for error in row["fixed"][rule])
        lines.append(
            f"| {name} | {row['difference']:.2f} | {row['gradients']} | {row['forwards']} | {row['error']:.2%} | "
            f"{row['shortest']:.4f} | {fixed} |"
        )
    within = {
        rule: [sum(row["fixed"][rule][k] <= RTOL for row in results["photos"].values()) for k in range(len(TIMES))]
        for rule in RULES
    }
    count = len(results["photos"])
    met = sum(row["error"] <= RTOL for row in results["photos"].values())
    lines += [
        "",
        f"Within 1 %: the path on {met} of {count} photos; Gauss with as many gradients on {within['Gauss'][0]}, with twice as "
        f"many on {within['Gauss'][1]}; midpoints on {within['midpoint'][0]} and {within['midpoint'][1]}.",
        "",
        f"Environment: {results['environment']}.",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("photos", nargs="*", default=PHOTOS)
    parser.add_argument("--fresh", action="store_true", help="forget what was measured")
    arguments = parser.parse_args()
    results: dict[str, Any] = {
        "environment": f"torch {torch.__version__}, Python {platform.python_version()}, CPU",
        "photos": {},
    }
    if RESULTS.exists() and not arguments.fresh:
        results["photos"] = json.loads(RESULTS.read_text())["photos"]
    torch.set_num_threads(1)
    model = load_demo_model().model
    for name in arguments.photos:
        if name not in results["photos"]:
            results["photos"][name] = measure(model, photo(name))
            print(name, results["photos"][name], flush=True)
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
        PAGE.write_text(page(results))


if __name__ == "__main__":
    main()
