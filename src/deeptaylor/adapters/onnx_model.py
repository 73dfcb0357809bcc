"""ONNX files as PyTorch modules: operators converted by onnx2pytorch, wired here, proven against onnxruntime."""

from __future__ import annotations

import operator
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import fx, nn

from ..errors import MissingExtra, ModelLoadError
from . import onnx_operators as operators
from . import onnx_shapes as sizes
from .onnx_graph import OnnxGraph, import_onnx, read, shape_of_input
from .onnx_patterns import layer_norm
from .optional import import_zoo

_FEW = 64
"""A constant of at most so many integers may be a shape."""
_STAND_IN = {4: 64, 3: 16, 2: 16}
"""Sizes tried in the proof for axes that a graph leaves free, by number of axes."""
_AGREE = 1e-3
"""Largest difference from onnxruntime's output, as a share of its largest value."""


class OnnxModel(fx.GraphModule):
    """A converted ONNX graph; its `forward` takes the graph's inputs by their names and returns the class scores.

    Attributes:
        input_shapes: sizes by input name as the file states them; None where they are free.
        notes: what a user should know about the conversion.
    """

    input_shapes: dict[str, tuple[int | None, ...]]
    notes: tuple[str, ...]


def from_onnx(source: str | Path | Any, *, output: str | None = None, keep_ending: bool = False) -> OnnxModel:
    """An ONNX model of opset 11 or later as a PyTorch module in evaluation mode, ready to be explained.

    A softmax or sigmoid that closes the graph is left off, so that class scores are explained, which is said in
    `notes`. Every conversion is proven: on random inputs the module gives what onnxruntime gives.

    Args:
        source: a path, or an `onnx.ModelProto`.
        output: name of the value to compute; by default the first output of floating numbers.
        keep_ending: keep a closing softmax or sigmoid.

    Raises:
        ModelLoadError: the file can't be read, or holds operators that can't be converted, all of which are named.
        MissingExtra: onnx, onnx2pytorch or onnxruntime is not installed.
    """
    proto, opset = read(source)
    graph = OnnxGraph(proto, output, scores=not keep_ending)
    model = _Wiring(graph, opset).module()
    notes = list(graph.notes)
    fixed = [shape[0] for _, shape in graph.inputs if shape and shape[0]]
    if fixed:
        notes.append(f"the file fixes the batch size at {fixed[0]}: other sizes may be refused")
    notes += _prove(model, proto, graph)
    model.input_shapes, model.notes = dict(graph.inputs), tuple(notes)
    return model


