"""The explainer's plan in float64, run on one sample with the model's own parameters or others in their place."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..composites import Composite
from ..explainer import Explainer
from ..graph import Graph
from ..inputs import Call
from ..ledger import Bookkeeper
from ..origin import live_state, plain_torch
from ..plan import Plan, make_plan
from ..propagate import Forward, Observer, backward, forward
from ..rules import Relevance
from .pieces import Pieces, all_values, widened


@dataclass(frozen=True)
class Replica:
    """One sample, with the plan that explains it; the user's model is only read."""

    plan: Plan
    state: Mapping[str, Tensor]
    inputs: Mapping[str, Any]

    @staticmethod
    def of(explainer: Explainer, call: Call, sample: int, batch: int) -> Replica:
        """The replica for one sample of a call."""
        tensors = {
            name: t[sample : sample + 1] if t.dim() and t.shape[0] == batch else t for name, t in call.tensors.items()
        }
        single = Call(tensors, call.leaves, call.spec)
        plan = explainer._plan(single)
        constants = widened(plan.graph.constants)
        wide = replace(plan, graph=replace(plan.graph, constants=constants), caches={}, _held={})
        return Replica(wide, widened(live_state(explainer.model)), widened(tensors))

    @property
    def graph(self) -> Graph:
        return self.plan.graph

    @property
    def explained(self) -> str:
        """The explained input (the first, where there are several)."""
        return self.plan.explained[0]

    def ruled_by(self, composite: Composite) -> Replica:
        """The same sample under another composite."""
        inputs = {source.name: bool(self.inputs[source.name].is_floating_point()) for source in self.plan.sources}
        return replace(self, plan=make_plan(self.graph, inputs, composite))

    def with_state(self, state: Mapping[str, Tensor]) -> Replica:
        """The same sample and rules with other parameters."""
        return replace(self, plan=replace(self.plan, caches={}, _held={}), state=state)

    @cached_property
    def run(self) -> Forward:
        """The forward pass."""
        with plain_torch():
            return forward(self.plan, self.inputs, self.state, full=True)

    @cached_property
    def values(self) -> dict[str, Any]:
        """Every value of the graph."""
        with plain_torch():
            return all_values(self.graph, self.state, self.inputs)

    def maps(self, seed: Relevance, observe: Observer | None = None, keep: Collection[str] = ()) -> dict[str, Tensor]:
        """R of the explained inputs, and of the values in `keep`."""
        with plain_torch():
            found = backward(self.plan, self.run, seed, observe, keep)
            known = {name: found[name].total(self.run.value(name)) for name in keep if name in found}
            for source in self.plan.sources:
                known[source.name] = source.gather(lambda name: self._total(found, name), self.inputs[source.name])
        return known

    def _total(self, found: Mapping[str, Any], name: str) -> Tensor:
        value: Tensor = self.run.value(name)
        return found[name].total(value) if isinstance(found.get(name), Relevance) else torch.zeros_like(value)

    def books(self, seed: Relevance) -> Bookkeeper:
        """The ledger of one backward pass."""
        keeper = Bookkeeper(1, single=True)
        self.maps(seed, keeper)
        return keeper

    def above(self, source: str, weights: Tensor) -> Pieces:
        """The network above one value, the explained output being Σ weights · output."""
        with plain_torch():
            return Pieces(self.graph, self.state, self.inputs, source, weights, self.values)
