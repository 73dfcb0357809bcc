"""Graph + composite -> Plan: every operation with its role and rule, all problems found at once, before any number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from .composites import Chooser, Composite, Place
from .errors import InputError, UnsupportedOp
from .forms import Arguments, arguments_of
from .graph import Graph, Node, Ref, is_getitem, lookup
from .ops import OPS, SCALE, Op, role_of
from .rules import Rule
from .step import Cache


@dataclass(frozen=True)
class Row:
    """One line of a printed plan."""

    name: str
    op: str
    module: str
    source: str
    role: str
    rule: str


@dataclass(frozen=True)
class PlanTable:
    """A plan as text: what `print(plan)` shows and what is saved with an attribution."""

    rows: tuple[Row, ...]
    composite: str
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        head = ("operation", "module", "source", "role", "rule")
        lines = [(row.op, row.module, row.source, row.role, row.rule) for row in self.rows]
        widths = [min(48, max(len(line[i]) for line in [head, *lines])) for i in range(len(head))]
        show = [
            "  ".join(_fit(cell, width) for cell, width in zip(line, widths, strict=True)).rstrip()
            for line in [head, *lines]
        ]
        show.insert(1, "  ".join("-" * width for width in widths))
        return "\n".join([f"composite: {self.composite}", *(f"note: {note}" for note in self.notes), *show])


def _fit(cell: str, width: int) -> str:
    return cell.ljust(width) if len(cell) <= width else "…" + cell[len(cell) - width + 1 :]


@dataclass(frozen=True)
class Assignment:
    """A place that relevance passes, with its rule and what the graph says of its arguments."""

    place: Place
    rule: Rule
    leaves: tuple[int, ...]
    """Which leaves of (args, kwargs) carry relevance."""
    receives: tuple[int, ...]
    """Which of those get a share."""
    data: str = ""
    """affine: the name of the argument that is the data."""
    nonnegative: bool = False
    rectified: bool = False
    gates: tuple[int, ...] = ()


@dataclass(frozen=True)
class Plan:
    """A graph whose every operation on the way of relevance has a rule."""

    graph: Graph
    explained: tuple[str, ...]
    composite: Composite
    assignments: Mapping[str, Assignment]
    fixed: tuple[str, ...]
    """Nodes that depend on no input: computed once, until a parameter changes."""
    caches: dict[str, Cache] = field(default_factory=dict)
    _held: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def table(self) -> PlanTable:
        """Every operation on the way of relevance, in the order in which it runs."""
        rows = []
        for node in self.graph:
            assignment = self.assignments.get(node.name)
            if assignment is None or is_getitem(node):
                continue
            source = f"{node.file}:{node.line}" if node.file else ""
            rows.append(Row(node.name, node.short, node.module, source, assignment.place.role, str(assignment.rule)))
        why = (self.composite.why,) if self.composite.why else ()
        return PlanTable(tuple(rows), self.composite.name, (*why, *self.graph.notes))

    @property
    def rows(self) -> tuple[Row, ...]:
        """The lines of the printed plan."""
        return self.table.rows

    def __str__(self) -> str:
        return str(self.table)

    def constants(self, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """Values of parameters, constants and fixed nodes; drops every cache when a parameter has changed."""
        env: dict[str, Any] = {name: state[qualified].detach() for name, qualified in self.graph.parameters.items()}
        env |= self.graph.constants
        tensors = {name: env[name] for name in (*self.graph.parameters, *self.graph.constants)}
        prints = _fingerprints({name: tensors[name] for name in self._relied_on()})
        known = self._held.get("prints")
        if known is None or any(known[name] != seen for name, seen in prints.items()):
            self._held.clear()
            self.caches.clear()
            self._held["prints"] = _fingerprints(tensors)
            index = self.graph.index
            with torch.no_grad():
                for name in self.fixed:
                    node = index[name]
                    env[name] = node.op(*lookup(node.args, env), **lookup(dict(node.kwargs), env))
            self._held["values"] = {name: env[name] for name in self.fixed}
        return env | self._held["values"]

    def _relied_on(self) -> set[str]:
        """Parameters and constants that something kept between calls was computed from."""
        used = [name for name, cache in self.caches.items() if cache.held]
        waiting, found, index = [*self.fixed, *used], set[str](), self.graph.index
        fixed = set(self.fixed)
        while waiting:
            for name in index[waiting.pop()].refs():
                if name in index and name in fixed and name not in found:
                    waiting.append(name)
                found.add(name)
        return found & {*self.graph.parameters, *self.graph.constants}


def _fingerprints(tensors: Mapping[str, Tensor]) -> dict[str, tuple[Any, ...]]:
    """What changes when a tensor is replaced or written to, also behind autograd's back (`p.data.mul_(2)`)."""
    floating = {name: t.detach() for name, t in tensors.items() if t.is_floating_point() and t.numel()}
    sums = torch.stack([_checksum(t).double() for t in floating.values()]).tolist() if floating else []
    sum_of = dict(zip(floating, sums, strict=True))
    return {
        name: (t.data_ptr(), t.dtype, t.device, 0 if t.is_inference() else t._version, sum_of.get(name))
        for name, t in tensors.items()
    }


