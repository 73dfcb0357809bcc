"""Plan -> Plan that computes no row that the output does not read.

A classifier reads one token of its last layer, a language model the scores at one place. What selects those rows moves
up through every operation that makes each row of its output from the same row of its arguments. Values and relevance of
the inputs are the same; inner values have fewer rows, so plans for ledgers and inner relevance stay whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch.utils import _pytree as pytree

from .composites import Place
from .graph import Graph, Node, Ref, is_getitem
from .ops import OPS
from .plan import Assignment, Plan
from .rows import Reads, Rows, Shape, argument_names, as_given, reads_for, repeats, rows_given, take_rows
from .rules import Rule
from .rules.rearrange import Move

aten = torch.ops.aten


def narrow(plan: Plan, tensors: Mapping[str, torch.Tensor]) -> Plan:
    """The same plan without rows that nobody reads.

    Args:
        plan: any plan.
        tensors: its parameters and constants by name, for their shapes.
    """
    shapes: dict[str, Shape] = {node.name: node.shape for node in plan.graph} | dict(plan.graph.shapes)
    shapes |= {name: tuple(tensors[name].shape) for name in (*plan.graph.parameters, *plan.graph.constants)}
    wanted = rows_wanted(plan, shapes)
    if not wanted.reads and not wanted.given:
        return plan
    return _Narrowing(plan, wanted, shapes).plan()


@dataclass
class Wanted:
    """What is read of every value."""

    rows: dict[str, Rows | None] = field(default_factory=dict)
    """By name of a value that is read; None for all of it."""
    reads: dict[str, Reads] = field(default_factory=dict)
    """What operations read that make only those rows."""
    given: dict[str, str] = field(default_factory=dict)
    """Operations that give rows of a value which has no others, and that value."""

    def want(self, name: str, rows: Rows | None) -> None:
        """Readers that differ need all."""
        self.rows[name] = rows if self.rows.get(name, rows) == rows else None


def rows_wanted(plan: Plan, shapes: Mapping[str, Shape]) -> Wanted:
    """From the output back: which rows of every value are read."""
    wanted = Wanted()
    whole = {*plan.fixed, *(name for source in plan.sources for name in source.nodes)}
    whole |= {name for name, assignment in plan.assignments.items() if not _by_rows(assignment.rule)}
    givers: dict[str, tuple[str, Rows]] = {}
    for node in reversed(plan.graph.nodes):
        rows = None if node.name == plan.graph.output.name or node.name in whole else wanted.rows.get(node.name)
        reads = None if rows is None else reads_for(node, rows, shapes)
        given = rows_given(node, plan.graph.index, shapes) if reads is None and node.name not in whole else None
        if reads is not None:
            wanted.reads[node.name] = reads
        elif given is not None:
            givers[node.name] = given
        own = {} if reads is None else reads.rows
        for name, values in _by_argument(node):
            for value in values:
                at_once = given is not None and value == given[0] and name == "self"
                wanted.want(value, given[1] if given is not None and at_once else own.get(name))
        if given is not None and given[1].index:
            wanted.want(given[1].index, None)
    wanted.given = {name: value for name, (value, _) in givers.items() if value in wanted.reads}
    return wanted


def _by_rows(rule: Rule) -> bool:
    """Whether a rule is known to treat every row by itself: an author's own function may look at all of them."""
    return type(rule).as_function.__module__.partition(".")[0] == __package__


def _by_argument(node: Node) -> list[tuple[str, list[str]]]:
    """The values that an operation reads, argument by argument, with the arguments' names."""
    pairs = [*zip(argument_names(node), node.args, strict=True), *node.kwargs.items()]
    return [(name, [leaf.name for leaf in pytree.tree_leaves(v) if isinstance(leaf, Ref)]) for name, v in pairs]


