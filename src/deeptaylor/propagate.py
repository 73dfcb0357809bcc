"""Forward with saved steps, then relevance backwards: the whole engine in one sitting."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .adjoints import ADJOINTS
from .errors import CompositeError, DeepTaylorError, InputError, describe
from .forms import arguments_of
from .graph import Node, is_getitem, is_plain_sum
from .ops import Op
from .plan import Assignment, Plan
from .repeated import repeated
from .rules import Redistribution, Relevance, Rule
from .rules.gradient import HeldConstant
from .rules.rearrange import Move
from .rules.redistribute import added
from .step import HALF, Cache, Step, lightened, now, record
from .symbolic import is_symbolic

NARROW = (*HALF, torch.float32)
Observer = Callable[[Step, Any, Redistribution], None]
"""Called after every step with (step, relevance of its output, what the rule did)."""


@dataclass(frozen=True)
class Forward:
    """One forward pass: the steps that relevance will retrace, and the values it is measured against."""

    steps: dict[str, Step]
    values: dict[str, Any]
    """By name: the explained inputs (or the embeddings of their ids) and the outputs of all steps; some `Later`."""
    output: Tensor
    inputs: Mapping[str, Tensor]
    """The explained inputs."""
    unmasked: Collection[str] = ()
    """ReLUs whose value stands in for their argument, in an operation whose rule multiplies c by it."""

    def value(self, name: str) -> Any:
        """The value of that name."""
        return now(self.values[name])


def forward(plan: Plan, inputs: Mapping[str, Any], state: Mapping[str, Tensor], full: bool = False) -> Forward:
    """Runs the graph, keeping a `Step` of every operation that relevance will pass.

    Args:
        plan: the graph with its rules.
        inputs: all inputs by name.
        state: parameters and buffers by name.
        full: every value will be asked for, by a ledger for example.
    """
    env = plan.constants(state) | dict(inputs)
    return forward_part(plan, env, inputs, range(len(plan.graph.nodes)), full)


def forward_part(
    plan: Plan, env: dict[str, Any], inputs: Mapping[str, Any], part: range, full: bool = False
) -> Forward:
    """Runs some of the graph's operations, given the values before them in `env`, which becomes those after them."""
    fixed = set(plan.fixed)
    origins = {node for source in plan.sources for node in source.nodes}
    steps: dict[str, Step] = {}
    picked: dict[str, Tensor] = {}
    rectified: set[str] = set()
    narrow = plan.narrows or any(isinstance(value, Tensor) and value.dtype in HALF for value in env.values())
    with torch.no_grad():
        for i in part:
            node = plan.graph.nodes[i]
            if node.name in fixed:
                continue
            leaves = as_wide(node, node.values(env))
            assignment = plan.assignments.get(node.name)
            if node.name in rectified and node.name in plan.unmasked:  # c passes it; a step is made if need be
                env[node.name] = leaves[0]
                picked[node.name] = widened(leaves[0])
            elif assignment is None or is_getitem(node):
                args, kwargs = node.filled(leaves)
                env[node.name] = node.op(*args, **kwargs)
                if assignment is not None or node.name in origins:
                    picked[node.name] = widened(env[node.name])
            else:
                cache = plan.caches.setdefault(node.name, Cache()) if assignment.steady else Cache()
                rectifier = "" if full else assignment.rectifier
                half = narrow and any(isinstance(leaf, Tensor) and leaf.dtype in HALF for leaf in leaves)
                step, env[node.name] = _step(
                    node, assignment, leaves, cache, half, bool(rectifier), node.name in rectified
                )
                rectified.add(rectifier)
                sources = [steps.get(name) for name in assignment.sources]
                steps[node.name] = lightened(step, sources, not full and assignment.passes)
            for name in plan.last_reads[i]:
                del env[name]
    output: Any = env.get(plan.graph.output.name)
    explained = {name: inputs[name] for name in plan.explained}
    values = picked | {name: step.made for name, step in steps.items()} | {n: widened(x) for n, x in explained.items()}
    return Forward(steps, values, output, explained, rectified & plan.unmasked)


