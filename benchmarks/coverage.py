"""Every composite on every convolutional family: is all relevance accounted for? (`make coverage`).

For every model of `models.py`, in float32 and float64, with random weights:

* the ledger closes: |Σ inputs + Σ absorbed - explained| within 1e-4 (float32) or 1e-9 (float64) of
  max(|explained|, Σ|R| / 1000);
* `gradient-times-input` is autograd's and the traced output is the model's, both measured against torch in float64:
  within 1e-10 of the largest entry in float64, 1e-5 in float32, or 5 times torch's own rounding;
* the model is bit for bit what it was.

Writes docs/coverage.md and benchmarks/results/coverage.json, model by model. A run that was cut short goes on where it
stopped; results of another version of the sources are done anew. Exits with 1 where a claim fails.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import gc
import hashlib
import json
import math
import platform
import sys
import time
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import models
import torch
from torch import Tensor, nn

import deeptaylor as dt

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "coverage.json"
TABLE = ROOT / "docs" / "coverage.md"
COMMAND = "python benchmarks/coverage.py"

BOXED: dict[str, Any] = {"bounds": models.BOUNDS}
GRADIENT = "gradient-times-input"
COMPOSITES: dict[str, tuple[str, dict[str, Any]]] = {
    "auto": ("auto", {}),
    "deep-taylor": ("deep-taylor", {}),
    "deep-taylor, bounds": ("deep-taylor", BOXED),
    "epsilon": ("epsilon", {}),
    "epsilon-plus": ("epsilon-plus", {}),
    "epsilon-plus-flat": ("epsilon-plus-flat", {}),
    "epsilon-alpha2-beta1": ("epsilon-alpha2-beta1", {}),
    "epsilon-alpha2-beta1-flat": ("epsilon-alpha2-beta1-flat", {}),
    "epsilon-gamma-box": ("epsilon-gamma-box", BOXED),
    GRADIENT: (GRADIENT, {}),
}
DTYPES = {"float32": torch.float32, "float64": torch.float64}
CLOSED = {"float32": 1e-4, "float64": 1e-9}
EQUAL = {"float32": 1e-5, "float64": 1e-10}
NOISE = 5.0
"""How much further from torch's float64 than torch's own rounding the gradient may be."""
COPIES = 4
SLICES = {
    "ci": [
        "torchvision:resnet18",
        "torchvision:densenet121",
        "torchvision:mobilenet_v3_small",
        "torchvision:shufflenet_v2_x0_5",
        "torchvision:squeezenet1_1",
        "timm:resnetv2_18",
    ],
}

OUTER = ("cli", "demo", "plots")
"""Modules that no number here depends on."""

Row = dict[str, Any]


def examine(case: models.Case, dtype: str) -> Row:
    """What holds for one model in one dtype: numbers, and the reason of every failure."""
    started = time.perf_counter()
    model, images = models.build(case, dtype=DTYPES[dtype])
    with torch.no_grad():
        target = model(images).argmax(1)
    before = _state(model)
    failures: list[str] = []
    row: Row = {"model": str(case), "family": case.family, "dtype": dtype, "size": case.size, "composites": {}}
    for name, (composite, options) in COMPOSITES.items():
        try:
            numbers, explainer = _explain(model, images, target, composite, options, row)
            failures += _compare(row, model, images, target, explainer) if name == GRADIENT else []
        except Exception as error:
            failures.append(f"{name}: {type(error).__name__}: {_shorten(error)}")
            continue
        row["composites"][name] = numbers
        if not numbers["gap"] <= CLOSED[dtype]:
            failures.append(f"{name}: the ledger misses {numbers['gap']:.2g} of the scale, first at {numbers['worst']}")
    after = _state(model)
    changed = [key for key in {**before, **after} if before.get(key) != after.get(key)]
    failures += [f"the model was changed: {', '.join(changed[:3])}"] * bool(changed)
    return {**row, "failures": failures, "seconds": round(time.perf_counter() - started, 1)}


def _explain(
    model: nn.Module, images: Tensor, target: Tensor, composite: str, options: dict[str, Any], row: Row
) -> tuple[dict[str, Any], dt.Explainer]:
    started = time.perf_counter()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        explainer = dt.Explainer(model, images, composite=composite, **options)
        traced = time.perf_counter()
        result = explainer(images, target=target, ledger=True)
    row.setdefault("trace_seconds", round(traced - started, 2))
    row.setdefault("operations", len(explainer.plan.rows))
    total = result.relevance.flatten(1).abs().sum(1)
    gap = (result.relevance.flatten(1).sum(1) + result.ledger.absorbed - result.explained).abs()
    numbers = {
        "gap": (gap / torch.maximum(result.explained.abs(), total / 1000)).max().item(),
        "widest": max(entry.size for entry in result.ledger.rows),
        "computed_in": result.settings.get("computed_in", str(result.output.dtype).removeprefix("torch.")),
        "growth": (total / result.explained.abs()).max().item(),
        "worst": ", ".join(entry.name for entry in result.ledger.worst(1)),
        "warnings": sorted({str(warning.message).splitlines()[0] for warning in caught}),
        "seconds": round(time.perf_counter() - traced, 2),
    }
    return numbers, explainer


def _compare(row: Row, model: nn.Module, images: Tensor, target: Tensor, explainer: dt.Explainer) -> list[str]:
    """Adds how far gradient × input and the output are from torch's in float64; the failures.

    A ReLU network has no one gradient: rounding moves a few units across 0, other ones in every order of summation.
    So copies of the images that differ in the last bit are taken too. One of them must be as close to float64 as
    torch's own results are on all of them; what is wrong in earnest is wrong on every copy.
    """
    exact = _torch(copy.deepcopy(model).double(), images.double(), target)
    generator = torch.Generator().manual_seed(0)
    own: dict[str, list[float]] = {name: [] for name in exact}
    noise: dict[str, list[float]] = {name: [0.0] for name in exact}
    last_bit = torch.finfo(images.dtype).eps
    for draw in range(COPIES):
        signs = torch.randint(-1, 2, images.shape, generator=generator).to(images.dtype)
        moved = images * (1 + last_bit * signs * (draw > 0))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", dt.errors.RelevanceWarning)  # counted in `_explain`
            result = explainer(moved, target=target)
        for name, value in (("output", result.output), ("gradient_times_input", result.relevance)):
            own[name].append(_distance(value, exact[name]))
        for name, value in _torch(model, moved, target).items():
            noise[name].append(_distance(value, exact[name]))
    failures = []
    for name in exact:
        row |= {name: min(own[name]), f"{name}_noise": max(noise[name])}
        if not row[name] <= max(EQUAL[row["dtype"]], NOISE * row[f"{name}_noise"]):
            failures.append(f"{name} is off by {row[name]:.2g} of the largest entry, torch's by {max(noise[name]):.2g}")
    return failures


def _torch(model: nn.Module, images: Tensor, target: Tensor) -> dict[str, Tensor]:
    leaf = images.clone().requires_grad_()
    output = model(leaf)
    (gradient,) = torch.autograd.grad(output.gather(1, target[:, None]).sum(), leaf)
    return {"output": output.detach(), "gradient_times_input": images * gradient}


def _distance(value: Tensor, exact: Tensor) -> float:
    return ((value - exact).abs().max() / exact.abs().max()).item()


def _state(model: nn.Module) -> dict[str, Any]:
    """All that must stay as it was, as something that can be compared."""
    state: dict[str, Any] = {"random numbers": _digest(torch.get_rng_state())}
    for name, tensor in model.state_dict().items():
        state[f"values of {name}"] = _digest(tensor)
    for name, parameter in model.named_parameters():
        state[f"parameter {name}"] = (id(parameter), parameter.requires_grad, parameter.grad is None)
    for name, module in model.named_modules():
        hooks = tuple(len(table) for key, table in vars(module).items() if key.endswith("_hooks"))
        own = (tuple(sorted(vars(module))), id(getattr(module.forward, "__func__", None)))
        state[f"module {name}"] = (module.training, hooks, *own)
    return state


def _digest(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.detach().contiguous().flatten().view(torch.uint8).numpy()).hexdigest()


def _shorten(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if len(text) < 400 else text[:400] + " …"


def run(cases: Iterable[models.Case], *, fresh: bool) -> list[Row]:
    """Results of `cases`, from the file where they are there already."""
    source = _source_digest()
    known: dict[str, Row] = {}
    if RESULTS.exists():
        known = {_key(row): row for row in json.loads(RESULTS.read_text())["rows"]}
    rows = []
    for case in cases:
        for dtype in DTYPES:
            row = known.get(f"{case} {dtype}")
            if row is None or fresh or row["source"] != source:
                row = {**examine(case, dtype), "source": source}
                known[_key(row)] = row
                _write(known)
                gc.collect()
            rows.append(row)
            worst = max((numbers["gap"] for numbers in row["composites"].values()), default=math.nan)
            verdict = "; ".join(row["failures"]) or "ok"
            print(f"{row['model']:32} {dtype} {row['seconds']:6.1f} s  gap {worst:.1e}  {verdict}", flush=True)
    return rows


def _key(row: Row) -> str:
    return f"{row['model']} {row['dtype']}"


def _write(known: dict[str, Row]) -> None:
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    temporary = RESULTS.with_suffix(".part")
    text = json.dumps({"environment": _environment(), "rows": list(known.values())}, indent=1) + "\n"
    temporary.write_text(anywhere(text))
    temporary.replace(RESULTS)


def anywhere(text: str) -> str:
    """Paths as they are in any checkout."""
    return text.replace(f"{ROOT}/", "")


def _source_digest() -> str:
    """Changes whenever the engine, the models or this file change."""
    package = Path(dt.__file__).parent
    engine = [path for path in [*package.glob("*.py"), *package.glob("rules/*.py")] if path.stem not in OUTER]
    files = [*sorted(engine), Path(models.__file__), Path(__file__)]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:12]


def _environment() -> dict[str, str]:
    import timm
    import torchvision

    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__.split("+")[0],
        "timm": timm.__version__,
        "machine": f"{platform.system()} {platform.machine()}, 1 thread",
    }


HEAD = """\
# Coverage

