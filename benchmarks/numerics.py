"""Relevance in float32, float16 and bfloat16 against float64, same weights and inputs: writes a table into docs/numerics.md.

python benchmarks/numerics.py
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests"))

from shipped import encoder, lenet  # noqa: E402

import deeptaylor as dt  # noqa: E402

COMPOSITES = [
    (lenet, "epsilon"), (lenet, "epsilon-plus"), (lenet, "epsilon-alpha2-beta1"), (lenet, "epsilon-gamma-box"), (lenet, "deep-taylor"),
    (lenet, "gradient-times-input"), (lenet, "attn-lrp"), (encoder, "attn-lrp"), (encoder, "epsilon"), (encoder, "gradient-times-input"),
]  # fmt: skip
TYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
PAGE = HERE.parent / "docs/numerics.md"
MARK = "<!-- measured -->"


def error(make, composite: str, dtype: torch.dtype) -> float:
    model, x = make()
    model, x = model.to(dtype), x.to(dtype)
    found = dt.explain(model, x, composite=composite, target=1).relevance.double()
    exact = dt.explain(model.double(), x.double(), composite=composite, target=1).relevance
    return float((found - exact).norm() / exact.norm())


def main() -> None:
    torch.set_num_threads(1)
    rows = [
        {"model": make.__name__, "composite": composite}
        | {name: error(make, composite, dtype) for name, dtype in TYPES.items()}
        for make, composite in COMPOSITES
    ]
    (HERE / "results/numerics.json").write_text(json.dumps({"torch": torch.__version__, "rows": rows}, indent=1) + "\n")
    table = ["| model | composite | float32 | float16 | bfloat16 |", "|---|---|---|---|---|"]
    table += [
        f"| {r['model']} | {r['composite']} | {r['float32']:.1e} | {r['float16']:.1e} | {r['bfloat16']:.1e} |"
        for r in rows
    ]
    before, _, after = PAGE.read_text().split(MARK)
    PAGE.write_text(f"{before}{MARK}\n" + "\n".join(table) + f"\n{MARK}{after}")


if __name__ == "__main__":
    main()
