"""Gauss rules on 0..1 for the weights of Taylor remainders and integrated Hessians, from exact rational moments.

n nodes integrate weight × polynomial of degree 2n − 1 exactly. The three-term recurrence comes from the moments by
Chebyshev's algorithm in fractions, so that nothing cancels; nodes and weights are eigenvalues (Golub and Welsch 1969).
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from functools import cache
from math import factorial

import numpy as np

MOMENTS: dict[str, Callable[[int], Fraction]] = {
    # ∫ t^k dt
    "1": lambda k: Fraction(1, k + 1),
    # ∫ (1 − t) t^k dt, the remainder of order 1
    "1-t": lambda k: Fraction(1, (k + 1) * (k + 2)),
    # ∫ (1 − t)²/2 t^k dt, the remainder of order 2
    "(1-t)^2/2": lambda k: Fraction(factorial(k), factorial(k + 3)),
    # ∫ −ln(t) t^k dt: the density of a product of two uniform numbers
    "-ln t": lambda k: Fraction(1, (k + 1) ** 2),
    # ∫ −t ln(t) t^k dt
    "-t ln t": lambda k: Fraction(1, (k + 2) ** 2),
}


@cache
def gauss(weight: str, n: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(nodes, weights) for one of `MOMENTS` with n nodes."""
    moment = MOMENTS[weight]
    previous = [Fraction(0)] * (2 * n)
    current = [moment(k) for k in range(2 * n)]
    alpha, beta = [current[1] / current[0]], [current[0]]
    for k in range(1, n):
        following = [
            current[i + 1] - alpha[-1] * current[i] - (beta[-1] if k > 1 else 0) * previous[i] for i in range(2 * n - 1)
        ]
        # Entries below k vanish by orthogonality; those beyond 2n − k are never used.
        alpha.append(following[k + 1] / following[k] - current[k] / current[k - 1] if k + 1 < len(following)
                     else Fraction(0))  # fmt: skip
        beta.append(following[k] / current[k - 1])
        previous, current = current, [*following, Fraction(0)]
    diagonal = np.array([float(a) for a in alpha])
    beside = np.sqrt(np.array([float(b) for b in beta[1:]]))
    nodes, vectors = np.linalg.eigh(np.diag(diagonal) + np.diag(beside, 1) + np.diag(beside, -1))
    weights = float(beta[0]) * vectors[0] ** 2
    return tuple(map(float, nodes)), tuple(map(float, weights))
