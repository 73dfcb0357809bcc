"""Model -> Graph by `torch.export`, with the user's file, line and module kept on every node."""

from __future__ import annotations

import contextlib
import io
import linecache
import logging
import os
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
import torch.fx.traceback as fx_traceback
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .errors import DeepTaylorError, InputError, TraceError
from .graph import Graph, Node, Ref, is_continuous
from .inputs import Call, Model
from .room import with_room
from .unwrap import no_tensor, opened

Head = Callable[[Any], Tensor]
_TORCH = os.path.dirname(torch.__file__) + os.sep
_HERE = os.path.dirname(__file__) + os.sep


class Caller(nn.Module):
    """The user's model as a module from tensors to one tensor; holds the model, changes nothing in it."""

    def __init__(self, model: Model, call: Call, head: Head | None) -> None:
        super().__init__()
        self.train(False)
        if isinstance(model, nn.Module):
            self.model = model
        else:
            object.__setattr__(self, "model", model)
        self.call, self.head = call, head

    def forward(self, *tensors: Tensor) -> Tensor:
        args, kwargs = self.call.arguments(tensors)
        with _SourceLines() if torch.compiler.is_exporting() else contextlib.nullcontext():
            output = self.model(*args, **kwargs)
        if self.head is not None:
            output = self.head(output)
        output = opened(self.model, output, dict(zip(self.call.tensors, tensors, strict=True)))
        if not isinstance(output, Tensor):
            raise no_tensor(output)
        return output


