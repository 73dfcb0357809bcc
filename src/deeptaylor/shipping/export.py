"""`export`: an explanation as a file, `.pt2` for torch or `.onnx` for ONNX Runtime, that needs no deeptaylor."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from ..errors import DeepTaylorError, InputError, MissingExtra
from ..plan import Plan
from ..trace import quiet
from .ask import Ask
from .explicit import EXPLICIT
from .metadata import FILE, metadata
from .packed import pack
from .program import record_program

SUFFIXES = (".pt2", ".onnx")
OFF = 1e-3
"""So far, as a share of the largest relevance, a program may lie from the explainer on the example."""


def export(
    path: str | Path,
    plan: Plan,
    tensors: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    ask: Ask,
    preprocessing: Mapping[str, Any] | None,
    expected: Mapping[str, Tensor],
) -> Path:
    """Writes the explanation of `plan`.

    Args:
        path: ends in .pt2 or .onnx.
        plan: the graph with its rules.
        tensors: an example of all inputs, by name.
        state: the model's parameters and buffers; they are copied.
        ask: what is explained.
        preprocessing: noted beside the program.
        expected: the explainer's own relevance of the example, which the program's must be.

    Raises:
        InputError: another suffix, a folder that is not there, or preprocessing that JSON can't hold.
        MissingExtra: ONNX is not installed.
        DeepTaylorError: the program's relevance is not the explainer's.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise InputError(f"can't export to {path.name!r}: the name must end in .pt2 (torch) or .onnx (ONNX Runtime)")
    if not path.absolute().parent.is_dir():
        raise InputError(f"can't export to {path}: there is no folder {path.absolute().parent}; make it first")
    portable = path.suffix == ".onnx"
    if portable:
        _require_onnx()
    try:
        json.dumps(preprocessing)
    except (TypeError, ValueError) as error:
        raise InputError(f"preprocessing is noted as JSON, so it may hold numbers, text and lists: {error}") from error
    program = record_program(plan, tensors, state, ask, portable=True)
    packed = pack(program, EXPLICIT if portable else None)
    packed.load(program.values(state))
    _prove(packed.module, program.inputs, program.ask, tensors, expected)
    exported = _exported(packed.module, plan, program.inputs, program.outputs, program.ask, tensors)
    names = tuple(node.target for node in packed.module.graph.nodes if node.op == "placeholder")
    described = metadata(program, tensors, names, preprocessing)
    if portable:
        _write_onnx(exported, path, names, program.outputs, described)
    else:
        torch.export.save(exported, path, extra_files={FILE: json.dumps(described)})
    return path


def _arguments(inputs: tuple[str, ...], ask: Ask, tensors: Mapping[str, Tensor], batch: int) -> tuple[Tensor, ...]:
    device = tensors[inputs[0]].device
    target = (torch.full((batch,), -1, dtype=torch.int64, device=device),) if ask.given else ()
    return (*(tensors[name].detach() for name in inputs), *target)


def _prove(
    module: fx.GraphModule, inputs: tuple[str, ...], ask: Ask, tensors: Mapping[str, Tensor],
    expected: Mapping[str, Tensor],
) -> None:  # fmt: skip
    """The program's relevance of the example must be the explainer's."""
    batch = next(iter(expected.values())).shape[0]
    with torch.no_grad():
        found = module(*_arguments(inputs, ask, tensors, batch))
    for name, relevance in expected.items():
        own = found["relevance" if len(expected) == 1 else f"relevance.{name}"]
        off = float((own - relevance).abs().max() / relevance.abs().max().clamp(min=1e-12))
        if not off <= OFF:
            raise DeepTaylorError(
                f"the program's relevance of {name!r} differs from the explainer's by {off:.2g} of the largest; "
                "nothing was written. Where relevance explodes, rounding alone can do that: try a float64 model, or a "
                "rule without small denominators; otherwise please report this"
            )


def _exported(
    module: fx.GraphModule,
    plan: Plan,
    inputs: tuple[str, ...],
    outputs: tuple[str, ...],
    ask: Ask,
    tensors: Mapping[str, Tensor],
) -> Any:
    batch = tensors[plan.explained[0]].shape[0]
    arguments = _arguments(inputs, ask, tensors, batch)
    shapes = None
    if plan.graph.dynamic_batch:
        size = torch.export.Dim("batch", min=1)
        batched = [t.dim() > 0 and t.shape[0] == batch for t in arguments]
        shapes = tuple({0: size} if b else None for b in batched)
        if batch == 1:  # a size of 1 would be baked in
            arguments = tuple(torch.cat([t, t]) if b else t for t, b in zip(arguments, batched, strict=True))
    with quiet(), torch.no_grad():
        exported = torch.export.export(module, arguments, dynamic_shapes=shapes)
    for node in exported.graph.nodes:  # the developer's paths are nobody else's business
        for key in ("stack_trace", "nn_module_stack", "source_fn_stack", "custom"):
            node.meta.pop(key, None)
    exported.example_inputs = None  # nor are their pictures
    signature = exported.module_call_graph[0].signature
    signature.out_spec = pytree.tree_structure(dict.fromkeys(outputs, 0))  # an ordinary dict
    return exported


def _require_onnx() -> None:
    for name in ("onnx", "onnxscript"):
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise MissingExtra(f"exporting to ONNX needs {name}", "onnx") from error


def _write_onnx(
    exported: Any, path: Path, names: tuple[str, ...], outputs: tuple[str, ...], described: Mapping[str, Any]
) -> None:
    with _silent(), torch.no_grad():
        program = torch.onnx.export(
            exported, (), input_names=list(names), output_names=list(outputs), dynamo=True, verbose=False
        )
    assert program is not None
    model = program.model
    for value in (*model.graph.inputs, *model.graph.outputs):
        if value.shape is not None and value.shape.rank() and not isinstance(value.shape[0], int):
            value.shape[0] = "batch"
    for node in model.graph:
        node.metadata_props.clear()
    model.metadata_props[FILE.removesuffix(".json")] = json.dumps(described)
    model.producer_name = "deeptaylor"
    program.save(str(path), external_data=None)


@contextmanager
def _silent() -> Iterator[None]:
    """Without what torch.onnx says of its progress, and its own deprecations."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), quiet():
        warnings.simplefilter("ignore")
        yield
