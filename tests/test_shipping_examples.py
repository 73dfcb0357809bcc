"""The examples of docs/shipping.md and docs/numerics.md do what they say."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from shipped import elsewhere, off
from torch import nn

import deeptaylor as dt

EXAMPLES = Path(__file__).parent.parent / "examples"
SERVE = """
import json, runpy, threading, urllib.error, urllib.request
serving = runpy.run_path(sys.argv[1])["server"](sys.argv[2], 0)
threading.Thread(target=serving.serve_forever, daemon=True).start()
address = f"http://127.0.0.1:{serving.server_port}/"
ask = lambda content: urllib.request.urlopen(address, json.dumps(content).encode()).read().decode()
said = json.loads(urllib.request.urlopen(address).read())
found = [ask(json.loads(content)) for content in sys.argv[3:]]
try:
    ask({"inputs": {}})
except urllib.error.HTTPError as error:
    found.append(json.dumps({"status": error.code, **json.loads(error.read())}))
print(json.dumps([said["composite"], *map(json.loads, found)]))
assert "deeptaylor" not in sys.modules
"""


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).eval(), torch.randn(3, 4)


def test_the_http_service_explains_with_torch_alone(tmp_path):
    model, x = network()
    explainer = dt.Explainer(model, x, composite="epsilon")
    path = explainer.export(tmp_path / "explain.pt2")
    asked = [json.dumps({"inputs": {"input": x.tolist()}, **more}) for more in ({}, {"target": [2, -1, 0]})]
    composite, first, second, refused = json.loads(
        elsewhere(SERVE, str(EXAMPLES / "serve_http.py"), str(path), *asked, cwd=tmp_path)
    )
    assert composite == "epsilon"
    assert off(torch.tensor(first["relevance"]), explainer(x).relevance) < 1e-5
    target = [2, int(explainer(x).target[1]), 0]
    assert second["class"] == target
    assert off(torch.tensor(second["relevance"]), explainer(x, target=target).relevance) < 1e-5
    assert refused["status"] == 400
    assert "input" in refused["error"]


@pytest.mark.filterwarnings("ignore")
def test_the_onnx_example_explains_with_onnx_runtime_alone(tmp_path):
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name)
    model, x = network()
    explainer = dt.Explainer(model, x, composite="epsilon")
    explainer.export(tmp_path / "explain.onnx")
    np.save(tmp_path / "x.npy", x.numpy())
    run = "import runpy; sys.argv[:] = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__'); assert 'torch' not in sys.modules"
    said = elsewhere(run, str(EXAMPLES / "serve_onnx.py"), "explain.onnx", "x.npy", "r.npy", cwd=tmp_path)
    assert f"epsilon: classes {explainer(x).target.tolist()}" in said
    assert off(torch.from_numpy(np.load(tmp_path / "r.npy")), explainer(x).relevance) < 1e-5


def test_a_penalty_on_relevance_takes_a_distractor_out():
    train = runpy.run_path(str(EXAMPLES / "relevance_penalty.py"))["train"]
    (accuracy, share), (penalized, left) = train(0.0), train(1.0)
    assert share > 0.1 > 0.03 > left
    assert penalized > accuracy + 0.05
