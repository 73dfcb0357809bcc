"""What exporters take apart is one operation again, and only that."""

import numpy as np
import pytest
import torch
from test_onnx import TensorProto, from_onnx, model, numbers
from torch import nn

import deeptaylor as dt


@pytest.mark.parametrize("order", [0, 1])
def test_gelu_that_an_exporter_took_apart_is_one_activation_again(order):
    constants = {
        "w": numbers(4, 6),
        "v": numbers(6, 3),
        "root": np.float32(2**0.5),
        "one": np.float32(1),
        "half": np.float32(0.5),
    }
    rest = [[("Mul", ["z", "a"], ["m"], {}), ("Mul", ["m", "half"], ["g"], {})], [("Mul", ["half", "z"], ["m"], {}), ("Mul", ["m", "a"], ["g"], {})]]  # fmt: skip
    nodes = [
        ("MatMul", ["x", "w"], ["z"], {}), ("Div", ["z", "root"], ["d"], {}), ("Erf", ["d"], ["e"], {}), ("Add", ["e", "one"], ["a"], {}),
        *rest[order], ("MatMul", ["g", "v"], ["out"], {}),
    ]  # fmt: skip
    imported, x = from_onnx(model(nodes, ["N", 4], constants)), torch.from_numpy(numbers(5, 4))
    own = nn.Sequential(nn.Linear(4, 6, bias=False), nn.GELU(), nn.Linear(6, 3, bias=False)).eval()
    own[0].weight.data, own[2].weight.data = (torch.from_numpy(constants[name].T.copy()) for name in "wv")
    found, expected = (dt.explain(m, x, composite="deep-taylor").relevance for m in (imported, own))
    assert torch.allclose(found, expected, atol=1e-5)


def layer_norm(form, bias):
    """Rows and constants of layer norm over the last axis: one operator, or taken apart as before opset 17."""
    if form == "one operator":
        rows = [("LayerNormalization", ["z", "g", *bias], ["n"], {"axis": -1, "epsilon": 1e-3})]
    else:
        square = ("Pow", ["d", "two"]) if form == "power" else ("Mul", ["d", "d"])
        last = [("Mul", ["q", "g"], ["m"], {}), ("Add", ["b", "m"], ["n"], {})] if bias else [("Mul", ["g", "q"], ["n"], {})]  # fmt: skip
        rows = [
            ("ReduceMean", ["z"], ["mean"], {"axes": [-1]}), ("Sub", ["z", "mean"], ["d"], {}), (*square, ["s"], {}),
            ("ReduceMean", ["s"], ["var"], {"axes": [-1]}), ("Add", ["var", "eps"], ["e"], {}), ("Sqrt", ["e"], ["r"], {}),
            ("Div", ["d", "r"], ["q"], {}), *last,
        ]  # fmt: skip
    return rows, {"g": numbers(6), "b": numbers(6), "eps": np.float32(1e-3), "two": np.float32(2)}


@pytest.mark.parametrize("bias", [["b"], []], ids=["bias", "no bias"])
@pytest.mark.parametrize("form", ["one operator", "power", "product"])
def test_layer_norm_that_an_exporter_took_apart_is_one_operation_again(form, bias):
    rows, constants = layer_norm(form, bias)
    constants |= {"w": numbers(4, 6), "v": numbers(6, 3)}
    nodes = [("MatMul", ["x", "w"], ["z"], {}), *rows, ("MatMul", ["n", "v"], ["out"], {})]
    imported, x = from_onnx(model(nodes, ["N", 4], constants)), torch.from_numpy(numbers(5, 4))
    assert not any("not compared" in note for note in imported.notes)
    own = nn.Sequential(
        nn.Linear(4, 6, bias=False), nn.LayerNorm(6, eps=1e-3, bias=bool(bias)), nn.Linear(6, 3, bias=False)
    )
    own[0].weight.data, own[2].weight.data = (torch.from_numpy(constants[name].T.copy()) for name in "wv")
    own[1].weight.data = torch.from_numpy(constants["g"])
    if bias:
        own[1].bias.data = torch.from_numpy(constants["b"])
    for composite in ("deep-taylor", "auto"):
        found = dt.explain(imported, x, composite=composite)
        assert [row.op for row in found.plan.rows] == ["linear", "layer_norm", "linear"]
        assert torch.allclose(found.relevance, dt.explain(own.eval(), x, composite=composite).relevance, atol=1e-5)


