"""Maps of orders 1 to 4 for inputs of any size, from first-order gradients alone.

With h(u) = f(c + u δ) the map of order k is a_k = (1/k!) δ · ∇ D^{k−1} f(c)[δ, …, δ]; its sum is h^(k)(0)/k!. The
gradient along the line, ∇f(c + u δ), is interpolated in u through Chebyshev nodes; its coefficient j times δ/(j + 1) is
a_{j+1}. No second derivative by autodiff is needed, so that any operation, attention kernel or exported model will do.
Each monomial is split by powers, as integrated gradients split it: for polynomials the maps of all orders add up to
them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.func import grad, jvp

from ..errors import InputError
from ..inputs import Model
from ..origin import plain_torch
from ..targets import Target
from .derivatives import trusted
from .problem import PROFILE, Problem, centre_of, pose
from .result import Cost, Expansion
from .safe import safe_mode
from .score import Score, differentiable

ORDERS = 4
NODES = 7
WIDEST, NARROWEST = 0.1, 1e-3


def taylor_orders(
    f: Model | Score,
    x: Tensor,
    reference: Any,
    *,
    order: int = ORDERS,
    at: str = "input",
    groups: Any = None,
    target: Target | Callable[[Tensor], Tensor] = None,
    nodes: int = NODES,
    radius: float | None = None,
    autodiff: bool = False,
    tolerance: float = 0.1,
) -> Expansion:
    """One map per order, shaped like x, with the trust radius of each order.

    Args:
        f: a module, a function of a batch, or a `Score`.
        x: one sample (1, *sample), floating.
        reference: a tensor like x, or what `taylor.reference` takes.
        order: 1 to 4.
        at: where the expansion stands: "input", "reference" or "middle".
        groups: segments over which `to_features` sums; entries outside all segments stay as in x.
        target: what is decomposed, as for `Score`.
        nodes: gradients that are taken; the maps are exact for path polynomials of degree ≤ nodes.
        radius: half-length of the stretch of the way on which they lie; default: where order 1 is off by a quarter,
            between 0.001 and 0.1, found with the forwards that the trust radius needs anyway.
        autodiff: nested derivatives in safe mode instead of interpolation: about 3^(order−1) gradients; the reference.
        tolerance: of the trust radius.

    Returns:
        An `Expansion` with `maps` (order, *sample), their signs applied: they add up to f(x) − f(x₀) − residual.

    Raises:
        InputError: ids, an order that is not 1 to 4 or too few nodes, a path on which f is not finite.
    """
    if not 1 <= order <= 4:
        raise InputError(f"order {order}: maps are made of orders 1 to 4")
    if not autodiff and nodes <= order - 1:
        raise InputError(f"order {order} needs more than {order - 1} nodes, got {nodes}")
    centre = centre_of(at)
    differentiable(x)
    problem = pose(f, x, reference, groups, target)
    stretch = radius if radius is not None else _stretch(problem, centre)
    maps = _nested(problem, centre, order) if autodiff else _interpolated(problem, centre, order, nodes, stretch)
    along = maps.flatten(1).sum(1)
    reach = problem.trust_radius(along, centre, tolerance)
    signs = torch.tensor([(1 - centre) ** k - (-centre) ** k for k in range(1, order + 1)], dtype=torch.float64)
    noise = _noise(problem, maps, stretch) if not autodiff else ()
    ends = {0.0: problem.reference_value, 1.0: problem.value}
    return Expansion(
        method="taylor_orders",
        value=problem.value,
        reference_value=problem.reference_value,
        maps=maps * signs.view(-1, *[1] * (maps.dim() - 1)),
        segments=problem.segments if groups is not None else None,
        centre=centre,
        centre_value=ends[centre] if centre in ends else float(problem.line_values(torch.tensor([centre]))[0]),
        trust_radius=reach,
        tolerance=tolerance,
        target=problem.score.target,
        details={"nodes": nodes, "radius": stretch} if not autodiff else {"backend": "autodiff"},
        extra_warnings=(*_never_bends(along, problem), *noise),
        cost=problem.score.cost - problem.before,
    )


def _interpolated(problem: Problem, centre: float, order: int, nodes: int, radius: float) -> Tensor:
    t = np.cos((2 * np.arange(nodes) + 1) * np.pi / (2 * nodes))
    fit = np.linalg.inv(np.vander(t, nodes, increasing=True))
    at = torch.as_tensor(centre + radius * t)
    total: Tensor | None = None
    for one, weights in zip(
        at.split(problem.score.batch), torch.as_tensor(fit).split(problem.score.batch, 1), strict=True
    ):
        gradients = problem.score.gradients(problem.line(one)).double().cpu()
        part = torch.einsum("kn,n...->k...", weights[:order], gradients)
        total = part if total is None else total + part
    assert total is not None
    powers = torch.tensor([1 / (radius**k * (k + 1)) for k in range(order)], dtype=torch.float64)
    return problem.delta[0].double().cpu() * total * powers.view(-1, *[1] * (total.dim() - 1))


def _nested(problem: Problem, centre: float, order: int) -> Tensor:
    """The same maps by nested forward derivatives of the gradient, in safe mode."""
    if order > 1 and not trusted(problem.score, min(order, 3)):
        raise InputError("nested derivatives can't be trusted on this model; leave autodiff=False")
    point, delta = problem.line(torch.tensor([centre])), problem.delta
    derivative: Any = grad(problem.score)
    maps, factorial = [], 1.0
    with plain_torch(), torch.enable_grad(), safe_mode():
        for k in range(1, order + 1):
            factorial *= k
            maps.append((delta * derivative(point))[0].detach().double().cpu() / factorial)

            def along(z: Tensor, inner: Any = derivative) -> Any:
                return jvp(inner, (z,), (delta,))[1]

            derivative = along
    problem.score.spend(Cost(gradients=1, tangents=sum(3**k for k in range(1, order))))
    return torch.stack(maps)


def _stretch(problem: Problem, centre: float) -> float:
    """Where the mean slope from the centre differs by a quarter from the slope at the shortest distance."""
    t = torch.tensor(PROFILE[::3], dtype=torch.float64)
    way = t if centre == 0 else -t if centre == 1 else t / 2
    start = float(problem.line_values(torch.tensor([centre]))[0])
    slope = (problem.line_values(centre + way) - start) / way
    steady = ((slope - slope[0]).abs() <= 0.25 * slope[0].abs()).long().cumprod(0).bool()
    return float(min(max(float(way.abs()[steady][-1]), NARROWEST), WIDEST))


def _noise(problem: Problem, maps: Tensor, radius: float) -> tuple[str, ...]:
    """Orders whose share is below what rounding of the gradients makes of it."""
    eps = torch.finfo(problem.x.dtype).eps
    size = float(maps[0].norm())
    lost = [
        k for k in range(2, len(maps) + 1) if 4 * eps * size / (k * radius ** (k - 1)) > float(maps[k - 1].norm()) > 0
        and not bool((maps[k - 1].abs() < 1e-30).all())
    ]  # fmt: skip
    if not lost or problem.x.dtype == torch.float64:
        return ()
    return (
        f"maps of order {', '.join(map(str, lost))} are below the rounding of {problem.x.dtype}; "
        "use a float64 model and input for them",
    )


def _never_bends(along: Tensor, problem: Problem) -> tuple[str, ...]:
    if len(along) > 1 and bool((along[1:].abs() <= 1e-12 * along.abs().max()).all()):
        rest = problem.value - problem.reference_value
        if abs(rest) > 0 and float(along[0]) != 0:
            return (PIECEWISE,) if abs(float(along[0]) - rest) > 1e-6 * abs(rest) else ()
    return ()


PIECEWISE = (
    "every second derivative is zero: the model is piecewise linear, and its interactions sit in its kinks; use "
    "differences, shapley_taylor or fit_taylor, which only run the model, or smooth_mode"
)
