"""torchvision's families exported to ONNX and imported again: are they explained as the originals are? (`make onnx`).

Every network has random weights and batch-norm statistics of random images, and is exported twice: by TorchScript's
exporter at opset 14 (the oldest that knows attention), and by PyTorch's present one at opset 18, which computes sizes and axes in the graph. The batch
axis is left free. Reported per network: the largest difference of the scores, as a share of the largest score, and per
composite the smallest cosine between the maps of original and import over two images.

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
SLICE = ("resnet18", "squeezenet1_1", "shufflenet_v2_x0_5")
EXPORTERS = {"opset 14": {"dynamo": False, "opset_version": 14}, "opset 18": {"dynamo": True, "opset_version": 18}}


def network(name: str) -> tuple[nn.Module, Tensor]:
    """A network with random weights whose activations keep their size, and two images."""
    torch.manual_seed(0)
    side, options = NETWORKS[name]
    model = torchvision.models.get_model(name, weights=None, **options)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # statistics of exactly the images below
    with torch.no_grad():
        model.train()(torch.randn(8, 3, side, side))
    return model.eval(), torch.randn(2, 3, side, side)


def exported(model: nn.Module, images: Tensor, options: dict[str, Any]) -> Any:
    """The ONNX model, with a free batch axis."""
    import onnx

    file = io.BytesIO()
    batch: dict[str, Any] = (
        {"dynamic_shapes": ({0: torch.export.Dim("batch")},), "verbose": False}
        if options["dynamo"]
        else {"dynamic_axes": {"image": {0: "batch"}}}
    )
    with contextlib.redirect_stdout(io.StringIO()):  # both print while they work
        torch.onnx.export(model, (images,), file, input_names=["image"], **options, **batch)
    return onnx.load(io.BytesIO(file.getvalue()))


def cosine(a: Tensor, b: Tensor) -> float:
    """The smallest cosine over the images."""
    return float(torch.nn.functional.cosine_similarity(a.flatten(1).double(), b.flatten(1).double()).min())


def examine(name: str) -> dict[str, Any]:
    """Everything that is reported of one network."""
    model, images = network(name)
    with torch.no_grad():
        scores = model(images)
    maps = {composite: dt.explain(model, images, composite=composite).relevance for composite in COMPOSITES}
    row: dict[str, Any] = {}
    for title, options in EXPORTERS.items():
        proto = exported(model, images, options)
        imported = dt.importers.from_onnx(proto)
        with torch.no_grad():
            difference = float((imported(images) - scores).abs().max() / scores.abs().max())
        row[title] = {
            "operators": len({node.op_type for node in proto.graph.node}),
            "nodes": len(proto.graph.node),
            "difference": difference,
            "notes": list(imported.notes),
            "cosine": {c: cosine(maps[c], dt.explain(imported, images, composite=c).relevance) for c in COMPOSITES},
        }
    return row


def table(results: dict[str, Any]) -> str:
    """The page."""
    lines = [
        "# ONNX round trips",
        "",
        "Made by `make onnx` (`benchmarks/onnx_roundtrip.py`); the figures are in `benchmarks/results/onnx_roundtrip.json`.",
        "",
        "torchvision's networks with random weights, exported by PyTorch's two exporters with a free batch axis, imported",
        "by `deeptaylor.importers.from_onnx`, and explained beside the original. Scores: largest difference, as a share of",
        "the largest score. Composites: smallest cosine of the two maps over two images; 0.9999 is asked for.",
        "",
        "| network | export | nodes | scores | " + " | ".join(COMPOSITES) + " |",
        "|---|---|---|---|" + "---|" * len(COMPOSITES),
    ]
    for name in NETWORKS:
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
    packages = ("torch", "torchvision", "onnx", "onnx2pytorch", "onnxruntime", "onnxscript")
    results["versions"] = {"Python": platform.python_version(), **{p: version(p).split("+")[0] for p in packages}}
    for name in arguments.names or NETWORKS:
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
