"""Layers that exporters take apart, put together again: taken apart, rules would explain another network.

And one that scikit-learn's exporter puts before a network, taken apart.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

if TYPE_CHECKING:
    from .onnx_graph import OnnxGraph


def write_out_scaler(graph: OnnxGraph) -> None:
    """ai.onnx.ml's Scaler, as which scikit-learn's scalers are exported: (x − offset) · scale."""
    nodes = []
    for node in graph.nodes:
        nodes.append(node)
        if node.op_type != "Scaler" or node.domain != "ai.onnx.ml":
            continue
        given = {attribute.name: np.array(attribute.floats, np.float32) for attribute in node.attribute}
        moved, offset, scale = (f"{node.output[0]}/{what}" for what in ("moved", "offset", "scale"))
        graph.constants[offset] = given.get("offset", np.zeros(1, np.float32))
        graph.constants[scale] = given.get("scale", np.ones(1, np.float32))
        less = type(node)(op_type="Sub", name=f"{node.name}/Sub", input=[node.input[0], offset], output=[moved])
        nodes[-1:] = [
            less,
            type(node)(op_type="Mul", name=f"{node.name}/Mul", input=[moved, scale], output=node.output),
        ]
    graph.nodes = nodes


def join_gelu(graph: OnnxGraph) -> None:
    """½ x (1 + erf(x/√2)), as which exporters write GELU before opset 20, as the one activation that it is."""
    for erf in [node for node in graph.nodes if node.op_type == "Erf"]:
        scaled = graph.producer(erf.input[0])
        one = graph.only_reader(erf.output[0], "Add", 1.0)
        root = {"Div": 2**0.5, "Mul": 0.5**0.5}.get(scaled.op_type if scaled is not None else "")
        if scaled is None or root is None or one is None or not any(graph.is_number(n, root) for n in scaled.input):
            continue
        x = next((name for name in scaled.input if name not in graph.constants), "")
        last, missing = one, {"x", "half"}
        while missing and (after := graph.only_reader(last.output[0], "Mul")) is not None:
            other = next(name for name in after.input if name != last.output[0])
            found = {"half"} if graph.is_number(other, 0.5) else {"x"} if other == x else set()
            halved = graph.producer(other)
            if halved is not None and halved.op_type == "Mul" and x in halved.input:
                found = {"x", "half"} if any(graph.is_number(name, 0.5) for name in halved.input) else set()
            if not found or not found <= missing:
                break
            last, missing = after, missing - found
        if not missing:
            last.op_type = "Gelu"
            last.input[:] = [x]


def join_layer_norm(graph: OnnxGraph) -> None:
    """(x − mean) / √(variance + ε) · w + b over the last axis, as which layer norm is written before opset 17.

    Only with a weight of one axis, behind which a bias may stand.
    """
    for root in [node for node in graph.nodes if node.op_type == "Sqrt"]:
        x, epsilon = _standardized(graph, root)
        divided = graph.only_reader(root.output[0], "Div")
        if not x or divided is None or divided.input[1] != root.output[0]:
            continue
        last = graph.only_reader(divided.output[0], "Mul")
        weight = _vector(graph, last, divided.output[0])
        if last is None or not weight or divided.input[0] != _deviation(graph, root):
            continue
        inputs = [x, weight]
        added = graph.only_reader(last.output[0], "Add")
        bias = _vector(graph, added, last.output[0])
        if added is not None and bias and graph.constants[bias].shape == graph.constants[weight].shape:
            last, inputs = added, [*inputs, bias]
        last.op_type = "LayerNormalization"
        last.input[:] = inputs
        last.attribute.add(name="epsilon", f=epsilon, type=1)


def join_lookup(graph: OnnxGraph) -> None:
    """One-hot vectors (ids compared with 0, 1, 2, …) times a matrix as the look-up of rows, where ids are explained."""
    for product in [node for node in graph.nodes if node.op_type == "MatMul"]:
        cast = graph.producer(product.input[0])
        equal = graph.producer(cast.input[0]) if cast is not None and cast.op_type == "Cast" else None
        rows = graph.constants.get(product.input[1])
        if equal is None or equal.op_type != "Equal" or rows is None or rows.ndim != 2:
            continue
        counted = next((graph.constants[name] for name in equal.input if name in graph.constants), np.zeros(0))
        if counted.shape[-1:] != rows.shape[:1] or not np.array_equal(counted.reshape(-1), np.arange(len(rows))):
            continue
        name = next(name for name in equal.input if name not in graph.constants)
        while (node := graph.producer(name)) is not None and node.op_type in ("Expand", "Reshape", "Unsqueeze", "Cast"):
            name = node.input[0]
        if name in [given for given, _ in graph.inputs]:
            product.op_type = "Gather"
            product.input[:] = [product.input[1], name]


def layer_norm(graph: OnnxGraph, node: Any) -> nn.Module | None:
    """LayerNormalization with constant weights as PyTorch's layer; None for what PyTorch has no layer for."""
    if node.op_type != "LayerNormalization" or any(graph.consumers(name) for name in node.output[1:] if name):
        return None
    weight, *bias = (graph.constants.get(name) for name in node.input[1:] if name)
    given = {attribute.name: attribute for attribute in node.attribute}
    axis = given["axis"].i if "axis" in given else -1
    if weight is None or any(one is None or one.shape != weight.shape for one in bias):
        return None
    if axis < 0 and axis != -weight.ndim:  # weights that are broadcast
        return None
    layer = nn.LayerNorm(weight.shape, eps=given["epsilon"].f if "epsilon" in given else 1e-5, bias=bool(bias))
    for parameter, value in zip((layer.weight, layer.bias), (weight, *bias), strict=False):
        parameter.data = torch.from_numpy(np.array(value))
    return layer