class _SourceLines(TorchFunctionMode):
    """Writes the user's line on every node that the running torch function makes.

    torch.export's own stack traces know only lines of functions called `forward`, so not helpers, and not functions.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        file, line, source = user_frame(sys._getframe(1))
        with fx_traceback.annotate({"deeptaylor": (file, line, source)}):
            return func(*args, **(kwargs or {}))


def user_frame(frame: Any) -> tuple[str, int, str]:
    """File, line and text of the innermost frame, from `frame` outwards, that is neither torch's nor deeptaylor's."""
    while frame is not None:
        file = frame.f_code.co_filename
        if not file.startswith((_TORCH, _HERE, "<")):
            return file, frame.f_lineno, linecache.getline(file, frame.f_lineno).strip()
        frame = frame.f_back
    return "", 0, ""


def trace(
    model: Model, call: Call, head: Head | None, batch: int, known: Callable[[Any], bool], dynamic: bool = True
) -> Graph:
    """The graph of one call of `model`, with a dynamic batch size where the model allows it.

    Args:
        model: a module in eval mode, or a function.
        call: the bound inputs.
        head: picks `(batch, classes)` from the model's output.
        batch: number of samples; tensors with that first size are taken to carry the batch axis.
        known: whether an operation has a role; one that has none is decomposed, alone.
        dynamic: False fixes the batch size.

    Raises:
        TraceError: the model branches on data, or can't be exported.
    """
    caller = Caller(model, call, head)
    tensors = tuple(call.tensors.values())
    batched = [tensor.dim() > 0 and tensor.shape[0] == batch for tensor in tensors]
    # A size of 1 would be baked in: trace a lone sample as a batch of two.
    doubled = tuple(torch.cat([t, t]) if b and batch == 1 else t for t, b in zip(tensors, batched, strict=True))
    shapes = tuple({0: torch.export.Dim.AUTO} if b else None for b in batched)
    notes: list[str] = []
    try:
        if dynamic:
            program = _export(caller, doubled, shapes)
        else:
            program = _export(caller, tensors, None)
            notes.append(f"batch size fixed at {batch}: the trace does not hold for others, which are traced anew")
    except DeepTaylorError:
        raise
    except Exception as error:
        if _branches_on_data(error):
            raise TraceError(_explain_branch(error)) from error
        try:
            program = _export(caller, tensors, None)
        except Exception:
            raise TraceError(
                f"torch.export could not trace the model{_user_line(error)}: {_first_line(error)}\n"
                "Try record=True, which runs the model once instead of tracing it."
            ) from error
        notes.append(f"batch size fixed at {batch} while tracing; another one is traced anew ({_first_line(error)})")
    return _decompose_unknown(from_program(program, tuple(call.tensors), notes), program, known, call, notes)


def _decompose_unknown(graph: Graph, program: Any, known: Callable[[Any], bool], call: Call, notes: list[str]) -> Graph:
    """Opens operations without a role that torch can express in others, until none is left that it can."""

    def unknown(graph: Graph) -> set[Any]:
        return {node.op for node in graph if node.floating and not known(node.op)}

    def opened(ops: set[Any], graph: Graph, program: Any) -> tuple[Graph, Any]:
        for _ in range(4):
            parts = {op: table[op] for op in ops if op in table}
            if not parts:
                break
            try:
                with quiet():
                    program = program.run_decompositions(parts)
            except Exception:  # torch can't: the operation stays whole, and is named where it is refused
                break
            before, graph = graph, from_program(program, tuple(call.tensors), notes)
            ops = unknown(graph)
            if ops == unknown(before):
                break
        return graph, program

    left = unknown(graph)
    if not left:
        return graph
    table = {**torch._decomp.decomposition_table, **torch.export.default_decompositions()}
    whole, _ = opened(left, graph, program)
    if unknown(whole) < left:
        return whole
    for (
        op
    ) in left:  # one opens into what has no role either: leave it whole, so that the error names what the user wrote
        candidate, opened_program = opened({op}, graph, program)
        if unknown(candidate) < unknown(graph):
            graph, program = candidate, opened_program
    return graph


def from_program(program: Any, names: Sequence[str], notes: Sequence[str] = ()) -> Graph:
    """A decomposed `ExportedProgram` as a Graph whose inputs are called `names`."""
    signature = program.graph_signature
    parameters = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    lifted = signature.inputs_to_lifted_tensor_constants
    inputs = dict(zip(signature.user_inputs, names, strict=True))
    symbol, nodes, output, rename = None, [], None, {}
    sizes: dict[str, Tensor] = {}
    for fx_node in program.graph.nodes:
        if fx_node.op == "placeholder":
            rename[fx_node.name] = inputs.get(fx_node.name, fx_node.name)
            value = fx_node.meta.get("val")
            if fx_node.name in inputs and isinstance(value, Tensor) and value.dim() and symbol is None:
                symbol = value.shape[0] if isinstance(value.shape[0], torch.SymInt) else None
            if fx_node.name in inputs and isinstance(value, Tensor):
                sizes[inputs[fx_node.name]] = value
        elif fx_node.op == "output":
            kinds = [spec.kind.name for spec in signature.output_specs]  # what a model writes into comes first
            output = fx_node.args[0][kinds.index("USER_OUTPUT")]
        elif not str(fx_node.target).startswith(("aten._assert", "aten.sym_constrain")):
            rename[fx_node.name] = f"{fx_node.name}_" if fx_node.name in inputs.values() else fx_node.name
            nodes.append(_node(fx_node, rename, symbol))
    if not isinstance(output, torch.fx.Node):
        raise InputError("the model's output does not depend on its inputs")
    prefix = "model."
    return Graph(
        nodes=tuple(nodes),
        inputs=tuple(names),
        parameters={node: qualified.removeprefix(prefix) for node, qualified in parameters.items()},
        constants={node: program.constants[name].detach() for node, name in lifted.items()},
        output=Ref(rename[output.name]),
        shapes={name: _shape(value, symbol) for name, value in sizes.items()},
        dynamic_batch=symbol is not None,
        notes=tuple(notes),
    ).without_dead_nodes()


def _node(fx_node: Any, rename: Mapping[str, str], symbol: Any) -> Node:
    def convert(value: Any) -> Any:
        return torch.fx.node.map_arg(value, cast(Any, lambda n: Ref(rename[n.name])))

    value = fx_node.meta.get("val")
    values = value if isinstance(value, list | tuple) else [value]
    shape: tuple[int | str, ...] = ()
    batch_dim = None
    if isinstance(value, Tensor):
        shape = _shape(value, symbol)
        batch_dim = shape.index("N") if "N" in shape else None
    elif isinstance(values[0], Tensor) and symbol is not None:
        sizes = [isinstance(size, torch.SymInt) and size.node.expr == symbol.node.expr for size in values[0].shape]
        batch_dim = sizes.index(True) if True in sizes else None
    noted = fx_node.meta.get("custom", {}).get("deeptaylor")
    file, line, source = noted if noted and noted[0] else _place(fx_node.meta.get("stack_trace", ""))
    return Node(
        name=rename[fx_node.name],
        op=_SAME.get(fx_node.target, fx_node.target),
        args=_plain(convert(fx_node.args)),
        kwargs=_plain(convert(dict(fx_node.kwargs))),
        shape=shape,
        floating=any(isinstance(v, Tensor) and is_continuous(v) for v in values),
        batch_dim=batch_dim,
        file=file,
        line=line,
        source=source,
        module=_module(fx_node.meta.get("nn_module_stack", {})),
    )


def _shape(value: Tensor, symbol: Any) -> tuple[int | str, ...]:
    """Its sizes, 'N' where one is the batch's symbol."""
    batch = None if symbol is None else symbol.node.expr
    return tuple(
        int(size) if isinstance(size, int) else "N" if batch is not None and size.node.expr == batch else str(size)
        for size in value.shape
    )


