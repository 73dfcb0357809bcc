"""The point of a polytope on a hyperplane that is nearest to 0, and proof where there is none. Lawson and Hanson 1974.

    min ‖u‖²   such that   g·u = −f   and   A u + m ≥ 0

With u = u₀ + w, u₀ = −f g/‖g‖² and w ⟂ g this is least-distance programming, min ‖w‖² with P w ≥ h, which one
non-negative least-squares problem solves. Its size is the number of constraints, not that of u.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import MissingExtra

Array = npt.NDArray[np.float64]
PARALLEL = 1e-9
"""Rows of length 1 whose part along the hyperplane is shorter than this bind nothing there."""
SLACKS = (1e-13, 1e-10)
"""How far constraints are relaxed, as a share of ‖u₀‖, the second where the first leaves nothing: rows may be dependent
to rounding."""


@dataclass(frozen=True)
class NoRoot:
    """Proof that f has no root in the region: f(ξ) = bound + Σ multipliers_k m_k(ξ), where no m_k is negative there."""

    bound: float
    """f is at least this far from 0, with f(x)'s sign."""
    multipliers: Array
    """≥ 0, one for each of `rows`."""
    rows: tuple[int, ...]
    """The margins in the proof."""
    mismatch: float
    """‖∇f − Σ multipliers_k ∇m_k‖ as a share of ‖∇f‖: 0 but for rounding."""

    @property
    def holds(self) -> bool:
        """Whether the identity is exact to rounding and the bound is not 0."""
        return self.mismatch < 1e-6 and bool((self.multipliers >= 0).all()) and self.bound != 0


def scipy_optimize() -> Any:
    """scipy.optimize, or a kind error."""
    try:
        import scipy.optimize as optimize
    except ImportError as error:
        raise MissingExtra("exact roots need scipy", "audit") from error
    return optimize


def nearest(gradient: Array, value: float, rows: Array, margins: Array) -> Array | None:
    """u of the problem above, or None where no u meets all constraints.

    Args:
        gradient: g, (n,), not 0.
        value: f.
        rows: A, (k, n).
        margins: m, (k,).
    """
    size = np.linalg.norm(gradient)
    unit = gradient / size
    start = -value / size * unit
    if not len(rows):
        return start
    lengths = np.linalg.norm(rows, axis=1)
    kept = lengths > 0
    if (margins[~kept] < 0).any():
        return None
    rows, margins = rows[kept] / lengths[kept, None], margins[kept] / lengths[kept]
    scale = max(abs(value) / float(size), 1e-300)
    need = -(margins + rows @ start) / scale
    along = rows - np.outer(rows @ unit, unit)
    free = np.linalg.norm(along, axis=1) > PARALLEL
    if (need[~free] > PARALLEL).any():
        return None
    for slack in SLACKS:
        step = _least_distance(along[free], need[free] - slack)
        if step is not None:
            return start + scale * (step - (step @ unit) * unit)
    return None


def _least_distance(rows: Array, need: Array) -> Array | None:
    """min ‖w‖ with rows w ≥ need; None where that is impossible."""
    if not len(rows) or (need <= 0).all():
        return np.zeros(rows.shape[1])
    basis, triangle = np.linalg.qr(rows.T)
    system = np.vstack([triangle, need])
    aim = np.zeros(len(system))
    aim[-1] = 1.0
    weights, _ = scipy_optimize().nnls(system, aim, maxiter=100 * len(need) + 100)
    residual = system @ weights - aim
    if np.linalg.norm(residual) < 1e-9:
        return None
    return basis @ (-residual[:-1] / residual[-1])


def no_root(gradient: Array, value: float, rows: Array, margins: Array, names: tuple[int, ...]) -> NoRoot | None:
    """The linear programme min |f| over the constraints, and its multipliers; None where f does reach 0.

    Args:
        gradient: g, (n,).
        value: f at u = 0.
        rows: A, (k, n).
        margins: m, (k,).
        names: of the rows.
    """
    sign, size = np.sign(value), np.linalg.norm(gradient)
    if size == 0:
        return NoRoot(value, np.zeros(len(rows)), names, 0.0)
    lengths = np.linalg.norm(rows, axis=1)
    kept = lengths > 0
    unit_rows, offsets = rows[kept] / lengths[kept, None], margins[kept] / lengths[kept]
    basis, _ = np.linalg.qr(np.vstack([unit_rows, gradient]).T)
    found = scipy_optimize().linprog(
        sign * gradient @ basis / size, -unit_rows @ basis, offsets, bounds=(None, None), method="highs"
    )
    if found.status != 0 or size * found.fun + sign * value <= 1e-9 * abs(value):
        return None
    multipliers = np.zeros(len(rows))
    multipliers[kept] = np.maximum(-found.ineqlin.marginals, 0) * size / lengths[kept]
    mismatch = np.linalg.norm(sign * gradient - multipliers @ rows) / size
    return NoRoot(float(value - sign * (multipliers @ margins)), multipliers, names, float(mismatch))
