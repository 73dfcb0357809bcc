"""An explanation exported to ONNX gives, in ONNX Runtime alone, what the explainer gives."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from shipped import CASES, MORE, elsewhere, explainer_of, off

for name in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(name)

import onnx  # noqa: E402
import onnxruntime  # noqa: E402

import deeptaylor as dt  # noqa: E402

RUN = """
import numpy, onnxruntime
folder, name = sys.argv[1:]
calls = numpy.load(f"{folder}/calls.npz")
session = onnxruntime.InferenceSession(f"{folder}/a.onnx")
found = {}
for n in (1, 3, 5):
    given = {name: calls[f"x{n}"], "target": calls[f"target{n}"]}
    for output, values in zip(session.get_outputs(), session.run(None, given)):
        found[f"{output.name}{n}"] = values
numpy.savez(f"{folder}/found.npz", **found)
assert "torch" not in sys.modules
"""
SLOW = [pytest.param(*case, marks=pytest.mark.slow) for case in [CASES[1], *MORE]]


@pytest.mark.filterwarnings("ignore")  # the exporter's own
@pytest.mark.parametrize(("make", "composite"), [CASES[0], CASES[2], *SLOW])
def test_onnx_runtime_alone_gives_what_the_explainer_gives(make, composite, tmp_path):
    explainer = explainer_of(make, composite)
    explainer.export(tmp_path / "a.onnx", preprocessing={"scale": 255})
    shape, name = make()[1].shape[1:], explainer.plan.explained[0]
    calls = {n: (torch.randn(n, *shape).clamp(-4, 4), torch.arange(n) % 4 - 1) for n in (1, 3, 5)}
    arrays = {f"x{n}": x.numpy() for n, (x, _) in calls.items()} | {
        f"target{n}": t.numpy() for n, (_, t) in calls.items()
    }
    np.savez(tmp_path / "calls.npz", **arrays)
    elsewhere(RUN, str(tmp_path), name, cwd=tmp_path)
    found = {key: torch.from_numpy(values) for key, values in np.load(tmp_path / "found.npz").items()}
    for n, (x, target) in calls.items():
        expected = explainer(x, target=torch.where(target < 0, explainer(x).target, target))
        assert off(found[f"relevance{n}"], expected.relevance) < 1e-5
        assert off(found[f"output{n}"], expected.output) < 1e-5
        assert torch.equal(found[f"class{n}"], expected.target)
    model = onnx.load(tmp_path / "a.onnx")
    said = json.loads({entry.key: entry.value for entry in model.metadata_props}["deeptaylor"])
    assert said["composite"] == composite
    assert said["preprocessing"] == {"scale": 255}
    assert not any(node.metadata_props for node in model.graph.node)
    assert {node.domain for node in model.graph.node} <= {
        "",
        "pkg.onnxscript.torch_lib",
        "pkg.onnxscript.torch_lib.common",
    }


@pytest.mark.filterwarnings("ignore")
def test_alpha_beta_of_layers_that_add_up_each_sign(monkeypatch, tmp_path):
    monkeypatch.setattr("deeptaylor.rules.affine.MANY", 1)
    model, x = CASES[0][0]()
    explainer = dt.Explainer(model, x, composite=dt.rules.AlphaBeta())
    explainer.export(tmp_path / "a.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "a.onnx")
    given = {explainer.plan.explained[0]: x.numpy(), "target": np.full(len(x), -1)}
    found = dict(zip((output.name for output in session.get_outputs()), session.run(None, given), strict=True))
    assert off(torch.from_numpy(found["relevance"]), explainer(x).relevance) < 1e-5
