"""Explanations with a derivative: relevance as a function of inputs and weights that autograd can go through again.

A recorded program computes relevance by plain operations, the backward pass included, so its derivative is that of
relevance itself. What rules hold constant while relevance passes (statistics, attention weights) is held constant in
the rule, not in the derivative of what the rule gives: places where the recording says "detach" are taken out.
"""

from __future__ import annotations

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
                decomposition_table=EXPLICIT,
                tracing_mode="fake",
                _allow_non_fake_inputs=True,
            )(*program.examples)
        for node in graph.graph.nodes:
            if node.target is aten.detach.default:
                node.replace_all_uses_with(node.args[0])
        graph.graph.eliminate_dead_code()
        without_layouts(graph)
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
