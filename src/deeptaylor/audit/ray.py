"""Walking a ray through linear regions: the first boundary, the first root, the exact profile of f."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import InputError
from ..inputs import Model
from ..targets import Target
from ..trace import Head
from .exact_root import pieces_of
from .pieces import Pieces

BEYOND = 1e-10
"""How far past a boundary the next region is looked up, as a share of the way so far (1 at least)."""


@dataclass(frozen=True)
class RayRoot:
    """The first root of f on a ray x + t v, or that there is none."""

    t: float | None
    """Where f(x + t v) = 0 first; None where it never is, or not within the regions that were walked."""
    point: Tensor | None
    """x + t v, shaped like one sample with its first axis."""
    regions: int
    """Linear regions that the ray crossed, that of x included."""
    profile: tuple[tuple[float, float], ...]
    """(t, f) at x, at every boundary and at the end: between them f is exactly linear."""
    endless: bool
    """Whether the last region goes on for ever: with no root so far, there is none on this ray."""


def first_boundary(pieces: Pieces, direction: Tensor) -> float:
    """The smallest t > 0 at which x + t·direction leaves the region: min over margins that fall of −m/dm."""
    there: dict[str, Tensor] = {}
    with torch.no_grad():
        pieces.run(pieces.x + direction, there.__setitem__)
    first = float("inf")
    for name, here in pieces.margins_at_x.items():
        fall = here - there[name]
        ways = torch.where(fall > 1e-14 * pieces.scales[name], here / fall.clamp(min=1e-300), float("inf"))
        first = min(first, float(ways.min()))
    return first


def first_root(
    f: Model,
    x: Tensor,
    direction: Tensor | None = None,
    *,
    target: Target = None,
    head: Head | None = None,
    regions: int = 1000,
) -> RayRoot:
    """The first root of a piecewise linear network on a ray, walked region by region; exact, in float64.

    Args:
        f: the network, in evaluation mode.
        x: one sample, (1, …).
        direction: shaped like x; by default downhill, −∇f·sign(f).
        target: as for `exact_nearest_root`; the predicted class is that at x.
        head: picks (batch, classes) from the output.
        regions: walk through so many at most.

    Raises:
        InputError: more than one sample, a direction of another shape or of zeros, or not piecewise linear.
    """
    if len(x) != 1:
        raise InputError(f"one sample at a time: x has shape {tuple(x.shape)}")
    (pieces,) = pieces_of(f, x, target=target, head=head)
    v = -pieces.gradient * (1 if pieces.value > 0 else -1) if direction is None else direction.to(pieces.x)
    if v.shape != pieces.x.shape or not bool(v.any()):
        raise InputError(
            f"the direction has shape {tuple(v.shape)} and must have that of x, {tuple(x.shape)}, not all 0"
        )
    walked, profile = 0.0, [(0.0, pieces.value)]
    for count in range(1, regions + 1):
        here = pieces.value
        with torch.no_grad():
            slope = float(pieces.run(pieces.x + v)[0]) - here
        step = first_boundary(pieces, v)
        reaches = here == 0 or (slope != 0 and -here / slope >= 0 and -here / slope <= step)
        if reaches:
            way = 0.0 if here == 0 else -here / slope
            return RayRoot(
                walked + way, pieces.x + way * v, count, (*profile, (walked + way, 0.0)), endless=step == float("inf")
            )
        if step == float("inf"):
            return RayRoot(None, None, count, tuple(profile), endless=True)
        profile.append((walked + step, here + slope * step))
        step += BEYOND * max(1.0, walked + step)
        walked += step
        pieces = pieces.moved_to(pieces.x + step * v)
    return RayRoot(None, None, regions, tuple(profile), endless=False)
