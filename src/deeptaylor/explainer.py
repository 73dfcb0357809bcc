"""`Explainer`: a model traced once and checked once, ready to explain batches; `explain` for a single call."""

from __future__ import annotations

import platform
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ._version import __version__
from .attribution import Attribution
from .composites import EXACT_ROOT, Bound, Chooser, Composite, by_name, single_rule
from .errors import CompositeError, InputError, NonFiniteRelevance, RelevanceWarning
from .inputs import Call, Model, batch_size, bind, check_inputs, check_model, explained_names
from .ledger import Bookkeeper, Ledger, LedgerRow, Watch, can_batch, merge
from .one_pass import OnePass, one_pass
from .origin import graph_of, live_state, plain_torch
from .plan import Plan, make_plan
from .propagate import Forward, backward, forward
from .rules import Relevance, Rule
from .targets import Seeds, Target, resolve
from .trace import Head
from .unwrap import default_explained, needed_arguments, refuse_unmasked_padding, unwrapped

EXPLOSION = 1e4
"""Σ|R| of the inputs, as a multiple of the explained value's size, from which a warning names the nodes."""


class Explainer:
    """A model with a plan: traced once, checked once against the model's own output, then called on batches.

    Args:
        model: a module in eval mode, a function of tensors, or a `torch.export.ExportedProgram`.
        inputs: an example: a tensor, or a tuple of positional arguments (or a dict of keyword arguments).
        composite: a preset's name, a `Composite`, or one rule for all operations that it can serve.
        kwargs: keyword arguments of the model.
        explain: names of the inputs to be explained; by default every floating tensor.
        head: picks (batch, classes) from the model's output.
        bounds: (low, high) of the inputs, for `deep-taylor` and `epsilon-gamma-box`.
        record: run the model once instead of tracing it, for models that branch on data; the graph then holds for
            inputs that take the same path, and is recorded anew for every call.

    Raises:
        InputError, TraceError, UnsupportedOp, CompositeError: before any relevance is computed.
    """

    def __init__(
        self,
        model: Model,
        inputs: Any,
        *,
        composite: str | Composite | Rule = "auto",
        kwargs: Mapping[str, Any] | None = None,
        explain: Sequence[str] | None = None,
        head: Head | None = None,
        bounds: tuple[Bound, Bound] | None = None,
        record: bool = False,
    ) -> None:
        self.model, self.head, self.record = unwrapped(model), head, record
        self._wanted, self._bounds = explain, bounds
        self._composite = _composite(composite, bounds)
        self._plans: dict[Any, Plan] = {}
        self.plan = self._plan(self._call(inputs, kwargs))

    def __repr__(self) -> str:
        name = (
            type(self.model).__name__
            if isinstance(self.model, nn.Module)
            else getattr(self.model, "__name__", "program")
        )
        return f"Explainer({name}, composite={self.plan.composite.name!r}, {len(self.plan.rows)} operations)"

    def __call__(
        self,
        inputs: Any,
        *,
        target: Target = None,
        kwargs: Mapping[str, Any] | None = None,
        ledger: bool = False,
        inner: Sequence[str] = (),
    ) -> Attribution:
        """Explains a batch.

        Args:
            inputs: as for the constructor.
            target: None (the predicted class), an index, one index per sample, an (N, K) integer tensor,
                `contrast(a, b)`, `log_odds(c)`, `top(k)`, or a floating tensor shaped like the output: the relevance
                put there.
            kwargs: keyword arguments of the model.
            ledger: account for every unit of relevance; costs a few sums per operation.
            inner: module paths or names of operations whose relevance is wanted too.

        Returns:
            The attribution, its relevance shaped like the explained inputs.

        Raises:
            InputError, TargetError: before any work.
            NonFiniteRelevance: NaN or Inf on the way back.

        Warns:
            RelevanceWarning: relevance explodes; names the operations where.
        """
        call = self._call(inputs, kwargs)
        plan = self._plan(call)
        if plan.composite.name != EXACT_ROOT:
            return self._by_rules(call, plan, target, ledger, inner)
        from .audit.at_root import at_exact_root

        result = self._by_rules(call, plan, target, False, inner)
        return at_exact_root(self, call, target, result, self._bounds, ledger)

    def _by_rules(self, call: Call, plan: Plan, target: Target, ledger: bool, inner: Sequence[str]) -> Attribution:
        with plain_torch():
            tensors = {name: t.detach().clone() if t.is_inference() else t.detach() for name, t in call.tensors.items()}
            given = isinstance(target, Tensor) and target.is_floating_point()  # R and not c: divided by values
            state = live_state(self.model)
            again = partial(forward, plan, tensors, state, full=ledger or given)
            bare = not (ledger or given or inner)
            run = (one_pass(plan, tensors, state) if bare else None) or again()
            seeds = resolve(target, run.output)
            _check_output(run.output)
            if ledger and not self._books_batches(plan):
                result = self._one_by_one(call, target, inner)
                _refuse_mixing(run.output, result.output)
                return result
            return self._explain(plan, run, seeds, ledger, inner, again)

    def _call(self, inputs: Any, kwargs: Mapping[str, Any] | None) -> Call:
        check_model(self.model)
        call = bind(self.model, inputs, {**needed_arguments(self.model), **(kwargs or {})})
        check_inputs(self.model, call, self._names(call))
        refuse_unmasked_padding(self.model, call)
        return call

    def _names(self, call: Call) -> tuple[str, ...]:
        return explained_names(call, self._wanted or default_explained(self.model, call))

    def _plan(self, call: Call) -> Plan:
        """The plan for inputs of these sizes, traced when first seen."""
        explained = self._names(call)
        batch = batch_size(call, explained)
        sizes = {name: (t.dtype, t.device, tuple(t.shape)) for name, t in call.tensors.items()}
        dynamic = {n: (d, v, ("N", *s[1:]) if s and s[0] == batch else s) for n, (d, v, s) in sizes.items()}
        for shapes in (dynamic, sizes):
            key = (call.signature(), tuple(shapes.items()))
            if key in self._plans and not self.record:
                return self._plans[key]
        with plain_torch():
            graph = graph_of(self.model, call, self.head, batch, self.record)
            plan = make_plan(graph, {n: call.tensors[n].is_floating_point() for n in explained}, self._composite)
        self._plans[(call.signature(), tuple((dynamic if graph.dynamic_batch else sizes).items()))] = plan
        return plan

    def _books_batches(self, plan: Plan) -> bool:
        return can_batch([assignment.place.node for assignment in plan.assignments.values()])

    def _explain(
        self,
        plan: Plan,
        run: Forward | OnePass,
        seeds: Seeds,
        ledger: bool,
        inner: Sequence[str],
        again: Callable[[], Forward],
    ) -> Attribution:
        batch = run.inputs[plan.explained[0]].shape[0]
        accounts: list[list[LedgerRow]] = []
        absorbed: list[Tensor] = []
        found: list[dict[str, Tensor]] = []
        names = _inner_names(plan, inner)
        keep = {*names.values(), *(node for source in plan.sources for node in source.nodes)}
        for seed in seeds.seeds:
            books = Bookkeeper(batch, single=batch == 1) if ledger else None
            last = seed is seeds.seeds[-1]
            relevance: dict[str, Relevance] = (
                run.backward(seed, last)
                if isinstance(run, OnePass)
                else backward(plan, run, seed, books, keep, release=last)
            )
            reached = {
                source.name: source.gather(partial(_total, relevance, run), run.inputs[source.name])
                for source in plan.sources
            }
            found.append(reached | {name: _total(relevance, run, name) for name in names.values()})
            if books is not None:
                accounts.append(books.write())
                absorbed.append(books.absorbed + torch.zeros(batch, dtype=torch.float64))
        _check_sizes(plan, seeds, found, run.output, again)
        several = seeds.explained.dim() == 2

        def gathered(name: str) -> Tensor:
            return torch.stack([values[name] for values in found], 1) if several else found[0][name]

        relevances = {name: gathered(name) for name in plan.explained}
        return Attribution(
            relevances=relevances,
            output=run.output,
            target=seeds.target,
            explained=seeds.explained,
            plan=plan.table,
            ledger=_ledger(seeds, relevances, absorbed, accounts) if ledger else None,
            inner={asked: gathered(name) for asked, name in names.items()},
            settings={"composite": plan.composite.name, **plan.composite.settings, "frontend": plan.graph.frontend},
            versions={"deeptaylor": __version__, "torch": torch.__version__, "python": platform.python_version()},
        )

    def _one_by_one(self, call: Call, target: Target, inner: Sequence[str]) -> Attribution:
        """Explains sample by sample: the only way to book a batch whose axis can't be told in some operation."""
        explained = self._names(call)
        batch = batch_size(call, explained)
        results = []
        for n in range(batch):
            one = {name: t[n : n + 1] if t.dim() and t.shape[0] == batch else t for name, t in call.tensors.items()}
            single = Call(one, call.leaves, call.spec)
            plan = self._plan(single)
            again = partial(
                forward, plan, {name: t.detach() for name, t in one.items()}, live_state(self.model), full=True
            )
            run = again()
            own = (
                target[n : n + 1]
                if isinstance(target, Tensor) and target.dim() and target.shape[0] == batch
                else target
            )
            own = [own[n]] if isinstance(own, list | tuple) and len(own) == batch else own
            results.append(self._explain(plan, run, resolve(own, run.output), True, inner, again))
        return _concatenated(results)


