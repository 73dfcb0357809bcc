"""An explanation as one graph of ATen operations: weights, inputs and target in; relevance, output and target out.

The engine itself is run once on tensors without values, and every operation that it calls is written down, those of
autograd's backward passes too. So there is one formula for every rule, and what is recorded is what runs otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..graph import execute, lookup
from ..one_pass import OnePass, one_pass
from ..origin import plain_torch
from ..plan import Plan
from ..propagate import Forward, backward, forward
from ..rules import Relevance
from .ask import Ask

_FIXED = "constant."


@dataclass(frozen=True)
class Program:
    """A recorded explanation.

    `graph` takes the weights in the order of `weights`, then the inputs in the order of `inputs`, then the target where
    `ask` says that there is one, and gives the outputs in the order of `outputs`.
    """

    graph: fx.GraphModule
    weights: tuple[str, ...]
    """Qualified names of the parameters and buffers that it reads; constants of the trace begin with 'constant.'."""
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    ask: Ask
    plan: Plan
    examples: tuple[Any, ...]
    """What stands for the values while it is recorded: shapes and types, the batch size a symbol."""

    def values(self, state: Mapping[str, Tensor]) -> list[Tensor]:
        """The weights, from the model's live state."""
        constants = self.plan.graph.constants
        return [
            constants[name.removeprefix(_FIXED)] if name.startswith(_FIXED) else state[name] for name in self.weights
        ]


def record_program(
    plan: Plan, tensors: Mapping[str, Tensor], state: Mapping[str, Tensor], ask: Ask, *, portable: bool
) -> Program:
    """Records the explanation of a batch.

    Args:
        plan: the graph with its rules.
        tensors: an example of all inputs, by name.
        state: the model's parameters and buffers.
        ask: what is explained.
        portable: open fused attention into matrix products, for which every device and ONNX have kernels.
    """
    bare = _Unkept(plan.graph, plan.sources, plan.composite, plan.assignments, plan.fixed)
    known = {name: state[name].detach() for name in sorted({*plan.graph.parameters.values()})}
    known |= {_FIXED + name: tensor.detach() for name, tensor in plan.graph.constants.items()}
    names = tuple(plan.graph.inputs)
    mode = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)
    fakes = _symbolic(mode, plan, tensors)
    weights = [_fake(mode, t) for t in known.values()]
    explain = partial(_explained, bare, tuple(known), ask)
    # without Python's dispatcher, padding asks for the batch size as a number
    with plain_torch(), _kernels(portable), enable_python_dispatcher():
        with mode, torch.no_grad():
            target = ask.example(execute(plan.graph, fakes, dict(zip(known, weights, strict=True))))
        graph = without_layouts(
            make_fx(explain, tracing_mode="fake", _allow_non_fake_inputs=True)(weights, fakes, target)
        )
    outputs = (*_relevance_names(plan), "output", *(("class",) if ask.indexed else ()), "explained")
    return Program(graph, tuple(known), names, outputs, ask, plan, (weights, fakes, target))


def _explained(
    plan: Plan,
    names: Sequence[str],
    ask: Ask,
    weights: Sequence[Tensor],
    tensors: Mapping[str, Tensor],
    target: Tensor | None,
) -> tuple[Tensor, ...]:
    """The explanation as a function of tensors alone: relevances, output, target, explained value."""
    state = dict(zip(names, weights, strict=True))
    run = (None if ask.seed else one_pass(plan, tensors, state)) or forward(plan, tensors, state, full=ask.seed)
    seeds = ask.seeds(run.output, target)
    found = []
    for seed in seeds.seeds:
        last = seed is seeds.seeds[-1]
        arrived = run.backward(seed, last) if isinstance(run, OnePass) else backward(plan, run, seed, release=last)
        found.append([source.gather(partial(_total, arrived, run), run.inputs[source.name]) for source in plan.sources])
    several = seeds.explained.dim() == 2
    relevances = [torch.stack(values, 1) if several else values[0] for values in zip(*found, strict=True)]
    classes = (seeds.target,) if ask.indexed else ()
    return (*relevances, run.output, *classes, seeds.explained)


def _symbolic(mode: FakeTensorMode, plan: Plan, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inputs without their values; where the trace allows it, their batch size is one symbol."""
    batch = tensors[plan.explained[0]].shape[0]
    fakes: dict[str, Tensor] = {}
    size: Any = None
    for name in plan.graph.inputs:
        tensor = tensors[name].detach()
        if not plan.graph.dynamic_batch or tensor.dim() == 0 or tensor.shape[0] != batch:
            fakes[name] = _fake(mode, tensor)
        elif size is None:  # a size of 1 would be baked in: a lone sample stands for two
            fakes[name] = _fake(mode, torch.cat([tensor, tensor]) if batch == 1 else tensor, dynamic=True)
            size = fakes[name].shape[0]
        else:
            with mode:
                fakes[name] = torch.empty((size, *tensor.shape[1:]), dtype=tensor.dtype, device=tensor.device)
    return fakes


def _fake(mode: FakeTensorMode, tensor: Tensor, dynamic: bool = False) -> Tensor:
    sizes = [DimDynamic.DYNAMIC if dynamic and axis == 0 else DimDynamic.STATIC for axis in range(tensor.dim())]
    return mode.from_tensor(tensor, symbolic_context=StatelessSymbolicContext(dynamic_sizes=sizes))


def _kernels(portable: bool) -> Any:
    return sdpa_kernel(SDPBackend.MATH) if portable else nullcontext()


class _Unkept(Plan):
    """A plan that keeps nothing between calls: everything made from weights is written down."""

    def constants(self, state: Mapping[str, Tensor]) -> dict[str, Any]:
        graph = self.graph
        env: dict[str, Any] = {name: state[qualified] for name, qualified in graph.parameters.items()}
        env |= {name: state[_FIXED + name] for name in graph.constants}
        for name in self.fixed:
            node = graph.index[name]
            env[name] = node.op(*lookup(node.args, env), **lookup(dict(node.kwargs), env))
        return env


def without_layouts(graph: fx.GraphModule) -> fx.GraphModule:
    """The graph, its views as reshapes: a view asks for a memory layout, which other kernels may not give."""
    for node in graph.graph.nodes:
        if node.target is torch.ops.aten.view.default:
            node.target = torch.ops.aten.reshape.default
    graph.recompile()
    return graph


def _relevance_names(plan: Plan) -> tuple[str, ...]:
    several = len(plan.explained) > 1
    return tuple(f"relevance.{name}" if several else "relevance" for name in plan.explained)


def _total(relevance: Mapping[str, Relevance], run: Forward | OnePass, name: str) -> Tensor:
    """R of one value; zero where no relevance arrived."""
    value: Tensor = run.value(name)
    return relevance[name].total(value) if name in relevance else torch.zeros_like(value)
