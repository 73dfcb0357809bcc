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

from .graph import Node, Ref
from .narrow import narrow
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


@dataclass(frozen=True)
class Call:
    """One operation of a plan, with all that is the same in every pass looked up."""

    node: Node
    assignment: Assignment | None
    """None where no relevance passes."""
    reads: tuple[tuple[int, str], ...]
    """Which of its leaves are other values, by name."""
    held: tuple[int, ...]
    """Which of those carry relevance, but none of it goes there from here."""
    plain: Function | None
    """The operation, where the rule is its own derivative."""
    writes: bool
    """Whether it writes to places that its arguments name."""
    origin: bool
    """Whether relevance ends at its output."""
    spent: tuple[str, ...]
    """Values that nobody reads afterwards."""

    def values(self, env: Mapping[str, Any]) -> list[Any]:
        """The leaves of its arguments."""
        values = list(self.node.leaves)
        for n, name in self.reads:
            values[n] = env[name]
        for n in self.held:
            values[n] = values[n].detach()
        return as_wide(self.node, values)


def calls_of(plan: Plan) -> tuple[Call, ...]:
    """The operations that one pass runs, in their order."""
    origins = {name for source in plan.sources for name in source.nodes}
    carrying, fixed = origins | set(plan.assignments), set(plan.fixed)
    calls = []
    for node, spent in zip(plan.graph, plan.last_reads, strict=True):
        if node.name in fixed:
            continue
        assignment = plan.assignments.get(node.name)
        reads = tuple((n, leaf.name) for n, leaf in enumerate(node.leaves) if isinstance(leaf, Ref))
        taken = () if assignment is None else assignment.leaves
        held = () if assignment is None else tuple(n for n, name in reads if name in carrying and n not in taken)
        plain = operation_of(node) if node.name in plan.plain else None
        writes = assignment is not None and assignment.place.op.written is not None
        calls.append(Call(node, assignment, reads, held, plain, writes, node.name in origins, spent))
    return tuple(calls)


def one_pass(plan: Plan, inputs: Mapping[str, Any], state: Mapping[str, Tensor]) -> OnePass | None:
    """Runs the graph recorded; None where a rule is no function's derivative, or a value is complex or half precise."""
    if not plan.is_one_pass:
        return None
    env = plan.constants(state) | dict(inputs)
    leaves: dict[str, Tensor] = {}

    def leaf(name: str) -> None:
        leaves[name] = env[name] = env[name].detach().requires_grad_()

    for source in plan.sources:
        for name in source.nodes:
            if name in env:
                leaf(name)
    calls: tuple[Call, ...] = plan.prepared.get("one pass", lambda: calls_of(narrow(plan, env)))
    read: set[str] = plan.prepared.get("read", lambda: {name for c in calls if c.assignment for _, name in c.reads})
    if any(name in read and _stepwise(value) for name, value in env.items()):
        return None
    with torch.enable_grad():
        for call in calls:
            node, assignment, values = call.node, call.assignment, call.values(env)
            if assignment is None:
                args, kwargs = node.filled(values)
                with torch.no_grad():
                    made = node.op(*args, **kwargs)
            elif call.plain is not None:
                args, kwargs = node.filled(values)
                if call.writes:
                    refuse_overwriting(node, assignment.place.op, args, kwargs)
                made = call.plain(*args, **kwargs)
            else:
                xs = [values[n] for n in assignment.leaves]
                function = _function(node, assignment, values, xs)
                made = function(*(x if n in assignment.receives else x.detach() for n, x in enumerate(xs)))
            if _stepwise(made):
                return None
            env[node.name] = made
            if call.origin:
                leaf(node.name)
            for name in call.spent:
                del env[name]
    output = env[plan.graph.output.name]
    if not output.requires_grad:
        return None
    return OnePass(leaves, output, {name: inputs[name] for name in plan.explained})


def _stepwise(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dtype in STEPWISE


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
