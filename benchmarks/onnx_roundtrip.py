"""Networks of torchvision and an encoder of texts, through ONNX: are they explained as before? (`make onnx`).

Every network has random weights and batch-norm statistics of random images. The encoder is transformers' BERT, with its
attention as fused and as plain operations; its ids are explained, and one of its two texts is padded. Each is exported
twice, by TorchScript's exporter at opset 14 (the oldest that knows attention), and by PyTorch's present one at opset 18,
which computes sizes and axes in the graph. The batch axis is left free. Reported per network: the largest difference of
the scores, as a share of the largest score, and per composite the smallest cosine between the maps of original and
import over two images or texts.

Writes docs/onnx.md and benchmarks/results/onnx_roundtrip.json, network by network; what is there already is kept.
Exits with 1 where a cosine is below 0.9999.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import platform
import sys
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import shim  # noqa: F401
import torch
import torchvision
from torch import Tensor, nn

import deeptaylor as dt

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "onnx_roundtrip.json"
TABLE = ROOT / "docs" / "onnx.md"
COMPOSITES = ("auto", "deep-taylor")
WANTED = 0.9999
# name: side of the images, options. Small images where the architecture allows them.
NETWORKS: dict[str, tuple[int, dict[str, Any]]] = {
    "alexnet": (224, {}),
    "resnet18": (64, {}),
    "googlenet": (64, {"init_weights": False, "aux_logits": False}),
    "squeezenet1_1": (64, {}),
    "mobilenet_v2": (64, {}),
    "mobilenet_v3_small": (64, {}),
    "shufflenet_v2_x0_5": (64, {}),
    "mnasnet0_5": (64, {}),
    "efficientnet_b0": (64, {}),
    "regnet_y_400mf": (64, {}),
    "convnext_tiny": (64, {}),
}
ENCODERS = {"bert": "sdpa", "bert, plain attention": "eager"}
"""How each computes its attention."""
SLICE = ("resnet18", "squeezenet1_1", "shufflenet_v2_x0_5", "bert")
ALL = (*NETWORKS, *ENCODERS)
EXPORTERS = {"opset 14": {"dynamo": False, "opset_version": 14}, "opset 18": {"dynamo": True, "opset_version": 18}}


Inputs = dict[str, Tensor]


class Encoder(nn.Module):
    """transformers' BERT with a head, as exporters want it: tensors in, one tensor out."""

    def __init__(self, attention: str) -> None:
        import transformers

        super().__init__()
        sizes = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 128}
        config = transformers.BertConfig(vocab_size=90, **sizes, attn_implementation=attention)
        self.model = transformers.BertForSequenceClassification(config)
        for parameter in self.parameters():
            if parameter.dim() == 2:
                nn.init.normal_(parameter, 0, parameter.shape[1] ** -0.5)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.model(input_ids=input_ids, attention_mask=attention_mask).logits


def network(name: str) -> tuple[nn.Module, Inputs]:
    """A network with random weights whose activations keep their size, and two images or texts."""
    torch.manual_seed(0)
    if name in ENCODERS:
        ids = torch.randint(1, 90, (2, 12))
        mask = torch.ones_like(ids)
        mask[1, 8:] = 0
        return Encoder(ENCODERS[name]).eval(), {"input_ids": ids, "attention_mask": mask}
    side, options = NETWORKS[name]
    model = torchvision.models.get_model(name, weights=None, **options)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # statistics of exactly the images below
    with torch.no_grad():
        model.train()(torch.randn(8, 3, side, side))
    return model.eval(), {"image": torch.randn(2, 3, side, side)}


def exported(model: nn.Module, inputs: Inputs, options: dict[str, Any]) -> Any:
    """The ONNX model, with a free batch axis, and of texts a free length."""
    import onnx

    file = io.BytesIO()
    free = {name: {0: "batch"} if value.dim() == 4 else {0: "batch", 1: "length"} for name, value in inputs.items()}
    axes: dict[str, Any] = {"dynamic_axes": free}
    if options["dynamo"]:
        made = {title: torch.export.Dim(title) for title in ("batch", "length")}
        shapes = tuple({axis: made[title] for axis, title in own.items()} for own in free.values())
        axes = {"dynamic_shapes": shapes, "verbose": False}
    with contextlib.redirect_stdout(io.StringIO()):  # both print while they work
        torch.onnx.export(model, tuple(inputs.values()), file, input_names=list(inputs), **options, **axes)
    return onnx.load(io.BytesIO(file.getvalue()))


