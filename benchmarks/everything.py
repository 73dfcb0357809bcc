"""One model of every family of torchvision, timm and transformers under `auto`: what can be explained? (`make architectures`).

For every case of `architectures.py`, in float32 and float64, with random weights:

* it is traced, and every operation has a role;
* the ledger closes: |Σ inputs + Σ absorbed - explained| within 1e-4 (float32) or 1e-8 (float64) of max(|explained|, Σ|R| / 1000);
* the output is the model's, measured against torch in float64;
* in float64 `gradient-times-input` is autograd's, on pixels or on the embeddings of words, within 1e-9 of the largest entry;
* the model and its inputs are bit for bit what they were.

Some models compute parts of themselves in float32 whatever their dtype. In float64 torch's own results are then taken with those parts in
float64, and the model's own output may differ by that much; the table says which.

Writes docs/architectures.md and benchmarks/results/architectures.json, model by model. A run that was cut short goes on where it stopped;
results of another version of the sources are done anew. Exits with 1 where a claim fails.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import gc
import hashlib
import json
import os
import sys
import time
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import architectures
import coverage
import torch
from architectures import Case, Inputs
from architectures_report import Row, table
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

import deeptaylor as dt

RESULTS = coverage.ROOT / "benchmarks" / "results" / "architectures.json"
TABLE = coverage.ROOT / "docs" / "architectures.md"
COMMAND = "python benchmarks/everything.py"
CLOSED = {"float32": 1e-4, "float64": 1e-8}
GRADIENT = 1e-9
"""How far gradient × input may be from autograd's in float64, as a share of the largest entry."""
SLICES = {
    "ci": [
        "transformers:bert",
        "transformers:gpt2",
        "transformers:llama",
        "transformers:mixtral",
        "transformers:t5",
        "transformers:mamba",
        "transformers:gemma3",
        "transformers:swin",
        "timm:eva02_tiny_patch14_224",
        "timm:xcit_nano_12_p16_224",
    ],
}
DEFINITIONS = {"transformers": ["architectures_transformers.py"]}
"""Where a library's models are defined; by default in the files of the images."""


def examine(case: Case, dtype: str) -> Row:
    """What holds for one model in one dtype: numbers, and the reason of every failure."""
    started = time.perf_counter()
    row: Row = {"model": case.name, "library": case.library, "family": case.family, "dtype": dtype, "note": case.note}
    try:
        model, inputs, kwargs = architectures.build(case, coverage.DTYPES[dtype])
    except Exception as error:
        return {**row, "failures": [f"can't be built: {_named(error)}"], "seconds": _since(started)}
    row["input"] = ", ".join(_size(name, tensor) for name, tensor in inputs.items() if "mask" not in name)
    before, given = coverage._state(model), {name: t.clone() for name, t in inputs.items()}
    failures = _explain(row, case, model, inputs, kwargs)
    after = coverage._state(model)
    changed = [key for key in {**before, **after} if before.get(key) != after.get(key)]
    changed += [f"input {name}" for name, tensor in given.items() if not torch.equal(tensor, inputs[name])]
    failures += [f"the model was changed: {', '.join(changed[:3])}"] * bool(changed)
    return {**row, "failures": failures, "seconds": _since(started)}


def _explain(row: Row, case: Case, model: nn.Module, inputs: Inputs, kwargs: dict[str, Any]) -> list[str]:
    """Adds the numbers to `row`; the failures."""
    started = time.perf_counter()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            explainer = dt.Explainer(model, inputs, kwargs=kwargs, **case.options)
            row["trace_seconds"] = _since(started)
            result = explainer(inputs, kwargs=kwargs, ledger=True)
        except Exception as error:
            return [_named(error)]
    row |= {
        "explain_seconds": round(time.perf_counter() - started - row["trace_seconds"], 2),
        "operations": len(explainer.plan.rows),
        "composite": explainer.plan.composite.name,
        "explained": list(result.relevances),
        "notes": list(explainer.plan.graph.notes),
        "warnings": sorted({str(warning.message).splitlines()[0] for warning in caught if _is_ours(warning)}),
        **_account(result),
    }
    failures = []
    if not row["inner_gap"] <= CLOSED[row["dtype"]]:
        failures.append(f"the ledger misses {row['gap']:.2g} of the scale, first at {row['worst']}")
    target = result.target if isinstance(result.target, Tensor) else torch.as_tensor(result.target)
    try:
        return failures + _compare(row, case, model, inputs, kwargs, target, result.output)
    except Exception as error:
        return [*failures, f"gradient-times-input: {_named(error)}"]