_SAME = {
    # a view asks for a memory layout, which another batch may not have
    torch.ops.aten.view.default: torch.ops.aten.reshape.default,
    # lazy, and without a derivative of its own
    torch.ops.aten._neg_view.default: torch.ops.aten.neg.default,
    torch.ops.aten._conj.default: torch.ops.aten.conj_physical.default,
}


def _plain(value: Any) -> Any:
    """torch.fx's immutable lists and dicts as ordinary ones."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return tuple(_plain(item) for item in value) if type(value) is tuple else value


def _place(stack: str) -> tuple[str, int, str]:
    """File, line and text of the innermost frame that belongs neither to torch nor to deeptaylor."""
    frames = re.findall(r'File "([^"]+)", line (\d+), in [^\n]*\n\s*([^\n]*)', stack or "")
    for file, line, text in reversed(frames):
        if not file.startswith((_TORCH, _HERE)):
            return file, int(line), text.strip()
    return "", 0, ""


def _module(stack: Mapping[str, Any]) -> str:
    """The path, in the user's model, of the innermost module."""
    paths = [entry[0] for entry in stack.values()]
    path = paths[-1] if paths else ""
    return re.sub(r"@\d+$", "", path).removeprefix("model").removeprefix(".")


@contextmanager
def quiet() -> Iterator[None]:
    """Silences what torch.export says of itself: a FutureWarning by its message, its shape log, and the graph that it
    prints when it fails.
    """
    log = logging.getLogger("torch.fx.experimental.symbolic_shapes")
    level, printed = log.level, io.StringIO()
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(printed):
            warnings.filterwarnings("ignore", message=".*LeafSpec.*", category=FutureWarning)
            # recurrent layers swap their list of weights while traced, and put it back
            warnings.filterwarnings("ignore", message=".*_flat_weights.* assigned during export", category=UserWarning)
            yield
    except Exception as error:
        partial = getattr(error, "partial_fx_graph", None)
        _print_again(printed.getvalue().replace(f"{partial}\n", "") if partial is not None else printed.getvalue())
        raise
    else:
        _print_again(printed.getvalue())
    finally:
        log.setLevel(level)


def _print_again(text: str) -> None:
    """What the user's model itself wrote to stderr."""
    if text:
        sys.stderr.write(text)


def _export(caller: Caller, tensors: tuple[Tensor, ...], shapes: Any) -> Any:
    def run() -> Any:
        program = torch.export.export(
            caller, tensors, dynamic_shapes=None if shapes is None else (shapes,), strict=False
        )
        return program.run_decompositions({})

    with quiet(), fx_traceback.preserve_node_meta():
        return with_room(run)


def _branches_on_data(error: Exception) -> bool:
    text = f"{type(error).__name__} {error}"
    return any(mark in text for mark in ("DataDependent", "data-dependent", "Could not extract specialized integer"))


def _explain_branch(error: Exception) -> str:
    return (
        f"the model branches on data{_user_line(error)}, so one graph can't stand for all inputs.\n"
        "Explain the path that this input takes with record=True (one sample, or samples that take the same path)."
    )


def _user_line(error: BaseException) -> str:
    """' at FILE:LINE: text' of the user's frame in which the error arose, or nothing."""
    while error is not None:
        for frame in reversed(traceback.extract_tb(error.__traceback__)):
            if not frame.filename.startswith((_TORCH, _HERE, "<")):
                return f" at {frame.filename}:{frame.lineno}: {(frame.line or '').strip()}"
        if error.__cause__ is None:
            return ""
        error = error.__cause__
    return ""


def _first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0] if text else ''}"
