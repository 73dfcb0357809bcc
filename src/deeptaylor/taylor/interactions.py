"""`interactions`: the estimator that suits the input and the network, chosen in the open.

What works was measured (docs/taylor.md): tables and smooth networks have path integrals; networks of kinks, words and
photos need values at the corners of the cube.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, overload

import torch
from torch import Tensor

from ..errors import InputError
from ..inputs import Model
from ..targets import Target
from .cube import EXACT, differences, shapley_taylor
from .derivatives import hessian_products, trusted
from .fit import FEWEST, fit_taylor
from .integrals import FIRST_NODES, integrated_terms
from .problem import BUDGET, HELD_OUT, Problem, pose
from .result import RESIDUAL, Cost, Expansion, percent
from .score import BATCH, Score, check_sample
from .segments import Segments, as_segments
from .similarity import METHODS as OF_TWO
from .similarity import Similarity, similarity

LOG = logging.getLogger("deeptaylor")
"""Told of every choice and its cost before the work starts."""
PATCHES = (7, 7)
MANY = 60
"""Segments up to which second differences of all pairs are taken."""
OF_AN_ENCODER = "two inputs: the integrated Jacobian of each, whose pairs add up to the similarity"
WIDE = 200
"""Columns up to which a table's Hessians are taken."""


@dataclass(frozen=True)
class Choice:
    """An estimator, why it was chosen, and the passes that it will take at least."""

    method: str
    reason: str
    passes: int

    def __str__(self) -> str:
        return f"{self.method}: {self.reason}; about {self.passes:,} passes through the model"


@overload
def interactions(
    model: Model | Score,
    inputs: Tensor,
    reference: Any = None,
    groups: Any = None,
    *,
    target: Target | Callable[[Tensor], Tensor] = None,
    kwargs: Mapping[str, Any] | None = None,
    head: Callable[[Any], Tensor] | None = None,
    method: str | None = None,
    batch: int = BATCH,
    progress: bool = False,
    budget: int = BUDGET,
) -> Expansion: ...


@overload
def interactions(
    model: Model | Score,
    inputs: tuple[Tensor, Tensor],
    reference: Any = None,
    groups: Any = None,
    *,
    target: Target | Callable[[Tensor], Tensor] = None,
    kwargs: Any = None,
    head: Callable[[Any], Tensor] | None = None,
    method: str | None = None,
    batch: int = BATCH,
    progress: bool = False,
    budget: int = BUDGET,
) -> Similarity: ...


def interactions(
    model: Model | Score,
    inputs: Tensor | tuple[Tensor, Tensor],
    reference: Any = None,
    groups: Any = None,
    *,
    target: Target | Callable[[Tensor], Tensor] = None,
    kwargs: Any = None,
    head: Callable[[Any], Tensor] | None = None,
    method: str | None = None,
    batch: int = BATCH,
    progress: bool = False,
    budget: int = BUDGET,
) -> Expansion | Similarity:
    """Which pairs of inputs act together, by the method that suits them; `notes` say what was chosen and why.

    Choice and cost are told before the work starts: on stderr with `progress`, else to the log "deeptaylor".

    Args:
        model: a module in eval mode, a function of a batch, or a `Score`.
        inputs: one sample: a table's row (1, columns), a photo (1, channels, height, width), ids (1, tokens), or
            embeddings (1, tokens, width). Or two of them, for an encoder: then which pairs of their segments make
            model(x) and model(y) similar; `reference`, `groups` and `kwargs` are for both, or two each. For many
            samples `interactions_each`, for texts `text_interactions` and `text_similarity`.
        reference: what an absent segment looks like; by default "blur" for photos, zero for other numbers, which the
            notes say. For ids, the number of the mask or padding token.
        groups: segments; by default columns, a grid of 7 by 7 patches, or tokens.
        target: what is decomposed; predicted class by default.
        kwargs: further arguments of the model.
        head: picks (batch, classes) from the model's output.
        method: a name from `METHODS`, to choose yourself.
        batch: samples sent through the model at once; bounds the memory.
        progress: show choice, cost and a bar on stderr.
        budget: passes above which the work is refused.
    """
    if isinstance(inputs, tuple | list):
        return _of_two_inputs(model, inputs, reference, groups, target, kwargs, head, method, batch, progress, budget)
    given = {"target": target, "kwargs": kwargs, "head": head, "method": method, "batch": batch, "progress": progress}
    return _of_one(model, inputs, reference, groups, budget=budget, **given)


