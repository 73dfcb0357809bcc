"""`deeptaylor explain` and `plan` on model files from elsewhere: the LRP Toolbox's text, and ONNX."""

import numpy as np
import pytest
import torch
from PIL import Image
from test_cli import run

import deeptaylor as dt

RANDOM = np.random.default_rng(0)


def row(*values):
    return " ".join(str(value) for value in values)


CONVOLUTIONAL = "\n".join([
    "Convolution 3 3 1 4 1 1", row(*RANDOM.normal(size=36).round(3)), row(*-RANDOM.random(4).round(3)), "Rect",
    "SumPool 2 2 2 2", "Flatten", "Linear 36 3", row(*RANDOM.normal(size=108).round(3)), "0 0 0", "SoftMax", "",
])  # fmt: skip
GREY = ["--size", "8", "--mean", "0.5", "--std", "0.5"]


@pytest.fixture
def desk(tmp_path, monkeypatch):
    """A folder with a photo and two networks of the toolbox; the working directory of the test."""
    Image.fromarray(RANDOM.integers(0, 256, (10, 12, 3), dtype=np.uint8)).save(tmp_path / "seven.png")
    (tmp_path / "net.txt").write_text(CONVOLUTIONAL)
    (tmp_path / "dense.txt").write_text("Linear 4 2\n1 2 3 4 5 6 7 8\n0 0\nSoftMax\n")
    (tmp_path / "notes.txt").write_text("Dear diary\n")
    for name in ("net.h5", "weights.pt", "net.xyz"):
        (tmp_path / name).write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path


def test_a_network_of_the_toolbox_is_a_model_like_any_other(desk):
    result = run("explain", "seven.png", "-m", "net.txt", *GREY, "-o", "m.npz", "-c", "deep-taylor")
    assert "note: the closing softmax is left off" in result.stderr
    held = np.load("m.npz")
    assert held["relevance"].shape == (1, 1, 1, 1, 8, 8)  # grey, as its first layer says
    inputs = (torch.from_numpy(held["pixels"]).permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5
    network = dt.importers.from_lrp_toolbox("net.txt")
    expected = dt.explain(network, inputs, composite="deep-taylor", bounds=(-1.0, 1.0)).relevance
    assert np.allclose(held["relevance"][0, 0], expected, atol=1e-5)


def test_a_plan_of_a_network_that_takes_no_photos(desk):
    assert "linear" in run("plan", "dense.txt").stdout


BAD = {
    "no photos": (["explain", "seven.png", "-m", "dense.txt", *GREY], "takes inputs of shape (N, 4), not photos"),
    "other text": (["explain", "seven.png", "-m", "notes.txt", *GREY], "line 1: 'Dear' is no layer of the LRP Toolbox"),
    "weights": (["explain", "seven.png", "-m", "net.txt", *GREY, "--weights", "weights.pt"], "carries its weights"),
    "keras": (["explain", "seven.png", "-m", "net.h5", *GREY], "net.h5 is a file of Keras"),
    "unknown file": (["explain", "seven.png", "-m", "net.xyz", *GREY], "net.xyz is a file of a kind that is not known"),
    "size": (["plan", "net.txt"], "pass --size"),
    "folder": (["plan", "folder.onnx"], "that is a folder"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD.values(), ids=BAD)
def test_bad_model_files_are_one_clear_message(desk, case):
    (desk / "folder.onnx").mkdir()
    arguments, said = case
    result = run(*arguments, code=2)
    assert said in result.stderr


def keras_file(path, size=8):
    """Channels last, as TensorFlow exports; a fixed size, so that only mean and std are asked for."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from onnx import TensorProto, helper, numpy_helper

    nodes = [
        helper.make_node("Transpose", ["in"], ["x"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["x", "w"], ["c"], kernel_shape=[3, 3]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("GlobalAveragePool", ["r"], ["g"]),
        helper.make_node("Flatten", ["g"], ["f"]),
        helper.make_node("Softmax", ["f"], ["out"]),
    ]
    ends = (
        [helper.make_tensor_value_info("in", TensorProto.FLOAT, ["N", size, size, 3])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["N", 5])],
    )
    weights = [numpy_helper.from_array(RANDOM.normal(size=(5, 3, 3, 3)).astype(np.float32), "w")]
    graph = helper.make_graph(nodes, "net", *ends, weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)


def test_an_onnx_file_that_wants_channels_last_explains_photos(desk):
    keras_file("net.onnx")
    plan = run("plan", "net.onnx").stdout
    assert "conv2d" in plan
    result = run(
        "explain", "seven.png", "-m", "net.onnx", "--mean", "0.5", "--std", "0.5", "-o", "m.npz", "-c", "epsilon"
    )
    assert "channels come last in this file" in result.stderr
    held = np.load("m.npz")
    assert held["relevance"].shape == (1, 1, 1, 3, 8, 8)
    inputs = (torch.from_numpy(held["pixels"]).float() / 255 - 0.5) / 0.5
    expected = dt.explain(dt.importers.from_onnx("net.onnx"), inputs, composite="epsilon").relevance
    assert np.allclose(held["relevance"][0, 0], expected.permute(0, 3, 1, 2), atol=1e-6)


def test_a_truncated_onnx_file_is_one_clear_message(desk):
    keras_file("net.onnx")
    content = (desk / "net.onnx").read_bytes()
    (desk / "net.onnx").write_bytes(content[: len(content) // 2])
    assert "net.onnx can't be read as an ONNX model, or is truncated" in run("plan", "net.onnx", code=2).stderr


def test_an_onnx_file_without_the_extra_says_what_to_install(desk, monkeypatch):
    (desk / "net.onnx").write_bytes(b"x")
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    assert "pip install 'deeptaylor[onnx]'" in run("plan", "net.onnx", code=2).stderr
