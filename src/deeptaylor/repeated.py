"""Several targets of one sample, sent back together: what a step saw stands once, relevance once per target.

The first target goes back alone and leaves its denominators in every step's memo. The others follow as the rows of one
pass: each rule sees the step of so many equal samples. What they have in common is a view of the one sample's values,
and a vector-Jacobian product is that of the one sample, row by row.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from .plan import Plan
from .rules import Relevance
from .step import Cache, Function, Later, Step

ROOM = 2**22
"""So many numbers the largest relevance of one pass may hold: beyond it, a larger batch saves no time on a CPU."""


def waves(plan: Plan, seeds: Sequence[Relevance], together: bool) -> Iterator[tuple[Relevance, int]]:
    """The backward passes that serve all targets: the seed of each, and how many targets its rows are.

    Args:
        plan: the graph with its rules.
        seeds: one per target.
        together: whether one sample is explained, and nobody asks for what lies between output and inputs.
    """
    most = _rows_at_most(plan) if together and len(seeds) > 2 else 1
    if most == 1:
        yield from ((seed, 1) for seed in seeds)
        return
    yield seeds[0], 1
    rest = seeds[1:]
    passes = -(-len(rest) // most)
    for n in range(passes):
        some = rest[len(rest) * n // passes : len(rest) * (n + 1) // passes]
        yield replace(some[0], tensor=torch.cat([seed.tensor for seed in some]), own=len(some) > 1), len(some)


def by_target(arrived: Mapping[str, Tensor], rows: int) -> Iterator[Mapping[str, Tensor]]:
    """The relevance that one pass brought, target by target; where none arrived, its zeros stand for all."""
    if rows == 1:
        yield arrived
        return
    for n in range(rows):
        yield {name: r[n : n + 1] if len(r) == rows else r for name, r in arrived.items()}


def _rows_at_most(plan: Plan) -> int:
    """How many targets fit into one pass; 1 where a value's first axis is not known to be the batch."""

    def found() -> int:
        graph = plan.graph
        names = {name for a in plan.assignments.values() for name in (a.place.node.name, *a.sources)}
        nodes = [graph[name] for name in names if name in graph.index]
        if not graph.dynamic_batch or any(node.batch_dim != 0 for node in nodes):
            return 1
        sizes = [[size for size in node.shape[1:] if isinstance(size, int)] for node in nodes]
        if any(len(own) != len(node.shape[1:]) for own, node in zip(sizes, nodes, strict=True)):
            return 1
        return max(1, ROOM // max(torch.Size(own).numel() for own in sizes))

    rows: int = plan.prepared.get("targets in one pass", found)
    return rows


@dataclass(slots=True, eq=False)
class Repeated(Step):
    """One sample's step as the step of several equal samples."""

    one: Step = field(kw_only=True)
    rows: int = field(kw_only=True)

    def vjp(
        self,
        cotangent: Tensor | Sequence[Tensor | None],
        function: Function | None = None,
        only: Sequence[int] | None = None,
    ) -> tuple[Tensor, ...]:
        if function is not None and function is not self.linearized:  # of the rule's own making, with these values
            return Step.vjp(self, cotangent, function, only)
        own = None if function is None else self.one.linearized
        each = [self.one.vjp(_row(cotangent, n), own, only) for n in range(self.rows)]
        return tuple(torch.cat(grads) for grads in zip(*each, strict=True))


def repeated(step: Step, rows: int) -> Repeated:
    """The step as that of `rows` equal samples; what its memo holds of the one broadcasts."""
    made = tuple(_again(z, rows) for z in step.made) if isinstance(step.made, tuple) else _again(step.made, rows)
    held = step.memo.held if step.memo.last else dict(step.memo.held)
    return Repeated(
        node=step.node,
        op=step.op,
        function=_row_by_row(step.function, rows),
        taken=tuple(_again(x, rows) for x in step.taken),
        made=made,
        linearized=None if step.linearized is None else _row_by_row(step.linearized, rows),
        affine=None if step.affine is None else step.affine.of(rows),
        nonnegative=step.nonnegative,
        rectified=step.rectified,
        clipped=step.clipped,
        batch_axis=step.batch_axis,
        factors=step.factors,
        cache=step.cache,
        memo=Cache(held, step.memo.last, step.memo.audited),
        one=step,
        rows=rows,
    )


def _again(value: Any, rows: int) -> Any:
    """A view of one sample's value as several."""
    if isinstance(value, Later):
        return Later(lambda one: _again(one, rows), (value,), Cache())
    return value.expand(rows, *value.shape[1:]) if isinstance(value, Tensor) else value


def _row_by_row(function: Function, rows: int) -> Function:
    """A function of one sample's values, which may hold the size of its batch, for several."""

    def run(*xs: Tensor) -> Any:
        made = [function(*(x[n : n + 1] if len(x) == rows else x for x in xs)) for n in range(rows)]
        several = isinstance(made[0], tuple | list)
        return tuple(map(torch.cat, zip(*made, strict=True))) if several else torch.cat(made)

    return run


def _row(cotangent: Tensor | Sequence[Tensor | None], n: int) -> Any:
    if isinstance(cotangent, Tensor):
        return cotangent[n : n + 1]
    return [None if part is None else part[n : n + 1] for part in cotangent]