class _Narrowing:
    """The new graph in the making."""

    def __init__(self, plan: Plan, wanted: Wanted, shapes: Mapping[str, Shape]) -> None:
        self.old, self.wanted, self.shapes = plan, wanted, dict(shapes)
        self.carrying = {*plan.assignments, *plan.explained, *(n for s in plan.sources for n in s.nodes)}
        self.made: dict[str, Node] = {}
        self.assignments = dict(plan.assignments)

    def plan(self) -> Plan:
        old = self.old.graph
        for node in old:
            self.made[node.name] = self._changed(node)
        graph = replace(old, nodes=_ordered(self.made, old)).without_dead_nodes()
        left = graph.index
        assignments = {name: a for name, a in self.assignments.items() if name in left}
        return Plan(graph, self.old.sources, self.old.composite, assignments, self.old.fixed)

    def _changed(self, node: Node) -> Node:
        before = node.op
        if is_getitem(node) and node.name in self.wanted.reads and node.args[0].name not in self.wanted.reads:
            return self._part(node)
        if node.name in self.wanted.given:
            node = as_given(node)
        elif node.name in self.wanted.reads:
            node = self._of_rows(node, self.wanted.reads[node.name])
        if node.name in self.assignments:
            held = self.assignments[node.name]
            place = replace(held.place, node=node, op=held.place.op if node.op is before else OPS[node.op])
            self.assignments[node.name] = replace(held, place=place)
        return node

    def _part(self, node: Node) -> Node:
        """Rows of one output of an operation that has several, all of them whole."""
        rows, whole = self.wanted.rows[node.name], replace(node, name=f"{node.name}, whole")
        assert rows is not None
        self.made[whole.name], self.shapes[whole.name] = whole, node.shape
        held = self.assignments.pop(node.name, None)
        if held is not None:
            self.carrying.add(whole.name)
            self.assignments[whole.name] = replace(held, place=replace(held.place, node=whole))
        return self._taken(node.name, whole.name, rows, len(node.shape))

    def _of_rows(self, node: Node, reads: Reads) -> Node:
        rows = self.wanted.rows[node.name]
        assert rows is not None

        def changed(name: str, value: Any) -> Any:
            if name in reads.changed:
                return reads.changed[name]
            own = reads.rows.get(name)
            if own is None:
                return value
            return pytree.tree_map(lambda leaf: self._rows(leaf, own, node), value)

        args = tuple(changed(name, value) for name, value in zip(argument_names(node), node.args, strict=True))
        kwargs = {name: changed(name, value) for name, value in node.kwargs.items()}
        shape = node.shape and (*node.shape[: rows.axis], rows.length, *node.shape[rows.axis + 1 :])
        return replace(node, args=args, kwargs=kwargs, shape=shape)

    def _rows(self, leaf: Any, rows: Rows, reader: Node) -> Any:
        """Those rows of a value: the value where it has no others, or a new operation that takes them."""
        if not isinstance(leaf, Ref) or leaf.name in self.wanted.reads:
            return leaf
        rank = len(reader.shape if repeats(reader.op) else self.shapes[leaf.name])
        places = f"{rows.index}, {rank}" if rows.index else f"{rows.start}:{rows.start + rows.length}"
        name = f"{leaf.name}[{rows.axis}: {places}]"
        if name not in self.made:
            self.made[name] = self._taken(name, leaf.name, rows, rank)
        return Ref(name)

    def _taken(self, name: str, source: str, rows: Rows, rank: int) -> Node:
        """A new operation that takes those rows of a value."""
        if rows.index:
            node = Node(name, take_rows, (Ref(source), Ref(rows.index), rows.axis, rank))
        else:
            node = Node(name, aten.slice.Tensor, (Ref(source), rows.axis, rows.start, rows.start + rows.length))
        if source in self.carrying:
            self.assignments[name] = Assignment(Place(node, OPS[aten.slice.Tensor]), Move(), (0,), (0,))
        return node


def _ordered(made: Mapping[str, Node], old: Graph) -> tuple[Node, ...]:
    """The operations in an order in which each comes after what it reads."""
    done: dict[str, Node] = {}
    for node in old:
        waiting = [node.name]
        while waiting:
            current = made[waiting[-1]]
            missing = [name for name in current.refs() if name in made and name not in done]
            waiting += missing
            if not missing:
                done[waiting.pop()] = current
    return tuple(done.values())
