"""Gradients that integrated gradients need for 1 % completeness: adaptive Taylor path against fixed rules (`make taylor-path`).

EfficientNet-Lite0, eight photos, a blurred reference, the predicted class. The fixed rules are asked for 8, 16, … 256
gradients, and for as many as the adaptive path took. A fixed rule *needs* n gradients where its error is at most 1 % at n and
at every larger n that was tried: an error that is small by chance at one n is not known to be so without trying others.

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
from deeptaylor.taylor.path import taylor_path
from deeptaylor.taylor.references import blur
from deeptaylor.taylor.score import Score

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "taylor_path.json"
PAGE = ROOT / "docs" / "taylor_path.md"
RTOL = 0.01
COUNTS = (8, 16, 32, 64, 128, 256)
RULES = ("Gauss", "midpoint", "left")
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
    return (np.arange(count) + (0.5 if rule == "midpoint" else 0.0)) / count, np.full(count, 1 / count)


def measure(model: Any, x: Tensor) -> dict[str, Any]:
    x0 = blur(x)
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
        "same": {rule: error(rule, path.cost.gradients) for rule in RULES},
        "fixed": {rule: {str(n): error(rule, n) for n in COUNTS} for rule in RULES},
    }


def needed(errors: dict[str, float]) -> int | None:
    """The smallest count from which on every tried count is within the tolerance."""
    found = None
    for count in sorted(COUNTS, reverse=True):
        if errors[str(count)] > RTOL:
            break
        found = count
    return found


def page(results: dict[str, Any]) -> str:
    lines = [
        "# Adaptive Taylor path against fixed rules",
        "",
        "Written by `benchmarks/taylor_path.py` (`make taylor-path`); numbers in `benchmarks/results/taylor_path.json`.",
        "",
        "EfficientNet-Lite0, predicted class, reference: the photo blurred by a twentieth of its side. The path is asked for a",
        f"completeness error of {RTOL:.0%}, and for remainders whose squares do not add up to more; it reads a value of f (half a",
        "gradient) at both ends of every stretch. A fixed rule *needs* n gradients where it stays within 1 % at n and at every",
        f"larger count tried ({', '.join(map(str, COUNTS))}); “> 256” where it is not within 1 % at 256.",
        "",
        "| photo | f(x) − f(x₀) | path: gradients | values | error | Gauss needs | midpoint | left | error of Gauss, midpoint, left with the path's count of gradients |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, row in results["photos"].items():
        needs = [str(needed(row["fixed"][rule]) or f"> {COUNTS[-1]}") for rule in RULES]
        same = ", ".join(f"{row['same'][rule]:.1%}" for rule in RULES)
        lines.append(
            f"| {name} | {row['difference']:.2f} | {row['gradients']} | {row['forwards']} | {row['error']:.2%} | "
            + " | ".join(needs) + f" | {same} |"
        )  # fmt: skip
    lines += [
        "",
        "Errors of the fixed rules, by number of gradients:",
        "",
        "| photo | rule | " + " | ".join(map(str, COUNTS)) + " |",
        "|---|---|" + "---|" * len(COUNTS),
    ]
    for name, row in results["photos"].items():
        for rule in RULES:
            lines.append(
                f"| {name} | {rule} | " + " | ".join(f"{row['fixed'][rule][str(n)]:.1%}" for n in COUNTS) + " |"
            )
    lines += ["", f"Environment: {results['environment']}.", ""]
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
            print(name, {key: value for key, value in results["photos"][name].items() if key != "fixed"}, flush=True)
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
        PAGE.write_text(page(results))


if __name__ == "__main__":
    main()