class _Wiring:
    """Builds the module: one submodule per converted node, sizes as Python numbers."""

    def __init__(self, graph: OnnxGraph, opset: int) -> None:
        self.source, self.opset = graph, opset
        self.root, self.graph = nn.Module(), fx.Graph()
        self.values: dict[str, Any] = {}
        self.numbers: set[str] = set()
        """Values that are sizes: Python numbers when the module runs."""
        self.problems: list[str] = []

    def module(self) -> OnnxModel:
        for name, _ in self.source.inputs:
            self.values[name] = self.graph.placeholder(name)
        done: set[str] = set()
        for node in self.source.nodes:
            if node.output[0] not in done:
                done |= set(self._add(node))
        if self.problems:
            raise ModelLoadError(
                f"{len(self.problems)} operator{'s' if len(self.problems) > 1 else ''} can't be converted:\n"
                + "\n".join(f"  {problem}" for problem in self.problems)
                + "\nExport the model without them, or stop before them: from_onnx(path, output=...) names a value"
            )
        self.graph.output(self.values[self.source.output])
        self.graph.lint()
        model = OnnxModel(self.root, self.graph, "OnnxModel")
        model.eval()
        return model.requires_grad_(False)

    def _add(self, node: Any) -> list[str]:
        """Wires one node, with the bias added behind it where that is one layer; gives the names it computed."""
        given = [name for name in node.input]
        kind, outputs = node.op_type, list(node.output)
        literal = {name: self._literal(name) for name in given}
        on_numbers = all(name in self.numbers or literal[name] is not None for name in given)
        if kind in ("Shape", "Size") and given[0] not in self.numbers and not on_numbers:
            limits = {a.name: a.i for a in node.attribute}
            self._call(
                outputs[0], sizes.shape_of if kind == "Shape" else sizes.size_of, self._tensor(given[0]), **limits
            )
            self.numbers.add(outputs[0])
        elif kind == "ConstantOfShape" and on_numbers:
            self._constant_of_shape(node)
        elif kind in sizes.ON_NUMBERS and on_numbers and any(name in self.numbers for name in given):
            to = {"to_float": node.attribute[0].i in _FLOATING} if kind == "Cast" else {}
            self._call(outputs[0], sizes.ON_NUMBERS[kind], *map(self._number, given), **to)
            self.numbers.add(outputs[0])
        elif kind in operators.ON_TENSORS and all(
            name in self.numbers or not name or literal[name] is not None for name in given[1:]
        ):
            self._on_tensor(node)
        elif kind == "Gather" and not any(name in self.numbers for name in given):
            indices = literal[given[1]] if literal[given[1]] is not None else self._tensor(given[1])
            axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
            self._call(outputs[0], operators.gather, self._tensor(given[0]), indices, axis=axis)
        else:
            outputs = self._convert(node)
        return outputs

    def _constant_of_shape(self, node: Any) -> None:
        """As many sizes as there are sizes, or a tensor."""
        values = [import_onnx().numpy_helper.to_array(a.t).reshape(-1) for a in node.attribute]
        value = torch.from_numpy(np.array(values[0])) if values else torch.zeros(1)
        name, dims = node.output[0], self._number(node.input[0])
        source = self.source.producer(node.input[0])
        if source is not None and source.op_type == "Shape" and source.input[0] in self.numbers:
            self._call(name, sizes.repeat, dims, int(value))
            self.numbers.add(name)
        else:
            self._call(name, sizes.filled, dims, value.item(), value.dtype)

    def _on_tensor(self, node: Any) -> None:
        """Wires an operator whose arguments behind the data are all numbers."""
        helper = import_onnx().helper
        try:
            attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
            behind, keywords = operators.arguments(node, [self._number(name) for name in node.input[1:]], attributes)
            data = self._tensor(node.input[0])
        except ValueError as error:
            self.problems.append(f"{_where(node)}: {error}")
            self.values |= dict.fromkeys(node.output)
            return
        result = self.graph.call_function(operators.ON_TENSORS[node.op_type], (data, *behind), keywords)
        several = node.op_type in operators.SEVERAL
        for i, name in enumerate(node.output):
            self.values[name] = self.graph.call_function(operator.getitem, (result, i)) if several else result

    def _call(self, name: str, function: Any, *arguments: Any, **keywords: Any) -> None:
        self.values[name] = self.graph.call_function(function, arguments, keywords)

    def _convert(self, node: Any) -> list[str]:
        """One node, or a product and the bias behind it, by onnx2pytorch."""
        together = [node]
        bias = self._bias_behind(node)
        if bias is not None:
            together.append(bias)
        outputs = list(together[-1].output)
        name = next(value for value in outputs if value)
        for value in outputs:  # wired even where it fails, so that one problem is not reported many times
            self.values[value] = None
        where = _where(node)
        if node.domain not in ("", "ai.onnx") or any(a.HasField("g") for a in node.attribute):
            what = f"of the domain {node.domain!r}" if node.domain else "holds a graph of its own"
            self.problems.append(f"{where} {what}")
            return outputs
        try:
            norm = layer_norm(self.source, node)
            if norm is None:
                weights = self._weights(node, bias)
            else:
                weights = {name: self.source.constants[name] for name in node.input[1:] if name}
            inputs = [value for value in node.input if value not in weights]
            if node.op_type in _LAYERS:  # layers take data alone, without gaps
                inputs = [value for value in inputs if value]
            module = norm or _module_of(together, weights, self.opset)
            while inputs and not inputs[-1]:
                inputs.pop()
            arguments = [self._tensor(value) if value else None for value in inputs]
        except Exception as error:  # whatever a converter meets, it is one more operator to be named
            self.problems.append(
                f"{where}: {str(error).strip().splitlines()[0] if str(error) else type(error).__name__}"
            )
            return outputs
        self.root.add_module(name, module)
        tuple_like = _gives_tuple(module)
        if node.op_type == "Concat":
            result = self.graph.call_module(name, (arguments,))
        else:
            result = self.graph.call_module(name, tuple(arguments))
        for i, value in enumerate(outputs):
            self.values[value] = self.graph.call_function(operator.getitem, (result, i)) if tuple_like else result
        return outputs

    def _bias_behind(self, node: Any) -> Any | None:
        """The addition of a constant vector that alone reads a product with a constant matrix: one linear layer."""
        held = self.source.constants
        if node.op_type != "MatMul" or node.input[1] not in held or held[node.input[1]].ndim != 2:
            return None
        readers = self.source.consumers(node.output[0])
        if len(readers) != 1 or readers[0].op_type != "Add" or node.output[0] == self.source.output:
            return None
        other = [name for name in readers[0].input if name != node.output[0]]
        bias = held.get(other[0]) if other else None
        fits = bias is not None and bias.size == held[node.input[1]].shape[1] and bias.shape[-1:] == (bias.size,)
        return readers[0] if fits else None

    def _weights(self, node: Any, bias: Any | None) -> dict[str, npt.NDArray[Any]]:
        """The constants that become a layer's parameters; others are arguments like any value."""
        held = self.source.constants
        mine = {name: held[name] for name in node.input if name in held}
        if node.op_type == "MatMul":
            mine = {name: value for name, value in mine.items() if name == node.input[1] and value.ndim == 2}
        elif node.op_type == "Gemm" and len(node.input) > 2 and node.input[2] in held:
            transposed = any(a.name == "transB" and a.i for a in node.attribute)
            n = held[node.input[1]].shape[0 if transposed else 1] if node.input[1] in held else held[node.input[2]].size
            mine[node.input[2]] = np.broadcast_to(held[node.input[2]].reshape(-1), (n,)).copy()
        elif node.op_type not in _LAYERS:
            mine = {}
        if node.op_type in _LAYERS and node.input[1] not in mine:
            raise ValueError("its weights are computed by the graph, not stored")
        if bias is not None:
            mine |= {name: held[name].reshape(-1) for name in bias.input if name in held}
        return mine

    def _literal(self, name: str) -> Any:
        """A constant as Python numbers, where it may be an argument; None otherwise."""
        value = self.source.constants.get(name)
        if value is None or value.ndim > 1 or value.dtype.kind not in "iubf":
            return None
        return value.tolist() if value.size <= _FEW else None

    def _number(self, name: str) -> Any:
        return (self.values[name] if name in self.numbers else self._literal(name)) if name else None

    def _tensor(self, name: str) -> Any:
        """A value as a tensor: constants become buffers, but integers stay numbers until they are used."""
        held = self.source.constants.get(name)
        if held is None and name not in self.values:
            raise ValueError(f"its input {name!r} is computed by nothing")
        if held is None and name not in self.numbers:
            return self.values[name]
        if held is None:
            return self.graph.call_function(sizes.as_tensor, (self.values[name], torch.int64))
        if held.dtype.kind in "iu" and held.size <= _FEW and held.ndim <= 1:
            return self.graph.call_function(sizes.as_tensor, (held.tolist(), torch.from_numpy(held.reshape(-1)).dtype))
        if held.dtype.kind not in "iubf":
            raise ValueError(f"its constant {name!r} holds {held.dtype}, not numbers")
        if not hasattr(self.root, name):
            self.root.register_buffer(name, torch.from_numpy(np.array(held)))
        return self.graph.get_attr(name)


