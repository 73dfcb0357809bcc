"""An ONNX file as a graph that can be converted: checked, stripped to what leads to the scores, constants folded."""

from __future__ import annotations

import keyword
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import fx

from ..errors import MissingExtra, ModelLoadError
from .onnx_patterns import join_gelu, join_layer_norm, join_lookup, write_out_scaler

OLDEST = 11
"""Opset from which files are read; older ones say something else under the same operator names."""
_DOMAINS = ("", "ai.onnx")
# What exporters put behind a classifier's scores: it is left off, see `without_ending`.
_ENDINGS = {"Softmax": "softmax", "LogSoftmax": "log-softmax", "Sigmoid": "sigmoid"}
# Names that a module has already, or that the code made of the graph uses.
_RESERVED = {*dir(fx.GraphModule), "training", "torch", "operator", "self"}
_RANDOM = ("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli")


def read(source: str | Path | Any) -> tuple[Any, int]:
    """A checked `onnx.ModelProto` and its opset.

    Raises:
        ModelLoadError: no file, not ONNX, truncated, weights missing beside it, or an opset that is too old.
    """
    onnx = import_onnx()
    name = source if isinstance(source, str | Path) else "the model"
    try:
        if isinstance(source, str | Path):
            if not Path(source).is_file():
                raise ModelLoadError(f"no model at {source}: check the path")
            model = onnx.load(str(source))
        else:
            model = onnx.ModelProto.FromString(source.SerializeToString())
    except ModelLoadError:
        raise
    except FileNotFoundError as error:
        raise ModelLoadError(
            f"{name} keeps its weights in a file beside it that is not there ({error}): put both into one folder"
        ) from error
    except Exception as error:  # protobuf and onnx raise whatever their readers meet
        raise ModelLoadError(
            f"{name} can't be read as an ONNX model, or is truncated ({type(error).__name__}: {_first_line(error)}): "
            "export or copy it again"
        ) from error
    # files of classical learners state no opset but that of their own domain
    opset = next((entry.version for entry in model.opset_import if entry.domain in _DOMAINS), OLDEST)
    if not model.graph.node or not model.graph.output:
        raise ModelLoadError(f"{name} holds no graph: it is empty, truncated, or no ONNX model")
    if opset < OLDEST:
        raise ModelLoadError(
            f"{name} is of opset {opset}, and files are read from opset {OLDEST} on: export it anew, or raise it with "
            "onnx.version_converter.convert_version(onnx.load(path), 17)"
        )
    try:
        # by its path where there is one: a model beyond 2 GB can't be checked otherwise
        onnx.checker.check_model(str(source) if isinstance(source, str | Path) else model)
    except (onnx.checker.ValidationError, ValueError) as error:
        raise ModelLoadError(f"{name} is not a valid ONNX model: {_first_line(error)}") from error
    return model, opset


def import_onnx() -> Any:
    """The package onnx, or a kind error."""
    try:
        import onnx
        import onnx.checker
        import onnx.helper
        import onnx.numpy_helper
    except ImportError as error:
        raise MissingExtra("reading ONNX files needs onnx", "onnx") from error
    return onnx


