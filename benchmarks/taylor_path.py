"""Gradients for 1 % completeness: the adaptive Taylor path against integrated gradients by fixed rules (`make taylor-path`).

EfficientNet-Lite0, eight photos, a blurred reference, the predicted class. A fixed rule does not say how many nodes are enough;
its user tries counts until the sum is within 1 % of f(x) − f(x₀): Gauss-Legendre with 32, then 64 nodes, Riemann sums with
27, then 81 midpoints, which keep the nodes they have. What was spent until then is compared with what the path spent. Beside it
two figures that no user has beforehand: the count from which on a rule's error stays within 1 % (of 16, 32, … 160), and its error
with exactly as many gradients as the path.

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
from deeptaylor.taylor.references import reference
from deeptaylor.taylor.score import Score

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "taylor_path.json"
PAGE = ROOT / "docs" / "taylor_path.md"
RTOL = 0.01
RULES = ("Gauss", "midpoint")
COUNTS = {"Gauss": (32, 64), "midpoint": (27, 81)}
CURVE = range(16, 161, 16)
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
    x0 = reference(x, "blur")
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

    def tried(rule: str) -> dict[str, float]:
        """Errors by count, up to the first within the tolerance."""
        errors: dict[str, float] = {}
        for count in COUNTS[rule]:
            errors[str(count)] = error(rule, count)
            if errors[str(count)] <= RTOL:
                break
        return errors

    return {
        "difference": path.total,
        "gradients": path.cost.gradients,
        "forwards": path.cost.forwards,
        "error": path.relative_residual,
        "spread": path.details["spread"],
        "shortest": min(path.details["widths"]),
        "same": {rule: error(rule, path.cost.gradients) for rule in RULES},
        "tried": {rule: tried(rule) for rule in RULES},
        "curve": {rule: {str(count): error(rule, count) for count in CURVE} for rule in RULES},
    }


def needed(errors: dict[str, float]) -> tuple[int, str]:
    """The count from which on the tolerance is met, of those measured."""
    missed = [int(count) for count, error in errors.items() if error > RTOL]
    after = [int(count) for count in errors if not missed or int(count) > max(missed)]
    return (min(after), f"{min(after)}") if after else (max(missed) + 1, f"> {max(missed)}")


def spent(rule: str, errors: dict[str, float]) -> tuple[int, str]:
    """Gradients until the tolerance is met; where the last count tried misses it, at least the next one comes on top."""
    counts = [int(n) for n in errors]
    met = list(errors.values())[-1] <= RTOL
    if rule == "Gauss":
        total = sum(counts) + (0 if met else 2 * counts[-1])
    else:  # three times as many midpoints keep those there are
        total = counts[-1] if met else 3 * counts[-1]
    return total, f"{total}" if met else f"≥ {total}"


def first(errors: dict[str, float]) -> float:
    """The least count measured that happens to meet the tolerance."""
    return min((int(count) for count, error in errors.items() if error <= RTOL), default=float("inf"))


def page(results: dict[str, Any]) -> str:
    lines = [
        "# Adaptive Taylor path against fixed rules",
        "",
        "Written by `benchmarks/taylor_path.py` (`make taylor-path`); numbers in `benchmarks/results/taylor_path.json`.",
        "",
        "EfficientNet-Lite0, predicted class, reference: the photo blurred by a twentieth of its side. The path is asked for a",
        f"completeness error of {RTOL:.0%}, and for remainders whose squares do not add up to more; besides gradients it reads",
        "values of f at the ends of its stretches (a value costs half a gradient). A fixed rule does not say how many nodes are",
        "enough. *Spent*: gradients until its sum is within 1 % of f(x) − f(x₀), Gauss-Legendre with 32, then 64 nodes, Riemann",
        "sums with 27, then 81 midpoints, which keep the nodes they have; ≥ where neither was enough, so that the next count,",
        "twice or three times as large, comes on top. *Needed*: the number of nodes from which on the error stays within 1 %, of",
        f"{CURVE[0]}, {CURVE[1]}, … {CURVE[-1]}; below it the sum is within 1 % at some counts and not at others, by chance. *As many*: the",
        "error with exactly as many gradients as the path. Nobody knows the last two beforehand.",
        "",
        "| photo | f(x) − f(x₀) | path: gradients | values | error | shortest step | Gauss: spent | needed | as many | midpoints: spent | needed | as many |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    fewer, least, lucky = (dict.fromkeys(RULES, 0) for _ in range(3))
    for name, row in results["photos"].items():
        cells = []
        for rule in RULES:
            own, enough = spent(rule, row["tried"][rule]), needed(row["curve"][rule])
            cells += [own[1], enough[1], f"{row['same'][rule]:.1%}"]
            fewer[rule] += row["gradients"] < own[0]
            least[rule] += row["gradients"] < enough[0]
            lucky[rule] += row["gradients"] < first(row["curve"][rule])
        lines.append(
            f"| {name} | {row['difference']:.2f} | {row['gradients']} | {row['forwards']} | {row['error']:.2%} | "
            f"{row['shortest']:.4f} | {' | '.join(cells)} |"
        )
    count = len(results["photos"])
    met = sum(row["error"] <= RTOL for row in results["photos"].values())
    same = {rule: sum(row["same"][rule] <= RTOL for row in results["photos"].values()) for rule in RULES}
    lines += [
        "",
        f"The path is within 1 % on {met} of {count} photos, with fewer gradients than Gauss spends on {fewer['Gauss']} and than "
        f"midpoints spend on {fewer['midpoint']} of them, and with fewer than Gauss needs on {least['Gauss']} and midpoints need on "
        f"{least['midpoint']}; even the first of those counts that happens to do is larger than the path's on {lucky['Gauss']} and "
        f"{lucky['midpoint']}. With exactly as many gradients as the path Gauss happens to be within 1 % on {same['Gauss']}, midpoints "
        f"on {same['midpoint']}. In time, with its values, the path costs half as much again as its gradients.",
        "",
        "Errors of the fixed rules by number of nodes:",
        "",
    ]
    for name, row in results["photos"].items():
        for rule in RULES:
            tried = ", ".join(f"{n}: {error:.1%}" for n, error in row["curve"][rule].items())
            lines.append(f"* {name}, {rule}: {tried}")
    lines += ["", f"Environment: {results['environment']}.", ""]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("photos", nargs="*", default=PHOTOS)
    parser.add_argument("--fresh", action="store_true", help="measure again what was measured")
    arguments = parser.parse_args()
    results: dict[str, Any] = {
        "environment": f"torch {torch.__version__}, Python {platform.python_version()}, CPU",
        "photos": {},
    }
    if RESULTS.exists():
        results["photos"] = json.loads(RESULTS.read_text())["photos"]
    torch.set_num_threads(1)
    model = load_demo_model().model
    for name in arguments.photos:
        if arguments.fresh or name not in results["photos"]:
            results["photos"][name] = measure(model, photo(name))
            print(name, results["photos"][name], flush=True)
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
        PAGE.write_text(page(results))


if __name__ == "__main__":
    main()