def explain(
    model: Model,
    inputs: Any,
    *,
    target: Target = None,
    composite: str | Composite | Rule = "auto",
    kwargs: Mapping[str, Any] | None = None,
    explain: Sequence[str] | None = None,
    head: Head | None = None,
    bounds: tuple[Bound, Bound] | None = None,
    ledger: bool = False,
    inner: Sequence[str] = (),
    record: bool = False,
) -> Attribution:
    """Explains one batch; see `Explainer`, which is what to use for more than one."""
    explainer = Explainer(
        model, inputs, composite=composite, kwargs=kwargs, explain=explain, head=head, bounds=bounds, record=record
    )
    return explainer(inputs, target=target, kwargs=kwargs, ledger=ledger, inner=inner)


def _composite(composite: str | Composite | Rule, bounds: tuple[Bound, Bound] | None) -> Composite | Chooser:
    if isinstance(composite, str):
        return by_name(composite, bounds)
    if isinstance(composite, Rule):
        return single_rule(composite)
    if isinstance(composite, Composite):
        return composite
    raise CompositeError(f"composite is a {type(composite).__name__}; pass a preset's name, a Composite or a rule")


def _refuse_mixing(together: Tensor, alone: Tensor) -> None:
    """Refuses a model whose output for a sample depends on the others: no account per sample is right."""
    off = float((together - alone).abs().max() / together.abs().max().clamp(min=1e-6))
    if off > 1e-2:
        raise InputError(
            f"the model mixes the samples of a batch: alone, they differ by {off:.2g} of the largest output; "
            "explain them one by one, or without a ledger"
        )