_ROW = 4096


def _checksum(values: Tensor) -> Tensor:
    """A sum weighted by position, so that values that swap places change it; one reading of the tensor."""
    flat = values.flatten()
    weights = 1 + torch.arange(_ROW, device=flat.device, dtype=flat.dtype).mul(0.618034).frac()
    rows = flat.numel() // _ROW
    whole, rest = flat[: rows * _ROW].view(rows, _ROW), flat[rows * _ROW :]
    sums = whole @ weights if rows else flat.new_zeros(0)
    order = 1 + torch.arange(rows, device=flat.device, dtype=flat.dtype).mul(0.754877).frac()
    return (sums * order).sum() + (rest * weights[: rest.numel()]).sum()


def make_plan(graph: Graph, explained: Sequence[str], composite: Composite | Chooser) -> Plan:
    """Assigns a rule to every operation that relevance passes.

    Args:
        graph: a canonical graph.
        explained: names of the inputs that relevance is sent to.
        composite: what gives each its rule, or makes the composite once the operations are known.

    Raises:
        UnsupportedOp: operations without a role, all of them at once.
        InputError: the output does not depend on the explained inputs.
    """
    carrying = _carrying(graph, explained)
    if graph.output.name not in carrying:
        raise InputError(f"the output does not depend on the explained inputs ({', '.join(explained)})")
    facts = {node.name: _Facts.of(node, carrying) for node in graph if node.name in carrying}
    places = _places(graph, facts)
    if not isinstance(composite, Composite):
        composite = composite(list(places.values()))
    nonnegative = _nonnegative(graph, facts)
    assignments = _assign(graph, facts, places, nonnegative, composite)
    return Plan(graph, tuple(explained), composite, assignments, _fixed(graph))


def _carrying(graph: Graph, explained: Sequence[str]) -> set[str]:
    """Names of floating values that depend on an explained input."""
    carrying = set(explained)
    for node in graph:
        op = OPS.get(node.op)
        if node.floating and (op is None or op.role != "constant") and any(name in carrying for name in node.refs()):
            carrying.add(node.name)
    return carrying


def _fixed(graph: Graph) -> tuple[str, ...]:
    moving, fixed = set(graph.inputs), []
    for node in graph:
        if any(name in moving for name in node.refs()):
            moving.add(node.name)
        else:
            fixed.append(node.name)
    return tuple(fixed)


@dataclass(frozen=True)
class _Facts:
    """What a node's arguments say of it."""

    op: Op | None
    leaves: tuple[int, ...]
    """Leaves that carry relevance."""
    sources: tuple[str, ...]
    """The nodes that these leaves are, in the same order."""
    positions: tuple[int, ...]
    """The arguments, by position in the schema, that these leaves belong to."""
    arguments: Arguments
    data: str = ""

    @staticmethod
    def of(node: Node, carrying: set[str]) -> _Facts:
        paths = pytree.tree_flatten_with_path((node.args, dict(node.kwargs)))[0]
        arguments = arguments_of(node.op, node.args, node.kwargs)
        names = list(arguments)
        schema = [a.name for a in node.op._schema.arguments] if isinstance(node.op, torch._ops.OpOverload) else names
        leaves, sources, positions = [], [], []
        for number, (path, leaf) in enumerate(cast(list[tuple[Any, Any]], paths)):
            if isinstance(leaf, Ref) and leaf.name in carrying:
                leaves.append(number)
                sources.append(leaf.name)
                key = path[1]
                positions.append(key.idx if path[0].idx == 0 else schema.index(key.key))
        op = role_of(node, tuple(dict.fromkeys(positions)) if len(leaves) == len(set(positions)) else tuple(positions))
        data = ""
        if op is not None and op.form is not None:
            where = {schema[position] for position in positions}
            if len(leaves) == 1 and where <= set(op.form.data):
                data = next(iter(where))
            else:  # the weight is data too (attention), or it alone is
                op = _filtered(schema, where) if len(leaves) > 1 else Op("sum", offset=True)
        return _Facts(op, tuple(leaves), tuple(sources), tuple(positions), arguments, data)


