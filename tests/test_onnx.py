"""ONNX files explain as the networks they came from do; what can't be converted is named.

Graphs are built by hand, as the exporters of TensorFlow, scikit-learn and PyTorch write them, and compared with the same
network written in PyTorch.
"""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnx.shape_inference")
pytest.importorskip("onnxruntime")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

import deeptaylor as dt  # noqa: E402
from deeptaylor.adapters.onnx_model import _import_converter  # noqa: E402
from deeptaylor.errors import InputError, MissingExtra, ModelLoadError  # noqa: E402
from deeptaylor.importers import from_onnx  # noqa: E402

try:
    _import_converter()
except MissingExtra as missing:  # the package is there, torchvision is not
    pytest.skip(str(missing), allow_module_level=True)

RANDOM = np.random.default_rng(0)


def numbers(*shape):
    return RANDOM.normal(size=shape).astype(np.float32)


def model(nodes, shape, constants=(), opset=17, outputs=("out",), inputs=("x",), domains=()):
    """A graph from (op, inputs, outputs, attributes) rows."""
    made = [helper.make_node(op, list(i), list(o), name=f"net/{op}_{k}", **a) for k, (op, i, o, a) in enumerate(nodes)]
    graph = helper.make_graph(
        made,
        "net",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in inputs],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in dict(constants).items()],
    )
    ids = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    inferred = onnx.shape_inference.infer_shapes(helper.make_model(graph, opset_imports=ids, ir_version=8))
    for output in inferred.graph.output:
        output.type.tensor_type.shape.SetInParent()  # the checker wants one even where none can be inferred
    return inferred


# --- a network as TensorFlow's users export it: channels last, SAME padding, sizes computed by the graph

KERAS = {
    "conv1:0": numbers(6, 3, 3, 3), "bias1:0": numbers(6), "conv2:0": numbers(4, 6, 3, 3), "bias2:0": numbers(4),
    "gamma": RANDOM.random(4).astype(np.float32) + 0.5, "beta": numbers(4), "mean": numbers(4),
    "var": RANDOM.random(4).astype(np.float32) + 0.5, "dense:0": numbers(36, 5), "bias3:0": numbers(5),
    "first": np.array([0]), "last": np.array([1]), "rest": np.array([-1]), "axes0": np.array([0]),
}  # fmt: skip


def keras(opset=17):
    """Names with slashes and colons, as TensorFlow's; 3x3 kernels with stride 2 and SAME padding, so pads differ."""
    return model(
        [
            ("Transpose", ["input_1:0"], ["nchw"], {"perm": [0, 3, 1, 2]}),
            ("Conv", ["nchw", "conv1:0", "bias1:0"], ["model/conv1/BiasAdd:0"], {"auto_pad": "SAME_UPPER", "strides": [2, 2], "kernel_shape": [3, 3]}),
            ("Relu", ["model/conv1/BiasAdd:0"], ["r1"], {}),
            ("MaxPool", ["r1"], ["p1"], {"kernel_shape": [2, 2], "strides": [1, 1], "auto_pad": "VALID"}),
            ("Conv", ["p1", "conv2:0", "bias2:0"], ["c2"], {"pads": [0, 0, 1, 1], "strides": [2, 2], "kernel_shape": [3, 3]}),
            ("BatchNormalization", ["c2", "gamma", "beta", "mean", "var"], ["n2"], {"epsilon": 1e-3}),
            ("Relu", ["n2"], ["r2"], {}),
            ("Transpose", ["r2"], ["nhwc"], {"perm": [0, 2, 3, 1]}),
            ("Shape", ["nhwc"], ["shape"], {}),
            ("Slice", ["shape", "first", "last", "axes0"], ["batch"], {}),
            ("Concat", ["batch", "rest"], ["flat_shape"], {"axis": 0}),
            ("Reshape", ["nhwc", "flat_shape"], ["flat"], {}),
            ("MatMul", ["flat", "dense:0"], ["dense"], {}),
            ("Add", ["dense", "bias3:0"], ["scores"], {}),
            ("Softmax", ["scores"], ["Identity:0"], {"axis": -1}),
        ],
        ["N", 14, 14, 3], KERAS, opset, outputs=["Identity:0"], inputs=["input_1:0"],
    )  # fmt: skip