def _standardized(graph: OnnxGraph, root: Any) -> tuple[str, float]:
    """x and ε where a root is that of x's variance over the last axis, plus ε; else no name."""
    sum_, deviation = graph.producer(root.input[0]), _deviation(graph, root)
    apart = graph.producer(deviation)
    if sum_ is None or apart is None or apart.op_type != "Sub":
        return "", 0.0
    mean = graph.producer(apart.input[1])
    epsilon = next((value for name in sum_.input if (value := graph.number(name)) is not None), 0.0)
    fits = _is_mean(graph, mean) and mean is not None and mean.input[0] == apart.input[0]
    return (apart.input[0] if fits else "", epsilon)


def _deviation(graph: OnnxGraph, root: Any) -> str:
    """d where a root is √(mean(d²) + ε); else no name."""
    sum_ = graph.producer(root.input[0])
    if sum_ is None or sum_.op_type != "Add" or not any(graph.number(name) is not None for name in sum_.input):
        return ""
    variance = graph.producer(next((name for name in sum_.input if name not in graph.constants), ""))
    squared = graph.producer(variance.input[0]) if variance is not None and _is_mean(graph, variance) else None
    if squared is None or squared.op_type not in ("Pow", "Mul"):
        return ""
    square = graph.is_number(squared.input[1], 2.0) if squared.op_type == "Pow" else len(set(squared.input)) == 1
    return str(squared.input[0]) if square else ""


def _is_mean(graph: OnnxGraph, node: Any | None) -> bool:
    """Whether a node is the mean over the last axis, which is kept."""
    if node is None or node.op_type != "ReduceMean":
        return False
    attributes = {attribute.name: attribute for attribute in node.attribute}
    axes = list(attributes["axes"].ints) if "axes" in attributes else []
    if len(node.input) > 1 and node.input[1] in graph.constants:
        axes = graph.constants[node.input[1]].reshape(-1).tolist()
    return axes == [-1] and ("keepdims" not in attributes or attributes["keepdims"].i == 1)


def _vector(graph: OnnxGraph, node: Any | None, value: str) -> str:
    """The constant of one axis that stands beside a value in a node; else no name."""
    other = next((name for name in node.input if name != value), "") if node is not None else ""
    return other if other in graph.constants and graph.constants[other].ndim == 1 else ""
