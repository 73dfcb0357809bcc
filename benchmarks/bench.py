"""What an explanation costs, beside the gradient and other libraries (`make bench`, `make bench-gpu`).

All contenders of a model run in one process; `bench_protocol` says how they are measured, `bench_contenders` who they
are. Rows already in the results are replaced as they are measured anew. Writes benchmarks/results/bench.json (or
bench_gpu.json) and docs/bench.md.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from pathlib import Path
from typing import Any

import bench_page
import torch
from bench_contenders import Choice, contenders
from bench_models import SUBJECTS, Inputs, Subject
from bench_protocol import ROOT, costs, machine
from torch import nn

import deeptaylor as dt
from deeptaylor.unwrap import needed_arguments

RESULTS = ROOT / "benchmarks" / "results"
KEYS = ("model", "batch", "pixels")


def measure(
    name: str, subject: Subject, batch: int, pixels: int, rounds: int, choice: Choice, cuda: bool = False
) -> dict[str, Any]:
    """One row: a model at one batch size."""
    pixels = pixels if subject.pixels is None else subject.pixels
    return {
        "model": name,
        "batch": batch,
        "pixels": pixels,
        "rounds": rounds,
        "machine": machine(cuda),
        "costs": costs(contenders(name, subject, batch, pixels, choice), rounds, cuda),
    }


def tracing(name: str, subject: Subject) -> dict[str, Any]:
    """Seconds of torch.export, of a first explainer and of a second one for the same model, as ratios to the first."""
    torch.manual_seed(0)
    inputs = subject.inputs(2, 224)
    best = [float("inf")] * 3
    for _ in range(3):
        model = subject.make().eval()
        steps = (
            lambda model=model: exported(model, inputs),
            lambda model=model: dt.Explainer(model, inputs),
            lambda model=model: dt.Explainer(model, inputs),
        )
        for i, step in enumerate(steps):
            started = time.process_time()
            step()
            best[i] = min(best[i], time.process_time() - started)
    return {"model": name, "first": best[1] / best[0], "second": best[2] / best[0], "machine": machine()}


def exported(model: nn.Module, inputs: Inputs) -> None:
    """What any user of torch.export waits for: the program with a free batch size, and its core operations."""
    auto = torch.export.Dim.AUTO
    shapes = {key: {0: auto} for key in inputs}
    kwargs = needed_arguments(model)
    shapes |= dict.fromkeys(kwargs)
    torch.export.export(model, (), {**inputs, **kwargs}, dynamic_shapes=shapes, strict=False).run_decompositions({})


def store(path: Path, section: str, row: dict[str, Any]) -> None:
    """Puts a row into the results; of an older one of the same model and sizes, it keeps the costs of other rules."""
    held = json.loads(path.read_text()) if path.exists() else {}
    for older in held.get(section, []):
        if "costs" in row and all(older.get(key) == row.get(key) for key in KEYS):
            row = {**row, "costs": older["costs"] | row["costs"]}
    rows = [r for r in held.get(section, []) if any(r.get(key) != row.get(key) for key in KEYS)]
    order = list(SUBJECTS)
    rows = sorted([*rows, row], key=lambda r: (order.index(r["model"]), r.get("batch", 0), r.get("pixels", 0)))
    path.write_text(json.dumps(held | {section: rows}, indent=1) + "\n")


def main() -> None:
    """Measures, prints, writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="WORD", help="models whose name holds one of these words")
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--pixels", type=int, default=224, help="size of images, where the model takes others")
    parser.add_argument("--rules", nargs="+", default=(), help="only these; the row's other rules are kept")
    parser.add_argument("--alone", action="store_true", help="without the other libraries")
    parser.add_argument("--compiled", action="store_true", help="compiled code, too: takes minutes per rule to compile")
    parser.add_argument("--tracing", action="store_true", help="measure tracing instead")
    parser.add_argument("--gpu", action="store_true", help="on CUDA")
    arguments = parser.parse_args()
    if arguments.gpu and not torch.cuda.is_available():
        parser.exit(0, "no CUDA device here, so there is nothing to measure; `make bench` measures on the processor\n")
    torch.set_num_threads(1)
    # EfficientNet's random weights let relevance vanish: subnormal numbers take some processors a hundred times as long
    torch.set_flush_denormal(True)
    warnings.simplefilter("ignore")
    path = RESULTS / ("bench_gpu.json" if arguments.gpu else "bench.json")
    with torch.device("cuda" if arguments.gpu else "cpu"):
        for name, subject in SUBJECTS.items():
            if arguments.only and not any(word in name for word in arguments.only):
                continue
            if arguments.tracing:
                store(path, "tracing", tracing(name, subject))
                continue
            for batch in arguments.batch:
                choice = Choice(
                    rules=arguments.rules,
                    beside=not arguments.alone,
                    many=batch == 1 and not arguments.compiled,
                    compiled=arguments.compiled,
                )
                row = measure(name, subject, batch, arguments.pixels, arguments.rounds, choice, arguments.gpu)
                print(json.dumps(row), flush=True)
                store(path, "rows", row)
    bench_page.write(RESULTS)


if __name__ == "__main__":
    main()