def as_wide(node: Node, leaves: list[Any]) -> list[Any]:
    """Arguments that do not narrow float64: a cast to float32 would leave the ledger open by its rounding."""
    if node.casts and any(isinstance(leaf, Tensor) and leaf.dtype == torch.float64 for leaf in leaves):
        return [torch.float64 if isinstance(leaf, torch.dtype) and leaf in NARROW else leaf for leaf in leaves]
    return leaves


def _step(
    node: Node, assignment: Assignment, leaves: list[Any], cache: Cache, half: bool, rectify: bool, rectified: bool
) -> tuple[Step, Any]:
    """The step of one operation, and the value that it passes on.

    Args:
        node: the operation.
        assignment: its rule, and what the graph says of it.
        leaves: its arguments, containers taken apart.
        cache: kept between calls.
        half: whether one of the arguments is in half precision.
        rectify: take the value's positive part right away, for the ReLU that alone reads it.
        rectified: this is that ReLU: the argument is its value already.
    """
    op = assignment.place.op
    args, kwargs = node.filled(leaves)
    if op.written is not None:
        refuse_overwriting(node, op, args, kwargs)
    value: Any = leaves[assignment.leaves[0]] if rectified else None
    if value is None and half:
        value = operation_of(node)(*args, **kwargs)
        value = value.relu_() if rectify else value
    if half:  # relevance is carried in float32 at least
        leaves = [widened(leaf) for leaf in leaves]
        args, kwargs = node.filled(leaves)
    # a fresh tensor object per argument: x * x is a product of two
    xs = tuple([leaves[i].detach() for i in assignment.leaves])
    further: list[Any] = []
    function = _first(filled(operation_of(node), node, leaves, assignment.leaves), op, further)
    known: dict[str, Any] = {
        "nonnegative": assignment.nonnegative,
        "rectified": assignment.rectified,
        "clipped": rectify,
        "batch_axis": assignment.batch_axis,
        "factors": assignment.factors,
        "cache": cache,
    }
    if op.form is not None:
        affine = op.form.build(arguments_of(node.op, args, kwargs), assignment.data)
        step = Step(node, op, function, xs, None, affine=affine, **known)
        z = assignment.rule.added_up(step) if is_symbolic(xs[0]) and not half else None
        z = operation_of(node)(*args, **kwargs) if z is None else z
        step.made = z.relu_() if rectify else z
        _forget(leaves, assignment)
        return step, value if half else step.made
    if op.linearized is not None:
        known["linearized"] = _first(filled(op.linearized, node, leaves, assignment.leaves), op, further)
    memo = Cache()
    adjoint = ADJOINTS.get(node.op) if assignment.leaves == (0,) else None
    if rectified:
        z = xs[0]
    elif adjoint is not None and not is_symbolic(xs[0]):
        z, known["adjoint"] = adjoint(xs[0], *args[1:], **kwargs)
    elif (assignment.habits.underived or is_plain_sum(node)) and not op.first:
        z = function(*xs)
    else:
        recorded, z = record(function, xs)
        memo.held["recorded", None] = recorded
    z = z.relu_() if rectify else z
    _forget(leaves, assignment)
    step = Step(node, op, function, xs, z, memo=memo, **known)
    if value is not None:
        return step, value
    return step, (z, *further) if op.first else z


def _of_value(assignment: Assignment, value: Tensor) -> Step:
    """The step of a ReLU whose value stands in for its argument."""
    return _step(assignment.place.node, assignment, [value], Cache(), half=False, rectify=False, rectified=True)[0]


def _first(operation: Callable[..., Any], op: Op, further: list[Any]) -> Callable[..., Any]:
    """The operation's only output that carries relevance; `further` gets the others."""
    if not op.first:
        return operation

    def function(*xs: Tensor) -> Any:
        first, *further[:] = operation(*xs)
        return first

    return function