Every convolutional family of torchvision and timm: {models} models with random weights, random batch-norm statistics
and biases that are not zero; {composites} composites; float32 and float64. The ledger closes in {closing} of {runs}
explanations, and {passing} of {models} models pass every check. Made by

    {command}

with {environment}; the rows are of {versions} state(s) of the sources, named in the JSON beside them.

* A composite's column: log10 of the gap |Σ inputs + Σ absorbed - explained| as a share of max(|explained|, Σ|R|/1000),
  the worst of {batch} images, float32 / float64. Required: at most -4 / -9.
* **G×I**: log10 of the largest difference between `gradient-times-input` and autograd's in float64, as a share of the
  largest entry, float32 / float64; in brackets that of torch's own float32. A unit that rounding moves across 0 changes the
  gradient for good, so {copies} copies of the images are taken that differ in the last bit: our best, torch's worst.
  Required: at most -5 / -10, or {noise:g} times torch's own.
* **ops**: operations in the plan. **trace**: seconds to trace, check and plan in float32, on a shared machine.
* Bold: misses its limit; the reasons stand below the table. So do the explanations in float32 whose ledger only closed when they were
  computed again in float64, which the explainer does by itself, with a warning.

"""


def table(rows: list[Row]) -> str:
    """docs/coverage.md."""
    by_model: dict[str, dict[str, Row]] = {}
    for row in rows:
        by_model.setdefault(row["model"], {})[row["dtype"]] = row
    failed = [row for row in rows if row["failures"]]
    head = HEAD.format(
        models=len(by_model),
        composites=len(COMPOSITES),
        closing=sum(entry["gap"] <= CLOSED[row["dtype"]] for row in rows for entry in row["composites"].values()),
        runs=len(rows) * len(COMPOSITES),
        passing=len(by_model) - len({row["model"] for row in failed}),
        command=COMMAND,
        environment=", ".join(f"{name} {version}" for name, version in _environment().items()),
        batch=models.BATCH,
        versions=len({row["source"] for row in rows}),
        noise=NOISE,
        copies=COPIES,
    )
    lines = [
        "| " + " | ".join(["model", "pixels", "ops", "trace", "G×I", *COMPOSITES]) + " |",
        "|---" * (5 + len(COMPOSITES)) + "|",
    ]
    for name, dtypes in by_model.items():
        single, double = dtypes["float32"], dtypes["float64"]
        cells = [name, str(single["size"]), str(single.get("operations", "–")), str(single.get("trace_seconds", "–"))]
        cells.append(" / ".join(_gradient(row) for row in (single, double)))
        cells += [f"{_gap(single, composite)} / {_gap(double, composite)}" for composite in COMPOSITES]
        lines.append("| " + " | ".join(cells) + " |")
    reasons = [f"* {row['model']}, {row['dtype']}: {reason}" for row in failed for reason in row["failures"]]
    wide = [
        f"* {row['model']}, {name}: Σ|R| reaches {entry['widest']:.2g} inside the network; closed to {entry['gap']:.1e}"
        for row in rows
        for name, entry in row["composites"].items()
        if entry.get("computed_in", row["dtype"]) != row["dtype"]
    ]
    lines += ["", "## Computed again in float64", "", *(wide or ["None."])]
    lines += ["", "## What fails", "", *(reasons or ["Nothing."])]
    waiting = [str(case) for case in models.CASES if str(case) not in by_model]
    if waiting:
        lines += ["", "## Further members of these families, on the list but not run", "", ", ".join(waiting) + "."]
    lines += ["", "## Families of timm that are not here", ""]
    for reason in dict.fromkeys(models.LEFT_OUT.values()):
        lines.append(f"* {', '.join(name for name, why in models.LEFT_OUT.items() if why == reason)}: {reason}.")
    return head + "\n".join(lines) + "\n"


def _gradient(row: Row) -> str:
    limit = max(EQUAL[row["dtype"]], NOISE * row.get("gradient_times_input_noise", 0))
    own = f" ({_log(row.get('gradient_times_input_noise'))})" if row["dtype"] == "float32" else ""
    return _checked(row.get("gradient_times_input"), limit) + own


def _gap(row: Row, composite: str) -> str:
    return _checked(row["composites"].get(composite, {}).get("gap"), CLOSED[row["dtype"]])


def _checked(number: float | None, limit: float) -> str:
    return _log(number) if number is not None and number <= limit else f"**{_log(number)}**"


def _log(number: float | None) -> str:
    if number is None or not math.isfinite(number):
        return "–" if number is None else "nan"
    return "0" if number == 0 else f"{math.log10(number):.0f}"


def _page() -> None:
    """docs/coverage.md, from the models whose two rows are there."""
    held = {_key(row): row for row in json.loads(RESULTS.read_text())["rows"]}
    _write(held)
    pairs = [[held.get(f"{case} {dtype}") for dtype in DTYPES] for case in models.CASES]
    TABLE.write_text(table([row for pair in pairs if None not in pair for row in pair if row is not None]))


def main() -> int:
    """Runs the chosen models; writes the table where all were chosen."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="models by name, e.g. resnet18 or timm:resnet18")
    parser.add_argument("--slice", choices=SLICES, help="a short, varied list of models")
    parser.add_argument("--fresh", action="store_true", help="measure again what was measured")
    parser.add_argument("--page", action="store_true", help="write the page of the rows that are there; run nothing")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.page:
        _page()
        return 0
    chosen = arguments.only or SLICES.get(arguments.slice)
    rows = run(models.find(chosen) if chosen else models.CASES, fresh=arguments.fresh)
    if not chosen:
        _page()
    failures = [f"{row['model']} {row['dtype']}: {reason}" for row in rows for reason in row["failures"]]
    print(f"\n{len(rows)} runs, {len(failures)} failures", *failures, sep="\n  ")
    return bool(failures)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main())
    sys.exit(130)
