"""From the user's model to its canonical graph, proven against the model's own output."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from .canonize import canonize
from .errors import InputError, TraceError, describe
from .graph import Graph, execute
from .inputs import Call, Model
from .ops import known
from .record import record as record_graph
from .trace import Caller, Head, from_program, quiet, trace
from .tracing_cache import kept


def graph_of(model: Any, call: Call, head: Head | None, batch: int, record: bool) -> Graph:
    """The model's canonical graph: traced, or recorded, or that of an exported program.

    Raises:
        InputError: the model can't be called with these inputs.
        TraceError: it can't be traced, or the graph's output is not the model's.
    """
    if isinstance(model, torch.export.ExportedProgram):
        if head is not None:
            raise InputError("a head needs the module: pass program.module() instead of the program")
        return canonize(_program_graph(model, call))
    output, state = own_output(model, call, head), live_state(model)
    if record:
        with _buffers_kept(model):
            graph = record_graph(model, call, head, known)
    else:
        sizes = tuple((name, t.dtype, t.device, tuple(t.shape)) for name, t in call.tensors.items())
        graph = kept(model, (call.signature(), sizes, head), lambda: _traced(model, call, head, batch, state, output))
    _refuse_chance(graph)
    return _proven_canonical(graph, call, state, output)


def _traced(
    model: Any, call: Call, head: Head | None, batch: int, state: Mapping[str, Tensor], output: Tensor
) -> Graph:
    """A trace; with the batch size fixed where the trace does not hold for another one."""
    graph = trace(model, call, head, batch, known)
    if not graph.dynamic_batch or _holds_for_more(graph, model, call, head, batch, state, output):
        return graph
    return trace(model, call, head, batch, known, dynamic=False)


def _holds_for_more(
    graph: Graph, model: Any, call: Call, head: Head | None, batch: int, state: Mapping[str, Tensor], alone: Tensor
) -> bool:
    """Whether a graph's output is the model's also for more samples than it was traced with; `alone` is for those.

    Raises:
        InputError: the outputs of the samples at hand depend on the others.
    """
    found = _with_more(model, call, head, batch)
    if found is None:
        return False
    more, output, turned = found
    off = 0.0
    if alone.dim() and alone.shape[0] == batch:
        off = _distance(output[:-1].flip(0) if turned else output[1:-1], alone)
    if off > _tolerance(output.dtype) and batch > 1:
        raise InputError(
            f"the model mixes the samples of a batch: with others beside them, their outputs differ by {off:.2g} of "
            "the largest; explain one sample at a time"
        )
    if off > _tolerance(output.dtype):
        return False
    try:
        return _distance(execute(graph, more, state), output) <= _tolerance(output.dtype)
    except (RuntimeError, IndexError):
        return False


def _with_more(model: Any, call: Call, head: Head | None, batch: int) -> tuple[dict[str, Tensor], Tensor, bool] | None:
    """A larger batch, the model's own output for it, and whether the call's samples are turned round in it.

    The samples turned round and one more: each has others before and after it. Else, two more: a lone sample is traced
    as a batch of two, and a model may take samples by twos. None where the model takes neither.
    """
    for turned in (True, False) if batch > 1 else (False,):
        widened = _turned if turned else _flanked
        more = {name: widened(t) if t.dim() and t.shape[0] == batch else t for name, t in call.tensors.items()}
        with suppress(InputError):
            return more, own_output(model, Call(more, call.leaves, call.spec), head), turned
    return None


def _turned(batch: Tensor) -> Tensor:
    """A batch in reverse, and one sample more: its first one, the values moved by one place."""
    return torch.cat([batch.flip(0), batch[:1].roll(1, -1)])


def _flanked(batch: Tensor) -> Tensor:
    """A batch between two samples more: its own first and last one, the values of each moved by one place."""
    return torch.cat([batch[-1:].roll(1, -1), batch, batch[:1].roll(1, -1)])


@contextmanager
def plain_torch() -> Iterator[None]:
    """Neither inference mode (which can't save steps) nor autocast (relevance is carried in float32)."""
    with torch.inference_mode(False), torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
        yield


def live_state(model: Any) -> dict[str, Tensor]:
    """The model's live parameters and buffers, by name."""
    if isinstance(model, torch.export.ExportedProgram):
        return {**model.state_dict, **{k: v for k, v in model.constants.items() if isinstance(v, Tensor)}}
    if not isinstance(model, nn.Module):
        return {}
    state: dict[str, Tensor] = {}
    waiting = [("", model)]
    while waiting:  # torch's own listings take milliseconds where there are hundreds of modules
        prefix, module = waiting.pop()
        for held in (module._parameters, module._buffers):
            state.update((prefix + name, tensor) for name, tensor in held.items() if tensor is not None)
        waiting += [(f"{prefix}{name}.", child) for name, child in module._modules.items() if child is not None]
    return state


def own_output(model: Model, call: Call, head: Head | None) -> Tensor:
    """The model's own output, without touching the random state."""
    devices = sorted({t.device.index or 0 for t in call.tensors.values() if t.device.type == "cuda"})
    with torch.random.fork_rng(devices), torch.no_grad(), _buffers_kept(model):
        try:
            return Caller(model, call, head)(*(t.clone() for t in call.tensors.values()))
        except InputError:
            raise
        except Exception as error:
            shapes = ", ".join(f"{name} {tuple(t.shape)}" for name, t in call.tensors.items())
            raise InputError(
                f"the model can't be called with these inputs ({shapes}): {type(error).__name__}: {error}"
            ) from error


@contextmanager
def _buffers_kept(model: Model) -> Iterator[None]:
    """Puts back what a forward pass writes into buffers."""
    buffers = list(model.buffers()) if isinstance(model, nn.Module) else []
    before = [(buffer, buffer._version, buffer.clone()) for buffer in buffers if not buffer.is_inference()]
    try:
        yield
    finally:
        for buffer, version, values in before:
            if buffer._version != version:
                buffer.copy_(values)


def _program_graph(program: Any, call: Call) -> Graph:
    sizes = [n.meta["val"].shape for n in program.graph.nodes if n.name in program.graph_signature.user_inputs]
    for (name, tensor), size in zip(call.tensors.items(), sizes, strict=True):
        fixed = [
            (i, s, t) for i, (s, t) in enumerate(zip(size, tensor.shape, strict=True)) if isinstance(s, int) and s != t
        ]
        if fixed:
            axis, want, got = fixed[0]
            raise InputError(f"input {name!r} has size {got} on axis {axis}; the program was exported for {want} there")
    with quiet():
        program = program.run_decompositions({})
    return from_program(program, tuple(call.tensors))


def _refuse_chance(graph: Graph) -> None:
    """Refuses a model whose forward pass draws random numbers: no graph has its output."""
    for node in graph:
        tags = getattr(node.op, "tags", ())
        if torch.Tag.nondeterministic_seeded in tags and not known(node.op):
            raise TraceError(
                f"the model draws random numbers ({node.kind}), so there is no one output to explain:\n    "
                f"{describe(node)}\nDraw them outside and pass them in, or switch that off in eval mode"
            )


def _proven_canonical(graph: Graph, call: Call, state: Mapping[str, Tensor], output: Tensor) -> Graph:
    """The canonical graph, proven: its output must be the model's; where rounding hides that, the same in float64."""
    if not bool(torch.isfinite(output).all()):
        raise InputError("the model's output is NaN or Inf on these inputs, so there is nothing to explain")
    canonical = canonize(graph)
    off = _distance(execute(canonical, call.tensors, state), output)
    if off <= _tolerance(output.dtype):
        return canonical
    traced = _distance(execute(graph, call.tensors, state), output)
    if not traced <= _tolerance(output.dtype):
        raise TraceError(
            f"the traced graph's output differs from the model's by {traced:.3g} of its largest value. "
            "Is the model deterministic? Otherwise please report this; record=True may help"
        )
    wide = {name: t.double() if t.is_floating_point() else t for name, t in call.tensors.items()}
    wide_state = {name: t.detach().double() if t.is_floating_point() else t for name, t in state.items()}
    exact = _distance(*(execute(_in_float64(g), wide, wide_state) for g in (canonical, graph)))
    if not exact <= 1e-6:
        raise TraceError(
            f"folding batch norms changed the output by {exact:.3g} of its largest value; please report this"
        )
    note = (
        f"ill-conditioned on these inputs: the rounding of folded batch norms moves the output by {off:.2g} of its "
        f"largest value in {output.dtype}, by {exact:.1g} in float64"
    )
    return replace(canonical, notes=(*canonical.notes, note))


def _in_float64(graph: Graph) -> Graph:
    constants = {name: t.double() if t.is_floating_point() else t for name, t in graph.constants.items()}
    return replace(graph, constants=constants)


def _distance(ours: Tensor, expected: Tensor) -> float:
    """Largest difference, as a share of the largest expected value."""
    if ours.shape != expected.shape:
        return float("inf")
    return float((ours - expected).abs().max() / expected.abs().max().clamp(min=1e-6)) if ours.numel() else 0.0


def _tolerance(dtype: torch.dtype) -> float:
    return {torch.float64: 1e-9, torch.float32: 1e-3}.get(dtype, 5e-2)
