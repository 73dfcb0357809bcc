"""Taylor terms over segments: exact gradient G, Hessian H and third derivatives T of g at one point."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from ..inputs import Model
from ..targets import Target
from .derivatives import segment_hessian, segment_third
from .orders import PIECEWISE
from .problem import BUDGET, centre_of, pose
from .result import Expansion
from .score import Score, differentiable


def taylor_terms(
    f: Model | Score,
    x: Tensor,
    reference: Any,
    groups: Any = None,
    *,
    order: int = 2,
    at: str = "reference",
    target: Target | Callable[[Tensor], Tensor] = None,
    check: bool = True,
    chunk: int | None = None,
    budget: int = BUDGET,
) -> Expansion:
    """All Taylor terms up to `order`: independent ones, pairs, triples.

    Args:
        f: a module, a function of a batch, or a `Score`.
        x: one sample (1, *sample), floating.
        reference: a tensor like x, or what `taylor.reference` takes.
        groups: segments; by default every entry is one.
        order: 1, 2 (S tangents) or 3 (S²/2 more).
        at: "reference", "input" or "middle".
        target: what is decomposed, as for `Score`.
        check: also measure trust radius (38 forwards) and fidelity (64 forwards).
        chunk: tangents at once; by default as many as keep memory bounded.
        budget: passes above which the work is refused.

    Returns:
        An `Expansion` with coefficients (G, H/2, T/6).
    """
    if order not in (1, 2, 3):
        raise InputError(f"order {order}: terms are made of orders 1 to 3")
    centre = centre_of(at)
    differentiable(x)
    problem = pose(f, x, reference, groups, target)
    count = problem.size
    passes = 1 + (order > 1) * count + (order > 2) * count * (count + 1) // 2
    problem.afford(passes, budget, f"take order {order - 1} or larger segments")
    place = torch.full((1, count), centre, dtype=torch.float64)
    point = problem.inputs(place)
    coefficients = [problem.gradients(place)[0]]
    warnings: tuple[str, ...] = ()
    if order > 1:
        hessian = segment_hessian(problem.score, point, problem.delta, problem.segments, chunk)
        coefficients.append(hessian / 2)
        if not bool(hessian.any()):
            warnings = () if _straight(problem.value - problem.reference_value, coefficients[0]) else (PIECEWISE,)
    if order > 2:
        coefficients.append(segment_third(problem.score, point, problem.delta, problem.segments, chunk) / 6)
    return problem.finish(
        "taylor_terms", coefficients, centre=centre, reach=True, check=check, warnings=warnings, details={"at": at}
    )


def _straight(total: float, gradient: Tensor) -> bool:
    """Whether order 1 explains everything, so that a Hessian of zero is no surprise."""
    return abs(total - float(gradient.sum())) <= 1e-6 * max(abs(total), 1e-30)
