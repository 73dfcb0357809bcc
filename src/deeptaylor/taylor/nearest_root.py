"""Nearest roots: the point closest to x at which the explained score, or its margin, is zero.

    min ‖ξ − x‖²   such that   s(ξ) = 0,   ξ in the domain                        (Montavon et al. 2017, section 2.2)

Three searches, of all samples at once:

* tangents: the next point is the nearest one to x, within the domain, on the tangent plane at the last; a step is as
  long as ‖ξ − x‖²/2 + μ|s(ξ)| falls (sequential quadratic programming with an exact penalty);
* any root: the same with the nearest point to the last one, which moves on until the sign changes;
* line search: bracketing on a segment from x, which ends at a root whatever the function looks like; from there the
  segment is turned towards the tangent plane's nearest point as long as its root comes closer.

The result is a local optimum; for piecewise linear networks the audit has exact ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import DomainError, InputError, TargetError
from ..inputs import Model
from ..origin import plain_torch
from .pure import Function, check_batch, pure
from .result import Cost

ROOT = 1e-6
"""|s(ξ)| / |s(x)| up to which a point where the sign has changed is called a root."""
ALL = "all reals"
Domain = None | str | tuple[Any, Any]


@dataclass(frozen=True)
class Root:
    """The nearest root found of each sample, and whether it is one."""

    point: Tensor
    """ξ, like x. Where `found` is False: the point of smallest |s| that was met, which is no root."""
    found: Tensor
    """(N,) booleans: s reaches 0 there, to rounding; a value that s only approaches does not count."""
    value: Tensor
    """(N,): s(ξ), the reference's value f(x₀)."""
    start_value: Tensor
    """(N,): s(x)."""
    distance: Tensor
    """(N,): ‖ξ − x‖."""
    alignment: Tensor
    """(N,): cosine between x − ξ and ±∇s(ξ), where the domain leaves room; 1 at a nearest root of a smooth function."""
    relevance: Tensor
    """∇s(ξ)·(x − ξ), like x: Taylor decomposition of order 1 at the root."""
    cost: Cost
    domain: str
    of: str

    @property
    def residual(self) -> Tensor:
        """(N,): s(x) − s(ξ) − Σ relevance."""
        return self.start_value - self.value - self.relevance.flatten(1).sum(1)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What has to be known before using these points."""
        missed = (~self.found).nonzero().flatten().tolist()
        if not missed:
            return ()
        worst = missed[0]
        return (
            f"no root was found for sample{'s' if len(missed) > 1 else ''} {', '.join(map(str, missed[:8]))}: at the "
            f"reference of sample {worst} the {self.of} is {float(self.value[worst]):.4g} (at x: "
            f"{float(self.start_value[worst]):.4g}), so it is no root within {self.domain}",
        )

    def __str__(self) -> str:
        lines = [
            f"sample {n}: {'root' if found else 'NO root'} of the {self.of}, f(x₀) = {value:.4g}, f(x) = {start:.4g}, "
            f"distance {distance:.4g}, alignment {alignment:.4f}"
            for n, (found, value, start, distance, alignment) in enumerate(
                zip(
                    self.found.tolist(), self.value.tolist(), self.start_value.tolist(), self.distance.tolist(),
                    self.alignment.tolist(), strict=True,
                )
            )
        ]  # fmt: skip
        return "\n".join(
            [*lines, f"  within {self.domain}; cost: {self.cost}", *(f"  warning: {w}" for w in self.warnings)]
        )


def nearest_root(
    f: Model,
    x: Tensor,
    *,
    target: Any = None,
    margin: bool = False,
    domain: Domain = None,
    steps: int = 30,
) -> Root:
    """The nearest root of the target's score, or of its margin over the best other class.

    Args:
        f: the model, in evaluation mode: (N, ...) to (N, classes), (N, 1) or (N,).
        x: (N, ...), floating; float64 gives roots to more digits.
        target: a class index or one per sample; by default the class predicted at x.
        margin: whether the root is that of score − best other score, a point of the decision boundary.
        domain: None (all reals), "positive" (ξ ≥ 0), or (low, high), numbers or tensors that broadcast to x.
        steps: gradients at most in each of the six searches by tangents.

    Returns:
        A `Root`; where none was found it says so in `found`, in `warnings` and when printed.

    Raises:
        InputError: integer or non-finite input, a model in training mode, a score without gradient.
        DomainError: x lies outside the domain.
    """
    with plain_torch(), torch.random.fork_rng(devices=[]):
        search = _Search(pure(f), check_batch(x), target, margin, domain)
        ends = [
            search.descend(search.x, steps, anchored=True),
            search.downhill(),
            search.descend(search.x, steps, anchored=False),
            search.looked_for(),
        ]
        # Roots that are touched and not crossed are known by their values alone; without biases 0 is one.
        zero = torch.zeros_like(search.x).clamp(search.low, search.high)
        found = [(end, search.score(end)) for end in (ends[0], ends[2], zero)]
        for end in ends:
            root, value = search.on_segment(end)
            closer = search.on_segment(search.descend(root, steps, anchored=True))
            root = search.turn(search.best([(root, value), closer]))
            found.append((root, search.score(root)))
        return search.result(search.best(found[::-1]))


class _Search:
    """One batch's score, domain and count of passes."""

    def __init__(self, f: Function, x: Tensor, target: Any, margin: bool, domain: Domain) -> None:
        self.f, self.x, self.margin = f, x, margin
        self.forwards = self.gradients = 0
        self.low, self.high, self.domain = _box(domain, self.x)
        with torch.no_grad():
            self.index = _classes(f(self.x), target, margin)
        self.of = "margin" if margin else "score"
        self.start, self.slope = self.gradient(self.x)
        if not bool(torch.isfinite(self.start).all()):
            raise InputError("the score at x is NaN or Inf")
        self.size = self.start.abs()
        self.sign = torch.where(self.start < 0, -1.0, 1.0).to(x)

    def wide(self, per_sample: Tensor) -> Tensor:
        return per_sample.view(-1, *[1] * (self.x.dim() - 1))

    def score(self, points: Tensor) -> Tensor:
        self.forwards += len(points)
        with torch.no_grad():
            return self._score(points)

    def gradient(self, points: Tensor) -> tuple[Tensor, Tensor]:
        self.gradients += len(points)
        with torch.enable_grad():
            leaf = points.detach().requires_grad_()
            score = self._score(leaf)
            if not score.requires_grad:
                raise InputError("the score has no gradient with respect to x: the model must compute it from x")
            (slope,) = torch.autograd.grad(score.sum(), leaf)
        return score.detach(), slope

    def _score(self, points: Tensor) -> Tensor:
        output = self.f(points)
        if self.index is None:
            return output.reshape(len(points))
        own = output.gather(1, self.index[:, None])[:, 0]
        if not self.margin:
            return own
        others = output.scatter(1, self.index[:, None], float("-inf"))
        return own - others.amax(1)

    def is_root(self, value: Tensor) -> Tensor:
        """Zero, to rounding on the side of x and to a millionth beyond."""
        value = value * self.sign
        return (value <= 8 * torch.finfo(value.dtype).eps * self.size) & (value >= -ROOT * self.size)

    def project(self, anchor: Tensor, normal: Tensor, offset: Tensor) -> tuple[Tensor, Tensor]:
        """The nearest point to `anchor` in the domain with normal·ξ = offset, and the multiplier; takes no pass.

        A plane that misses the domain gives the corner of the domain that is closest to it.
        """

        def point(multiplier: Tensor) -> Tensor:
            return (anchor - self.wide(multiplier) * normal).clamp(self.low, self.high)

        def excess(multiplier: Tensor) -> Tensor:
            return (normal * point(multiplier)).flatten(1).sum(1) - offset

        squared = (normal * normal).flatten(1).sum(1)
        guess = excess(torch.zeros_like(offset)) / squared.clamp(min=torch.finfo(squared.dtype).tiny)
        if self.domain == ALL:
            return point(guess), guess
        near, far = torch.zeros_like(guess), guess
        for _ in range(40):
            short = excess(far) * guess.sign() > 0
            if not bool(short.any()):
                break
            near, far = torch.where(short, far, near), torch.where(short, 2 * far, far)
        for _ in range(60):
            middle = (near + far) / 2
            short = excess(middle) * guess.sign() > 0
            near, far = torch.where(short, middle, near), torch.where(short, far, middle)
        return point(far), far

    def descend(self, start: Tensor, steps: int, *, anchored: bool) -> Tensor:
        """The points that tangents lead to from `start`, near x if `anchored`; else those where the sign changed."""
        here = start.clone()
        value, slope = (self.start, self.slope) if start is self.x else self.gradient(here)
        penalty, share = torch.zeros_like(value), torch.ones_like(value)
        for _ in range(steps):
            aim, multiplier = self.project(
                self.x if anchored else here, slope, (slope * here).flatten(1).sum(1) - value
            )
            penalty = torch.maximum(penalty, 2 * multiplier.abs())
            step = (aim - here).flatten(1).norm(dim=1)
            if anchored:
                done = (value.abs() <= ROOT * self.size) & (step <= 1e-7 * (here - self.x).flatten(1).norm(dim=1)) | (
                    share < 1e-4
                )
            else:
                done = value * self.sign <= 0
            done = done | (slope.flatten(1).norm(dim=1) == 0)
            if bool(done.all()):
                break
            # Past a root by a tenth: Newton's steps stop short of it where the function is convex.
            reach = self.wide(share if anchored else torch.full_like(share, 1.1))
            trial = torch.where(self.wide(done), here, here + reach * (aim - here)).clamp(self.low, self.high)
            trial_value, trial_slope = self.gradient(trial)
            finite = torch.isfinite(trial_value) & torch.isfinite(trial_slope).flatten(1).all(1)
            better = finite
            if anchored:
                better = finite & (self._merit(trial, trial_value, penalty) < self._merit(here, value, penalty))
            here = torch.where(self.wide(better), trial, here)
            value = torch.where(better, trial_value, value)
            slope = torch.where(self.wide(better), trial_slope, slope)
            share = torch.where(better, (2 * share).clamp(max=1), share / 2)
        return here

    def _merit(self, points: Tensor, value: Tensor, penalty: Tensor) -> Tensor:
        return (points - self.x).flatten(1).square().sum(1) / 2 + penalty * value.abs()

    def downhill(self) -> Tensor:
        """Far points on the way down the gradient at x: four times as far as the tangent's root, within the domain."""
        squared = self.slope.flatten(1).square().sum(1).clamp(min=1e-30)
        return (self.x - self.wide(4 * self.start / squared) * self.slope).clamp(self.low, self.high)

    def looked_for(self, looks: int = 48) -> Tensor:
        """The nearest point of another sign among random ones: within a box uniform, else around x; x where none is."""
        chance = torch.Generator(self.x.device).manual_seed(0)
        nearest, chosen = torch.full_like(self.start, float("inf")), self.x
        reach = 4 * self.size / self.slope.flatten(1).norm(dim=1).clamp(min=1e-30) / self.x[0].numel() ** 0.5
        bounded = torch.isfinite(self.low) & torch.isfinite(self.high)
        for _ in range(looks):
            noise = torch.randn(self.x.shape, generator=chance, dtype=self.x.dtype, device=self.x.device)
            within = torch.rand(self.x.shape, generator=chance, dtype=self.x.dtype, device=self.x.device)
            around = (self.x + self.wide(reach) * noise).clamp(self.low, self.high)
            point = torch.where(bounded, self.low + within * (self.high - self.low), around).nan_to_num()
            distance = (point - self.x).flatten(1).norm(dim=1)
            better = (self.score(point) * self.sign <= 0) & (distance < nearest)
            nearest, chosen = torch.where(better, distance, nearest), torch.where(self.wide(better), point, chosen)
        return chosen

    def on_segment(self, end: Tensor) -> tuple[Tensor, Tensor]:
        """The first root that eight looks find on the segment from x to a quarter beyond `end`; else `end`.

        Between two looks of different sign: false position, with bisection in every third step.
        """
        beyond = (self.x + 1.25 * (end - self.x)).clamp(self.low, self.high)
        near, near_value = torch.zeros_like(self.start), self.size
        far, far_value = torch.full_like(near, float("nan")), torch.zeros_like(near)
        for t in torch.linspace(0, 1, 9)[1:].tolist():
            value = self.score(self.x + t * (beyond - self.x)) * self.sign
            before, here = far.isnan() & (value > 0), far.isnan() & (value <= 0)
            near, near_value = torch.where(before, t, near), torch.where(before, value, near_value)
            far, far_value = torch.where(here, t, far), torch.where(here, value, far_value)
        crossed = ~far.isnan()
        exact = 4 * torch.finfo(near.dtype).eps
        for k in range(120):
            width = far - near
            if bool((~crossed | (far_value.abs() <= exact * self.size) | (width <= exact * far)).all()):
                break
            cut = near + width * (near_value / (near_value - far_value)).clamp(0.01, 0.99)
            middle = near + width / 2 if k % 3 == 2 else cut
            value = self.score(self.x + self.wide(middle.nan_to_num()) * (beyond - self.x)) * self.sign
            before = value > 0
            near, near_value = torch.where(before, middle, near), torch.where(before, value, near_value)
            far, far_value = torch.where(before, far, middle), torch.where(before, far_value, value)
        point = torch.where(self.wide(crossed), self.x + self.wide(far.nan_to_num()) * (beyond - self.x), end)
        return point, self.score(point)

    def turn(self, best: Tensor, rounds: int = 12) -> Tensor:
        """Roots on segments that are turned towards the nearest point of the tangent plane, while they come closer."""
        share = torch.ones_like(self.start)
        for _ in range(rounds):
            value, slope = self.gradient(best)
            aim, _ = self.project(self.x, slope, (slope * best).flatten(1).sum(1) - value)
            step, way = (aim - best).flatten(1).norm(dim=1), (best - self.x).flatten(1).norm(dim=1)
            if bool((~self.is_root(value) | (step <= 1e-6 * way) | (share < 0.01)).all()):
                break
            end, value = self.on_segment(best + self.wide(share) * (aim - best))
            closer = self.is_root(value) & ((end - self.x).flatten(1).norm(dim=1) < way * (1 - 1e-9))
            best = torch.where(self.wide(closer), end, best)
            share = torch.where(closer, share, share / 2)
        return best

    def best(self, candidates: list[tuple[Tensor, Tensor]]) -> Tensor:
        """Of each sample the nearest candidate that is a root, or the one of smallest |s|."""
        best = torch.full_like(self.start, float("inf"))
        chosen = self.x.clone()
        far = 2 * max(float((point - self.x).flatten(1).norm(dim=1).max()) for point, _ in candidates) + 1
        for point, value in candidates:
            distance = (point - self.x).flatten(1).norm(dim=1)
            # Any root comes before any point that is none.
            cost = torch.where(self.is_root(value), distance, far * (1 + value.abs() / self.size.clamp(min=1e-30)))
            better = cost < best * (1 - 1e-5)
            best, chosen = torch.where(better, cost, best), torch.where(self.wide(better), point, chosen)
        return torch.where(self.wide(self.start == 0), self.x, chosen)

    def result(self, point: Tensor) -> Root:
        value, slope = self.gradient(point)
        # Just behind a root the sign has changed; where it has not, zero was only approached, as by softplus.
        ahead = (point + torch.finfo(point.dtype).eps ** 0.5 * (point - self.x)).clamp(self.low, self.high)
        behind = (self.score(ahead) * self.sign <= 0) | (ahead == point).flatten(1).all(1) | (value == 0)
        # A root on a hinge has no single gradient, and torch's may be 0: take the one on the side of x.
        dead = slope.flatten(1).norm(dim=1) == 0
        if bool((dead & (self.size > 0)).any()):
            beside = self.gradient(point + 1e-6 * (self.x - point))[1]
            slope = torch.where(self.wide(dead), beside, slope)
        step = self.x - point
        free = (point > self.low) & (point < self.high)
        inner, outer = (slope * free).flatten(1), (step * free).flatten(1)
        cosine = torch.nn.functional.cosine_similarity(inner, outer, dim=1) * self.sign
        return Root(
            point=point,
            found=self.is_root(value) & behind,
            value=value,
            start_value=self.start,
            distance=step.flatten(1).norm(dim=1),
            alignment=cosine,
            relevance=slope * step,
            cost=Cost(forwards=self.forwards, gradients=self.gradients),
            domain=self.domain,
            of=self.of,
        )


