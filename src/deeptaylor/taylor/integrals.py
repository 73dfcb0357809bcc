"""Complete second-order decompositions: Taylor's remainder as an integral along the path, and integrated Hessians."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from ..inputs import Model
from ..targets import Target
from .derivatives import segment_hessian, segment_third
from .orders import PIECEWISE
from .problem import BUDGET, Problem, non_finite, pose
from .quadrature import gauss
from .result import Expansion
from .score import Score, differentiable

FIRST_NODES = 4


def integrated_terms(
    f: Model | Score,
    x: Tensor,
    reference: Any,
    groups: Any = None,
    *,
    order: int = 2,
    nodes: int | None = None,
    rtol: float = 1e-3,
    max_nodes: int = 64,
    target: Target | Callable[[Tensor], Tensor] = None,
    check: bool = True,
    chunk: int | None = None,
    budget: int = BUDGET,
) -> Expansion:
    """f(x) − f(x₀) = Σ G_s(0) + Σ M_st, M_st = ∫ (1 − t) ∂_st g(t) dt: complete by construction.

    Order 3 adds H(0)/2 and puts the remainder into ∫ (1 − t)²/2 ∂_stu g(t) dt. For f multilinear in the segments G(0)
    and 2 M are the Shapley-Taylor indices of order 2.

    Args:
        f: a module, a function of a batch, or a `Score`; twice (three times) differentiable along the path.
        x: one sample (1, *sample), floating.
        reference: a tensor like x, or what `taylor.reference` takes.
        groups: segments; by default every entry is one.
        order: 2 or 3.
        nodes: of the Gauss rule, n·S tangents; n nodes are exact for path polynomials of degree 2n + 1 (2n + 2). By
            default 4, doubled until the residual is below `rtol` of f(x) − f(x₀), to at most `max_nodes`.
        rtol: see `nodes`.
        max_nodes: see `nodes`.
        target: what is decomposed, as for `Score`.
        check: also measure fidelity (64 forwards).
        chunk: tangents at once.
        budget: passes above which the work is refused.
    """
    if order not in (2, 3):
        raise InputError(f"order {order}: the integral remainder is made for orders 2 and 3")
    differentiable(x)
    problem = pose(f, x, reference, groups, target)
    count = problem.size
    per_node = count if order == 2 else count * (count + 1) // 2
    start = torch.zeros(1, count, dtype=torch.float64)
    rule = "1-t" if order == 2 else "(1-t)^2/2"
    derivative = segment_hessian if order == 2 else segment_third
    problem.afford((nodes or FIRST_NODES) * per_node, budget, "take larger segments")
    lower = [problem.gradients(start)[0]]
    if order == 3:
        lower.append(segment_hessian(problem.score, problem.x0, problem.delta, problem.segments, chunk) / 2)
    explained = sum(float(c.sum()) for c in lower)
    total = problem.value - problem.reference_value

    def estimate(n: int) -> Tensor:
        return _integral(problem, derivative, gauss(rule, n), chunk)

    remainder, n, notes = _adaptive(
        estimate, lambda m: total - explained - float(m.sum()), total, nodes, rtol, max_nodes, budget // per_node
    )
    flat = not bool(remainder.any()) and abs(total - explained) > 1e-6 * abs(total)
    return problem.finish(
        "integrated_terms",
        [*lower, remainder],
        check=check,
        warnings=(*((PIECEWISE,) if flat else ()), *notes),
        details={"nodes": n},
    )


def integrated_hessians(
    f: Model | Score,
    x: Tensor,
    reference: Any,
    groups: Any = None,
    *,
    nodes: int | None = None,
    rtol: float = 1e-3,
    max_nodes: int = 32,
    target: Target | Callable[[Tensor], Tensor] = None,
    check: bool = True,
    chunk: int | None = None,
    budget: int = BUDGET,
) -> Expansion:
    """Integrated Hessians (Janizek, Sturmfels, Lee 2021): complete, row sums are integrated gradients.

    The double integral over two uniform numbers depends on their product alone, whose density is −ln s, so that
    IH_st = ∫ (−s ln s) ∂_st g(s) ds, and on the diagonal ∫ (−ln s) ∂_s g(s) ds more. For x₁x₂ half of the interaction
    lands on the diagonal: a planted coefficient is not returned as such; `integrated_terms` returns it.

    Args are those of `integrated_terms`.
    """
    differentiable(x)
    problem = pose(f, x, reference, groups, target)
    problem.afford((nodes or FIRST_NODES) * problem.size, budget, "take larger segments")
    total = problem.value - problem.reference_value

    def estimate(n: int) -> Tensor:
        second = _integral(problem, segment_hessian, gauss("-t ln t", n), chunk)
        places, weights = gauss("-ln t", n)
        a = torch.tensor(places, dtype=torch.float64)[:, None].expand(-1, problem.size)
        first = torch.tensor(weights, dtype=torch.float64) @ problem.gradients(a)
        return second + torch.diag(first)

    matrix, n, notes = _adaptive(
        estimate, lambda m: total - float(m.sum()), total, nodes, rtol, max_nodes, budget // problem.size
    )
    flat = not bool((matrix - torch.diag(matrix.diagonal())).any()) and problem.size > 1
    return problem.finish(
        "integrated_hessians",
        [torch.zeros(problem.size, dtype=torch.float64), matrix],
        check=check,
        warnings=(*((PIECEWISE,) if flat and not _additive(problem, matrix) else ()), *notes),
        details={"nodes": n},
    )


def _integral(
    problem: Problem,
    derivative: Callable[..., Tensor],
    rule: tuple[Sequence[float], Sequence[float]],
    chunk: int | None,
) -> Tensor:
    out: Tensor | None = None
    for t, weight in zip(*rule, strict=True):
        point = problem.line(torch.tensor([t], dtype=torch.float64))
        part = weight * derivative(problem.score, point, problem.delta, problem.segments, chunk)
        if not bool(torch.isfinite(part).all()):
            raise non_finite("a second derivative", torch.tensor([t]))
        out = part if out is None else out + part
    assert out is not None
    return out


def _adaptive(
    estimate: Callable[[int], Tensor],
    left: Callable[[Tensor], float],
    total: float,
    nodes: int | None,
    rtol: float,
    max_nodes: int,
    affordable: int,
) -> tuple[Tensor, int, tuple[str, ...]]:
    """The integral with as many nodes as the residual asks for, and what there is to say about it."""
    if nodes is not None:
        return estimate(nodes), nodes, ()
    n, spent = FIRST_NODES, FIRST_NODES
    found = estimate(n)
    # Without any second derivative along the path no number of nodes will find one.
    while abs(left(found)) > rtol * abs(total) and n < max_nodes and bool(found.any()) and spent + 2 * n <= affordable:
        n, spent = min(2 * n, max_nodes), spent + min(2 * n, max_nodes)
        found = estimate(n)
    if abs(left(found)) <= rtol * abs(total):
        return found, n, ()
    return found, n, (f"the integral has not converged to {rtol:g} of f(x) − f(x₀) with {n} nodes",)


def _additive(problem: Problem, matrix: Tensor) -> bool:
    total = problem.value - problem.reference_value
    return abs(total - float(matrix.sum())) <= 1e-6 * max(abs(total), 1e-30)