def interactions_each(
    model: Model,
    inputs: Tensor,
    reference: Any = None,
    groups: Any = None,
    *,
    target: Any = None,
    progress: bool = False,
    budget: int = BUDGET,
    **options: Any,
) -> list[Expansion]:
    """`interactions` of every sample of a batch, one expansion each.

    Args:
        model: as for `interactions`.
        inputs: (N, *sample).
        reference: one for all, or a tensor (N, *sample).
        groups: the same for all samples.
        target: one for all, or a list or tensor of N.
        progress: show choice, cost and a bar on stderr, sample by sample.
        budget: passes, over all samples, above which the work is refused.
        options: further ones of `interactions`.

    Raises:
        InputError: before any work, also where the first sample's cost times N exceeds the budget.
    """
    if not isinstance(inputs, Tensor) or inputs.dim() < 2 or not len(inputs):
        raise InputError("pass a batch of samples, a tensor (N, *sample) with N of 1 at least")
    count = len(inputs)
    targets: Any = target if isinstance(target, list | Tensor) else [target] * count
    if len(targets) != count:
        raise InputError(f"{len(targets)} targets for {count} samples; pass one for all, or one each")
    each = isinstance(reference, Tensor) and reference.dim() == inputs.dim() and len(reference) == count
    found: list[Expansion] = []
    for n in range(count):
        own = reference[n : n + 1] if each else reference
        others = count if n == 0 else 1  # all of them are refused before the first, or none
        found.append(
            _of_one(
                model, inputs[n : n + 1], own, groups, target=targets[n], progress=progress, budget=budget,
                samples=others, **options,
            )
        )  # fmt: skip
    return found


def _of_one(
    model: Model | Score,
    inputs: Tensor,
    reference: Any,
    groups: Any,
    *,
    target: Any = None,
    kwargs: Any = None,
    head: Callable[[Any], Tensor] | None = None,
    method: str | None = None,
    batch: int = BATCH,
    progress: bool = False,
    budget: int = BUDGET,
    samples: int = 1,
) -> Expansion:
    """`interactions` of one sample, where the budget is for `samples` like it."""
    before = model.cost if isinstance(model, Score) else Cost()
    if isinstance(inputs, Tensor) and inputs.dim() > 1 and len(inputs) > 1:
        raise InputError(
            f"{len(inputs)} samples: an expansion is of one sample, inputs[:1]; dt.interactions_each takes them all"
        )
    if not isinstance(model, Score):
        model = Score(model, inputs, target=target, kwargs=kwargs, head=head, batch=batch)
    check_sample(model.model, inputs)
    modality = _modality(inputs)
    notes = []
    if groups is None:
        groups = _default_groups(inputs, modality)
    if reference is None:
        if modality == "ids":
            raise InputError("ids need a reference: the number of the mask or padding token, tokenizer.mask_token_id")
        reference = "blur" if modality == "photo" else "zero"
        notes.append(f'no reference was given; absent means "{reference}" here')
    if model.probabilities:
        notes.append("the model returns probabilities, which saturate; target=log_odds() of its scores interacts less")
    problem = pose(model, inputs, reference, groups)
    choice = choose(problem, modality, method)
    problem.afford(choice.passes * samples, budget, "take larger segments" if samples == 1 else "take fewer samples")
    with _shown(model, choice, progress):
        result = _run(choice.method, problem, budget)
        if choice.method == "integrated_terms" and method is None and result.relative_residual > RESIDUAL:
            left = percent(result.relative_residual)
            choice = Choice(
                _of_corners(problem.size), f"the path integral left {left} unexplained", _passes(problem.size)
            )
            result = _run(choice.method, problem, budget)
    return replace(result, cost=model.cost - before).saying(f"chosen: {choice}", *notes)


def _of_two_inputs(
    model: Model | Score,
    inputs: Sequence[Tensor],
    reference: Any,
    groups: Any,
    target: Any,
    kwargs: Any,
    head: Callable[[Any], Tensor] | None,
    method: str | None,
    batch: int,
    progress: bool,
    budget: int,
) -> Similarity:
    """Two inputs of one encoder: pairs of a segment of each."""
    if isinstance(model, Score) or target is not None:
        raise InputError("two inputs are compared by what an encoder makes of them: pass the encoder, and no target")
    if len(inputs) != 2 or not all(isinstance(x, Tensor) and x.dim() > 1 and len(x) == 1 for x in inputs):
        raise InputError("pass one sample, or a tuple of two samples (1, ...) to compare")
    if not all(x.is_floating_point() for x in inputs):
        raise InputError("ids can't be compared along a path; dt.text_similarity takes texts, or pass word vectors")
    if method is not None and method not in OF_TWO:
        raise InputError(f"method {method!r} is none of {', '.join(OF_TWO)}, those for two inputs")
    sizes = isinstance(groups, tuple) and len(groups) == 2 and all(isinstance(n, int) for n in groups)
    both = groups if isinstance(groups, tuple | list) and len(groups) == 2 and not sizes else (groups, groups)
    kinds = [_modality(x) for x in inputs]
    parts = [
        as_segments(_default_groups(x, kind) if own is None else own, x)
        for x, kind, own in zip(inputs, kinds, both, strict=True)
    ]
    starts = reference if isinstance(reference, tuple | list) else (reference, reference)
    starts = tuple(
        ("blur" if kind == "photo" else "zero") if own is None else own for kind, own in zip(kinds, starts, strict=True)
    )
    further = kwargs if isinstance(kwargs, tuple | list) else (kwargs, kwargs)
    passes = FIRST_NODES * sum(map(len, parts))
    choice = Choice(method or "integrated", "as asked for" if method else OF_AN_ENCODER, passes)
    if passes > budget:
        raise InputError(f"{choice}, the budget is {budget:,}; take larger segments, or raise it: budget={passes}")
    LOG.info("%s", choice)
    if progress:
        from rich.console import Console

        Console(stderr=True, highlight=False).print(str(choice), soft_wrap=True)
    found = similarity(
        model, *inputs, groups_x=parts[0], groups_y=parts[1], reference_x=starts[0], reference_y=starts[1],
        kwargs_x=further[0], kwargs_y=further[1], head=head, method=choice.method, chunk=batch,
    )  # fmt: skip
    return replace(found, notes=(f"chosen: {choice}",))


