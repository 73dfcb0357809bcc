"""Writes docs/bench.md from the bench's results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bench_protocol import ROOT

PAGE = ROOT / "docs" / "bench.md"
ORDER = (
    "epsilon", "z+", "gamma", "alpha-beta", "epsilon-plus-flat", "epsilon-gamma-box", "attn-lrp", "cp-lrp", "res-lrp",
)  # fmt: skip
LIBRARIES = ("deeptaylor", "compiled", "zennit", "captum", "autolrp", "LXT")
TARGETS = {
    "epsilon": 1.15, "z+": 1.6, "gamma": 1.65, "alpha-beta": 2.3, "epsilon-plus-flat": 1.55, "attn-lrp": 1.15,
    "z+, K = 10": 6.5,
}  # fmt: skip
HEAD = """# What an explanation costs

CPU time as a ratio to gradient × input of one class in the same process: the median over interleaved, shuffled rounds
with its 95 % interval, and in brackets the ratio of the fastest runs. Beside it peak memory and the multiplications of
linear operations, as ratios to the gradient's. One thread, float32, random weights. K = 10 explains ten classes of one
input; those of small images go back together, which costs memory: up to 16 MB for the largest map. The gradient runs
through the model as it is; an explanation folds batch norms first, and leaves out rows that the output does not read
where it is one backward pass (attn-lrp), so that it may cost less than the gradient.

Targets: {targets}; memory 1.1 for epsilon and z+, 1.5 for the rest. A target that is missed is marked †.
Captum runs on chains of modules only, zennit and autolrp on VGG and ResNet; on a model that a library misreads (a
functional addition, a product) it is not measured. "Compiled" is deeptaylor's `explainer.compile()`, whose operations
are not counted, measured beside eager code in a run without other libraries; it was nowhere slower beyond noise. Ratios
scatter between runs by 0.1 to 0.2, as processor and memory are shared with others. What is kept between calls (rule
weights, folded norms) is held against the model's weights at every call, which reads them once: of one small picture a
visible part. Numbers below the smallest normal one count as 0 (`torch.set_flush_denormal`): under epsilon, relevance of
networks of random weights can vanish, and some processors take a hundred times as long for such numbers (EfficientNet
took 3.4 gradients for epsilon, 13.8 for epsilon-gamma-box without). LXT 2.1 replaces functions of transformers 4.52.4.
`make bench` writes this page; `make bench-gpu` does the same on CUDA and has not been run: no GPU was at hand.
"""


def write(results: Path) -> None:
    """The page, from the results that are there."""
    targets = ", ".join(f"{name} {limit:g}" for name, limit in TARGETS.items())
    lines = [HEAD.format(targets=targets)]
    for file, title in (("bench.json", "Processor"), ("bench_gpu.json", "GPU")):
        if not (results / file).exists():
            continue
        held = json.loads((results / file).read_text())
        for row in held.get("rows", []):
            lines += _table(row, title)
        lines += _tracing(held.get("tracing", []))
    PAGE.write_text("\n".join(lines).rstrip() + "\n")


def _table(row: dict[str, Any], title: str) -> list[str]:
    used: dict[str, dict[str, Any]] = {}
    for name, cost in row["costs"].items():
        rule, _, library = name.partition(", ") if not name.endswith("K = 10") else (name, "", "")
        used.setdefault(rule, {})[library or "deeptaylor"] = cost
    libraries = [name for name in LIBRARIES if any(name in found for found in used.values())]
    m = row["machine"]
    pixels = f"{row['pixels']} pixels, " if row["pixels"] else ""
    versions = ", ".join(f"{name} {version}" for name, version in m["versions"].items())
    lines = [
        f"## {row['model']}, {pixels}batch {row['batch']}",
        "",
        f"{title}: {m['processor']}, {m['cores']} cores (shared, load {m['load']}), {row['rounds']} rounds; {versions}.",
        "",
        "| rule | " + " | ".join(libraries) + " | memory | operations |",
        "|---" * (len(libraries) + 3) + "|",
    ]
    for rule in sorted(used, key=lambda rule: (ORDER.index(rule.partition(",")[0]), rule)):
        found = used[rule]
        times = [_time(found.get(name), TARGETS.get(rule) if name == "deeptaylor" else None) for name in libraries]
        memory = " / ".join(f"{found[name]['memory']:.2f}" for name in libraries if name in found)
        counted = [found[name]["operations"] for name in libraries if name in found]
        operations = " / ".join("–" if count is None else f"{count:.2f}" for count in counted)
        lines.append(f"| {rule} | " + " | ".join(times) + f" | {memory} | {operations} |")
    return [*lines, ""]


def _time(cost: dict[str, Any] | None, target: float | None) -> str:
    if cost is None:
        return "–"
    missed = " †" if target is not None and cost["median"] > target else ""
    return f"{cost['median']:.2f} ({cost['low']:.2f} to {cost['high']:.2f}) [{cost['fastest']:.2f}]{missed}"


def _tracing(rows: list[dict[str, Any]]) -> list[str]:
    if not rows:
        return []
    lines = [
        "## Tracing and planning",
        "",
        "CPU time of an explainer's construction (tracing, checking against the model's own output, planning) as a ratio",
        "to `torch.export` with its decompositions alone; fastest of three. The second explainer of a model reuses the graph.",
        "",
        "| model | first explainer | second |",
        "|---|---|---|",
    ]
    return [*lines, *(f"| {r['model']} | {r['first']:.2f} | {r['second']:.2f} |" for r in rows), ""]
