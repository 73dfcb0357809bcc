"""How the bench measures: interleaved and shuffled rounds, medians of ratios, peak memory, linear operations.

Every round times each contender once, in a new random order; a round's ratio is contender / gradient × input of that
round. CPU time of one thread (on a GPU: events); the median over rounds with its 95 % interval (order statistics), and
the ratio of the fastest runs. Peak memory is what torch allocates at most while one call runs, above what was there.
"""

from __future__ import annotations

import gc
import importlib.metadata
import os
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "tests"))
from counting import work  # noqa: E402

Run = Callable[[], Any]
GRADIENT = "gradient x input"
COMPILED = ", compiled"


@dataclass(frozen=True)
class Cost:
    """One contender's cost as a ratio to gradient × input."""

    median: float
    low: float
    high: float
    fastest: float
    """Ratio of the fastest runs."""
    memory: float
    operations: float | None
    """Multiplications of its linear operations; a gradient has 2 per layer's forward pass. None for compiled code."""


def seconds(run: Run, cuda: bool) -> float:
    """What one call takes: CPU time of this process, or time on the GPU."""
    if not cuda:
        started = time.process_time()
        run()
        return time.process_time() - started
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    run()
    end.record()
    torch.cuda.synchronize()
    return float(begin.elapsed_time(end)) / 1e3


def rounds_of(runs: Mapping[str, Run], rounds: int, cuda: bool = False) -> dict[str, list[float]]:
    """Seconds of every contender, round by round."""
    found: dict[str, list[float]] = {name: [] for name in runs}
    chance = random.Random(0)
    for _ in range(rounds):
        order = list(runs)
        chance.shuffle(order)
        gc.collect()
        for name in order:
            found[name].append(seconds(runs[name], cuda))
    return found


def interval(values: list[float]) -> tuple[float, float]:
    """The 95 % interval of a median by order statistics."""
    ordered, n = sorted(values), len(values)
    reach = int(0.98 * n**0.5)
    return ordered[max(0, n // 2 - reach)], ordered[min(n - 1, n // 2 + reach)]


def held_and_worked(run: Run, cuda: bool = False) -> tuple[float, float]:
    """Peak memory, and the multiplications of linear operations, of one call."""
    found: list[int] = []
    return peak(lambda: found.append(work(run)), cuda), float(found[0])


def peak(run: Run, cuda: bool = False) -> float:
    """Bytes that torch allocates at most while `run` runs, above what is there before."""
    if cuda:
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        return float(torch.cuda.max_memory_allocated() - before)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        run()
    held = highest = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            highest = max(highest, held)
    return float(highest)


def costs(runs: Mapping[str, Run], rounds: int, cuda: bool = False) -> dict[str, Any]:
    """Every contender's cost beside the baseline's, called before so that what is kept between calls is there."""
    for run in runs.values():
        run()
    taken = rounds_of(runs, rounds, cuda)
    held, worked = held_and_worked(runs[GRADIENT], cuda)
    found: dict[str, Any] = {}
    for name, run in runs.items():
        if name == GRADIENT:
            continue
        ratios = [own / gradient for own, gradient in zip(taken[name], taken[GRADIENT], strict=True)]
        fastest = min(taken[name]) / min(taken[GRADIENT])
        if name.endswith(COMPILED):  # to count its operations would run other code
            memory, operations = peak(run, cuda) / held, None
        else:
            memory, operations = (a / b for a, b in zip(held_and_worked(run, cuda), (held, worked), strict=True))
        found[name] = asdict(Cost(statistics.median(ratios), *interval(ratios), fastest, memory, operations))
    return found


def machine(cuda: bool = False) -> dict[str, Any]:
    """What the figures were measured on and with."""
    packages = ("torch", "torchvision", "transformers", "zennit", "captum", "autolrp", "lxt")
    versions = {}
    for package in packages:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "processor": torch.cuda.get_device_name() if cuda else _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": versions,
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else ():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()
