"""Activation checkpointing over the graph: segments are run again when relevance comes back to them.

The forward pass keeps only the values that cross from one of about √n segments to a later one, and the steps of the
last. On the way back the steps of each segment are made again, used and let go. So the memory of n steps becomes that
of about 2√n, at one forward pass more (less the last segment), once per target.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .graph import is_getitem
from .plan import Plan
from .propagate import Forward, as_wide, backward_part, forward_part, widened
from .rules import Relevance


@dataclass(frozen=True)
class Checkpointed:
    """A forward pass of which only what crosses segments is kept."""

    plan: Plan
    segments: tuple[range, ...]
    before: tuple[Mapping[str, Any], ...]
    """By segment, the values that it reads of what came before."""
    last: list[Forward]
    """The steps of the last segment, until they are used."""
    held: Mapping[str, Tensor]
    """The values at which relevance ends."""
    output: Tensor
    inputs: Mapping[str, Tensor]

    def value(self, name: str) -> Tensor:
        """The value of that name, of those that are explained."""
        return self.held[name]

    def backward(self, seed: Relevance, last: bool) -> dict[str, Relevance]:
        """Relevance of the explained values, given that of the output; `last` lets go of the last segment's steps."""
        plan = self.plan
        relevance: dict[str, Any] = {plan.graph.output.name: seed}
        for number in reversed(range(len(self.segments))):
            part, ready = self.segments[number], number == len(self.segments) - 1 and bool(self.last)
            run = self.last[0] if ready else self._again(number)
            if ready and last:
                self.last.clear()
            nodes = plan.graph.nodes[part.start : part.stop]
            backward_part(plan, run, relevance, nodes, keep=self.held, release=not ready or last)
        return relevance

    def _again(self, number: int) -> Forward:
        return _run(self.plan, dict(self.before[number]), self.inputs, self.segments[number])


def checkpointed(plan: Plan, inputs: Mapping[str, Any], state: Mapping[str, Tensor]) -> Checkpointed:
    """Runs the graph, keeping what crosses segments."""
    env = plan.constants(state) | dict(inputs)
    segments = _segments(plan)
    origins = {node for source in plan.sources for node in source.nodes}
    held = {name: widened(env[name]) for name in origins & set(env)}
    before, explained = [], {name: inputs[name] for name in plan.explained}
    for part in segments[:-1]:
        before.append(_read(plan, part, env))
        with torch.no_grad():
            _plain(plan, env, part, origins, held)
    before.append(_read(plan, segments[-1], env))
    last = _run(plan, env, explained, segments[-1])
    held |= {name: widened(last.value(name)) for name in origins & set(last.values) - set(held)}
    return Checkpointed(plan, segments, tuple(before), [last], held, last.output, explained)


def _read(plan: Plan, part: range, env: Mapping[str, Any]) -> dict[str, Any]:
    names = {name for i in part for name in plan.graph.nodes[i].refs()}
    return {name: env[name] for name in names if name in env}


def _run(plan: Plan, env: dict[str, Any], inputs: Mapping[str, Any], part: range) -> Forward:
    """The steps of one segment; values that came before are known to it too."""
    earlier = {name: widened(value) for name, value in env.items() if name in plan.assignments}
    run = forward_part(plan, env, inputs, part)
    run.values.update({name: value for name, value in earlier.items() if name not in run.values})
    return run


def _plain(plan: Plan, env: dict[str, Any], part: range, origins: set[str], held: dict[str, Tensor]) -> None:
    """Runs operations without keeping steps."""
    fixed = set(plan.fixed)
    for i in part:
        node = plan.graph.nodes[i]
        if node.name not in fixed:
            args, kwargs = node.filled(as_wide(node, node.values(env)))
            env[node.name] = node.op(*args, **kwargs)
            if node.name in origins:
                held[node.name] = widened(env[node.name])
        for name in plan.last_reads[i]:
            env.pop(name, None)


def _segments(plan: Plan) -> tuple[range, ...]:
    """About √n runs of nodes; an operation and the picks of its outputs stay together."""
    nodes = plan.graph.nodes
    size = max(1, math.isqrt(len(nodes)))
    cuts = [0]
    for i in range(1, len(nodes)):
        if i - cuts[-1] >= size and not is_getitem(nodes[i]):
            cuts.append(i)
    return tuple(range(a, b) for a, b in zip(cuts, [*cuts[1:], len(nodes)], strict=True))