def _box(domain: Domain, x: Tensor) -> tuple[Tensor, Tensor, str]:
    if domain is None:
        low, high, name = float("-inf"), float("inf"), ALL
    elif domain == "positive":
        low, high, name = 0.0, float("inf"), "ξ ≥ 0"
    elif isinstance(domain, tuple) and len(domain) == 2:
        low, high = domain
        name = f"[{low}, {high}]" if not isinstance(low, Tensor) and not isinstance(high, Tensor) else "the given box"
    else:
        raise InputError(f"domain {domain!r} is not known: pass None, 'positive', or (low, high)")
    try:
        lower, upper = (torch.as_tensor(end).to(x).expand(x.shape) for end in (low, high))
    except RuntimeError as error:
        raise InputError(f"the domain's ends do not broadcast to the input {tuple(x.shape)}") from error
    if bool((lower > upper).any()):
        raise InputError("the domain is empty: low is above high")
    if bool(((x < lower) | (x > upper)).any()):
        raise DomainError(
            f"x lies outside the domain {name}: its values go from {float(x.min()):.4g} to {float(x.max()):.4g}"
        )
    return lower, upper, name


def _classes(output: Tensor, target: Any, margin: bool) -> Tensor | None:
    """Class index per sample; None where the model has one output."""
    if not isinstance(output, Tensor) or output.dim() not in (1, 2):
        shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise InputError(f"f must give (N, classes) or (N,), not {shape}")
    if output.dim() == 1 or output.shape[1] == 1:
        if target not in (None, 0) or margin:
            raise TargetError("f has one output: there is no other class to choose or to have a margin over")
        return None
    classes = output.shape[1]
    index = output.argmax(1) if target is None else torch.as_tensor(target, device=output.device)
    if index.is_floating_point() or index.dtype == torch.bool or index.dim() > 1:
        raise TargetError(f"target {target!r} is no class index, nor one per sample")
    index = index.expand(len(output)) if index.dim() == 0 else index
    if len(index) != len(output) or int(index.min()) < -classes or int(index.max()) >= classes:
        raise TargetError(f"target {target!r} does not fit {len(output)} samples with {classes} classes")
    return index % classes