def _check_output(output: Tensor) -> None:
    if not bool(torch.isfinite(output).all()):
        raise InputError("the model's output is NaN or Inf on these inputs, so there is nothing to explain")


def _inner_names(plan: Plan, wanted: Sequence[str]) -> dict[str, str]:
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


def _total(relevance: Mapping[str, Any], run: Forward | OnePass, name: str) -> Tensor:
    """R of one value; zero where no relevance arrived."""
    arrived = relevance.get(name)
    value: Tensor = run.value(name)
    return torch.zeros_like(value) if not isinstance(arrived, Relevance) else arrived.total(value)


def _check_sizes(
    plan: Plan, seeds: Seeds, found: Sequence[Mapping[str, Tensor]], output: Tensor, again: Callable[[], Forward]
) -> None:
    """Raises at NaN or Inf, warns of explosion; names the nodes by running `again`, watched."""
    for seed, values in zip(seeds.seeds, found, strict=True):
        size = sum(values[name].double().abs().sum() for name in plan.explained)
        put = float(seed.total(output).double().abs().sum())
        if not torch.isfinite(torch.as_tensor(size)):
            backward(plan, again(), seed, Watch())
            node = plan.graph[plan.graph.output.name]
            raise NonFiniteRelevance(node, "relevance became NaN or Inf")
        if float(size) > EXPLOSION * put > 0:
            watch = Watch()
            backward(plan, again(), seed, watch)
            worst = "\n".join(
                f"  ×{growth:.3g} at {node.short}, module {node.module!r}, {node.file}:{node.line}: {node.source}"
                for growth, node in watch.worst()
            )
            warnings.warn(
                f"relevance explodes: the inputs hold {float(size):.3g} in absolute value for {put:.3g} explained; "
                f"positive and negative shares cancel at denominators near zero. It grows most at\n{worst}\n"
                "Rules without such denominators (ZPlus, GeneralizedGamma) or a larger epsilon there will help.",
                RelevanceWarning,
                stacklevel=4,
            )
            return


def _ledger(
    seeds: Seeds, relevances: Mapping[str, Tensor], absorbed: list[Tensor], accounts: list[list[LedgerRow]]
) -> Ledger:
    several = seeds.explained.dim() == 2
    shape = seeds.explained.shape if several else seeds.explained.shape[:1]
    inputs = sum(r.double().reshape(*shape, -1).sum(-1) for r in relevances.values())
    kept = torch.stack(absorbed, 1) if several else absorbed[0]
    return Ledger(
        seeds.explained.double(),
        torch.as_tensor(inputs),
        kept.to(seeds.explained.device) + seeds.absorbed,
        merge(accounts),
    )


def _concatenated(results: Sequence[Attribution]) -> Attribution:
    first = results[0]
    ledgers = [r.ledger for r in results if r.ledger is not None]
    joined = Ledger(
        torch.cat([ledger.explained for ledger in ledgers]),
        torch.cat([ledger.inputs for ledger in ledgers]),
        torch.cat([ledger.absorbed for ledger in ledgers]),
        merge([list(ledger.rows) for ledger in ledgers]),
    )
    target = torch.cat([r.target for r in results]) if isinstance(first.target, Tensor) else first.target
    return Attribution(
        relevances={name: torch.cat([r.relevances[name] for r in results]) for name in first.relevances},
        output=torch.cat([r.output for r in results]),
        target=target,
        explained=torch.cat([r.explained for r in results]),
        plan=first.plan,
        ledger=joined,
        inner={name: torch.cat([r.inner[name] for r in results]) for name in first.inner},
        settings=first.settings,
        versions=first.versions,
    )
