"""Plans whose every rule is some function's derivative: one backward pass of autograd does what the steps would do.

A rule in product form hands on c_x = Jᵀ c_z, J the Jacobian of the operation itself (LRP-0, moves, sums), or of a
function with the same value (a secant, a normalization whose statistic is constant, a product with its factors
weighed). Where all rules of a plan are such, the chain of those functions is recorded once. Ledgers and inner relevance
need the steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .graph import is_getitem
from .plan import Plan
from .propagate import as_wide, filled, operation_of
from .rules import Relevance
from .step import HALF, Step


@dataclass(frozen=True)
class OnePass:
    """A forward pass that autograd has recorded, with the rules' functions in place of the operations."""

    leaves: dict[str, Tensor]
    """The values at which relevance arrives: the explained inputs, or the embeddings of their ids."""
    recorded: Tensor
    inputs: Mapping[str, Tensor]
    """The explained inputs."""

    @property
    def output(self) -> Tensor:
        """What the model gave."""
        return self.recorded.detach()

    def value(self, name: str) -> Tensor:
        """The value of that name, of those that are explained."""
        return self.leaves[name].detach()

    def backward(self, seed: Relevance, last: bool) -> dict[str, Relevance]:
        """Relevance of the leaves, given c of the output; `last` lets go of the recording."""
        grads = torch.autograd.grad(
            self.recorded, list(self.leaves.values()), seed.tensor, retain_graph=not last, allow_unused=True
        )
        return {
            name: Relevance(torch.zeros_like(leaf) if grad is None else grad, product=True)
            for (name, leaf), grad in zip(self.leaves.items(), grads, strict=True)
        }


def one_pass(plan: Plan, inputs: Mapping[str, Any], state: Mapping[str, Tensor]) -> OnePass | None:
    """Runs the graph recorded; None where a rule is no function's derivative, or a value is complex or half precise."""
    if not plan.is_one_pass:
        return None
    env = plan.constants(state) | dict(inputs)
    fixed, origins = set(plan.fixed), {node for source in plan.sources for node in source.nodes}
    last_use = {name: i for i, node in enumerate(plan.graph) for name in node.refs()}
    leaves: dict[str, Tensor] = {}

    def leaf(name: str) -> None:
        leaves[name] = env[name] = env[name].detach().requires_grad_()

    for name in origins & set(env):
        leaf(name)
    for i, node in enumerate(plan.graph):
        if node.name in fixed:
            continue
        values = as_wide(node.values(env))
        assignment = plan.assignments.get(node.name)
        if assignment is None or is_getitem(node):
            args, kwargs = node.filled(values)
            with torch.set_grad_enabled(assignment is not None):
                env[node.name] = node.op(*args, **kwargs)
        else:
            xs = [values[i] for i in assignment.leaves]
            if any(isinstance(x, Tensor) and (x.dtype in HALF or x.is_complex()) for x in values):
                return None
            values = [value.detach() if isinstance(value, Tensor) else value for value in values]
            op = assignment.place.op
            function = filled(operation_of(node), node, values, assignment.leaves)
            linearized = None if op.linearized is None else filled(op.linearized, node, values, assignment.leaves)
            step = Step(node, op, function, tuple(xs), None, linearized=linearized, factors=assignment.factors)
            function = assignment.rule.as_function(step) or function
            kept = {assignment.leaves[n] for n in assignment.receives}
            xs = [x if n in kept else x.detach() for n, x in zip(assignment.leaves, xs, strict=True)]
            with torch.enable_grad():
                env[node.name] = function(*xs)
        if node.name in origins:
            leaf(node.name)
        for name in set(node.refs()):
            if last_use[name] == i and name != plan.graph.output.name:
                del env[name]
    output = env[plan.graph.output.name]
    if not output.requires_grad or output.dtype in HALF or output.is_complex():
        return None
    return OnePass(leaves, output, {name: inputs[name] for name in plan.explained})
