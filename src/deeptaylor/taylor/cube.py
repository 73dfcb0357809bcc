"""Estimates from the corners of the cube, segments present or absent: only forwards, for any model and for ids."""

from __future__ import annotations

from collections.abc import Callable
from math import comb
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from ..inputs import Model
from ..targets import Target
from .problem import BUDGET, Problem, pose
from .result import Expansion
from .score import Score

EXACT = 12
"""Segments to which the Shapley-Taylor index is enumerated."""


def differences(
    f: Model | Score,
    x: Tensor,
    reference: Any,
    groups: Any = None,
    *,
    at: str = "both",
    order: int = 2,
    target: Target | Callable[[Tensor], Tensor] = None,
    check: bool = True,
    budget: int = BUDGET,
) -> Expansion:
    """Second differences v(1) − v(1−s) − v(1−t) + v(1−s−t) at the input, or v(st) − v(s) − v(t) + v(∅) at the
    reference.

    At the reference they are the Möbius coefficients (Harsanyi dividends) of order 2. "both" is the mean of the two,
    which stays close to the exact Shapley-Taylor index where interactions of higher order are weak.

    Args:
        f: a module, a function of a batch, or a `Score`; may take ids.
        x: one sample (1, *sample).
        reference: a tensor like x (for ids: mask tokens), or what `taylor.reference` takes.
        groups: segments; by default every entry is one.
        at: "input", "reference" or "both"; S(S+1)/2 forwards each.
        order: 1 (occlusion) or 2.
        target: what is decomposed, as for `Score`.
        check: also measure fidelity (64 forwards).
        budget: passes above which the work is refused.
    """
    if at not in ("input", "reference", "both"):
        raise InputError(f"at={at!r} is none of 'input', 'reference', 'both'")
    if order not in (1, 2):
        raise InputError(f"order {order}: differences are made of orders 1 and 2")
    problem = pose(f, x, reference, groups, target)
    count = problem.size
    ends = 2 if at == "both" else 1
    passes = ends * (count + (order - 1) * count * (count - 1) // 2)
    problem.afford(passes, budget, "take larger segments or fit_taylor")
    found = {}
    if at != "input":
        found["reference"] = _one_end(problem, 0.0, order)
    if at != "reference":
        found["input"] = _one_end(problem, 1.0, order)
    if at != "both":
        main, pairs = found[at]
        centre = 1.0 if at == "input" else 0.0
    else:
        # For quadratic g: the mean effect of s holds half of its pairs, which then stand on their own.
        centre = 0.0
        pairs = (found["reference"][1] + found["input"][1]) / 2
        main = (found["reference"][0] + found["input"][0]) / 2 - pairs.sum(1) / 2
    coefficients = [main] if order == 1 else [main, pairs / 2]
    return problem.finish("differences", coefficients, centre=centre, check=check, details={"at": at})


def _one_end(problem: Problem, end: float, order: int) -> tuple[Tensor, Tensor]:
    """(effects (S,), second differences (S, S)) of moving away from one end of the cube, both counted towards f(x)."""
    count = problem.size
    own = torch.eye(count, dtype=torch.float64)
    flip = -1.0 if end else 1.0
    base = problem.value if end else problem.reference_value
    single = problem.values(end + flip * own)
    main = flip * (single - base)
    pairs = torch.zeros(count, count, dtype=torch.float64)
    if order > 1 and count > 1:
        rows, columns = torch.triu_indices(count, count, 1)
        double = torch.cat([
            problem.values(end + flip * (own[r] + own[c]))
            for r, c in zip(rows.split(4096), columns.split(4096), strict=True)
        ])  # fmt: skip
        second = double - single[rows] - single[columns] + base
        pairs[rows, columns] = pairs[columns, rows] = second
    return main, pairs


def shapley_taylor(
    f: Model | Score,
    x: Tensor,
    reference: Any,
    groups: Any = None,
    *,
    permutations: int | None = None,
    target: Target | Callable[[Tensor], Tensor] = None,
    check: bool = True,
    seed: int = 0,
    budget: int = BUDGET,
) -> Expansion:
    """The Shapley-Taylor interaction index of order 2 (Sundararajan, Dhamdhere, Agarwal 2020); complete.

    φ_s = v(s) − v(∅); φ_st is the mean, over all orders of the segments, of the second difference of s and t given
    those before both. Exact by enumeration up to 12 segments (2^S forwards); above, or where `permutations` is given,
    the mean over that many random orders (S(S+1)/2 forwards each, 16 by default) with its standard error in `errors`.
    Every single order is complete, so the residual says nothing about the sampling.

    Args are those of `differences`, and:
        permutations: random orders; None enumerates where that is possible.
        seed: of the random orders.
    """
    problem = pose(f, x, reference, groups, target)
    count = problem.size
    if permutations is None and count <= EXACT:
        problem.afford(2**count, budget, "take larger segments")
        main, pairs = _enumerated(problem)
        return problem.finish(
            "shapley_taylor", [main, pairs / 2], check=check, details={"exact": True, "coalitions": 2**count}
        )
    rounds = 16 if permutations is None else permutations
    if rounds < 2:
        raise InputError(f"{rounds} permutations give no standard error; take 2 at least")
    problem.afford(rounds * count * (count + 1) // 2, budget, "take larger segments, fewer permutations, or fit_taylor")
    main, pairs, error = _sampled(problem, rounds, seed)
    return problem.finish(
        "shapley_taylor",
        [main, pairs / 2],
        errors=(torch.zeros_like(main), error / 2),
        check=check,
        details={"exact": False, "permutations": rounds},
    )


def _enumerated(problem: Problem) -> tuple[Tensor, Tensor]:
    """φ_st = (2/n) Σ_T 1/C(n−1, |T|) Δ_st v(T), over T without s and t; 2^S forwards."""
    count = problem.size
    codes = torch.arange(2**count)
    bits = (codes[:, None] >> torch.arange(count)) & 1
    values = problem.values(bits.double())
    sizes = bits.sum(1)
    shares = [2 / count / comb(count - 1, t) if t < count else 0.0 for t in range(count + 1)]
    weights = torch.tensor(shares, dtype=torch.float64)
    main = values[1 << torch.arange(count)] - values[0]
    pairs = torch.zeros(count, count, dtype=torch.float64)
    for s in range(count):
        for t in range(s + 1, count):
            free = codes[(bits[:, s] == 0) & (bits[:, t] == 0)]
            both = values[free | 1 << s | 1 << t] - values[free | 1 << s] - values[free | 1 << t] + values[free]
            pairs[s, t] = pairs[t, s] = (weights[sizes[free]] * both).sum()
    return main, pairs


def _sampled(problem: Problem, rounds: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    count = problem.size
    generator = torch.Generator().manual_seed(seed)
    own = torch.eye(count, dtype=torch.float64)
    main = problem.values(own) - problem.reference_value
    samples = torch.zeros(rounds, count, count, dtype=torch.float64)
    rows, columns = torch.triu_indices(count, count)
    for r in range(rounds):
        order = torch.randperm(count, generator=generator)
        # before[a] holds the first a segments of the order; W[a, b] is v(before[a] and the b-th).
        before = torch.cat([torch.zeros(1, count, dtype=torch.float64), own[order].cumsum(0)])
        grown = torch.zeros(count + 1, count, dtype=torch.float64)
        grown[rows, columns] = problem.values(before[rows] + own[order][columns])
        prefix = torch.cat([torch.tensor([problem.reference_value], dtype=torch.float64), grown.diagonal()[:count]])
        second = grown[1:] - grown[:-1] - (prefix[1:] - prefix[:-1])[:, None]
        second = second.triu(1)
        square = torch.zeros(count, count, dtype=torch.float64)
        square[order[:, None], order[None]] = second + second.T
        samples[r] = square
    return main, samples.mean(0), samples.std(0) / rounds**0.5
