"""What an explanation costs, as a ratio to gradient × input in the same process (`make bench`).

Every round times each contender once, in a new random order; a round's ratio is contender / gradient × input of that
round. CPU time of one thread; the median over rounds with its 95 % interval (order statistics). Peak memory is the
growth of the resident set while one call runs, as a ratio too. Weights are random: they do not change the cost.

Writes benchmarks/results/bench.json and docs/bench.md.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import shim  # noqa: F401  before torchvision

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from torch import Tensor, nn

import deeptaylor as dt
from deeptaylor.unwrap import needed_arguments, opened

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "bench.json"
PAGE = ROOT / "docs" / "bench.md"
LIMIT = 1.15
Run = Callable[[], Any]


def bert(length: int = 128) -> tuple[nn.Module, dict[str, Tensor]]:
    """BERT-base, classification."""
    from transformers import BertConfig, BertForSequenceClassification

    model = BertForSequenceClassification(BertConfig())
    return model, {"inputs_embeds": torch.randn(1, length, 768), "attention_mask": torch.ones(1, length).long()}


def llama(length: int = 128) -> tuple[nn.Module, dict[str, Tensor]]:
    """LLaMA with the sizes of SmolLM2-135M, next word."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
        num_key_value_heads=3, tie_word_embeddings=True,
    )  # fmt: skip
    return LlamaForCausalLM(config), {
        "inputs_embeds": torch.randn(1, length, 576),
        "attention_mask": torch.ones(1, length).long(),
    }


def vit() -> tuple[nn.Module, dict[str, Tensor]]:
    """ViT-B/16 of torchvision, 224 pixels."""
    import torchvision

    return torchvision.models.vit_b_16(weights=None), {"x": torch.randn(1, 3, 224, 224)}


MODELS: dict[str, Callable[[], tuple[nn.Module, dict[str, Tensor]]]] = {
    "BERT-base, 128 tokens": bert,
    "ViT-B/16, 224 pixels": vit,
    "LLaMA 135M, 128 tokens": llama,
}
COMPOSITES = ("attn-lrp", "cp-lrp", "res-lrp")


def gradient_times_input(model: nn.Module, inputs: dict[str, Tensor]) -> Run:
    """The baseline: torch's own gradient, with the arguments that the explainer passes."""
    kwargs = needed_arguments(model)
    name = next(name for name, tensor in inputs.items() if tensor.is_floating_point())

    def run() -> Tensor:
        leaf = inputs[name].clone().requires_grad_()
        output = opened(model, model(**{**inputs, name: leaf}, **kwargs), inputs)
        score = output.gather(1, output.argmax(1, keepdim=True)).sum()
        return leaf.detach() * torch.autograd.grad(score, leaf)[0]

    return run


def contenders(model: nn.Module, inputs: dict[str, Tensor]) -> dict[str, Run]:
    """Gradient × input, and every composite, each called once so that what is kept between calls is there."""
    runs = {"gradient x input": gradient_times_input(model, inputs)}
    for name in COMPOSITES:
        explainer = dt.Explainer(model, inputs, composite=name)
        runs[name] = lambda explainer=explainer: explainer(inputs).relevance
    for run in runs.values():
        run()
    return runs


def timed(runs: dict[str, Run], rounds: int) -> dict[str, list[float]]:
    """Ratios to gradient × input, round by round."""
    ratios: dict[str, list[float]] = {name: [] for name in runs if name != "gradient x input"}
    chance = random.Random(0)
    for _ in range(rounds):
        order, seconds = list(runs), {}
        chance.shuffle(order)
        for name in order:
            gc.collect()
            started = time.process_time()
            runs[name]()
            seconds[name] = time.process_time() - started
        for name, found in ratios.items():
            found.append(seconds[name] / seconds["gradient x input"])
    return ratios


def interval(values: list[float]) -> tuple[float, float]:
    """The 95 % interval of a median by order statistics."""
    ordered, n = sorted(values), len(values)
    reach = int(0.98 * n**0.5)
    return ordered[max(0, n // 2 - reach)], ordered[min(n - 1, n // 2 + reach)]


def peak(run: Run) -> float:
    """Bytes that torch allocates at most while `run` runs, above what is there before."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        run()
    held = highest = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            highest = max(highest, held)
    return float(highest)


def measure(name: str, rounds: int) -> dict[str, Any]:
    """One model: medians, intervals, and peak memory."""
    torch.manual_seed(0)
    model, inputs = MODELS[name]()
    runs = contenders(model.eval(), inputs)
    ratios = timed(runs, rounds)
    base = peak(runs["gradient x input"])
    return {
        "model": name,
        "rounds": rounds,
        "composites": {
            key: {"median": statistics.median(found), "interval": interval(found), "memory": peak(runs[key]) / base}
            for key, found in ratios.items()
        },
    }


def write_page() -> None:
    """docs/bench.md, from the results that are there."""
    held = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"rows": []}
    lines = [
        "# What an explanation costs",
        "",
        "CPU time as a ratio to gradient × input in the same process, median of interleaved rounds with its 95 %",
        "interval, and peak memory as a ratio. Batch 1, one thread, float32, random weights. Made by `make bench`",
        f"with torch {torch.__version__}, {platform.system()} {platform.machine()}, a shared machine of 2 cores.",
        "",
        "| model | " + " | ".join(COMPOSITES) + " |",
        "|---" * (1 + len(COMPOSITES)) + "|",
    ]
    lines += [
        f"| {row['model']} | " + " | ".join(_cell(row["composites"][name]) for name in COMPOSITES) + " |"
        for row in held["rows"]
    ]
    beside = RESULTS.with_name("bench_lxt.json")
    if beside.exists():
        lines += [
            "",
            "## Beside LXT",
            "",
            "LXT 2.1, its preset for AttnLRP, with transformers 4.52.4, for which it is written; the same weights and inputs,",
            "interleaved in one process (`benchmarks/bench_lxt.py`). The cosine is between the two maps.",
            "",
            "| model | attn-lrp | LXT | cosine |",
            "|---|---|---|---|",
        ]
        lines += [
            f"| {row['model']} | {_cell(row['contenders']['attn-lrp'])} | {_cell(row['contenders']['LXT'])} | {row['cosine']:.6f} |"
            for row in json.loads(beside.read_text())["rows"]
        ]
    PAGE.write_text("\n".join(lines) + "\n")


def _cell(c: dict[str, Any]) -> str:
    return f"{c['median']:.2f} ({c['interval'][0]:.2f} to {c['interval'][1]:.2f}), memory {c['memory']:.2f}"


def main() -> None:
    """Measures, prints, writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="WORD", help="models whose name holds one of these words")
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    chosen = [n for n in MODELS if not arguments.only or any(word in n for word in arguments.only)]
    rows = []
    for name in chosen:
        rows.append(measure(name, arguments.rounds))
        print(json.dumps(rows[-1]), flush=True)
    if not arguments.only:
        RESULTS.write_text(json.dumps({"torch": torch.__version__, "rows": rows}, indent=1) + "\n")
        write_page()


if __name__ == "__main__":
    main()
