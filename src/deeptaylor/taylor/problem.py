"""`Problem`: score, input, reference and segments of one decomposition, checked once; and the account at its end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from ..inputs import Model
from ..targets import Target
from .references import reference as named_reference
from .result import Cost, Expansion
from .score import Score, check_reference, check_sample
from .segments import Segments, as_segments

CENTRES = {"reference": 0.0, "input": 1.0, "middle": 0.5}
BUDGET = 50_000
"""Passes through the model (a gradient, a tangent or a forward is one) above which an estimate is refused."""
HELD_OUT = 64
"""Inputs with segments present at random, on which fidelity is measured."""
PROFILE = tuple(float(t) for t in 10 ** torch.linspace(-3, 0, 37, dtype=torch.float64))
"""Places along the way, as parts of it, at which the trust radius is looked for."""


@dataclass
class Problem:
    """What every estimator works on."""

    score: Score
    x: Tensor
    x0: Tensor
    segments: Segments
    value: float
    reference_value: float
    before: Cost

    @property
    def delta(self) -> Tensor:
        return self.x - self.x0

    @property
    def size(self) -> int:
        return len(self.segments)

    def inputs(self, a: Tensor) -> Tensor:
        """x₀ + Σ a_s δ_s for (N, S) numbers."""
        return self.segments.at(self.x, self.x0, a)

    def line(self, t: Tensor) -> Tensor:
        """x₀ + t (x − x₀) for (N,) numbers."""
        return self.inputs(t.double()[:, None].expand(-1, self.size))

    def values(self, a: Tensor) -> Tensor:
        """g(a), float64: (N,); inputs are made in batches."""
        parts = [self.score.values(self.inputs(part)) for part in a.split(self.score.batch)]
        out = torch.cat(parts) if parts else torch.zeros(0, dtype=torch.float64)
        self._finite(out, a, "f")
        return out

    def gradients(self, a: Tensor) -> Tensor:
        """∂_s g(a), float64: (N, S)."""
        rows = []
        for part in a.split(self.score.batch):
            gradient = self.score.gradients(self.inputs(part))
            rows.append(self.segments.sum(gradient * self.delta).double().cpu())
        out = torch.cat(rows)
        self._finite(out.sum(1), a, "the gradient")
        return out

    def afford(self, passes: int, budget: int, cheaper: str) -> None:
        """Refuses what costs more than the budget, before any of it is computed."""
        if passes > budget:
            raise InputError(
                f"{self.size} segments would take {passes:,} passes through the model, the budget is {budget:,}; "
                f"{cheaper}, or raise it: budget={passes}"
            )

    def finish(
        self,
        method: str,
        coefficients: Sequence[Tensor],
        *,
        centre: float = 0.0,
        centre_value: float | None = None,
        reach: bool = False,
        check: bool = True,
        warnings: Sequence[str] = (),
        **rest: Any,
    ) -> Expansion:
        """The result: with trust radius where the coefficients are derivatives (`reach`), fidelity, cost."""
        if centre_value is None:
            ends = {0.0: self.reference_value, 1.0: self.value}
            at = torch.full((1, self.size), centre, dtype=torch.float64)
            centre_value = ends[centre] if centre in ends else float(self.values(at)[0])
        found = Expansion(
            method=method,
            value=self.value,
            reference_value=self.reference_value,
            coefficients=tuple(c.double().cpu() for c in coefficients),
            centre=centre,
            centre_value=centre_value,
            segments=self.segments,
            target=self.score.target,
            extra_warnings=tuple(warnings),
            **rest,
        )
        changes: dict[str, Any] = {}
        if check and reach:
            along = torch.tensor([float(c.sum()) for c in found.coefficients], dtype=torch.float64)
            changes["trust_radius"] = self.trust_radius(along, centre, found.tolerance)
        if check and not found.fidelity and self.size > 1 and found.coefficients:
            changes["fidelity"] = self.fidelity(found)
        changes["cost"] = self.score.cost - self.before
        return replace(found, **changes)

    def trust_radius(self, along: Tensor, centre: float, tolerance: float) -> Tensor:
        """Per order K: how far T_K(r) = Σ_{k≤K} c_k r^k stays within `tolerance` of what f changes by.

        Args:
            along: (K,): c_k = h^(k)(centre)/k! for h(t) = f(x₀ + t (x − x₀)).
            centre: 0, ½ or 1; the way leads to the other end, from ½ to both.
            tolerance: of |f(x₀ + …) − f(centre)|.

        Returns:
            (K,): parts of the way, 0 to 1; a lower bound by the grid's step (a fifth).
        """
        t = torch.tensor(PROFILE, dtype=torch.float64)
        ways = {0.0: [t], 1.0: [-t], 0.5: [t / 2, -t / 2]}[centre]
        start = float(self.line_values(torch.tensor([centre]))[0])
        radius = torch.ones(len(along), dtype=torch.float64)
        noise = 8 * torch.finfo(self.x.dtype).eps
        for way in ways:
            change = self.line_values(centre + way) - start
            predicted = torch.zeros_like(way)
            for k, c in enumerate(along):
                predicted = predicted + c * way ** (k + 1)
                allowed = tolerance * change.abs() + noise * (change + start).abs() + 1e-14 * change.abs().max()
                ok = ((predicted - change).abs() <= allowed).long().cumprod(0).bool()
                reached = float(t[ok][-1]) if bool(ok.any()) else 0.0
                radius[k] = min(float(radius[k]), reached)
        return radius

    def line_values(self, t: Tensor) -> Tensor:
        """h(t) = f(x₀ + t (x − x₀)): (N,)."""
        return self.values(t.double()[:, None].expand(-1, self.size))

    def fidelity(self, found: Expansion, count: int = HELD_OUT) -> dict[int, float]:
        """R² of the polynomial of each order on `count` inputs whose segments are present at random."""
        a = random_masks(count, self.size, seed=1)
        truth = self.values(a)
        spread = float(((truth - truth.mean()) ** 2).sum())
        if spread == 0:
            return {}
        return {k: 1 - float(((found.predict(a, k) - truth) ** 2).sum()) / spread for k in range(1, found.order + 1)}

    def _finite(self, values: Tensor, a: Tensor, what: str) -> None:
        bad = torch.nonzero(~torch.isfinite(values))
        if len(bad):
            raise non_finite(what, a[int(bad[0])])


def non_finite(what: str, a: Tensor) -> InputError:
    """Names the place on the path where something is NaN or Inf."""
    low, high = float(a.min()), float(a.max())
    where = (
        f"{low:.3g} of the way from the reference" if low == high else f"a = {[round(v, 3) for v in a.tolist()][:12]}"
    )
    return InputError(f"{what} is NaN or Inf at {where}; choose a reference from which the path stays in f's domain")


def random_masks(count: int, size: int, seed: int) -> Tensor:
    """(count, size) zeros and ones; the number of ones is uniform over 0..size."""
    generator = torch.Generator().manual_seed(seed)
    share = torch.randint(0, size + 1, (count, 1), generator=generator)
    rank = torch.rand(count, size, generator=generator).argsort(1).argsort(1)
    return (rank < share).double()


def pose(
    f: Model | Score,
    x: Tensor,
    reference: Any,
    groups: Any = None,
    target: Target | Callable[[Tensor], Tensor] = None,
) -> Problem:
    """The problem that a caller means, checked before any work."""
    before = Cost()
    if isinstance(x, Tensor) and x.is_inference():
        with torch.inference_mode(False):
            x = x.clone()
    if isinstance(f, Score):
        check_sample(f.model, x)
        score, before = f, f.cost
        value = score.value if x is score.x else float(score.values(x)[0])
    else:
        score = Score(f, x, target=target)
        value = score.value
    x = x.detach()
    segments = as_segments(groups, x)
    if x.is_floating_point() and not isinstance(reference, Tensor | list | tuple):
        reference = named_reference(x, reference, groups=segments)
    x0 = check_reference(x, reference)
    x0 = segments.reference(x, x0)
    if bool((x0 == x).all()):
        raise InputError("the reference equals the input in every segment, so there is nothing to decompose")
    reference_value = float(score.values(x0)[0])
    if not torch.isfinite(torch.tensor(reference_value)):
        raise non_finite("f", torch.zeros(1))
    return Problem(score, x, x0, segments, value, reference_value, before)


def centre_of(at: str) -> float:
    """0, 1 or ½ for "reference", "input", "middle"."""
    if at not in CENTRES:
        raise InputError(f"at={at!r} is none of {', '.join(map(repr, CENTRES))}")
    return CENTRES[at]