def _account(result: dt.Attribution) -> Row:
    """How far the ledger is from closing: on the scale of the inputs, and where Σ|R| is widest."""
    handed = [relevance.double().flatten(1) for relevance in result.relevances.values()]
    total = torch.stack([relevance.abs().sum(1) for relevance in handed]).sum(0)
    gap = (torch.stack([r.sum(1) for r in handed]).sum(0) + result.ledger.absorbed - result.explained).abs()
    widest = max(entry.size for entry in result.ledger.rows)
    explained = result.explained.abs().double()
    return {
        "gap": (gap / torch.maximum(explained, total / 1000)).max().item(),
        "inner_gap": gap.max().item() / max(explained.max().item(), widest / len(total) / 1000),
        "widest": widest,
        "growth": (total / explained).max().item(),
        "worst": ", ".join(
            f"{entry.op} {coverage.anywhere(entry.source)}" for entry in sorted(result.ledger.rows, key=_gap_of)[:1]
        ),
    }


def _gap_of(entry: Any) -> float:
    return -abs(entry.gap)


def _compare(
    row: Row, case: Case, model: nn.Module, inputs: Inputs, kwargs: dict[str, Any], target: Tensor, output: Tensor
) -> list[str]:
    """Adds how far the output, and in float64 gradient × input, are from torch's in float64; the failures."""
    twin = architectures.widened(copy.deepcopy(model), torch.float64).requires_grad_(False)
    exact, products = _torch(case, twin, architectures.converted(inputs, torch.float64), kwargs, target)
    with torch.no_grad():
        own = case.read(model(**inputs, **kwargs), inputs)
    row |= {"output": coverage._distance(output, exact), "output_noise": coverage._distance(own, exact)}
    failures = []
    if not row["output"] <= max(coverage.EQUAL[row["dtype"]], coverage.NOISE * row["output_noise"]):
        failures.append(f"the output is off by {row['output']:.2g}, torch's by {row['output_noise']:.2g}")
    if row["dtype"] == "float32":
        return failures
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dt.errors.RelevanceWarning)
        explainer = dt.Explainer(model, inputs, composite="gradient-times-input", kwargs=kwargs, **case.options)
        result = explainer(inputs, target=target, kwargs=kwargs)
    largest = max(product.abs().max() for product in products.values())
    shares = {name: product.sum(-1) if name.endswith("input_ids") else product for name, product in products.items()}
    distances = [(relevance - shares[name]).abs().max() / largest for name, relevance in result.relevances.items()]
    row["gradient_times_input"] = max(distance.item() for distance in distances)
    if not row["gradient_times_input"] <= GRADIENT:
        failures.append(f"gradient × input is off by {row['gradient_times_input']:.2g} of the largest entry")
    return failures


