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

from .graph import Node
from .plan import Assignment, Plan
from .propagate import as_wide, filled, operation_of, refuse_overwriting
from .rules import Relevance
from .step import HALF, Function, Step

STEPWISE = frozenset((*HALF, torch.complex64, torch.complex128))
"""Types of values that need the steps."""


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
        if assignment is None:
            args, kwargs = node.filled(values)
            with torch.no_grad():
                env[node.name] = node.op(*args, **kwargs)
        else:
            carrying = assignment.leaves
            if any(isinstance(value, Tensor) and value.dtype in STEPWISE for value in values):
                return None
            xs = [values[n] for n in carrying]
            for n, value in enumerate(values):
                if n not in carrying and isinstance(value, Tensor) and value.requires_grad:
                    values[n] = value.detach()
            with torch.enable_grad():
                if node.name in plan.plain:
                    args, kwargs = node.filled(values)
                    refuse_overwriting(node, assignment.place.op, args, kwargs)
                    env[node.name] = operation_of(node)(*args, **kwargs)
                else:
                    env[node.name] = _function(node, assignment, values, xs)(
                        *(x if n in assignment.receives else x.detach() for n, x in enumerate(xs))
                    )
        if node.name in origins:
            leaf(node.name)
        for name in plan.last_reads[i]:
            del env[name]
    output = env[plan.graph.output.name]
    if not output.requires_grad or output.dtype in STEPWISE:
        return None
    return OnePass(leaves, output, {name: inputs[name] for name in plan.explained})


def _function(node: Node, assignment: Assignment, values: list[Any], xs: list[Tensor]) -> Function:
    """The function whose derivative the rule is."""
    op = assignment.place.op
    own, linearized = (
        None if operation is None else filled(operation, node, values, assignment.leaves)
        for operation in (operation_of(node), op.linearized)
    )
    assert own is not None
    step = Step(node, op, own, tuple(xs), None, linearized=linearized, factors=assignment.factors)
    return assignment.rule.as_function(step) or own