class OnnxGraph:
    """The nodes of one graph in order, and its constants; names are made fit for Python.

    Args:
        model: as `read` gives it.
        output: the value to compute; None for the first floating one, without what follows the scores.
        scores: leave off a closing softmax or sigmoid.
    """

    def __init__(self, model: Any, output: str | None = None, *, scores: bool = True) -> None:
        onnx = import_onnx()
        self.notes: list[str] = []
        self.constants: dict[str, npt.NDArray[Any]] = {
            entry.name: onnx.numpy_helper.to_array(entry) for entry in model.graph.initializer
        }
        self.nodes = [_copied(node) for node in model.graph.node]
        write_out_scaler(self)
        given = [entry for entry in model.graph.input if entry.name not in self.constants]
        self.inputs = [(entry.name, shape_of_input(entry)) for entry in given]
        self.original_output = output or self._first_scores(model.graph.output)
        self.output = self.original_output
        self._check_output(self.output)
        if scores and output is None:
            self._without_ending()
        self.original_scores = self.output
        self._strip()
        self.original_inputs = [name for name, _ in self.inputs]
        self._fold(model)
        join_gelu(self)
        join_layer_norm(self)
        join_lookup(self)
        self._strip()
        self._rename()

    def producer(self, value: str) -> Any | None:
        """The node that computes a value."""
        return next((node for node in self.nodes if value in node.output), None)

    def consumers(self, value: str) -> list[Any]:
        """The nodes that read a value."""
        return [node for node in self.nodes if value in node.input]

    def only_reader(self, value: str, kind: str, constant: float | None = None) -> Any | None:
        """The node of a kind that alone reads a value, beside a constant where one is given."""
        readers = self.consumers(value)
        if len(readers) != 1 or readers[0].op_type != kind or value == self.output or len(set(readers[0].input)) < 2:
            return None
        fits = constant is None or any(self.is_number(name, constant) for name in readers[0].input)
        return readers[0] if fits else None

    def number(self, name: str) -> float | None:
        """A constant of one element."""
        value = self.constants.get(name)
        return float(value.reshape(-1)[0]) if value is not None and value.size == 1 else None

    def is_number(self, name: str, wanted: float) -> bool:
        """Whether a value is a constant of one element, and that one."""
        value = self.number(name)
        return value is not None and abs(value - wanted) < 1e-6

    def _first_scores(self, outputs: Iterable[Any]) -> str:
        """The first output of floating numbers; scikit-learn's exports put the winner's label before it."""
        floating = {1, 10, 11, 16}  # onnx.TensorProto: float32, float16, float64, bfloat16
        entries = list(outputs)
        for entry in entries:
            if entry.type.tensor_type.elem_type in floating:
                return str(entry.name)
            node = self.producer(entry.name)
            if node is not None and node.op_type == "ZipMap":  # a dictionary made of an array of probabilities
                return str(node.input[0])
        return str(entries[0].name)

    def _check_output(self, name: str) -> None:
        if self.producer(name) is None:
            known = [value for node in self.nodes for value in node.output if value]
            raise ModelLoadError(
                f"nothing in the graph is called {name!r}; its last values are {', '.join(known[-5:])}"
            )

    def _without_ending(self) -> None:
        """Takes the scores in place of the probabilities made of them: these share one denominator."""
        node = self.producer(self.output)
        while (
            node is not None and node.op_type in ("Identity", "Cast", *_ENDINGS) and node.input[0] not in self.constants
        ):
            if node.op_type in _ENDINGS:
                if self.producer(node.input[0]) is None:
                    return
                self.output = node.input[0]
                self.notes.append(
                    f"the closing {_ENDINGS[node.op_type]} is left off: what is explained are the scores that enter it"
                )
                return
            node = self.producer(node.input[0])

    def _strip(self) -> None:
        """Drops what does not lead to the output, and inputs that nothing reads."""
        needed, kept = {self.output}, []
        for node in reversed(self.nodes):
            if needed & set(node.output):
                kept.append(node)
                needed |= set(node.input)
        self.nodes = kept[::-1]
        self.inputs = [(name, shape) for name, shape in self.inputs if name in needed]

    def _fold(self, model: Any) -> None:
        """Computes what depends on constants alone, and takes nodes away that do nothing at evaluation."""
        onnx = import_onnx()
        from onnx.reference import ReferenceEvaluator

        same: dict[str, str] = {}
        kept = []
        for node in self.nodes:
            for i, name in enumerate(node.input):
                node.input[i] = same.get(name, name)
            constant = all(name in self.constants for name in node.input if name) and node.op_type not in _RANDOM
            if node.op_type in ("Identity", "Dropout") and node.input[0] not in self.constants:
                same[node.output[0]] = node.input[0]
            elif constant and not any(attribute.HasField("g") for attribute in node.attribute):
                held = [onnx.numpy_helper.from_array(self.constants[n], n) for n in dict.fromkeys(node.input) if n]
                outputs = [onnx.helper.make_empty_tensor_value_info(name) for name in node.output]
                alone = onnx.helper.make_graph([node], "constant", [], outputs, held)
                try:
                    values = ReferenceEvaluator(onnx.helper.make_model(alone, opset_imports=model.opset_import)).run(
                        None, {}
                    )
                except Exception as error:
                    raise ModelLoadError(
                        f"the constant {node.op_type} {node.name!r} can't be computed ({_first_line(error)})"
                    ) from error
                self.constants |= dict(zip(node.output, map(np.asarray, values), strict=True))
            else:
                kept.append(node)
        self.nodes = kept
        self.output = same.get(self.output, self.output)
        used = {name for node in kept for name in node.input}
        self.constants = {name: value for name, value in self.constants.items() if name in used}
        if self.output in self.constants or not kept:
            raise ModelLoadError(f"{self.original_output!r} does not depend on any input: nothing can be explained")

    def _rename(self) -> None:
        """Makes every name an identifier, as PyTorch wants them; different names stay different."""
        taken: dict[str, str] = {"": ""}
        used = _RESERVED | set(keyword.kwlist)

        def fit(name: str) -> str:
            if name not in taken:
                plain = re.sub(r"\W+", "_", name).strip("_") or "value"
                plain = f"value_{plain}" if plain[0].isdigit() else plain
                unique, count = plain, 1
                while unique in used:
                    count += 1
                    unique = f"{plain}_{count}"
                used.add(unique)
                taken[name] = unique
            return taken[name]

        self.inputs = [(fit(name), shape) for name, shape in self.inputs]
        for node in self.nodes:
            node.input[:] = [fit(name) for name in node.input]
            node.output[:] = [fit(name) for name in node.output]
        self.constants = {fit(name): value for name, value in self.constants.items()}
        self.output = fit(self.output)


def _copied(node: Any) -> Any:
    copy = type(node)()
    copy.CopyFrom(node)
    return copy


def shape_of_input(entry: Any) -> tuple[int | None, ...]:
    """The sizes that a graph states for an input; None where they are free (Paddle writes −1)."""
    tensor = entry.type.tensor_type
    return tuple(d.dim_value if d.dim_value > 0 else None for d in tensor.shape.dim) if tensor.HasField("shape") else ()


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
