"""Graph + composite -> Plan: every operation with its role and rule, all problems found at once, before any number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor

from .composites import Chooser, Composite, Place
from .errors import InputError, UnsupportedOp
from .facts import Facts, Gates, facts_of, nonnegative
from .fingerprints import Fingerprint
from .graph import Graph, Node, is_getitem, lookup
from .rules import Rule, Secant
from .rules.base import Habits, habits_of
from .rules.product_form import gives_c
from .sources import Source, find_sources
from .step import HALF, NO_FACTORS, Cache, Factors, Step


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
    rectifier: str = ""
    """The ReLU that alone reads the output, where the rule does not mind its value in the output's place."""
    batch_axis: int = 0
    """Of the first argument that carries relevance."""
    steady: bool = True
    """Whether everything else among the arguments is the same in every call."""
    factors: Factors = NO_FACTORS

    @cached_property
    def sources(self) -> tuple[str, ...]:
        """Names of the values that carry relevance here."""
        return tuple(self.place.node.leaves[leaf].name for leaf in self.leaves)

    @cached_property
    def habits(self) -> Habits:
        """What the engine may rely on to save work."""
        return habits_of(self.rule)

    @cached_property
    def passes(self) -> bool:
        """Whether the rule is some function's derivative, and hands on c without a look at values."""
        return self.rule.as_function(_bare(self)) is not None


@dataclass(frozen=True)
class Plan:
    """A graph whose every operation on the way of relevance has a rule."""

    graph: Graph
    sources: tuple[Source, ...]
    """The explained inputs."""
    composite: Composite
    assignments: Mapping[str, Assignment]
    fixed: tuple[str, ...]
    """Nodes that depend on no input: computed once, until a parameter changes."""
    caches: dict[str, Cache] = field(default_factory=dict)
    prepared: Cache = field(default_factory=Cache)
    """What depends on the plan alone."""
    _held: dict[str, Any] = field(default_factory=dict)

    @property
    def explained(self) -> tuple[str, ...]:
        """Names of the explained inputs."""
        return tuple(source.name for source in self.sources)

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

    @cached_property
    def is_one_pass(self) -> bool:
        """Whether every rule is some function's derivative; see `one_pass`."""
        return all(is_getitem(a.place.node) or a.passes for a in self.assignments.values())

    @cached_property
    def plain(self) -> frozenset[str]:
        """Operations whose rule is their own derivative, towards everything that carries relevance."""
        return frozenset(
            name
            for name, a in self.assignments.items()
            if is_getitem(a.place.node)
            or (a.rule.as_function(_bare(a)) is _nothing and len(a.receives) == len(a.leaves))
        )

    @cached_property
    def narrows(self) -> bool:
        """Whether an operation may make half precision of values that are not."""
        return any(leaf in HALF for node in self.graph if node.casts for leaf in node.leaves)

    @cached_property
    def unmasked(self) -> frozenset[str]:
        """ReLUs that c passes as it is, since the rule below multiplies it by the ReLU's value."""
        return frozenset(a.rectifier for a in self.assignments.values() if a.rectifier and a.habits.weighs) & frozenset(
            n for n, a in self.assignments.items() if isinstance(a.rule, Secant)
        )

    @cached_property
    def last_reads(self) -> tuple[tuple[str, ...], ...]:
        """For every operation, the values that none reads afterwards; the output stays."""
        last = {name: i for i, node in enumerate(self.graph) for name in node.refs()}
        done: list[list[str]] = [[] for _ in self.graph.nodes]
        for name, i in last.items():
            if name != self.graph.output.name:
                done[i].append(name)
        return tuple(map(tuple, done))

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
        if not self._holds(tensors):
            self._held.clear()
            self.caches.clear()
            self._held["prints"] = Fingerprint(tensors)
            index = self.graph.index
            with torch.no_grad():
                for name in self.fixed:
                    node = index[name]
                    env[name] = node.op(*lookup(node.args, env), **lookup(dict(node.kwargs), env))
            self._held["values"] = {name: env[name] for name in self.fixed}
        return env | self._held["values"]

    def _holds(self, tensors: Mapping[str, Tensor]) -> bool:
        """Whether everything kept between calls still follows from these parameters and constants."""
        relied = self._relied_on()
        return "prints" in self._held and bool(self._held["prints"].holds(tensors, relied))

    def _relied_on(self) -> set[str]:
        """Parameters and constants that something kept between calls was computed from."""
        used = [name for name, cache in self.caches.items() if cache.held]
        known = self._held.get("relied on")
        if known is not None and known[0] == used:
            return cast(set[str], known[1])
        waiting, found, index = [*self.fixed, *used], set[str](), self.graph.index
        fixed = set(self.fixed)
        while waiting:
            for name in index[waiting.pop()].refs():
                if name in index and name in fixed and name not in found:
                    waiting.append(name)
                found.add(name)
        found &= {*self.graph.parameters, *self.graph.constants}
        self._held["relied on"] = used, found
        return found