def _torch(
    case: Case, model: nn.Module, inputs: Inputs, kwargs: dict[str, Any], target: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """Output, and gradient × input by name: for words, gradient × embedding, with an axis of channels."""
    leaves = {name: t.clone().requires_grad_() for name, t in inputs.items() if t.is_floating_point()}
    looked_up: dict[str, Tensor] = {}

    def grasp(module: nn.Module, ids: tuple[Any, ...], vectors: Tensor) -> Tensor:
        for name, given in inputs.items():
            if name in looked_up:  # BART hands the words' ids to its table of positions too, after the words
                continue
            if name.endswith("input_ids") and isinstance(ids[0], Tensor) and torch.equal(given, ids[0]):
                looked_up[name] = vectors.detach().requires_grad_()
                return looked_up[name]
        return vectors

    tables = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    handles = [module.register_forward_hook(grasp) for module in tables]
    with _Wide():
        output = case.read(model(**{**inputs, **leaves}, **kwargs), inputs)
    for handle in handles:
        handle.remove()
    wanted = {**leaves, **looked_up}
    score = output.gather(1, target[:, None]).sum()
    gradients = torch.autograd.grad(score, list(wanted.values()), allow_unused=True)
    pairs = zip(wanted.items(), gradients, strict=True)
    products = {name: value.detach() * gradient for (name, value), gradient in pairs if gradient is not None}
    return output.detach(), products


class _Wide(TorchFunctionMode):
    """Leaves float64 tensors that a gradient passes in float64."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        first = args[0] if args else None
        if isinstance(first, Tensor) and first.requires_grad and first.dtype is torch.float64:
            if func in (Tensor.float, Tensor.type_as):
                return first
            args = tuple(torch.float64 if value is torch.float32 else value for value in args)
            kwargs = {key: torch.float64 if value is torch.float32 else value for key, value in (kwargs or {}).items()}
        return func(*args, **(kwargs or {}))


def _size(name: str, tensor: Tensor) -> str:
    return f"{tensor.shape[-1]} {'pixels' if tensor.dim() == 4 else 'words'}"


def _is_ours(warning: warnings.WarningMessage) -> bool:
    return issubclass(warning.category, dt.errors.RelevanceWarning)


def _named(error: Exception) -> str:
    return coverage.anywhere(f"{type(error).__name__}: {coverage._shorten(error)}").replace("|", "¦")


def _since(started: float) -> float:
    return round(time.perf_counter() - started, 2)


def run(cases: Iterable[Case], *, fresh: bool) -> list[Row]:
    """Results of `cases`, from the file where they are there already."""
    known: dict[str, Row] = {}
    if RESULTS.exists():
        known = {_key(row): row for row in json.loads(RESULTS.read_text())["rows"]}
    digests = {library: _source_digest(library) for library in ("torchvision", "timm", "transformers")}
    rows = []
    for case in cases:
        for dtype in coverage.DTYPES:
            row = known.get(f"{case} {dtype}")
            if row is None or fresh or row["source"] != digests[case.library]:
                row = {**examine(case, dtype), "source": digests[case.library]}
                known[_key(row)] = row
                _write(known)
                gc.collect()
            rows.append(row)
            verdict = "; ".join(row["failures"]) or "ok"
            what = f"{row.get('composite', '–'):17} gap {row.get('gap', float('nan')):.0e} {verdict}"
            print(f"{case!s:48} {dtype} {row['seconds']:6.1f} s  {what}", flush=True)
    return rows


def _key(row: Row) -> str:
    return f"{row['library']}:{row['model']} {row['dtype']}"


def _write(known: dict[str, Row]) -> None:
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    temporary = RESULTS.with_suffix(".part")
    temporary.write_text(json.dumps({"environment": environment(), "rows": list(known.values())}, indent=1) + "\n")
    temporary.replace(RESULTS)


def _source_digest(library: str) -> str:
    """Changes whenever the engine, the library's models or this file change."""
    package, here = Path(dt.__file__).parent, Path(__file__).parent
    engine = [path for path in [*package.glob("*.py"), *package.glob("rules/*.py")] if path.stem not in coverage.OUTER]
    names = ["everything.py", "architectures.py", *DEFINITIONS.get(library, ["architectures_images.py", "models.py"])]
    files = [*sorted(engine), *(here / name for name in names)]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:12]


def environment() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    import transformers

    known = coverage._environment()
    return {**known, "transformers": transformers.__version__, "machine": known["machine"]}


def _page() -> None:
    """docs/architectures.md, from the models whose two rows are there."""
    held = {_key(row): row for row in json.loads(RESULTS.read_text())["rows"]}
    keys = {str(case): [f"{case} {dtype}" for dtype in coverage.DTYPES] for case in architectures.CASES}
    waiting = [name for name, pair in keys.items() if not all(key in held for key in pair)]
    rows = [held[key] for name, pair in keys.items() if name not in waiting for key in pair]
    given = {"command": COMMAND, "environment": environment(), "missing": architectures.missing(), "waiting": waiting}
    TABLE.write_text(table(rows, closed=CLOSED, gradient=GRADIENT, **given))


def main() -> int:
    """Runs the chosen models; writes the table where all were chosen."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only", nargs="+", metavar="NAME", help="models by name, e.g. bert, timm:xcit_nano_12_p16_224, or a library"
    )
    parser.add_argument("--slice", choices=SLICES, help="a short, varied list of models")
    parser.add_argument("--fresh", action="store_true", help="measure again what was measured")
    parser.add_argument("--page", action="store_true", help="write the page of the rows that are there; run nothing")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.page:
        _page()
        return 0
    chosen = arguments.only or SLICES.get(arguments.slice)
    rows = run(architectures.find(chosen) if chosen else architectures.CASES, fresh=arguments.fresh)
    if not chosen:
        _page()
    failures = [
        f"{row['library']}:{row['model']} {row['dtype']}: {reason}" for row in rows for reason in row["failures"]
    ]
    print(
        f"\n{len(rows)} runs, {sum(row['seconds'] for row in rows):.0f} s, {len(failures)} failures",
        *failures,
        sep="\n  ",
    )
    return bool(failures)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main())
    sys.exit(130)