class Keras(nn.Module):
    """The same network in PyTorch."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 6, 3, stride=2), nn.Conv2d(6, 4, 3, stride=2)
        self.norm, self.dense = nn.BatchNorm2d(4, eps=1e-3), nn.Linear(36, 5)
        values = [
            (self.conv1.weight, "conv1:0"), (self.conv1.bias, "bias1:0"), (self.conv2.weight, "conv2:0"),
            (self.conv2.bias, "bias2:0"), (self.norm.weight, "gamma"), (self.norm.bias, "beta"),
            (self.norm.running_mean, "mean"), (self.norm.running_var, "var"), (self.dense.bias, "bias3:0"),
        ]  # fmt: skip
        for place, name in values:
            place.data = torch.from_numpy(KERAS[name])
        self.dense.weight.data = torch.from_numpy(KERAS["dense:0"].T.copy())

    def forward(self, x):
        x = F.pad(x.permute(0, 3, 1, 2), (0, 1, 0, 1))
        x = F.max_pool2d(self.conv1(x).relu(), 2, 1)
        x = self.norm(self.conv2(F.pad(x, (0, 1, 0, 1)))).relu()
        return self.dense(x.permute(0, 2, 3, 1).flatten(1))


COMPOSITES = ["auto", "deep-taylor", "epsilon-alpha2-beta1"]


@pytest.mark.parametrize("opset", [11, 13, 17])
def test_a_channels_last_graph_gives_the_scores_of_the_same_network(opset):
    x = torch.from_numpy(numbers(3, 14, 14, 3))
    imported = from_onnx(keras(opset))
    assert torch.allclose(imported(x), Keras().eval()(x), atol=1e-4)
    assert imported.input_shapes == {"input_1_0": (None, 14, 14, 3)}
    assert imported.notes == ("the closing softmax is left off: what is explained are the scores that enter it",)


@pytest.mark.parametrize("composite", COMPOSITES)
def test_a_channels_last_graph_explains_as_the_same_network_does(composite):
    x, imported, own = torch.from_numpy(numbers(3, 14, 14, 3)), from_onnx(keras()), Keras().eval()
    found = dt.explain(imported, x, composite=composite, ledger=True)
    expected = dt.explain(own, x, composite=composite).relevance
    assert torch.allclose(found.relevance, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
    assert found.ledger.gap.abs().max() < 1e-4


def test_the_softmax_may_be_kept():
    x = torch.from_numpy(numbers(2, 14, 14, 3))
    assert torch.allclose(from_onnx(keras(), keep_ending=True)(x), Keras().eval()(x).softmax(1), atol=1e-5)


def test_an_inner_value_may_be_explained():
    x = torch.from_numpy(numbers(2, 14, 14, 3))
    imported = from_onnx(keras(), output="model/conv1/BiasAdd:0")
    assert torch.allclose(imported(x), Keras().conv1(F.pad(x.permute(0, 3, 1, 2), (0, 1, 0, 1))), atol=1e-4)


def test_batches_of_any_size_share_one_plan():
    explainer = dt.Explainer(from_onnx(keras()), torch.from_numpy(numbers(2, 14, 14, 3)), composite="epsilon")
    x = torch.from_numpy(numbers(5, 14, 14, 3))
    together = explainer(x).relevance
    assert torch.allclose(together[3:4], explainer(x[3:4]).relevance, atol=1e-5)


def test_the_model_that_was_passed_in_stays_as_it_was():
    given = keras()
    before = given.SerializeToString()
    from_onnx(given)
    assert given.SerializeToString() == before


# --- operators, one by one: the converted module against onnxruntime, which the importer itself compares with

SMALL = {
    "conv transposed": ([("ConvTranspose", ["x", "w"], ["out"], {"strides": [2, 2]})], (2, 4, 5, 6), {"w": numbers(4, 3, 3, 3)}),
    "average pool": ([("AveragePool", ["x"], ["out"], {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]})], (2, 4, 5, 6), {}),
    "global max": ([("GlobalMaxPool", ["x"], ["out"], {})], (2, 4, 5, 6), {}),
    "gemm": ([("Gemm", ["x", "w", "b"], ["out"], {"transB": 1, "alpha": 0.5, "beta": 2.0})], (2, 6), {"w": numbers(3, 6), "b": numbers(1, 3)}),
    "product from the left": ([("MatMul", ["w", "x"], ["out"], {})], (4, 5), {"w": numbers(3, 4)}),
    "product of stacks": ([("MatMul", ["x", "w"], ["out"], {})], (2, 3, 4), {"w": numbers(2, 4, 5)}),
    "shared bias": ([("MatMul", ["x", "w"], ["m"], {}), ("Add", ["m", "b"], ["s"], {}), ("Add", ["s", "m"], ["out"], {})], (2, 4), {"w": numbers(4, 5), "b": numbers(5)}),
    "pad": ([("Pad", ["x", "p", "v"], ["out"], {})], (2, 3, 4), {"p": np.array([0, 1, 0, 0, 2, 1]), "v": np.float32(1.5)}),
    "reflect": ([("Pad", ["x", "p"], ["out"], {"mode": "reflect"})], (2, 3, 4, 4), {"p": np.array([0, 0, 1, 1, 0, 0, 2, 0])}),
    "upsample": ([("Resize", ["x", "", "s"], ["out"], {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"})], (2, 3, 4, 4), {"s": np.array([1, 1, 2, 2], np.float32)}),
    "bilinear": ([("Resize", ["x", "", "", "s"], ["out"], {"mode": "linear"})], (2, 3, 4, 4), {"s": np.array([2, 3, 7, 6])}),
    "split": ([("Split", ["x", "s"], ["a", "b"], {"axis": 1}), ("Sub", ["a", "b"], ["out"], {})], (2, 6), {"s": np.array([3, 3])}),
    "slices": ([("Slice", ["x", "s", "e", "a", "t"], ["out"], {})], (2, 6, 5), {"s": np.array([4, -1]), "e": np.array([0, -9]), "a": np.array([1, 2]), "t": np.array([-2, -1])}),
    "reduced": ([("ReduceL2", ["x"], ["r"], {"axes": [1], "keepdims": 1}), ("Div", ["x", "r"], ["out"], {})], (2, 6), {}),
    "squeezed": ([("Unsqueeze", ["x", "a"], ["u"], {}), ("Squeeze", ["u", "a"], ["out"], {})], (2, 6), {"a": np.array([-1])}),
    "expanded": ([("Expand", ["x", "s"], ["out"], {})], (2, 1, 4), {"s": np.array([3, 1])}),
    "layer norm": ([("LayerNormalization", ["x", "w", "b"], ["out"], {"axis": -1})], (2, 3, 6), {"w": numbers(6), "b": numbers(6)}),
    "local response": ([("LRN", ["x"], ["out"], {"size": 3, "alpha": 0.1})], (2, 5, 3, 3), {}),
    "lstm": ([("LSTM", ["x", "w", "r", "b", "", "h"], ["", "last"], {"hidden_size": 4}), ("Squeeze", ["last", "a"], ["out"], {})], (5, 2, 3), {"w": numbers(1, 16, 3), "r": numbers(1, 16, 4), "b": numbers(1, 32), "h": np.zeros((1, 2, 4), np.float32), "a": np.array([0])}),
    "lstm that starts at zero": ([("LSTM", ["x", "w", "r", "", "", "h", "h"], ["all"], {"hidden_size": 4, "direction": "bidirectional"}), ("ReduceSum", ["all", "a"], ["out"], {})], (5, 2, 3), {"w": numbers(2, 16, 3), "r": numbers(2, 16, 4), "h": np.zeros((2, 2, 4), np.float32), "a": np.array([0, 1])}),
    "gru": ([("GRU", ["x", "w", "r", "b"], ["", "last"], {"hidden_size": 4, "linear_before_reset": 1}), ("Squeeze", ["last", "a"], ["out"], {})], (5, 2, 3), {"w": numbers(1, 12, 3), "r": numbers(1, 12, 4), "b": numbers(1, 24), "a": np.array([0])}),
    "size as a fraction": ([
        ("Shape", ["x"], ["s"], {}), ("Cast", ["s"], ["f"], {"to": TensorProto.FLOAT}), ("Mul", ["f", "scale"], ["g"], {}), ("Floor", ["g"], ["h"], {}),
        ("Cast", ["h"], ["to"], {"to": TensorProto.INT64}), ("Resize", ["x", "", "", "to"], ["out"], {"mode": "linear"}),
    ], (2, 3, 4, 5), {"scale": np.array([1, 1, 1.5, 1.5], np.float32)}),
    "dropout": ([("Dropout", ["x"], ["d"], {}), ("Identity", ["d"], ["i"], {}), ("Neg", ["i"], ["out"], {})], (2, 3), {}),
    "sizes": ([
        ("Shape", ["x"], ["s"], {}), ("Gather", ["s", "zero"], ["n"], {}), ("Gather", ["s", "one"], ["c"], {}),
        ("Div", ["c", "two"], ["half"], {}), ("Unsqueeze", ["n", "axis"], ["n1"], {}), ("Unsqueeze", ["half", "axis"], ["h1"], {}),
        ("Concat", ["n1", "pair", "h1"], ["to"], {"axis": 0}), ("Reshape", ["x", "to"], ["out"], {}),
    ], (2, 6), {"zero": np.array(0), "one": np.array(1), "two": np.array(2), "axis": np.array([0]), "pair": np.array([2])}),
}  # fmt: skip


@pytest.mark.parametrize("case", SMALL.values(), ids=SMALL)
def test_an_operator_computes_what_onnxruntime_does(case):
    import onnxruntime

    nodes, shape, constants = case
    proto = model(nodes, ["N", *shape[1:]] if nodes[0][0] not in ("MatMul", "LSTM", "GRU") else shape, constants)
    x = numbers(*shape)
    (expected,) = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"]).run(
        None, {"x": x}
    )
    imported = from_onnx(proto)
    assert not any("not compared" in note for note in imported.notes)
    assert np.allclose(imported(torch.from_numpy(x)), expected, atol=1e-5)


def test_a_recurrent_network_is_explained():
    nodes, _, constants = SMALL["lstm"]
    proto = model([("Transpose", ["x"], ["t"], {"perm": [1, 0, 2]}), *[(o, [i if i != "x" else "t" for i in ins], outs, a) for o, ins, outs, a in nodes]], ["N", 5, 3], {k: v for k, v in constants.items() if k != "h"} | {"h": np.zeros((1, 1, 4), np.float32)})  # fmt: skip
    result = dt.explain(from_onnx(proto), torch.from_numpy(numbers(2, 5, 3)), ledger=True)
    assert result.relevance.shape == (2, 5, 3)
    assert result.ledger.gap.abs().max() < 1e-5


def test_a_class_label_beside_the_scores_is_passed_over():
    """As scikit-learn's exports: the winner's label comes first, probabilities second."""
    nodes = [
        ("MatMul", ["x", "w"], ["m"], {}), ("Add", ["m", "b"], ["z"], {}), ("Softmax", ["z"], ["p"], {"axis": 1}),
        ("ArgMax", ["p"], ["label"], {"axis": 1}), ("Identity", ["p"], ["probabilities"], {}),
    ]  # fmt: skip
    constants = {"w": numbers(4, 3), "b": numbers(3)}
    proto = model(nodes, ["N", 4], constants, outputs=["label", "probabilities"])
    proto.graph.output[0].type.tensor_type.elem_type = TensorProto.INT64
    x = numbers(5, 4)
    assert np.allclose(from_onnx(proto)(torch.from_numpy(x)), x @ constants["w"] + constants["b"], atol=1e-5)


def test_two_inputs_keep_their_names():
    nodes = [("Mul", ["a/in", "b/in"], ["p"], {}), ("MatMul", ["p", "w"], ["out"], {})]
    imported = from_onnx(model(nodes, ["N", 4], {"w": numbers(4, 3)}, inputs=["a/in", "b/in"]))
    result = dt.explain(imported, {"a_in": torch.from_numpy(numbers(2, 4)), "b_in": torch.from_numpy(numbers(2, 4))})
    assert set(result.relevances) == {"a_in", "b_in"}


def test_sizes_below_zero_are_free_as_paddle_writes_them():
    proto = model([("Relu", ["x"], ["out"], {})], ["N", 3, 4, 4])
    for axis in (0, 2, 3):
        proto.graph.input[0].type.tensor_type.shape.dim[axis].dim_value = -1
    assert from_onnx(proto).input_shapes == {"x": (None, 3, None, None)}


def test_names_that_python_or_a_module_has_already_are_no_obstacle():
    nodes = [("MatMul", ["in", "float"], ["forward"], {}), ("Relu", ["forward"], ["type"], {}), ("MatMul", ["type", "1"], ["training"], {})]  # fmt: skip
    constants = {"float": numbers(4, 3), "1": numbers(3, 2)}
    x = numbers(5, 4)
    imported = from_onnx(model(nodes, ["N", 4], constants, inputs=["in"], outputs=["training"]))
    assert np.allclose(imported(torch.from_numpy(x)), np.maximum(x @ constants["float"], 0) @ constants["1"], atol=1e-5)


# --- what can't be read or converted


def test_operators_that_can_not_be_converted_are_all_named():
    nodes = [
        ("Relu", ["x"], ["a"], {}),
        ("FancyOp", ["a"], ["b"], {"domain": "com.example"}),
        ("Det", ["b"], ["c"], {}),
        ("OtherOp", ["c"], ["out"], {"domain": "com.example"}),
    ]
    with pytest.raises(ModelLoadError) as caught:
        from_onnx(model(nodes, ["N", 3, 3], domains=["com.example"]))
    said = str(caught.value)
    assert "2 operators can't be converted" in said
    assert "FancyOp 'net/FancyOp_1' of the domain 'com.example'" in said
    assert "OtherOp 'net/OtherOp_3'" in said
    assert "Det" not in said


def test_an_operator_with_a_branch_is_named():
    body = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "b", [], [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)])  # fmt: skip
    nodes = [("ReduceSum", ["x"], ["s"], {"keepdims": 0}), ("Cast", ["s"], ["c"], {"to": TensorProto.BOOL}), ("If", ["c"], ["out"], {"then_branch": body, "else_branch": body})]  # fmt: skip
    with pytest.raises(ModelLoadError, match="If 'net/If_2' holds a graph of its own"):
        from_onnx(model(nodes, [2, 3]))


def test_weights_that_the_graph_computes_are_named():
    nodes = [("Exp", ["x"], ["w"], {}), ("Conv", ["x", "w"], ["out"], {})]
    with pytest.raises(ModelLoadError, match="Conv 'net/Conv_1': its weights are computed by the graph"):
        from_onnx(model(nodes, [2, 2, 3, 3]))


def test_a_wrong_conversion_is_refused(monkeypatch):
    from deeptaylor.adapters import onnx_operators

    monkeypatch.setitem(onnx_operators.ON_TENSORS, "Clip", lambda x, low=None, high=None: x.clamp(low, 2 * high))
    nodes = [("Mul", ["x", "k"], ["big"], {}), ("Clip", ["big", "l", "h"], ["out"], {})]
    proto = model(nodes, ["N", 4], {"k": np.float32(9), "l": np.float32(0), "h": np.float32(1)})
    with pytest.raises(ModelLoadError, match="does not give what onnxruntime gives for 'out'"):
        from_onnx(proto)


def test_damaged_and_foreign_files_are_refused(tmp_path):
    whole = keras().SerializeToString()
    for name, content in [
        ("half", whole[: len(whole) // 2]),
        ("tail", whole[:-40]),
        ("empty", b""),
        ("text", b"not ONNX"),
    ]:
        (tmp_path / f"{name}.onnx").write_bytes(content)
        with pytest.raises(ModelLoadError, match=rf"{name}\.onnx"):
            from_onnx(tmp_path / f"{name}.onnx")
    with pytest.raises(ModelLoadError, match="no model at"):
        from_onnx(tmp_path / "nowhere.onnx")


def test_weights_kept_beside_the_file_are_missed_by_name(tmp_path):
    onnx.save(keras(), tmp_path / "m.onnx", save_as_external_data=True, location="m.weights", size_threshold=0)
    from_onnx(tmp_path / "m.onnx")
    (tmp_path / "m.weights").unlink()
    with pytest.raises(ModelLoadError, match=r"m\.weights"):
        from_onnx(tmp_path / "m.onnx")


def test_an_old_opset_is_refused_with_the_way_up():
    with pytest.raises(ModelLoadError, match=r"opset 9, and files are read from opset 11 on.*convert_version"):
        from_onnx(model([("Relu", ["x"], ["out"], {})], ["N", 4], opset=9))


def test_an_unknown_output_is_refused():
    with pytest.raises(ModelLoadError, match=r"nothing in the graph is called 'logits'; its last values are .*scores"):
        from_onnx(keras(), output="logits")


def test_a_batch_that_the_file_does_not_allow_is_an_error():
    proto = model([("Reshape", ["x", "s"], ["f"], {}), ("MatMul", ["f", "w"], ["out"], {})], [1, 2, 3], {"s": np.array([1, 6]), "w": numbers(6, 2)})  # fmt: skip
    imported = from_onnx(proto)
    assert "fixes the batch size at 1" in imported.notes[0]
    assert dt.explain(imported, torch.from_numpy(numbers(1, 2, 3))).relevance.shape == (1, 2, 3)
    with pytest.raises(dt.errors.DeepTaylorError):
        dt.explain(imported, torch.from_numpy(numbers(3, 2, 3)))


def test_constants_alone_can_not_be_explained():
    with pytest.raises(ModelLoadError, match="does not depend on any input"):
        from_onnx(model([("Relu", ["k"], ["out"], {})], ["N", 4], {"k": numbers(4)}))


def test_wrong_inputs_are_the_engines_own_errors():
    with pytest.raises(InputError, match="float64"):
        dt.explain(from_onnx(keras()), torch.zeros(1, 14, 14, 3, dtype=torch.float64))
