"""docs/architectures.md from the rows of `everything.py`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import coverage
import models

Row = dict[str, Any]

HEAD = """\
# Architectures

One small model of every family with random weights, biases and statistics that are not zero, under `auto`, in float32 and
float64: {models} models. The ledger closes in {closing} of {runs} explanations, and {passing} of {models} models pass every check.

| library | families | models | pass |
|---|---|---|---|
{libraries}

Made by

    {command}

with {environment}. The whole table took {minutes:.0f} minutes; its
rows are of {versions} states of the sources, named in the JSON beside them.

* **trace**: seconds to trace, check and plan in float32, on a shared machine. **ops**: operations in the plan. **auto chose**: the composite.
* **ledger**: log10 of the gap |Σ inputs + Σ absorbed - explained| as a share of max(|explained|, Σ|R|/1000), the worst of {batch} samples, float32 /
  float64. Required: at most {single:.0f} / {double:.0f}.
* **G×I**: log10 of the largest difference in float64 between `gradient-times-input` and autograd's, on pixels or on the embeddings of
  words, as a share of the largest entry. Required: at most {gradient:.0f}.
* The output is the model's, and the model and its inputs are bit for bit what they were: checked for each, no column.
* Bold: fails. Reasons are below the table.

"""


def table(
    rows: list[Row],
    *,
    command: str,
    environment: Mapping[str, str],
    closed: Mapping[str, float],
    gradient: float,
    missing: Mapping[str, list[str]],
    waiting: Sequence[str] = (),
) -> str:
    """The page.

    Args:
        rows: two for each model, float32 and float64.
        command: what makes them.
        environment: versions.
        closed: by dtype, the largest gap of a ledger that closes.
        gradient: the largest difference to autograd.
        missing: by library, families of which no model is among the rows.
        waiting: models on the list without a row.
    """
    by_model: dict[str, dict[str, Row]] = {}
    for row in rows:
        by_model.setdefault(f"{row['library']}:{row['model']}", {})[row["dtype"]] = row
    head = HEAD.format(
        models=len(by_model),
        closing=sum(row.get("gap", 1) <= closed[row["dtype"]] for row in rows),
        runs=len(rows),
        passing=sum(_passes(dtypes) for dtypes in by_model.values()),
        libraries="\n".join(_library(name, by_model) for name in dict.fromkeys(row["library"] for row in rows)),
        command=command,
        environment=", ".join(f"{name} {version}" for name, version in environment.items()),
        minutes=sum(row["seconds"] for row in rows) / 60,
        versions=len({(row["library"], row["source"]) for row in rows}),
        batch=models.BATCH,
        single=float(coverage._log(closed["float32"])),
        double=float(coverage._log(closed["float64"])),
        gradient=float(coverage._log(gradient)),
    )
    lines = ["| model | library | input | trace | ops | auto chose | ledger | G×I | note |", "|---" * 9 + "|"]
    lines += [_line(dtypes["float32"], dtypes["float64"], closed, gradient) for dtypes in by_model.values()]
    lines += ["", "## Closed only on the scale of Σ|R| inside the network (bold above)", ""]
    lines += [_wide(row) for row in rows if _closes_inside(row, closed)] or ["None."]
    lines += ["", "## What can't be done", ""]
    reasons = [f"* {_name(row)}, {row['dtype']}: {reason}" for row in rows for reason in row["failures"]]
    absent = [f"* {library}: no model of {', '.join(names)}." for library, names in missing.items() if names]
    lines += [*reasons, *absent] or ["Nothing here."]
    if waiting:
        lines += ["", "## On the list but not run", "", ", ".join(waiting) + "."]
    return head + "\n".join(lines) + "\n"


def _line(single: Row, double: Row, closed: Mapping[str, float], gradient: float) -> str:
    ledgers = " / ".join(coverage._checked(row.get("gap"), closed[row["dtype"]]) for row in (single, double))
    product = double.get("gradient_times_input")
    cells = [
        single["model"],
        single["library"],
        single.get("input", "–"),
        str(single.get("trace_seconds", "–")),
        str(single.get("operations", "–")),
        single.get("composite", "–"),
        ledgers,
        coverage._checked(product, gradient),
        "; ".join(_notes(single, double)),
    ]
    return "| " + " | ".join(cells) + " |"


def _notes(single: Row, double: Row) -> list[str]:
    notes = [single["note"], *single.get("notes", ()), *single.get("warnings", ())]
    notes += ["computes in float32 inside, whatever its dtype"] * (double.get("output_noise", 0) > 1e-10)
    return [note.rstrip(".").replace("|", "¦") for note in dict.fromkeys(notes) if note]


def _library(name: str, by_model: Mapping[str, dict[str, Row]]) -> str:
    own = [dtypes for dtypes in by_model.values() if dtypes["float32"]["library"] == name]
    families = {dtypes["float32"]["family"] for dtypes in own}
    return f"| {name} | {len(families)} | {len(own)} | {sum(map(_passes, own))} |"


def _passes(dtypes: Mapping[str, Row]) -> bool:
    return not any(row["failures"] for row in dtypes.values())


def _name(row: Row) -> str:
    return f"{row['library']}:{row['model']}"


def _closes_inside(row: Row, closed: Mapping[str, float]) -> bool:
    return row.get("inner_gap", 1) <= closed[row["dtype"]] < row.get("gap", 0)


def _wide(row: Row) -> str:
    return (
        f"* {_name(row)}, {row['dtype']}, {row['composite']}: {row['gap']:.1e} of Σ|R| at the inputs, {row['inner_gap']:.1e} of its widest, "
        f"{row['widest']:.2g}"
    )
