"""attn-lrp beside LXT 2.1 and gradient × input, interleaved in one process (`make bench`, in the peers' environment).

LXT 2.1 replaces functions of transformers as they were in 4.52, so that is the version here. Its patches are put in
for its own call only and taken out again. Writes benchmarks/results/bench_lxt.json and the second table of docs/bench.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
import warnings
from typing import Any

import bench
import torch
from torch import Tensor, nn

import deeptaylor as dt

RESULTS = bench.RESULTS.with_name("bench_lxt.json")
GRADIENT = "gradient x input"


class Patched:
    """LXT's changes to classes and modules, in effect inside a `with` block."""

    def __init__(self, module: Any, patches: dict[Any, Any]) -> None:
        before = {target: dict(vars(target)) for target in patches}
        for target, patch in patches.items():
            if not patch(target):
                raise RuntimeError(f"LXT did not patch {target} of {module.__name__}")
        self.changes = [
            (target, name, own.get(name), value)
            for target, own in before.items()
            for name, value in list(vars(target).items())
            if not name.startswith("__") and own.get(name) is not value
        ]
        if not self.changes:
            raise RuntimeError(f"LXT changed nothing in {module.__name__}")
        self.__exit__()

    def __enter__(self) -> None:
        for target, name, _, value in self.changes:
            setattr(target, name, value)

    def __exit__(self, *_: Any) -> None:
        for target, name, own, _ in self.changes:
            delattr(target, name) if own is None else setattr(target, name, own)


def llama() -> tuple[nn.Module, dict[str, Tensor], Patched, nn.Module]:
    """The model, its inputs, LXT's patches, and the model that LXT explains."""
    from lxt.efficient.models import llama as patches

    model, inputs = bench.llama()
    return model, inputs, Patched(patches.modeling_llama, patches.attnLRP), model


def bert() -> tuple[nn.Module, dict[str, Tensor], Patched, nn.Module]:
    """LXT has its own BERT, which takes the same weights; beside it, patches of layer norm and dropout."""
    from lxt.efficient.models import bert as patches

    model, inputs = bench.bert()
    theirs = patches.BertForSequenceClassification(model.config)
    theirs.load_state_dict(model.state_dict())
    return model, inputs, Patched(nn, {t: p for t, p in patches.attnLRP.items() if isinstance(t, type)}), theirs.eval()


MODELS = {"BERT-base, 128 tokens": bert, "LLaMA 135M, 128 tokens": llama}


def measure(name: str, rounds: int) -> dict[str, Any]:
    """Medians of the ratios to gradient × input, with intervals and memory; and how far the two maps are apart."""
    torch.manual_seed(0)
    model, inputs, patches, theirs = MODELS[name]()
    model.eval()
    explainer = dt.Explainer(model, inputs, composite="attn-lrp")
    gradient, patched = bench.gradient_times_input(model, inputs), bench.gradient_times_input(theirs, inputs)

    def lxt() -> Tensor:
        with patches:
            return patched()

    runs: dict[str, bench.Run] = {GRADIENT: gradient, "attn-lrp": lambda: explainer(inputs).relevance, "LXT": lxt}
    maps = {key: run() for key, run in runs.items()}
    ratios = bench.timed(runs, rounds)
    base = bench.peak(gradient)
    cosine = torch.cosine_similarity(*(maps[key].double().flatten() for key in ("attn-lrp", "LXT")), dim=0)
    return {
        "model": name,
        "rounds": rounds,
        "cosine": float(cosine),
        "contenders": {
            key: {"median": statistics.median(found), "interval": bench.interval(found), "memory": bench.peak(runs[key]) / base}
            for key, found in ratios.items()
        },
    }  # fmt: skip


def main() -> None:
    """Measures, prints, writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="WORD", help="models whose name holds one of these words")
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    rows = []
    for name in MODELS:
        if arguments.only and not any(word in name for word in arguments.only):
            continue
        rows.append(measure(name, arguments.rounds))
        print(json.dumps(rows[-1]), flush=True)
    if not arguments.only:
        RESULTS.write_text(json.dumps({"torch": torch.__version__, "rows": rows}, indent=1) + "\n")
        bench.write_page()


if __name__ == "__main__":
    main()
