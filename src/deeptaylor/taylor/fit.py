"""A quadratic fitted to f on random masks, with the R² it reaches on masks that it has not seen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from ..inputs import Model
from ..targets import Target
from .problem import BUDGET, pose, random_masks
from .result import Expansion
from .score import Score

STRENGTHS = tuple(float(s) for s in 10.0 ** torch.arange(-12, 3, dtype=torch.float64))
"""Ridge penalties that are tried, as parts of the mean squared size of the features' kernel."""
SHRINK = (0.5, 0.2)
"""Sizes of the pairs' features that are tried: smaller ones are penalised more than single segments."""
FOLDS = 5
HELD_OUT = 0.2
FEWEST = 600


def fit_taylor(
    f: Model | Score,
    x: Tensor,
    reference: Any,
    groups: Any = None,
    *,
    order: int = 2,
    masks: int | None = None,
    target: Target | Callable[[Tensor], Tensor] = None,
    seed: int = 0,
    budget: int = BUDGET,
) -> Expansion:
    """Order-1 or order-2 polynomial in present/absent segments, by ridge regression on random masks.

    The number of present segments is uniform; the penalty is chosen by five-fold cross-validation; a fifth of the masks
    is held out, and `fidelity` is the R² there, of order 1 (fitted by itself) and of order 2. Read it first: pairs mean
    something where order 2 explains clearly more than order 1.

    Args:
        f: a module, a function of a batch, or a `Score`; may take ids.
        x: one sample (1, *sample).
        reference: a tensor like x (for ids: mask tokens), or what `taylor.reference` takes.
        groups: segments; by default every entry is one.
        order: 1 or 2.
        masks: forwards that are spent, max(600, S²/4) by default; where they exceed the number of terms, a quadratic is
            recovered exactly.
        target: what is decomposed, as for `Score`.
        seed: of the masks.
        budget: passes above which the work is refused.
    """
    if order not in (1, 2):
        raise InputError(f"order {order}: fits are made of orders 1 and 2")
    problem = pose(f, x, reference, groups, target)
    count = problem.size
    wanted = max(FEWEST, count * count // 4) if masks is None else masks
    if wanted < 25:
        raise InputError(f"{wanted} masks are too few to fit, choose a penalty and hold some out; take 25 at least")
    problem.afford(wanted, budget, "take fewer masks or larger segments")
    a = random_masks(wanted, count, seed)
    values = problem.values(a)
    held = int(HELD_OUT * wanted)
    seen, unseen = slice(held, None), slice(0, held)
    fits, fidelity = {}, {}
    for k in range(1, order + 1):
        features = _features(a, k)
        weights, intercept = _ridge(features[seen], values[seen], count)
        left = values[unseen] - features[unseen] @ weights - intercept
        spread = float(((values[unseen] - values[unseen].mean()) ** 2).sum())
        fidelity[k] = 1 - float((left**2).sum()) / spread if spread else 1.0
        fits[k] = (weights, intercept)
    warnings: tuple[str, ...] = ()
    if order == 2 and fidelity[2] <= fidelity[1]:
        warnings = (
            f"pairs predict unseen masks no better than single segments (R² {fidelity[2]:.3f} against "
            f"{fidelity[1]:.3f}): do not read them; take more masks",
        )
    constant, coefficients = _from_signs(*fits[order], count, order)
    return problem.finish(
        "fit_taylor",
        coefficients,
        centre_value=constant,
        fidelity=fidelity,
        check=False,
        warnings=warnings,
        details={"masks": wanted, "held_out": held},
    )


def _features(a: Tensor, order: int) -> Tensor:
    """Signs ±1 and their products: uncorrelated under independent masks, so that one penalty suits all."""
    z = 2 * a - 1
    if order == 1:
        return z
    rows, columns = torch.triu_indices(a.shape[1], a.shape[1], 1)
    return torch.cat([z, z[:, rows] * z[:, columns]], 1)


def _ridge(features: Tensor, values: Tensor, count: int) -> tuple[Tensor, float]:
    """Weights and intercept with the penalties that cross-validation prefers; by least squares where it wants none."""
    folds = torch.arange(len(values)) % FOLDS
    pairs = features.shape[1] > count
    best, chosen = float("inf"), (1.0, 0)
    for shrink in SHRINK if pairs else (1.0,):
        scaled = _scaled(features, count, shrink)
        errors = torch.zeros(len(STRENGTHS), dtype=torch.float64)
        for fold in range(FOLDS):
            mine, other = folds != fold, folds == fold
            for i, (weights, intercept) in enumerate(_path(scaled[mine], values[mine])):
                errors[i] += ((scaled[other] @ weights + intercept - values[other]) ** 2).sum()
        if float(errors.min()) < best:
            best, chosen = float(errors.min()), (shrink, int(errors.argmin()))
    shrink, strength = chosen
    if strength == 0 and len(values) > 1.5 * features.shape[1]:
        # No penalty is wanted: the plain least squares solution, without what the smallest one would bias.
        full = torch.cat([features, torch.ones(len(features), 1, dtype=torch.float64)], 1)
        solution = torch.linalg.lstsq(full, values[:, None], driver="gelsd").solution[:, 0]
        return solution[:-1], float(solution[-1])
    weights, intercept = _path(_scaled(features, count, shrink), values)[strength]
    return _scaled(weights[None], count, shrink)[0], intercept


def _scaled(features: Tensor, count: int, shrink: float) -> Tensor:
    return torch.cat([features[:, :count], shrink * features[:, count:]], 1)


def _path(features: Tensor, values: Tensor) -> list[tuple[Tensor, float]]:
    """Ridge solutions for all penalties from one eigendecomposition of the smaller of the two Gram matrices."""
    centre, mean = features.mean(0), values.mean()
    f, v = features - centre, values - mean
    wide = f.shape[1] > f.shape[0]
    gram = f @ f.T if wide else f.T @ f
    spectrum, basis = torch.linalg.eigh(gram)
    spectrum = spectrum.clamp(min=0)
    side = basis.T @ (v if wide else f.T @ v)
    size = float(spectrum.mean()) or 1.0
    out = []
    for strength in STRENGTHS:
        solved = basis @ (side / (spectrum + strength * size))
        weights = f.T @ solved if wide else solved
        out.append((weights, float(mean - centre @ weights)))
    return out


def _from_signs(weights: Tensor, intercept: float, count: int, order: int) -> tuple[float, list[Tensor]]:
    """From signs z = 2a − 1 to a: (constant, [C₁, C₂])."""
    main = weights[:count]
    constant = intercept - float(main.sum())
    if order == 1:
        return constant, [2 * main]
    pairs = torch.zeros(count, count, dtype=torch.float64)
    rows, columns = torch.triu_indices(count, count, 1)
    pairs[rows, columns] = pairs[columns, rows] = weights[count:]
    constant += float(weights[count:].sum())
    return constant, [2 * main - 2 * pairs.sum(1), 2 * pairs]
