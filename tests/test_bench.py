"""The bench measures what it says: a cheap run of its protocol on a small network."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.append(str(Path(__file__).resolve().parent.parent / "benchmarks"))
bench_protocol = pytest.importorskip("bench_protocol")


def test_a_row_of_the_bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import bench_contenders
    import bench_models
    import bench_page

    runs = bench_contenders.contenders("tiny", bench_models.TINY, 1, 8, bench_contenders.Choice(many=True))
    row: dict[str, Any] = {
        "model": "tiny", "batch": 1, "pixels": 8, "rounds": 3, "machine": bench_protocol.machine(),
        "costs": bench_protocol.costs(runs, 3),
    }  # fmt: skip
    found = row["costs"]
    assert {"epsilon", "z+", "z+, K = 10", "gamma", "alpha-beta"} <= set(found)
    assert all(cost["low"] <= cost["median"] <= cost["high"] for cost in found.values())
    assert found["epsilon"]["operations"] == pytest.approx(1.0)  # the gradient's own
    assert found["z+"]["operations"] < found["alpha-beta"]["operations"]
    monkeypatch.setattr(bench_page, "PAGE", tmp_path / "bench.md")
    (tmp_path / "bench.json").write_text(json.dumps({"rows": [row]}))
    bench_page.write(tmp_path)
    page = (tmp_path / "bench.md").read_text()
    assert "| z+, K = 10 |" in page
    assert "tiny, 8 pixels, batch 1" in page


def test_peak_counts_what_is_held_at_once() -> None:
    one = torch.empty(1000)
    assert bench_protocol.peak(lambda: one.neg()) == 4000
    assert bench_protocol.peak(lambda: one.neg() + one.neg()) == 12000


def test_the_interval_of_a_median_holds_it() -> None:
    assert bench_protocol.interval([float(i) for i in range(15)]) == (4.0, 10.0)
