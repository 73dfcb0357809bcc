"""ONNX files that PyTorch did not write, from packages that ship them (`make onnx`).

Magika (Flax through tf2onnx), PP-OCR (PaddlePaddle through paddle2onnx), a perceptron of scikit-learn (skl2onnx, made
here), and a logistic regression in onnxruntime's examples (OnnxMLTools). Each is imported, compared with onnxruntime on
inputs of its own, and explained with a ledger. Writes docs/onnx_foreign.md and benchmarks/results/onnx_foreign.json.
"""

from __future__ import annotations

import io
import json
import sys
import warnings
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import shim  # noqa: F401
import torch
from torch import Tensor

import deeptaylor as dt

ROOT = Path(__file__).resolve().parent.parent
RESULTS, PAGE = ROOT / "benchmarks" / "results" / "onnx_foreign.json", ROOT / "docs" / "onnx_foreign.md"
MAGIKA_SCORES = "jax2tf_get_logits_/pjit_get_logits_/MagikaV2/Dense_1/AddV2:0"
"""What enters its softmax, which tf2onnx wrote out as exponentials and a division."""


def shipped(package: str, path: str) -> Path:
    """A file inside a package, without running its code."""
    found = find_spec(package)
    assert found is not None, f"install {package}"
    assert found.origin is not None
    return Path(found.origin).parent / path