_FLOATING = (1, 10, 11, 16)
"""onnx.TensorProto's float32, float16, float64, bfloat16."""
_LAYERS = ("Conv", "ConvTranspose", "Gemm", "BatchNormalization", "InstanceNormalization", "LSTM", "GRU", "RNN")
"""Operators whose constant inputs become parameters of a PyTorch layer."""


def _module_of(nodes: list[Any], weights: dict[str, npt.NDArray[Any]], opset: int) -> nn.Module:
    """The module that onnx2pytorch makes of a node, with constants as its parameters."""
    onnx = import_onnx()
    converter = _import_converter()
    copies = []
    for node in nodes:
        copy = type(node)()
        copy.CopyFrom(node)
        _settle(copy, weights)
        copies.append(copy)
    read = {name for copy in copies for name in copy.input}
    held = [onnx.numpy_helper.from_array(value, name) for name, value in weights.items() if name in read]
    graph = onnx.helper.make_graph(copies, "one", [], [], held)
    with warnings.catch_warnings():
        # It warns where it guesses, and where the result may differ: here these are operators that it can't convert.
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        made = [module for _, _, module in converter(graph, opset, 0, False)]
    if len(made) != 1:
        raise ValueError("onnx2pytorch makes several layers of it")
    return made[0] if isinstance(made[0], nn.Module) else _Function(made[0])