def _filtered(schema: Sequence[str], where: set[str]) -> Op:
    """A product of data and data-dependent weights: a filter made from the data is a gate, keys and queries are not."""
    return Op("product", gates=(schema.index("weight"),) if "weight" in where else ())


def _places(graph: Graph, facts: Mapping[str, _Facts]) -> dict[str, Place]:
    affine = [name for name, fact in facts.items() if fact.op is not None and fact.op.role == "affine"]
    before: set[str] = set()
    after: set[str] = set()
    for name, fact in facts.items():
        if any(source in before or source in affine for source in fact.sources):
            before.add(name)
    for name in reversed(list(facts)):
        if name in after or name in affine:
            after.update(facts[name].sources)
    places = {}
    for name, fact in facts.items():
        if fact.op is None:
            continue
        is_affine = name in affine
        places[name] = Place(
            graph[name],
            fact.op,
            first=is_affine and name not in before,
            last=is_affine and name not in after,
            index=affine.index(name) if is_affine else None,
            has_convolution=is_affine and "conv" in graph[name].short,
        )
    return places


def _nonnegative(graph: Graph, facts: Mapping[str, _Facts]) -> set[str]:
    """Names of values that are ≥ 0 whatever the input."""
    found: set[str] = set()
    for name, fact in facts.items():
        if fact.op is None:
            continue
        sign = fact.op.nonnegative
        sign = sign(fact.arguments) if callable(sign) else sign
        others = [
            ref for ref in graph[name].refs() if ref not in facts and (ref not in graph.index or graph[ref].floating)
        ]
        if sign is True or (sign == "keep" and not others and all(source in found for source in fact.sources)):
            found.add(name)
    return found


def _assign(
    graph: Graph, facts: Mapping[str, _Facts], places: Mapping[str, Place], nonnegative: set[str], composite: Composite
) -> dict[str, Assignment]:
    users = graph.users()
    wanted, assignments = {graph.output.name}, {}
    refused: list[Node] = []
    reasons: list[str] = []
    for name in reversed(list(facts)):
        if name not in wanted:
            continue
        node, fact = graph[name], facts[name]
        reason = "no role" if fact.op is None else fact.op.refuse(fact.arguments) if fact.op.refuse else ""
        if reason or fact.op is None:
            refused.append(node)
            reasons.append(reason)
            wanted.update(fact.sources)
            continue
        place = places[name]
        rule = composite.rule_for(place)
        gates = tuple(
            i for i, source in enumerate(fact.sources) if fact.positions[i] in fact.op.gates or _is_gate(source, facts)
        )
        gates = gates if fact.op.role == "product" else ()
        receives = rule.receives(len(fact.sources), gates)
        readers = users.get(name, [])
        assignments[name] = Assignment(
            place,
            rule,
            fact.leaves,
            receives,
            fact.data,
            nonnegative=all(source in nonnegative for source in fact.sources),
            rectified=bool(readers) and all(_rectifies(facts.get(reader.name)) for reader in readers),
            gates=gates,
        )
        wanted.update(fact.sources[i] for i in receives)
    if refused:
        raise UnsupportedOp(refused[::-1], reasons[::-1])
    return assignments


def _rectifies(fact: _Facts | None) -> bool:
    return fact is not None and fact.op is not None and fact.op.rectifies


def _is_gate(name: str, facts: Mapping[str, _Facts]) -> bool:
    """Whether a value is a bounded factor: a sigmoid, softmax or 1/sqrt, moved or scaled by a constant at most."""
    fact = facts.get(name)
    if fact is None or fact.op is None:
        return False
    passes = fact.op.role == "rearrange" or fact.op == SCALE
    return fact.op.gate or (passes and all(_is_gate(source, facts) for source in fact.sources))
