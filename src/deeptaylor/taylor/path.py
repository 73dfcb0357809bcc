"""Adaptive Taylor path: expansions around centres on the way from x₀ to x, as many as the function needs.

On a stretch of the path with centre c and half width H the expansion of f around c, taken from one end of the stretch
to the other, keeps its odd orders: 2H ∇f(c)·δ, and 2H³/6 times the third derivative. The gradients at the centres of
its three thirds give both (order 3: weights 3/8, 1/4, 3/8). What an expansion misses on its stretch is known, not
estimated: the values of f at the stretch's two ends say how much f changes there. So steps are chosen by the remainder:
the stretch that misses most is cut in three, which keeps its own gradient, until

    |Σ remainders| ≤ rtol |f(x) − f(x₀)|  and  (Σ remainder²)^½ ≤ rtol |f(x) − f(x₀)|;

the second keeps remainders from meeting the tolerance by cancelling. The sum of the maps is an integrated gradient
(Sundararajan et al. 2017) whose completeness error meets the tolerance.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from ..inputs import Model
from ..targets import Target
from .result import Expansion
from .score import Score, check_reference

MAX_GRADIENTS = 512


@dataclass
class _Stretch:
    """A part of the path: [start, stop], in units of the whole; its expansions, and what they miss."""

    start: float
    stop: float
    change: float
    """f at its end less f at its start."""
    slope: float
    """Derivative of f along the path at its centre."""
    thirds: list[_Stretch] = field(default_factory=list)

    @property
    def centre(self) -> float:
        return (self.start + self.stop) / 2

    @property
    def width(self) -> float:
        return self.stop - self.start

    @property
    def remainder(self) -> float:
        """Of order 1."""
        return self.change - self.width * self.slope

    @property
    def third_remainder(self) -> float:
        """Of order 3, whose coefficient the thirds' gradients give."""
        first, middle, last = (third.slope for third in self.thirds)
        return self.change - self.width * (3 * first + 2 * middle + 3 * last) / 8

    def parts(self) -> list[tuple[_Stretch, int, float]]:
        """The stretches to take, with order and remainder: whole in order 3, or in parts, whichever misses less."""
        if not self.thirds:
            return [(self, 1, self.remainder)]
        finer = [part for third in self.thirds for part in third.parts()]
        whole = self.third_remainder
        return [(self, 3, whole)] if whole**2 <= sum(r**2 for *_, r in finer) else finer

    def worst(self) -> _Stretch:
        """The uncut stretch inside with the largest remainder."""
        return self if not self.thirds else max((t.worst() for t in self.thirds), key=lambda s: abs(s.remainder))


def taylor_path(
    f: Model,
    x: Tensor,
    x0: Tensor | float,
    *,
    rtol: float = 0.01,
    target: Target | Callable[[Tensor], Tensor] = None,
    kwargs: Mapping[str, Any] | None = None,
    head: Callable[[Any], Tensor] | None = None,
    groups: Any = None,
    max_gradients: int = MAX_GRADIENTS,
) -> Expansion:
    """Order maps summed over centres on the path: an integrated gradient with a completeness error below `rtol`.

    Args:
        f: the model, in evaluation mode.
        x: (1, ...), floating.
        x0: the reference, a number or a tensor like x.
        rtol: |f(x) − f(x₀) − Σ maps| / |f(x) − f(x₀)| to reach.
        target: as in `deeptaylor.explain`, or a function of the output.
        kwargs: further arguments of the model.
        head: picks (N, classes) from the model's output.
        groups: segments whose sums `to_features` gives; None, a grid (rows, columns), labels, or `Segments`.
        max_gradients: where to stop, with a warning, if the tolerance is not met.

    Returns:
        `maps` (3, *sample) for orders 1, 2 (zero: even orders cancel around a centre) and 3; `details`:
        "centres", "widths" and "orders" of the stretches; "spread", the root of the sum of squared remainders over
        f(x) − f(x₀); "map_change", Σ|map with the last cuts − map without| / Σ|map|. The
        tolerance is one of sums: where errors of single entries cancel, only `map_change` shows it.

    Raises:
        InputError: as for every expansion; rtol or max_gradients out of range; f not finite on the path, with where.
    """
    if not 0 < rtol < 1:
        raise InputError(f"rtol {rtol} must lie between 0 and 1")
    if max_gradients < 3:
        raise InputError(f"max_gradients {max_gradients}: a path takes 3 gradients at least")
    score = Score(f, x, target=target, kwargs=kwargs, head=head)
    x0 = check_reference(x, x0)
    segments = None
    if groups is not None:
        from .segments import as_segments

        segments = as_segments(groups, x)
        x0 = check_reference(x, segments.reference(x, x0))
    path = _Path(score, x, x0, score.value)
    whole = path.whole()
    path.cut(whole)
    while True:
        parts = whole.parts()
        remainders = torch.tensor([remainder for *_, remainder in parts], dtype=torch.float64)
        scale = abs(whole.change) or max(abs(value - path.begin) for value in path.values.values()) or 1.0
        miss, spread = abs(float(remainders.sum())) / scale, float(remainders.norm()) / scale
        if max(miss, spread) <= rtol or score.cost.gradients + 2 > max_gradients:
            break
        path.cut(max(parts, key=lambda part: abs(part[2]))[0].worst())
    met = max(miss, spread) <= rtol
    maps = path.maps([(part, order) for part, order, _ in parts])
    change = float((maps.sum(0) - path.coarser(whole)).abs().sum() / maps.sum(0).abs().sum().clamp(min=1e-300))
    return Expansion(
        method="taylor_path",
        value=score.value,
        reference_value=path.begin,
        segments=segments,
        maps=maps,
        cost=score.cost,
        target=score.target,
        notes=(
            f"{len(parts)} stretches, the shortest {min(part.width for part, *_ in parts):.2g} of the path; the last "
            f"cuts moved the map by {change:.2g} of its size",
        ),
        details={
            "centres": [part.centre for part, *_ in parts],
            "widths": [part.width for part, *_ in parts],
            "orders": [order for _, order, _ in parts],
            "spread": spread,
            "map_change": change,
        },
        extra_warnings=()
        if met
        else (
            f"the tolerance of {rtol:.2g} was not met with {score.cost.gradients} gradients (completeness {miss:.2g}, "
            f"spread of the remainders {spread:.2g}); raise max_gradients, or see where f is rough: details['centres']",
        ),
    )


