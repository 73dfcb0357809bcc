"""Interactions from first-order gradients alone: secants and a regression. Stock kernels, any model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from ..inputs import Model
from ..targets import Target
from .problem import BUDGET, centre_of, pose
from .result import Expansion
from .score import Score, differentiable


def gradient_secant(
    f: Model | Score,
    x: Tensor,
    reference: Any,
    groups: Any = None,
    *,
    at: str = "input",
    target: Target | Callable[[Tensor], Tensor] = None,
    check: bool = True,
    budget: int = BUDGET,
) -> Expansion:
    """H_st ≈ how the gradient of t changes as s is removed ("input"), inserted ("reference"), or from −½ to ½
    ("middle").

    S + 1 gradients (2S + 1 for "middle"); exact for quadratics ("middle": cubics too), the halves of a pair averaged.

    Args are those of `taylor_terms`.
    """
    centre = centre_of(at)
    differentiable(x)
    problem = pose(f, x, reference, groups, target)
    count = problem.size
    problem.afford((2 if at == "middle" else 1) * count + 1, budget, "take larger segments")
    own = torch.eye(count, dtype=torch.float64)
    base = torch.full((1, count), centre, dtype=torch.float64)
    gradient = problem.gradients(base)[0]
    if at == "middle":
        second = problem.gradients(base + own / 2) - problem.gradients(base - own / 2)
    elif at == "input":
        second = gradient - problem.gradients(base - own)
    else:
        second = problem.gradients(base + own) - gradient
    return problem.finish(
        "gradient_secant", [gradient, (second + second.T) / 4], centre=centre, check=check, details={"at": at}
    )


def gradient_regression(
    f: Model | Score,
    x: Tensor,
    reference: Any,
    groups: Any = None,
    *,
    k: int | None = None,
    target: Target | Callable[[Tensor], Tensor] = None,
    check: bool = True,
    seed: int = 0,
    budget: int = BUDGET,
) -> Expansion:
    """The gradient over segments regressed on a, uniform in the cube: a Hessian that sees kinks; k gradients.

    ∂_s g(a) ≈ G_s + Σ_t H_st (a_t − ½), least squares over `k` points (default max(64, 4S)), exact for quadratics;
    stands in the middle. Of two halves of a pair the mean is taken.

    Args are those of `taylor_terms`, and:
        k: gradients, more than S + 1.
        seed: of the points.
    """
    differentiable(x)
    problem = pose(f, x, reference, groups, target)
    count = problem.size
    points = max(64, 4 * count) if k is None else k
    if points < count + 2:
        raise InputError(f"{points} gradients can't tell {count} segments apart; take {count + 2} at least")
    problem.afford(points, budget, "take fewer points or larger segments")
    a = torch.rand(points, count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    gradients = problem.gradients(a)
    known = torch.cat([torch.ones(points, 1, dtype=torch.float64), a - 0.5], 1)
    solution = torch.linalg.lstsq(known, gradients, driver="gelsd").solution
    gradient, second = solution[0], solution[1:]
    return problem.finish(
        "gradient_regression",
        [gradient, (second + second.T) / 4],
        centre=0.5,
        check=check,
        details={"gradients": points},
    )