def _settle(node: Any, weights: dict[str, npt.NDArray[Any]]) -> None:
    """Takes off what says no more than the default, which onnx2pytorch would refuse."""
    drop = {"training_mode": lambda a: a.i == 0}
    if node.op_type == "LSTM":
        drop["activations"] = lambda a: [s.lower() for s in a.strings] in ([b"sigmoid", b"tanh", b"tanh"],)
    kept = [a for a in node.attribute if not (a.name in drop and drop[a.name](a))]
    del node.attribute[:]
    node.attribute.extend(kept)
    if node.op_type in ("LSTM", "GRU", "RNN"):  # a state that starts at zero is the default
        for i in range(5, len(node.input)):
            if node.input[i] in weights and not weights[node.input[i]].any():
                node.input[i] = ""


class _Function(nn.Module):
    """A function of tensors as a module."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, *arguments: Any) -> Any:
        return self.function(*arguments)


def _where(node: Any) -> str:
    return f"{node.op_type} {node.name!r}" if node.name else f"{node.op_type} (of {node.output[0]!r})"


def _gives_tuple(module: nn.Module) -> bool:
    from onnx2pytorch.constants import MULTIOUTPUT_LAYERS

    inner = module[-1] if isinstance(module, nn.Sequential) else module
    return isinstance(inner, MULTIOUTPUT_LAYERS)


def _import_converter() -> Any:
    """onnx2pytorch's conversion of operators."""
    try:
        import_zoo("torchvision")
        from onnx2pytorch.convert.operations import convert_operations
    except (ImportError, ModelLoadError) as error:
        raise MissingExtra(f"converting ONNX needs onnx2pytorch and torchvision ({error})", "onnx") from error
    return convert_operations


def _prove(model: OnnxModel, proto: Any, graph: OnnxGraph) -> list[str]:
    """Compares with onnxruntime on random inputs; gives a note where onnxruntime can't run the file.

    Raises:
        ModelLoadError: the outputs differ.
    """
    onnx = import_onnx()
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingExtra("converted models are compared with onnxruntime", "onnx") from error
    wanted = graph.original_scores
    feeds = {}
    random = np.random.default_rng(0)
    for entry in proto.graph.input:
        if entry.name not in {i.name for i in proto.graph.initializer}:
            stated = shape_of_input(entry)
            shape = [size or (2 if i == 0 else _STAND_IN.get(len(stated), 4)) for i, size in enumerate(stated)]
            dtype = onnx.helper.tensor_dtype_to_np_dtype(entry.type.tensor_type.elem_type)
            # ids and masks: 0 and 1 are in every vocabulary
            values = random.random(shape) if np.dtype(dtype).kind == "f" else random.integers(0, 2, shape)
            feeds[entry.name] = values.astype(dtype)
    try:
        copy = onnx.ModelProto.FromString(proto.SerializeToString())
        del copy.graph.output[:]
        copy.graph.output.append(onnx.helper.make_empty_tensor_value_info(wanted))
        options = onnxruntime.SessionOptions()
        options.log_severity_level, options.intra_op_num_threads = 4, torch.get_num_threads()
        # as the file states it: 1.31.1 takes any power of a deviation for the square of a layer norm
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        session = onnxruntime.InferenceSession(copy.SerializeToString(), options, providers=["CPUExecutionProvider"])
        (expected,) = session.run([wanted], feeds)
    except Exception as error:  # sizes that are free may depend on each other, or an operator may be too new
        return [f"not compared with onnxruntime, which can't run the file here ({str(error).splitlines()[0][:200]})"]
    try:
        with torch.no_grad():
            found = np.asarray(model(*(torch.from_numpy(feeds[name]) for name in graph.original_inputs)))
    except Exception as error:  # an operator that was converted to something that does not run
        raise ModelLoadError(
            f"the converted model can't run what onnxruntime runs ({type(error).__name__}: {error}); "
            "please report the file"
        ) from error
    size = max(float(np.abs(expected).max()), 1e-12)
    if found.shape != expected.shape or not float(np.abs(found - expected).max()) <= _AGREE * size:
        raise ModelLoadError(
            f"the converted model does not give what onnxruntime gives for {wanted!r}: shape {found.shape} against "
            f"{expected.shape}"
            + (
                f", largest difference {np.abs(found - expected).max():.3g} of {size:.3g}"
                if found.shape == expected.shape
                else ""
            )
            + ". An operator was converted wrongly; please report the file"
        )
    return []