def by_onnxruntime(proto: Any, inputs: dict[str, np.ndarray], output: str) -> np.ndarray:
    """A value of the graph, as the file states it."""
    copy = onnx.ModelProto.FromString(proto.SerializeToString())
    del copy.graph.output[:]
    copy.graph.output.append(onnx.helper.make_empty_tensor_value_info(output))
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(copy.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run([output], inputs)[0]


def row(file: Path | bytes, inputs: Tensor, scores: str, output: str | None = None, head: Any = None) -> dict[str, Any]:
    """One file: imported, compared, explained. `scores` is the value that the import gives."""
    proto = onnx.load(file) if isinstance(file, Path) else onnx.load(io.BytesIO(file))
    model = dt.importers.from_onnx(proto, output=output)
    feeds = {proto.graph.input[0].name: inputs.numpy()}
    expected = by_onnxruntime(proto, feeds, scores)
    with torch.no_grad():
        found = model(inputs).numpy()
    result = dt.explain(model, inputs, head=head, ledger=True)
    return {
        "exporter": f"{proto.producer_name or 'not stated'} {proto.producer_version}".strip(),
        "opset": next(entry.version for entry in proto.opset_import if not entry.domain),
        "nodes": len(proto.graph.node),
        "difference": float(np.abs(found - expected).max() / np.abs(expected).max()),
        "gap": float((result.ledger.gap.abs() / result.explained.abs()).max()),
        "composite": result.plan.composite,
        "relevance": result.relevance,
        "model": model,
    }


def into_softmax(file: Path) -> str:
    """What the closing softmax or sigmoid reads."""
    graph = onnx.load(file).graph
    made = {name: node for node in graph.node for name in node.output}
    node = made[graph.output[0].name]
    while node.op_type not in ("Softmax", "Sigmoid"):
        node = made[node.input[0]]
    return str(node.input[0])


def magika() -> dict[str, Any]:
    """Which bytes say what kind of file this script is."""
    folder = shipped("magika", "models/standard_v3_3")
    text = Path(__file__).read_bytes().strip()
    ids = torch.tensor([[*text[:1024], *text[-1024:]]], dtype=torch.int32)
    found = row(folder / "model.onnx", ids, MAGIKA_SCORES, output=MAGIKA_SCORES)
    names = json.loads((folder / "config.min.json").read_text())["target_labels_space"]
    said = names[int(found["model"](ids).argmax())]
    assert found["relevance"].shape == ids.shape
    return found | {"what": f"2,048 bytes of this script: “{said}”"}


def paddle(name: str, *shape: int) -> dict[str, Any]:
    file = shipped("rapidocr_onnxruntime", f"models/{name}.onnx")
    images = torch.rand(*shape, generator=torch.Generator().manual_seed(0))
    head = {4: lambda out: out.flatten(1), 3: lambda out: out.amax(1)}.get(_rank(file, images))
    return row(file, images, into_softmax(file), head=head) | {"what": "random images"}


def _rank(file: Path, images: Tensor) -> int:
    with torch.no_grad():
        return dt.importers.from_onnx(file)(images).dim()


def perceptron() -> dict[str, Any]:
    """A perceptron with its scaler, through skl2onnx and through `from_sklearn`: two ways to one map."""
    from skl2onnx import to_onnx
    from sklearn.datasets import load_digits
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    x, y = load_digits(return_X_y=True)
    x = x.astype(np.float32)
    fitted = make_pipeline(StandardScaler(), MLPClassifier((40,), max_iter=60, random_state=0)).fit(x[:1500], y[:1500])
    file = to_onnx(fitted, x[:1], options={"zipmap": False}).SerializeToString()
    digits = torch.from_numpy(x[1500:1550])
    proto = onnx.load(io.BytesIO(file))
    ends = [node for node in proto.graph.node if node.op_type == "Softmax"]
    found = row(file, digits, ends[-1].input[0])
    own = dt.importers.from_sklearn(fitted)
    maps = [dt.explain(model, digits, composite="epsilon").relevance for model in (own, found["model"])]
    cosine = torch.nn.functional.cosine_similarity(*maps).min()
    right = float((found["model"](digits).argmax(1).numpy() == y[1500:1550]).mean())
    return found | {"what": f"50 digits, {right:.0%} right; cosine to `from_sklearn` {cosine:.6f} at least"}


def refused() -> str:
    """What is said of a file whose operators are not of neural networks."""
    try:
        dt.importers.from_onnx(shipped("onnxruntime", "datasets/logreg_iris.onnx"))
    except dt.errors.ModelLoadError as error:
        return str(error)
    raise AssertionError("logreg_iris.onnx was taken")


def main() -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    rows = {
        "Magika 3.3 (kinds of files, from bytes)": magika(),
        "PP-OCR 2.0 (which way up)": paddle("ch_ppocr_mobile_v2.0_cls_infer", 2, 3, 48, 192),
        "PP-OCR 4 (lines of text)": paddle("ch_PP-OCRv4_rec_infer", 2, 3, 48, 64),
        "PP-OCR 4 (where text is)": paddle("ch_PP-OCRv4_det_infer", 1, 3, 64, 64),
        "scikit-learn's perceptron": perceptron(),
    }
    for found in rows.values():
        assert found["difference"] < 1e-4
        assert found["gap"] < 1e-4
        del found["relevance"], found["model"]
    packages = (
        "torch",
        "onnx",
        "onnx2pytorch",
        "onnxruntime",
        "magika",
        "rapidocr-onnxruntime",
        "skl2onnx",
        "scikit-learn",
    )
    versions = {name: version(name).split("+")[0] for name in packages}
    results = {"files": rows, "refused": refused(), "versions": versions}
    RESULTS.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    PAGE.write_text(page(results), encoding="utf-8")


def page(results: dict[str, Any]) -> str:
    lines = [
        "# ONNX files of other exporters",
        "",
        "Written by `benchmarks/onnx_foreign.py` (`make onnx`): files that packages ship, and one of scikit-learn's made on the spot.",
        "Scores: largest difference from onnxruntime, as a share of the largest score. Ledger: explained score less relevance",
        "and what was absorbed, as a share of the score.",
        "",
        "| file | exporter | opset | nodes | scores | ledger | `auto` | input |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, found in results["files"].items():
        said = (found["exporter"], found["opset"], found["nodes"], f"{found['difference']:.0e}", f"{found['gap']:.0e}")
        lines.append(f"| {name} | {' | '.join(map(str, said))} | {found['composite']} | {found['what']} |")
    lines += [
        "",
        "onnxruntime's example `logreg_iris.onnx` (OnnxMLTools) is refused:",
        "",
        "```",
        results["refused"],
        "```",
        "",
    ]
    versions = ", ".join(f"{key} {value}" for key, value in results["versions"].items())
    return "\n".join([*lines, f"Versions: {versions}.", ""])


if __name__ == "__main__":
    sys.exit(main())
