"""What a graph says of each operation, before any rule: what carries relevance, signs, gates, residual sums."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch.utils import _pytree as pytree

from .forms import Arguments, arguments_of
from .graph import Graph, Node, Ref
from .ops import OPS, Op, role_of


@dataclass(frozen=True)
class Facts:
    """What a node's arguments say of it."""

    op: Op | None
    leaves: tuple[int, ...]
    """Leaves of (args, kwargs) that carry relevance."""
    sources: tuple[str, ...]
    """The nodes that these leaves are, in the same order."""
    positions: tuple[int, ...]
    """The arguments, by position in the schema, that these leaves belong to."""
    arguments: Arguments
    data: str = ""
    """affine: the name of the argument that is the data."""

    @staticmethod
    def of(node: Node, carrying: set[str]) -> Facts:
        """Facts of a node, given the names of all values that carry relevance."""
        paths = pytree.tree_flatten_with_path((node.args, dict(node.kwargs)))[0]
        arguments = arguments_of(node.op, node.args, node.kwargs)
        names = list(arguments)
        schema = [a.name for a in node.op._schema.arguments] if isinstance(node.op, torch._ops.OpOverload) else names
        leaves, sources, positions = [], [], []
        known = OPS.get(node.op)
        for number, (path, leaf) in enumerate(cast(list[tuple[Any, Any]], paths)):
            if isinstance(leaf, Ref) and leaf.name in carrying:
                key = path[1]
                position = key.idx if path[0].idx == 0 else schema.index(key.key)
                if known is None or position not in known.ignores:
                    leaves.append(number)
                    sources.append(leaf.name)
                    positions.append(position)
        op = role_of(node, tuple(dict.fromkeys(positions)) if len(leaves) == len(set(positions)) else tuple(positions))
        data = ""
        if op is not None and op.form is not None:
            where = {schema[position] for position in positions}
            if len(leaves) == 1 and where <= set(op.form.data):
                data = next(iter(where))
            else:  # the weight is data too (attention), or it alone is
                op = _filtered(schema, where, arguments) if len(leaves) > 1 else Op("sum", offset=True)
        return Facts(op, tuple(leaves), tuple(sources), tuple(positions), arguments, data)


def _filtered(schema: Sequence[str], where: set[str], arguments: Arguments) -> Op:
    """A product of data and data-dependent weights: a filter made from the data is a gate, keys and queries are not."""
    bias = "bias" if "bias" in schema else "self" if "mat1" in schema or "batch1" in schema else ""
    gates = (schema.index("weight"),) if "weight" in where else ()
    added = (schema.index(bias),) if bias in where else ()
    return Op("product", gates=gates, added=added, offset=bool(bias) and not added and arguments[bias] is not None)


def facts_of(graph: Graph, origins: Sequence[str]) -> dict[str, Facts]:
    """Facts of every operation that depends on one of `origins` (inputs, or nodes that stand for them)."""
    carrying, found = set(origins), {}
    for node in graph:
        op = OPS.get(node.op)
        if not node.floating or (op is not None and op.role == "constant") or carrying.isdisjoint(node.refs()):
            continue
        fact = Facts.of(node, carrying)
        if fact.leaves and node.name not in carrying:
            found[node.name] = fact
            carrying.add(node.name)
    return found


def nonnegative(graph: Graph, facts: Mapping[str, Facts]) -> set[str]:
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


class Gates:
    """Which factors of products are gates, and which sums are residual.

    A product's factor is held constant by rules for gates where the others are not its kind; kinds are tried in turn:

    1. a bounded factor or a statistic: sigmoid, softmax, exp, 1/sqrt, a divisor, a query or key of fused attention;
    2. an activation of an affine layer: silu(Wx) in SwiGLU;
    3. a factor computed from the other one: x * f(x);
    4. a factor read out by one layer, where the other is made of products since its last layer: a state times its
       read-out weights.
    """

    def __init__(self, graph: Graph, facts: Mapping[str, Facts]) -> None:
        self.graph, self.facts = graph, facts
        self.bits: dict[str, int] = {}
        """By name: itself and everything that it is computed from, a bit each."""
        self.mixed: set[str] = set()
        """Values made of products of data since the last affine layer."""
        for name, fact in facts.items():
            held = 0
            for source in fact.sources:
                if source not in self.bits:
                    self.bits[source] = 1 << len(self.bits)
                held |= self.bits[source]
            self.bits[name] = held | 1 << len(self.bits)
            role = fact.op.role if fact.op is not None else ""
            own = role == "product" and len(set(fact.sources)) > 1
            if own or (role != "affine" and any(source in self.mixed for source in fact.sources)):
                self.mixed.add(name)

    def of(self, name: str) -> tuple[tuple[int, ...], tuple[int, ...], int]:
        """(gates, those of them that are statistics, the kind that told them) of a product, as positions of factors."""
        fact = self.facts[name]
        if fact.op is None or fact.op.role != "product":
            return (), (), 0
        count = [i for i, position in enumerate(fact.positions) if position not in fact.op.added]
        source = fact.sources
        fixed = {i for i in count if fact.positions[i] in fact.op.gates}
        divisors = fixed if fact.op.divides else set[int]()
        scales = {i for i in count if i in divisors or self._is("statistic", source[i])}
        statistics = tuple(sorted(scales if len(scales) < len(count) else divisors))
        kinds = (
            {i for i in count if i in fixed or self._is("gate", source[i])},
            {i for i in count if self._is_activation(source[i])},
            {i for i in count if any(self._above(source[j], source[i]) for j in count)},
            {i for i in count if source[i] not in self.mixed},
        )
        for kind, found in enumerate(kinds, start=1):
            if 0 < len(found) < len(count):
                return tuple(sorted(found)), statistics, kind
        return (), statistics, 0

    def residual(self, name: str) -> bool:
        """Whether a node adds to a value something computed from it."""
        fact = self.facts[name]
        if self.graph[name].short != "add" or len(set(fact.sources)) != 2:
            return False
        a, b = fact.sources[:2]
        return self._above(a, b) or self._above(b, a)

    def _above(self, earlier: str, later: str) -> bool:
        """Whether `later` is computed from `earlier`."""
        return earlier != later and self.bits[earlier] & ~self.bits[later] == 0

    def _is(self, kind: str, name: str) -> bool:
        """Whether a value is a gate (or statistic), moved, scaled or shifted by constants at most."""
        fact = self.facts.get(name)
        if fact is None or fact.op is None:
            return False
        op = fact.op
        if op.gate(fact.arguments) if callable(op.gate) else op.gate:
            return kind == "gate" or op.statistic
        if op.role == "product" and op.divides and 0 in fact.positions:  # a softmax written by hand
            return self._is(kind, fact.sources[fact.positions.index(0)])
        passes = op.role == "rearrange" or (op.role == "sum" and op.coefficients == "single")
        return passes and all(self._is(kind, source) for source in fact.sources)

    def _is_activation(self, name: str) -> bool:
        fact = self.facts.get(name)
        if fact is None or fact.op is None:
            return False
        passes = fact.op.role == "rearrange" or (fact.op.role == "sum" and fact.op.coefficients == "single")
        return fact.op.role == "activation" or (passes and all(self._is_activation(s) for s in fact.sources))
