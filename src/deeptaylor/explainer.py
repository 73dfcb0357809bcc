"""`Explainer`: a model traced once and checked once, ready to explain batches; `explain` for a single call."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from .attribution import Attribution, versions
from .batching import concatenated, in_batches, part, part_of_target
from .checkpointed import Checkpointed, checkpointed
from .composites import Bound, Chooser, Composite, by_name, single_rule
from .errors import CompositeError, InputError
from .finite import check_output, check_sizes, refuse_mixing, unwarned
from .inputs import Call, Model, bind, check_inputs, check_model, explained_names, refuse_script
from .inputs import batch_size as batch_size_of
from .ledger import Bookkeeper, LedgerRow, can_batch, ledger_of
from .one_pass import OnePass, one_pass
from .origin import graph_of, live_state, plain_torch
from .plan import Plan, inner_names, make_plan
from .propagate import Forward, backward, forward
from .repeated import by_target, waves
from .rounding import is_open, left_open, rounded, wide, wide_plan
from .rules import Relevance, Rule
from .targets import Seeds, Target, contrast, log_odds, resolve
from .trace import Head
from .unwrap import default_explained, needed_arguments, refuse_unmasked_padding, unwrapped

if TYPE_CHECKING:
    from .shipping.compiled import CompiledExplainer

Recorded = OnePass | Checkpointed


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
        if head is not None and not callable(head):
            raise InputError(
                f"head is {head!r}; pass a function that picks (batch, classes): lambda out: out['logits']"
            )
        refuse_script(model)
        self.model, self.head, self.record = unwrapped(model), head, record
        self._wanted, self._bounds = explain, bounds
        self._composite = _composite(composite, bounds)
        self._plans: dict[Any, Plan] = {}
        self._programs: dict[Any, Any] = {}
        self.fits: int | None = None
        self._example = self._call(inputs, kwargs)
        self.plan = self._plan(self._example)

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
        create_graph: bool = False,
        batch_size: int | Literal["auto"] | None = None,
        checkpoint: bool = False,
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
            create_graph: relevance, output and explained value can be differentiated by inputs and parameters that
                require gradients; without ledger and inner relevance. See `docs/numerics.md`.
            batch_size: explain so many samples at a time; "auto" starts with all of them, takes half as many where
                memory runs out, and remembers in `self.fits` how many fitted.
            checkpoint: keep the steps of about √n of the n operations, and make the others again on the way back: much
                less memory, at up to one forward pass more per target. Without ledger and inner relevance.

        Returns:
            The attribution, its relevance shaped like the explained inputs.

        Raises:
            InputError, TargetError: before any work.
            NonFiniteRelevance: NaN or Inf on the way back.
            MemoryExhausted: one sample alone does not fit.

        Warns:
            RelevanceWarning: relevance explodes; names the operations where.
        """
        if checkpoint and (ledger or inner or create_graph):
            raise InputError("checkpoint lets go of what a ledger, inner relevance or create_graph would need")
        call = self._call(inputs, kwargs)
        if batch_size is None:
            return self._at_once(call, target, ledger, inner, create_graph, checkpoint)
        explained = self._names(call)

        def some(call: Call, target: Target) -> Attribution:
            return self._at_once(call, target, ledger, inner, create_graph, checkpoint)

        result, self.fits = in_batches(some, call, target, batch_size_of(call, explained), batch_size, self.fits)
        return result

    def _at_once(
        self, call: Call, target: Target, ledger: bool, inner: Sequence[str], create_graph: bool, checkpoint: bool
    ) -> Attribution:
        plan = self._plan(call)
        if create_graph:
            if ledger or inner:
                raise InputError("create_graph gives neither a ledger nor inner relevance; ask for those separately")
            from .shipping.differentiable import differentiable

            return differentiable(self, call, plan, target)
        if plan.composite.instead is None:
            return self._by_rules(call, plan, target, ledger, inner, checkpoint)
        with unwarned():
            result = self._by_rules(call, plan, target, False, inner)
        made: Attribution = plan.composite.instead(self, call, target, result, self._bounds, ledger)
        return made

    def export(
        self,
        path: str | Path,
        *,
        target: contrast | log_odds | None = None,
        preprocessing: Mapping[str, Any] | None = None,
    ) -> Path:
        """Writes the explanation as a program that runs without deeptaylor and without the model's code.

        It takes the model's inputs, any number of samples, and `target`, int64 (N,): a class index per sample, or -1
        for the predicted class. It gives relevance (per explained input), output, class and explained value. Weights
        are copied: a model that changes afterwards does not change the program. See `docs/shipping.md`.

        Args:
            path: ends in .pt2, for `torch.export.load`, or .onnx, for ONNX Runtime.
            target: a contrast or log-odds to fix; the program then takes no target.
            preprocessing: how inputs were made, to be noted beside the program: anything JSON can hold.

        Returns:
            The path.

        Raises:
            InputError: the explanation holds for one input only (record=True, exact roots), another suffix, no such
                folder.
            MissingExtra: ONNX is not installed.
        """
        from .shipping.front import export

        return export(self, path, target, preprocessing)

    def compile(self, *, mode: str | None = None, **options: Any) -> CompiledExplainer:
        """This explainer with its forward and backward pass compiled into one graph by torch.compile.

        Args:
            mode: torch.compile's; "reduce-overhead" replays CUDA graphs.
            options: of TorchInductor, such as `max_autotune=True`; either these or a mode.

        Returns:
            Something to be called like this explainer, without ledger and inner relevance.

        Raises:
            InputError: the explanation holds for one input only (record=True, exact roots), or an unknown option.
            CompilerError: torch.compile failed, for want of a C++ compiler for example.
        """
        from .shipping.compiled import CompiledExplainer

        return CompiledExplainer(self, mode, options)

    def _by_rules(
        self, call: Call, plan: Plan, target: Target, ledger: bool, inner: Sequence[str], checkpoint: bool = False
    ) -> Attribution:
        with plain_torch():
            tensors = {name: t.detach().clone() if t.is_inference() else t.detach() for name, t in call.tensors.items()}
            given = isinstance(target, Tensor) and target.is_floating_point()  # R and not c: divided by values
            state = live_state(self.model)
            again = partial(forward, plan, tensors, state, full=ledger or given)
            bare = not (ledger or given or inner)
            run: Forward | Recorded
            if checkpoint and given and plan.graph[plan.graph.output.name].short == "relu":
                raise InputError(
                    "the model ends in a ReLU: with checkpoint=True a seed has no value before it to go to"
                )
            if checkpoint:
                run = checkpointed(plan, tensors, state)
            else:
                run = (one_pass(plan, tensors, state) if bare else None) or again()
            seeds = resolve(target, run.output)
            check_output(run.output)
            if ledger and not self._books_batches(plan):
                result = self._one_by_one(call, target, inner)
                refuse_mixing(run.output, result.output)
                return result
            result = self._explain(plan, run, seeds, ledger, inner, again)
            return self._in_float64(plan, tensors, target, inner, result) if is_open(result) else result

    def _in_float64(
        self, plan: Plan, tensors: Mapping[str, Tensor], target: Target, inner: Sequence[str], first: Attribution
    ) -> Attribution:
        """The same explanation without float32's rounding, where that left its ledger open."""
        same = first.target if isinstance(first.target, Tensor) and not first.target.is_floating_point() else target
        try:
            again = partial(forward, wide_plan(plan), wide(tensors), wide(live_state(self.model)), full=True)
            with unwarned():  # given in float32 already
                run = again()
                exact = self._explain(plan, run, resolve(same, run.output), True, inner, again)
        except (RuntimeError, TypeError) as error:  # torch's: operations or devices without float64
            return left_open(first, error)
        return rounded(exact, first)

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
        batch = batch_size_of(call, explained)
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
        run: Forward | Recorded,
        seeds: Seeds,
        ledger: bool,
        inner: Sequence[str],
        again: Callable[[], Forward],
    ) -> Attribution:
        batch = run.inputs[plan.explained[0]].shape[0]
        accounts: list[list[LedgerRow]] = []
        absorbed: list[Tensor] = []
        found: list[dict[str, Tensor]] = []
        names = inner_names(plan, inner)
        keep = {*names.values(), *(node for source in plan.sources for node in source.nodes)}
        passes = waves(plan, seeds.seeds, batch == 1 and isinstance(run, Forward) and not (ledger or inner))
        for seed, rows in passes:
            books = Bookkeeper(batch, single=batch == 1) if ledger else None
            last = len(found) + rows == len(seeds.seeds)
            relevance: dict[str, Relevance] = (
                run.backward(seed, last)
                if isinstance(run, OnePass | Checkpointed)
                else backward(plan, run, seed, books, keep, release=last, rows=rows)
            )
            arrived = {name: _total(relevance, run, name) for name in keep}
            for own in by_target(arrived, rows):
                reached = {s.name: s.gather(own.__getitem__, run.inputs[s.name]) for s in plan.sources}
                found.append(reached | {name: own[name] for name in names.values()})
            if books is not None:
                accounts.append(books.write())
                absorbed.append(books.absorbed + torch.zeros(batch, dtype=torch.float64))
        check_sizes(plan, seeds, found, run.output, again)
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
            ledger=ledger_of(seeds.explained, seeds.absorbed, relevances, absorbed, accounts) if ledger else None,
            inner={asked: gathered(name) for asked, name in names.items()},
            settings={"composite": plan.composite.name, **plan.composite.settings, "frontend": plan.graph.frontend},
            versions=versions(),
        )

    def _one_by_one(self, call: Call, target: Target, inner: Sequence[str]) -> Attribution:
        """Explains sample by sample: the only way to book a batch whose axis can't be told in some operation."""
        explained = self._names(call)
        batch = batch_size_of(call, explained)
        results = []
        for n in range(batch):
            single = part(call, batch, n, n + 1)
            plan = self._plan(single)
            tensors = {name: t.detach() for name, t in single.tensors.items()}
            again = partial(forward, plan, tensors, live_state(self.model), full=True)
            run = again()
            own = part_of_target(target, batch, n, n + 1)
            result = self._explain(plan, run, resolve(own, run.output), True, inner, again)
            results.append(self._in_float64(plan, tensors, own, inner, result) if is_open(result) else result)
        return concatenated(results)


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
    create_graph: bool = False,
    batch_size: int | Literal["auto"] | None = None,
    checkpoint: bool = False,
) -> Attribution:
    """Explains one batch; see `Explainer`, which is what to use for more than one."""
    explainer = Explainer(
        model, inputs, composite=composite, kwargs=kwargs, explain=explain, head=head, bounds=bounds, record=record
    )
    return explainer(
        inputs,
        target=target,
        kwargs=kwargs,
        ledger=ledger,
        inner=inner,
        create_graph=create_graph,
        batch_size=batch_size,
        checkpoint=checkpoint,
    )


def _composite(composite: str | Composite | Rule, bounds: tuple[Bound, Bound] | None) -> Composite | Chooser:
    if isinstance(composite, str):
        return by_name(composite, bounds)
    if isinstance(composite, Rule):
        return single_rule(composite)
    if isinstance(composite, Composite):
        return composite
    if isinstance(composite, type) and issubclass(composite, Rule):
        raise CompositeError(f"composite is the class {composite.__name__}; make a rule of it: {composite.__name__}()")
    raise CompositeError(f"composite is a {type(composite).__name__}; pass a preset's name, a Composite or a rule")


def _total(relevance: Mapping[str, Any], run: Forward | Recorded, name: str) -> Tensor:
    """R of one value; zero where no relevance arrived."""
    arrived = relevance.get(name)
    value: Tensor = run.value(name)
    return torch.zeros_like(value) if not isinstance(arrived, Relevance) else arrived.total(value)
