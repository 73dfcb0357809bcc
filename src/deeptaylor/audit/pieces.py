"""A network above one of its values, held in the linear region of a point: the region, its gradient, its constraints.

In a piecewise linear network the region of x is {ξ : m_k(ξ) ≥ 0}, with one affine margin m_k per kink: σ_k z_k for a
ReLU with sign σ_k at x, winner minus loser for a max-pool. Both f and all margins are had from one pass through the
network with every kink held on the branch that it takes at x. Everything here is float64.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..facts import facts_of
from ..graph import Graph, Node, lookup
from ..propagate import as_wide
from .kinks import Kink, arguments_at, has_kinks, is_linear, kink_of

_SHAPES = ("zeros_like", "ones_like", "full_like", "empty_like", "new_")
"""Operations that read no more of a value than its shape."""
See = Callable[[str, Tensor], None]
"""Given the name of a kink (that of its operation, and a number) and its margins at some points, (points, …)."""


def widened(values: Mapping[str, Any]) -> dict[str, Any]:
    """The same values on the CPU, in float64 where they are floating."""
    return {name: _wide(value) if isinstance(value, Tensor) else value for name, value in values.items()}


def _wide(value: Tensor) -> Tensor:
    value = value.detach().cpu()
    value = value.double() if value.is_floating_point() else value
    return value.clone() if value.is_inference() else value  # which autograd can't save


class Pieces:
    """The part of a network that lies above one value, as a function of that value; all else stays what it is.

    Args:
        graph: a canonical graph.
        state: parameters and buffers by qualified name.
        inputs: one sample: tensors by name, first axis of size 1.
        source: name of the value that the function depends on: an input, or any operation.
        seed: weights of the outputs, shaped like the output; f is their sum.
    """

    def __init__(
        self,
        graph: Graph,
        state: Mapping[str, Tensor],
        inputs: Mapping[str, Any],
        source: str,
        seed: Tensor,
        values: Mapping[str, Any] | None = None,
    ) -> None:
        self.graph, self.source, self.seed = graph, source, seed.double()
        self.values = dict(values) if values is not None else all_values(graph, state, inputs)
        self.facts = facts_of(graph, [source])
        self.above = [node for node in graph if node.name in self.facts]
        self.x: Tensor = self.values[source]
        self.kinks: dict[str, Kink] = {}
        self.smooth: list[Node] = []
        """Operations above that are not piecewise linear, or whose pieces are not known here."""
        self._resolve()
        self.leads = _leads(graph, source)
        """Whether the first axis of x is the batch, so that points are stacked along it."""
        ends = (*self.kinks, *(name for name in (graph.output.name,) if name in graph.index))
        self.batched = (
            graph.dynamic_batch
            and self.leads
            and all(node.batch_dim is not None for node in self.above)
            and all(graph[name].batch_dim == 0 for name in ends)
        )
        """Whether several points pass together; where the batch is merged with another axis they can't."""

    def moved_to(self, point: Tensor) -> Pieces:
        """The same function of the same value, held in the region of another point, (1, …)."""
        values = dict(self.values) | {self.source: point}
        with torch.no_grad():
            for node in self.above:
                values[node.name] = self._call(node, values)[2](*self._moving(node, values))
        return Pieces(self.graph, {}, {}, self.source, self.seed, values)

    def _moving(self, node: Node, values: Mapping[str, Any]) -> tuple[Tensor, ...]:
        return tuple(values[name] for name in self.facts[node.name].sources)

    def _resolve(self) -> None:
        decided = self._decided_by_data()
        for node in self.above:
            op = self.facts[node.name].op
            if op is None or node.name in decided:
                self.smooth.append(node)
            elif is_linear(node, op):
                continue
            elif has_kinks(node):
                args, kwargs, call, xs = self._call(node, self.values)
                self.kinks[node.name] = kink_of(node, op, arguments_at(node, args, kwargs), call, xs)
            else:
                self.smooth.append(node)

    def _decided_by_data(self) -> set[str]:
        """Operations above that read a comparison of, or an index made from, values above."""
        reached, found = {self.source, *self.facts}, set()
        for node in self.graph:
            if node.name in self.facts or not any(name in reached for name in node.refs()):
                continue
            if isinstance(self.values[node.name], Tensor) and not node.short.startswith(_SHAPES):
                reached.add(node.name)
        for node in self.above:
            if any(name in reached and name not in self.facts and name != self.source for name in node.refs()):
                found.add(node.name)
        return found

    @property
    def start(self) -> Tensor:
        """x as a stack of one point."""
        return self.x if self.leads else self.x[None]

    @property
    def is_piecewise_linear(self) -> bool:
        """Whether linear regions apply."""
        return not self.smooth

    def _call(self, node: Node, values: Mapping[str, Any]) -> tuple[Any, Any, Callable[..., Any], tuple[Tensor, ...]]:
        """(args, kwargs, the operation as a function of what depends on the source, those values)."""
        moving = self.facts[node.name].leaves
        filled = node.values(values)

        def call(*xs: Tensor) -> Any:
            own = list(filled)
            for leaf, x in zip(moving, xs, strict=True):
                own[leaf] = x
            args, kwargs = node.filled(as_wide(node, own))
            return node.op(*args, **kwargs)

        args, kwargs = node.filled(filled)
        return args, kwargs, call, tuple(filled[i] for i in moving)

    def run(self, points: Tensor, see: See | None = None, real: bool = False) -> Tensor:
        """f at some points, (points,); with every kink held on its branch at x, unless `real`.

        Args:
            points: shape (points, …), like x without its first axis where that is the batch, else like x.
            see: sees the margins of every operation with kinks.
            real: the network itself instead of the linear piece that it is at x.
        """
        if len(points) > 1 and not self.batched:
            return self._one_by_one(points, see, real)
        values = self._for_batch(len(points)) | {self.source: points if self.leads else points[0]}
        last = {name: i for i, node in enumerate(self.above) for name in node.refs()}
        for i, node in enumerate(self.above):
            _, _, call, xs = self._call(node, values)
            kink = None if real else self.kinks.get(node.name)
            if kink is not None and see is not None:
                for number, margins in enumerate(kink.margins(*xs)):
                    see(f"{node.name}#{number}", margins.reshape(len(points), -1))
            values[node.name] = call(*xs) if kink is None else kink.frozen(*xs)
            for name in set(node.refs()):
                if last[name] == i and name in self.facts:
                    values.pop(name, None)
        output = values[self.graph.output.name]
        return (output * self.seed).reshape(len(points), -1).sum(1)

    def _one_by_one(self, points: Tensor, see: See | None, real: bool) -> Tensor:
        seen: dict[str, list[Tensor]] = {}
        found = [self.run(p[None], lambda n, m: seen.setdefault(n, []).append(m), real) for p in points]
        if see is not None:
            for name, margins in seen.items():
                see(name, torch.cat(margins))
        return torch.cat(found)

    def _for_batch(self, count: int) -> dict[str, Any]:
        """Values that stay what they are, for a batch of `count` points."""
        if count == 1 or not self.batched:
            return dict(self.values)
        if count not in self._batches:
            values = dict(self.values)
            for name, value in self.values.items():
                node = self.graph.index.get(name)
                if isinstance(value, int) and not isinstance(value, bool) and node is not None:
                    values[name] = node.op(*lookup(node.args, values), **lookup(dict(node.kwargs), values))
                    continue
                axis = self._batch_axis(name, value)
                if axis is not None:
                    sizes = list(value.shape)
                    sizes[axis] = count
                    values[name] = value.expand(sizes)
            self._batches[count] = values
        return dict(self._batches[count])

    def _batch_axis(self, name: str, value: Any) -> int | None:
        if not isinstance(value, Tensor) or not value.dim():
            return None
        axis = 0 if name in self.graph.inputs else self.graph[name].batch_dim if name in self.graph.index else None
        return axis if axis is not None and axis < value.dim() and value.shape[axis] == 1 else None

    @cached_property
    def _batches(self) -> dict[int, dict[str, Any]]:
        return {}

    @cached_property
    def value(self) -> float:
        """f(x)."""
        with torch.no_grad():
            return float(self.run(self.start)[0])

    @cached_property
    def gradient(self) -> Tensor:
        """∇f on the region of x, shaped like `start`."""
        return self.gradients(self.start)

    def gradients(self, points: Tensor, real: bool = False) -> Tensor:
        """∇f at some points, shaped like them."""
        leaf = points.detach().requires_grad_()
        with torch.enable_grad():
            (found,) = torch.autograd.grad(self.run(leaf, real=real).sum(), leaf)
        return found

    @cached_property
    def margins_at_x(self) -> dict[str, Tensor]:
        """Margins at x, by kink."""
        found: dict[str, Tensor] = {}
        with torch.no_grad():
            self.run(self.start, found.__setitem__)
        return found

    @cached_property
    def scales(self) -> dict[str, float]:
        """By kink, the largest margin at x: what a tolerance is a share of."""
        return {name: max(float(margins.abs().max()), 1e-300) for name, margins in self.margins_at_x.items()}

    def margins(self, points: Tensor) -> Tensor:
        """All margins at some points, (points, margins); needs room for them all."""
        found: list[Tensor] = []
        self.run(points, lambda name, margins: found.append(margins.flatten(1)))
        return torch.cat(found, 1) if found else points.new_zeros(len(points), 0)

    def rows(self, indices: Tensor) -> Tensor:
        """Gradients of some margins, (margins, size of x): one backward pass each, of one forward pass."""
        leaf = self.x.detach().requires_grad_()
        with torch.enable_grad():
            margins = self.margins(leaf)[0]
            rows = [torch.autograd.grad(margins[i], leaf, retain_graph=True)[0].flatten() for i in indices.tolist()]
        return torch.stack(rows) if rows else self.x.new_zeros(0, self.x.numel())


def _leads(graph: Graph, source: str) -> bool:
    return source in graph.inputs or graph[source].batch_dim == 0


def all_values(graph: Graph, state: Mapping[str, Tensor], inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Every value of the graph on these inputs, in float64."""
    values = widened(inputs) | widened(graph.constants)
    values |= widened({name: state[qualified] for name, qualified in graph.parameters.items()})
    with torch.no_grad():
        for node in graph:
            args, kwargs = node.filled(as_wide(node, node.values(values)))
            values[node.name] = node.op(*args, **kwargs)
    return values
