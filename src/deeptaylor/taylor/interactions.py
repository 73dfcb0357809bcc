"""`interactions`: the estimator that suits the input and the network, chosen in the open.

What works was measured (docs/taylor.md): tables and smooth networks have path integrals; networks of kinks, words and
photos need values at the corners of the cube.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

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

PATCHES = (7, 7)
MANY = 60
"""Segments up to which second differences of all pairs are taken."""
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
) -> Expansion:
    """Which pairs of inputs act together, by the method that suits them; `notes` say what was chosen and why.

    Args:
        model: a module in eval mode, a function of a batch, or a `Score`.
        inputs: one sample: a table's row (1, columns), a photo (1, channels, height, width), ids (1, tokens), or
            embeddings (1, tokens, width).
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
    before = model.cost if isinstance(model, Score) else Cost()
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
    with _shown(model, choice, progress):
        result = _run(choice.method, problem, budget)
        if choice.method == "integrated_terms" and method is None and result.relative_residual > RESIDUAL:
            left = percent(result.relative_residual)
            choice = Choice(
                _of_corners(problem.size), f"the path integral left {left} unexplained", _passes(problem.size)
            )
            result = _run(choice.method, problem, budget)
    return replace(result, cost=model.cost - before).saying(f"chosen: {choice}", *notes)


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
    """Choice, cost and a bar on stderr, where they are asked for."""
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