class _Path:
    """Values and gradients on the path, each computed once."""

    def __init__(self, score: Score, x: Tensor, x0: Tensor, value: float) -> None:
        self.score, self.x0, self.delta = score, x0, x - x0
        self.begin = float(score.values(x0)[0])
        self.values = {0.0: self.begin, 1.0: value}
        self.gradients: dict[float, Tensor] = {}
        _check_finite(0.0, self.begin)

    def whole(self) -> _Stretch:
        return _Stretch(0.0, 1.0, self.values[1.0] - self.values[0.0], self._slopes([0.5])[0])

    def cut(self, stretch: _Stretch) -> None:
        """Three thirds: two new gradients, two new values."""
        ends = [stretch.start + stretch.width * k / 3 for k in range(3)] + [stretch.stop]
        found = self.score.values(self._points(ends[1:3])).tolist()
        for t, value in zip(ends[1:3], found, strict=True):
            _check_finite(t, value)
            self.values[t] = value
        centres = [(ends[0] + ends[1]) / 2, (ends[2] + ends[3]) / 2]
        first, last = self._slopes(centres)
        stretch.thirds = [
            _Stretch(a, b, self.values[b] - self.values[a], slope)
            for a, b, slope in zip(ends[:3], ends[1:], (first, stretch.slope, last), strict=True)
        ]
        # The middle third has its parent's centre; rounding must not make it another.
        self.gradients[stretch.thirds[1].centre] = self.gradients[stretch.centre]

    def maps(self, parts: list[tuple[_Stretch, int]]) -> Tensor:
        """(3, *sample): orders 1, 2 and 3, float64."""
        first = torch.zeros_like(self.delta[0], dtype=torch.float64)
        third = torch.zeros_like(first)
        for part, order in parts:
            centre = self.gradients[part.centre].double()
            first += part.width * centre
            if order == 3:
                ends = self.gradients[part.thirds[0].centre].double() + self.gradients[part.thirds[2].centre].double()
                third += part.width * 3 * (ends - 2 * centre) / 8
        delta = self.delta[0].double()
        return torch.stack([first * delta, torch.zeros_like(delta), third * delta])

    def coarser(self, stretch: _Stretch) -> Tensor:
        """The map of order 1 without the last cuts: *sample."""
        cut = [third for third in stretch.thirds if third.thirds]
        if not cut:
            return stretch.width * self.gradients[stretch.centre].double() * self.delta[0].double()
        own = [self.coarser(third) for third in cut]
        rest = [third.width * self.gradients[third.centre].double() for third in stretch.thirds if not third.thirds]
        return torch.stack([*own, *(part * self.delta[0].double() for part in rest)]).sum(0)

    def _slopes(self, places: list[float]) -> list[float]:
        gradients = self.score.gradients(self._points(places))
        for t, gradient in zip(places, gradients, strict=True):
            _check_finite(t, float(gradient.abs().sum()))
            self.gradients[t] = gradient
        return (gradients.double() * self.delta.double()).flatten(1).sum(1).tolist()

    def _points(self, places: list[float]) -> Tensor:
        t = torch.tensor(places, dtype=self.delta.dtype, device=self.delta.device)
        return self.x0 + t.view(-1, *[1] * (self.delta.dim() - 1)) * self.delta


def _check_finite(t: float, value: float) -> None:
    if not abs(value) < float("inf"):
        raise InputError(f"f or its gradient is {value} at {t:.4g} of the way from the reference to the input")