def cosine(a: Tensor, b: Tensor) -> float:
    """The smallest cosine over the images."""
    return float(torch.nn.functional.cosine_similarity(a.flatten(1).double(), b.flatten(1).double()).min())


def examine(name: str) -> dict[str, Any]:
    """Everything that is reported of one network."""
    model, inputs = network(name)
    with torch.no_grad():
        scores = model(**inputs) if len(inputs) > 1 else model(*inputs.values())

    def explained(model: nn.Module, composite: str) -> Tensor:
        given = inputs if len(inputs) > 1 else next(iter(inputs.values()))
        return dt.explain(model, given, composite=composite).relevance

    maps = {composite: explained(model, composite) for composite in COMPOSITES}
    row: dict[str, Any] = {}
    for title, options in EXPORTERS.items():
        proto = exported(model, inputs, options)
        imported = dt.importers.from_onnx(proto)
        with torch.no_grad():
            difference = float((imported(*inputs.values()) - scores).abs().max() / scores.abs().max())
        row[title] = {
            "operators": len({node.op_type for node in proto.graph.node}),
            "nodes": len(proto.graph.node),
            "difference": difference,
            "notes": list(imported.notes),
            "cosine": {c: cosine(maps[c], explained(imported, c)) for c in COMPOSITES},
        }
    return row


def table(results: dict[str, Any]) -> str:
    """The page."""
    lines = [
        "# ONNX round trips",
        "",
        "Made by `make onnx` (`benchmarks/onnx_roundtrip.py`); the figures are in `benchmarks/results/onnx_roundtrip.json`.",
        "",
        "torchvision's networks and transformers' BERT (ids and mask in, its attention as fused and as plain operations),",
        "with random weights, exported by PyTorch's two exporters with a free batch axis, imported by",
        "`deeptaylor.importers.from_onnx`, and explained beside the original. Scores: largest difference, as a share of the",
        "largest score. Composites: smallest cosine of the two maps over two images or texts; 0.9999 is asked for.",
        "",
        "| network | export | nodes | scores | " + " | ".join(COMPOSITES) + " |",
        "|---|---|---|---|" + "---|" * len(COMPOSITES),
    ]
    for name in ALL:
        for title, found in results["networks"].get(name, {}).items():
            cosines = " | ".join(f"{found['cosine'][c]:.6f}" for c in COMPOSITES)
            lines.append(f"| {name} | {title} | {found['nodes']} | {found['difference']:.0e} | {cosines} |")
    versions = ", ".join(f"{key} {value}" for key, value in results["versions"].items())
    return "\n".join([*lines, "", f"Versions: {versions}.", ""])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="networks; by default all")
    parser.add_argument("--fresh", action="store_true", help="do again what is there")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")  # both exporters warn about their own future
    torch.set_num_threads(1)
    results = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {"networks": {}}
    packages = ("torch", "torchvision", "transformers", "onnx", "onnx2pytorch", "onnxruntime", "onnxscript")
    results["versions"] = {"Python": platform.python_version(), **{p: version(p).split("+")[0] for p in packages}}
    for name in arguments.names or ALL:
        if name not in results["networks"] or arguments.fresh:
            results["networks"][name] = examine(name)
            RESULTS.write_text(json.dumps(results, indent=1) + "\n")
            TABLE.write_text(table(results), encoding="utf-8")
        lowest = min(min(found["cosine"].values()) for found in results["networks"][name].values())
        print(f"{name}: {lowest:.6f}", flush=True)
    rows = [found for row in results["networks"].values() for found in row.values()]
    return int(any(min(found["cosine"].values()) < WANTED for found in rows))


if __name__ == "__main__":
    sys.exit(main())