METHODS: dict[str, Callable[..., Expansion]] = {
    "integrated_terms": integrated_terms,
    "shapley_taylor": shapley_taylor,
    "differences": differences,
    "fit_taylor": fit_taylor,
}


def choose(problem: Problem, modality: str, method: str | None = None) -> Choice:
    """The method for a problem, with its reason."""
    count = problem.size
    if method is not None:
        if method not in METHODS:
            raise InputError(f"method {method!r} is none of {', '.join(METHODS)}")
        passes = FIRST_NODES * count if method == "integrated_terms" else _passes(count, method)
        return Choice(method, "as asked for", passes)
    if modality == "photo" and count > EXACT:
        reason = "photos: second derivatives say nothing about absent patches, a fit says how well it predicts them"
        return Choice("fit_taylor", reason, _passes(count, "fit_taylor"))
    corners = Choice(_of_corners(count), "", _passes(count))
    if modality in ("ids", "words"):
        why = "words are present or absent, and their interactions live at those corners"
        return Choice(corners.method, why, corners.passes)
    if modality == "table":
        if count > WIDE:
            return Choice(corners.method, f"more than {WIDE} segments", corners.passes)
        if not trusted(problem.score):
            return Choice(corners.method, "second derivatives of this compiled model are wrong", corners.passes)
        if piecewise_linear(problem):
            return Choice(corners.method, "the network is piecewise linear, its Hessian is zero", corners.passes)
        why = "a smooth function of numbers: its path integral is complete"
        return Choice("integrated_terms", why, FIRST_NODES * count)
    return Choice(corners.method, "few segments: exact, and any network will do", corners.passes)


def piecewise_linear(problem: Problem, probes: int = 3) -> bool:
    """Whether every Hessian along the way is zero, tried at a few places in the direction of the way."""
    for t in torch.linspace(0.1, 0.9, probes, dtype=torch.float64):
        point = problem.line(t[None])
        if bool(hessian_products(problem.score, point, problem.delta[None]).any()):
            return False
    return True


def _modality(x: Tensor) -> str:
    if not x.is_floating_point():
        return "ids"
    return {2: "table", 3: "words", 4: "photo"}.get(x.dim(), "other")


def _default_groups(x: Tensor, modality: str) -> Any:
    if modality == "photo":
        return PATCHES if min(x.shape[-2:]) >= PATCHES[0] else None
    if modality == "words":
        tokens = torch.arange(x.shape[1])[:, None].expand(x.shape[1:]).contiguous()
        return Segments(tokens, tuple(f"token {t}" for t in range(x.shape[1])), "words")
    return as_segments(None, x)


def _of_corners(count: int) -> str:
    return "shapley_taylor" if count <= EXACT else "differences" if count <= MANY else "fit_taylor"


def _passes(count: int, method: str | None = None) -> int:
    method = method or _of_corners(count)
    if method == "shapley_taylor":
        return (2**count if count <= EXACT else 8 * count * (count + 1)) + HELD_OUT
    if method == "differences":
        return count * (count + 1) + HELD_OUT
    return max(FEWEST, count * count // 4)


def _run(method: str, problem: Problem, budget: int) -> Expansion:
    return METHODS[method](problem.score, problem.x, problem.x0, problem.segments, budget=budget)


@contextmanager
def _shown(score: Score, choice: Choice, progress: bool) -> Iterator[None]:
    """Choice and cost, to the log; with a bar on stderr, where that is asked for."""
    LOG.info("%s", choice)
    if not progress:
        yield
        return
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True, highlight=False)
    console.print(str(choice), soft_wrap=True)
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task("passes", total=choice.passes)
        score.progress = lambda passes: bar.advance(task, passes)
        try:
            yield
        finally:
            score.progress = None
