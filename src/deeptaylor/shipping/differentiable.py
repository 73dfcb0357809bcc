"""Explanations with a derivative: relevance as a function of inputs and weights that autograd can go through again.

A recorded program computes relevance by plain operations, the backward pass included, so its derivative is that of
relevance itself. What rules hold constant while relevance passes (statistics, attention weights) is held constant in
the rule, not in the derivative of what the rule gives: places where the recording says "detach" are taken out.
"""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING

import torch
from torch import fx
from torch.fx.experimental.proxy_tensor import make_fx

from ..attribution import Attribution
from ..errors import InputError, describe
from ..inputs import Call
from ..origin import live_state, plain_torch
from ..plan import Plan
from ..targets import Target
from .ask import Ask, asked, output_like
from .explicit import EXPLICIT
from .program import Program, record_program, without_layouts
from .refuse import refuse_one_input
from .result import attribution, is_suspect

if TYPE_CHECKING:
    from ..explainer import Explainer

aten = torch.ops.aten
# Their statistics are outputs that autograd takes for constants, silently; opened, they have a derivative.
_NORMS = (
    aten.native_layer_norm.default, aten.native_group_norm.default, aten.native_batch_norm.default,
    aten._native_batch_norm_legit.default, aten._native_batch_norm_legit.no_stats,
    aten._native_batch_norm_legit_no_training.default, aten._fused_rms_norm.default,
)  # fmt: skip
WHOLE = {op: torch._decomp.decomposition_table[op] for op in _NORMS}


def differentiable(explainer: Explainer, call: Call, plan: Plan, target: Target) -> Attribution:
    """An attribution whose relevance, output and explained value are parts of autograd's graph.

    Raises:
        InputError: nothing requires a gradient, or the model cuts its own graph.
    """
    refuse_one_input(explainer)
    _refuse_cuts(plan)
    state = live_state(explainer.model)
    read = set(plan.graph.parameters.values())
    if not any(t.requires_grad for t in (*call.tensors.values(), *(state[name] for name in read))):
        raise InputError("create_graph needs something to differentiate by: an input or a parameter with requires_grad")
    ask, values = asked(target, output_like(plan, call.tensors))
    program, graph = _recorded(explainer, plan, call, ask)
    with plain_torch(), torch.enable_grad():
        tensors = {name: call.tensors[name] for name in program.inputs}
        found = dict(zip(program.outputs, graph(program.values(state), tensors, values), strict=True))
    result = attribution(program, found)
    if is_suspect(result):
        explainer._by_rules(call, plan, target, False, ())  # which raises or warns, and says where
    return result


def _recorded(explainer: Explainer, plan: Plan, call: Call, ask: Ask) -> tuple[Program, fx.GraphModule]:
    """The program without cuts; kept for the next call."""
    key = (id(plan), ask)
    if key not in explainer._programs:
        program = record_program(plan, call.tensors, live_state(explainer.model), ask, portable=True)
        with plain_torch():
            graph = make_fx(
                torch.func.functionalize(program.graph, remove="mutations"),
                decomposition_table=EXPLICIT | WHOLE,
                tracing_mode="fake",
                _allow_non_fake_inputs=True,
            )(*program.examples)
        for node in graph.graph.nodes:
            if node.target is aten.detach.default:
                node.replace_all_uses_with(node.args[0])
        graph.graph.eliminate_dead_code()
        without_layouts(graph)
        _refuse_blind(graph)
        explainer._programs[key] = (program, graph)
    return explainer._programs[key]


def _refuse_cuts(plan: Plan) -> None:
    """Refuses a model that detaches: whether its cut should hold in the derivative of relevance can't be known."""
    for node in plan.graph:
        if node.op is aten.detach.default and node.floating and node.name not in plan.fixed:
            raise InputError(
                f"the model cuts autograd's graph at {describe(node)}; relevance depends on what lies before, its "
                "derivative would not. Take the cut out, or explain without create_graph"
            )


_SEEN = (
    "var_mean",
    "std_mean",
    "split",
    "unbind",
    "chunk",
    "topk",
    "sort",
    "max",
    "min",
    "median",
    "kthvalue",
    "cummax",
    "cummin",
)


def _refuse_blind(graph: fx.GraphModule) -> None:
    """Refuses operations whose further outputs autograd takes for constants though they depend on the inputs."""
    for node in graph.graph.nodes:
        if node.target is not operator.getitem or node.args[1] == 0 or not node.meta["val"].is_floating_point():
            continue
        name = str(node.args[0].target).split(".")[1]
        if node.users and not name.startswith(_SEEN):
            raise InputError(
                f"autograd takes an output of {node.args[0].target} for a constant, so the derivative of relevance "
                "would be wrong; explain without create_graph, and please report this"
            )