def refuse_overwriting(node: Node, op: Op, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Refuses a call that writes several values to one place: which of them stays, and has the relevance, is open.

    Raises:
        InputError: with the line.
    """
    if op.written is None or any(isinstance(value, Tensor) and is_symbolic(value) for value in args):
        return
    if bool((op.written(arguments_of(node.op, args, kwargs)) > 1).any()):
        raise InputError(
            f"{node.kind} at {node.file}:{node.line} writes several values to one place: {node.source}\n"
            "torch leaves open which of them stays, so no share can be given; use scatter_add, index_add or "
            "index_put(..., accumulate=True) where they are meant to be added up"
        )


def _forget(leaves: list[Any], assignment: Assignment) -> None:
    """Leaves gaps where `Step.function` will fill in its arguments."""
    for leaf in assignment.leaves:
        leaves[leaf] = None


def operation_of(node: Node) -> Callable[..., Any]:
    """The node's operation; those that give their argument as it is need no copy, as the graph writes nowhere."""
    if node.op is torch.ops.aten.linear.default:
        return _linear
    copies = node.op is torch.ops.aten.detach.default or (node.op is torch.ops.aten.clone.default and not node.kwargs)
    return torch.ops.aten.alias.default if copies else node.op


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`aten.linear`; in a program of rows where axes are turned: it would become one copy of the weight per row."""
    if x.dim() < 3 or not is_symbolic(x) or x.is_contiguous():
        made: Tensor = torch.ops.aten.linear.default(x, weight, bias)
        return made
    made = torch.ops.aten.linear.default(_laid_out(x).flatten(0, -2), weight, bias)
    return _laid_out(made.unflatten(0, x.shape[:-1]))


def _laid_out(x: Tensor) -> Tensor:
    """A copy whose layout in memory depends on no size."""
    return x.clone(memory_format=torch.contiguous_format)


def filled(operation: Callable[..., Any], node: Node, leaves: list[Any], where: Sequence[int]) -> Callable[..., Any]:
    """The operation as a function of the arguments at the leaves `where`, everything else as it is in `leaves`."""

    def function(*xs: Tensor) -> Any:
        whole = list(leaves)
        for leaf, x in zip(where, xs, strict=True):
            whole[leaf] = x
        args, kwargs = node.filled(whole)
        return operation(*args, **kwargs)

    return function


def widened(value: Any) -> Any:
    """Half precision as float32."""
    return value.float() if isinstance(value, Tensor) and value.dtype in HALF else value


def backward(
    plan: Plan,
    run: Forward,
    seed: Relevance,
    observe: Observer | None = None,
    keep: Collection[str] = (),
    release: bool = False,
    rows: int = 1,
) -> dict[str, Relevance]:
    """Relevance of the explained inputs and of the values in `keep`, by name, given that of the output.

    Args:
        plan: the graph with its rules.
        run: the forward pass.
        seed: relevance of the output.
        observe: sees every step; the ledger and the search for NaN are observers.
        keep: names of values whose relevance is wanted.
        release: forget each step of the forward pass once it is passed, to save memory.
        rows: so many targets of the one sample the seed holds, as `repeated.waves` gave it.
    """
    relevance: dict[str, Any] = {plan.graph.output.name: seed}
    backward_part(plan, run, relevance, plan.graph.nodes, observe, keep, release, rows)
    return relevance


def backward_part(
    plan: Plan,
    run: Forward,
    relevance: dict[str, Any],
    nodes: Sequence[Node],
    observe: Observer | None = None,
    keep: Collection[str] = (),
    release: bool = False,
    rows: int = 1,
) -> None:
    """Moves relevance, by name, from behind some operations to before them."""
    for node in reversed(nodes):
        if node.name not in relevance or node.name not in plan.assignments:
            continue
        if is_getitem(node):
            _into_slot(plan, run, relevance, node)
            continue
        assignment = plan.assignments[node.name]
        arrived = relevance[node.name] if node.name in keep else relevance.pop(node.name)
        unread = observe is None and node.name not in keep
        if node.name in run.unmasked and unread and arrived.product:
            _add(relevance, assignment.sources[0], arrived, run)
            if release:
                del run.values[node.name]
            continue
        step = run.steps[node.name] if node.name in run.steps else _of_value(assignment, run.value(node.name))
        step.memo.audited = observe is not None
        if release:
            run.steps.pop(node.name, None)
            step.memo.last = True
            if node.name not in keep:
                run.values.pop(node.name)
        step = repeated(step, rows) if rows > 1 else step
        if isinstance(arrived, dict):
            result = _several(step, assignment, arrived)
        else:
            mine = arrived if unread and assignment.habits.once else arrived.shared()
            result = _ruled(assignment.rule, step, mine)
        if observe is not None:
            observe(step, arrived, result)
        for source, message in zip(assignment.sources, result.messages, strict=True):
            if message is not None:
                _add(relevance, source, message, run)


def _ruled(rule: Rule, step: Step, arrived: Relevance) -> Redistribution:
    """What a rule does; relevance of complex values is brought into product form, c = R/z, first."""
    if step.op.role == "activation" and step.x.shape != step.z.shape:
        return _broadcast(rule, step, arrived)
    if rule.signs and step.is_complex:
        raise CompositeError(
            f"{rule} tells contributions by their signs, which complex values have none of: {describe(step.node)}. "
            "Give complex operations LRP-0 or epsilon: composite='epsilon', or a line of your own for this operation"
        )
    if arrived.product or not step.is_complex:
        return rule(step, arrived)
    product = Relevance(arrived.over(step.z, step.z, 0.0), product=True)
    result = rule(step, product)

    def lost() -> Tensor:  # where z is 0
        return arrived.total(step.z) - product.total(step.z)

    return Redistribution(result.messages, {**result.absorbed, "rule": added(result.absorbed.get("rule"), lost)})


def _broadcast(rule: Rule, step: Step, arrived: Relevance) -> Redistribution:
    """A function of one value and of larger constants, max(x, constants): x stands there as often, and gets the sum."""
    x = step.x
    result = _ruled(rule, replace(step, taken=(x.expand(step.z.shape),), memo=Cache()), arrived)
    messages = tuple(
        None if message is None else Relevance(message.tensor.sum_to_size(x.shape), message.product)
        for message in result.messages
    )
    return replace(result, messages=messages)


def _several(step: Step, assignment: Assignment, arrived: Mapping[int, Relevance]) -> Redistribution:
    """An operation with several outputs (split, unbind): relevance moves from all of them at once."""
    if isinstance(assignment.rule, HeldConstant):
        return Redistribution((None,) * len(step.taken))
    if step.op.role != "rearrange":
        raise DeepTaylorError(f"{step.node.kind} has several outputs that carry relevance, and the role {step.op.role}")
    return Move().several(step, [arrived.get(i) for i in range(len(step.z))], step.z)


def _into_slot(plan: Plan, run: Forward, relevance: dict[str, Any], node: Node) -> None:
    """Hands what arrived at `x[i]` to the i-th output of x."""
    source, number = node.args[0].name, node.args[1]
    step = run.steps[source]
    arrived = relevance[node.name].shared()
    if step.op.first:
        relevance[source] = arrived
        return
    slots = relevance.setdefault(source, {})
    value = step.z[number]
    slots[number] = slots[number].plus(arrived, lambda: value) if number in slots else arrived


def _add(relevance: dict[str, Any], name: str, message: Relevance, run: Forward) -> None:
    held = relevance.get(name)
    relevance[name] = message if held is None else held.plus(message, lambda: run.value(name))