def _bare(assignment: Assignment) -> Step:
    """The step of an operation before it has run."""
    op, taken = assignment.place.op, torch.empty(len(assignment.leaves)).unbind()
    known: dict[str, Any] = {"linearized": op.linearized, "factors": assignment.factors}
    return Step(assignment.place.node, op, op.linearized or _nothing, taken, None, **known)


def _nothing(*_: Tensor) -> None: ...


def make_plan(graph: Graph, explained: Mapping[str, bool], composite: Composite | Chooser) -> Plan:
    """Assigns a rule to every operation that relevance passes.

    Args:
        graph: a canonical graph.
        explained: names of the inputs that relevance is sent to, and whether each is floating (or holds ids).
        composite: what gives each its rule, or makes the composite once the operations are known.

    Raises:
        UnsupportedOp: operations without a role, all of them at once.
        InputError: the output does not depend on the explained inputs.
    """
    sources = find_sources(graph, explained)
    facts = facts_of(graph, [node for source in sources for node in source.nodes])
    if graph.output.name not in facts and graph.output.name not in explained:
        raise InputError(f"the output does not depend on the explained inputs ({', '.join(explained)})")
    gates = Gates(graph, facts)
    places = _places(graph, facts, gates)
    if not isinstance(composite, Composite):
        composite = composite(list(places.values()), not any(explained.values()))
    assignments = _assign(graph, facts, places, gates, composite)
    return Plan(graph, sources, composite, assignments, _fixed(graph))


def _fixed(graph: Graph) -> tuple[str, ...]:
    moving, fixed = set(graph.inputs), []
    for node in graph:
        if any(name in moving for name in node.refs()):
            moving.add(node.name)
        else:
            fixed.append(node.name)
    return tuple(fixed)


def _places(graph: Graph, facts: Mapping[str, Facts], gates: Gates) -> dict[str, Place]:
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
            residual=gates.residual(name),
            gate_kind=gates.of(name)[2],
        )
    return places


def _assign(
    graph: Graph, facts: Mapping[str, Facts], places: Mapping[str, Place], gates: Gates, composite: Composite
) -> dict[str, Assignment]:
    users, positive = graph.users(), nonnegative(graph, facts)
    steady = {*_fixed(graph), *graph.parameters, *graph.constants}
    wanted, assignments = {graph.output.name}, {}
    spread: set[str] = set()  # values at which relevance may arrive where they are 0, given c of the output
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
        found, statistics, kind = gates.of(name)
        factors = Factors(fact.positions, found, statistics, kind)
        receives = rule.receives(len(fact.sources), factors)
        readers = users.get(name, [])
        assignments[name] = Assignment(
            place,
            rule,
            fact.leaves,
            receives,
            fact.data,
            nonnegative=all(source in positive for source in fact.sources),
            rectified=bool(readers)
            and all(reader.name not in spread and _rectifies(facts.get(reader.name)) for reader in readers),
            rectifier=""
            if spread & {r.name for r in readers} and not habits_of(rule).blind
            else _rectifier(place, rule, readers, name == graph.output.name),
            batch_axis=(graph[fact.sources[0]].batch_dim or 0) if fact.sources[0] in graph.index else 0,
            steady=all(ref in fact.sources or ref in steady for ref in node.refs()),
            factors=factors,
        )
        wanted.update(fact.sources[i] for i in receives)
        if not gives_c(place.op, rule) or (name in spread and place.role != "affine"):
            spread.update(fact.sources)
    if refused:
        raise UnsupportedOp(refused[::-1], reasons[::-1])
    return assignments


def _rectifier(place: Place, rule: Rule, readers: list[Node], is_output: bool) -> str:
    writable = place.role == "affine" or place.node.short == "add"
    if is_output or not (writable and habits_of(rule).local) or len(readers) != 1 or readers[0].short != "relu":
        return ""
    return readers[0].name


def _rectifies(fact: Facts | None) -> bool:
    return fact is not None and fact.op is not None and fact.op.rectifies


def inner_names(plan: Plan, wanted: Sequence[str]) -> dict[str, str]:
    """Asked-for name -> node: a node's own name, or the last operation written in a module."""
    names = {}
    for asked in (wanted,) if isinstance(wanted, str) else wanted:
        inside = [
            n
            for n, a in plan.assignments.items()
            if a.place.node.module == asked or a.place.node.module.startswith(f"{asked}.")
        ]
        order = [node.name for node in plan.graph if node.name in inside]
        if asked in plan.assignments:
            names[asked] = asked
        elif order:
            names[asked] = order[-1]
        else:
            raise InputError(
                f"no relevance passes an operation or module called {asked!r}; print(explainer.plan) lists them"
            )
    return names