def test_one_hot_ids_times_a_matrix_are_looked_up_and_explained():
    """As tf2onnx writes the embeddings of Flax and of TensorFlow's one_hot."""
    constants = {"apart": np.array([-1]), "counted": np.arange(7)[None, None], "w": numbers(7, 4), "v": numbers(4, 3)}
    nodes = [
        ("Unsqueeze", ["x", "apart"], ["u"], {}), ("Equal", ["u", "counted"], ["e"], {}), ("Cast", ["e"], ["hot"], {"to": TensorProto.FLOAT}),
        ("MatMul", ["hot", "w"], ["words"], {}), ("Tanh", ["words"], ["t"], {}), ("ReduceMean", ["t"], ["mean"], {"axes": [1], "keepdims": 0}),
        ("MatMul", ["mean", "v"], ["out"], {}),
    ]  # fmt: skip
    proto = model(nodes, ["N", 5], constants)
    proto.graph.input[0].type.tensor_type.elem_type = TensorProto.INT64
    imported, ids = from_onnx(proto), torch.tensor([[3, 0, 6, 6, 1]])
    words = torch.from_numpy(constants["w"])[ids]
    assert torch.allclose(imported(ids), words.tanh().mean(1) @ torch.from_numpy(constants["v"]), atol=1e-6)
    result = dt.explain(imported, ids, composite="epsilon", ledger=True)
    assert result.relevance.shape == (1, 5)
    assert result.relevance[0, 2] == result.relevance[0, 3]  # the same word twice
    assert result.ledger.gap.abs().max() < 1e-6


def test_the_scaler_of_a_scikit_learn_export_is_written_out():
    constants = {"w": numbers(4, 3), "b": numbers(3)}
    nodes = [("Scaler", ["x"], ["s"], {"domain": "ai.onnx.ml", "offset": [1.0, 2.0, 0.5, 0.0], "scale": [2.0, 1.0, 3.0, 0.25]}), ("MatMul", ["s", "w"], ["m"], {}), ("Add", ["m", "b"], ["out"], {})]  # fmt: skip
    proto, x = model(nodes, ["N", 4], constants, domains=["ai.onnx.ml"]), numbers(5, 4)
    imported = from_onnx(proto)
    expected = (x - [1, 2, 0.5, 0]) * [2, 1, 3, 0.25] @ constants["w"] + constants["b"]
    assert not any("not compared" in note for note in imported.notes)
    assert np.allclose(imported(torch.from_numpy(x)), expected, atol=1e-5)
    found = dt.explain(imported, torch.from_numpy(x), target=1, composite="epsilon").relevance
    assert np.allclose(found, x * [2, 1, 3, 0.25] * constants["w"][:, 1], atol=1e-4)  # the offset counts as a bias


def test_what_only_resembles_layer_norm_stays_as_it_is():
    """Divided by the deviation of something else, or by the mean's square root over another axis."""
    rows, constants = layer_norm("power", ["b"])
    constants |= {"w": numbers(4, 6), "v": numbers(6, 3)}
    changed = {
        "other dividend": [("Div", ["z", "r"], ["q"], {}) if row[0] == "Div" else row for row in rows],
        "cubed": rows,
        "other axis": [(op, i, o, {"axes": [0]} if o == ["var"] else a) for op, i, o, a in rows],
    }
    for case, own in changed.items():
        nodes = [("MatMul", ["x", "w"], ["z"], {}), *own, ("MatMul", ["n", "v"], ["out"], {})]
        held = constants | ({"two": np.float32(4)} if case == "cubed" else {})
        imported = from_onnx(model(nodes, [5, 4], held))
        assert not any(isinstance(module, nn.LayerNorm) for module in imported.modules()), case
