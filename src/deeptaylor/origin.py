"""From the user's model to its canonical graph, proven against the model's own output."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .canonize import canonize
from .errors import InputError, TraceError
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
    output = own_output(model, call, head)
    if record:
        graph = canonize(record_graph(model, call, head))
    else:
        sizes = tuple((name, t.dtype, t.device, tuple(t.shape)) for name, t in call.tensors.items())
        graph = kept(model, (call.signature(), sizes, head), lambda: canonize(trace(model, call, head, batch, known)))
    prove(graph, call, live_state(model), output)
    return graph


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
    return dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))


def own_output(model: Model, call: Call, head: Head | None) -> Tensor:
    """The model's own output, without touching the random state."""
    devices = sorted({t.device.index or 0 for t in call.tensors.values() if t.device.type == "cuda"})
    with torch.random.fork_rng(devices), torch.no_grad():
        try:
            return Caller(model, call, head)(*call.tensors.values())
        except InputError:
            raise
        except Exception as error:
            shapes = ", ".join(f"{name} {tuple(t.shape)}" for name, t in call.tensors.items())
            raise InputError(
                f"the model can't be called with these inputs ({shapes}): {type(error).__name__}: {error}"
            ) from error


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


def prove(graph: Graph, call: Call, state: Mapping[str, Tensor], output: Tensor) -> None:
    """Proves the graph: its output must be the model's."""
    ours = execute(graph, call.tensors, state)
    scale = float(output.detach().abs().max()) if output.numel() else 0.0
    tolerance = {torch.float64: 1e-9, torch.float32: 1e-3}.get(output.dtype, 5e-2) * max(scale, 1e-6)
    off = (
        float((ours - output).abs().max())
        if ours.shape == output.shape and output.numel()
        else float(ours.shape != output.shape)
    )
    if not off <= tolerance:
        if not bool(torch.isfinite(output).all()):
            raise InputError("the model's output is NaN or Inf on these inputs, so there is nothing to explain")
        raise TraceError(
            f"the traced graph's output differs from the model's by {off:.3g} (largest output {scale:.3g}). "
            "Is the model deterministic? Otherwise please report this; record=True may help"
        )
