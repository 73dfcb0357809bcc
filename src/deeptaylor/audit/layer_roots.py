"""Certificates of one layer: the roots that its rule expands at, and where they lie.

With q_ij = R_{i←j}/R_j the root of neuron j is x̃_i = x_i − z_j q_ij / w_ij (see `deeptaylor.roots`); q comes from the
rule itself, so that nothing is written twice. The network above the layer's input says in which region x̃ lies.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..plan import Assignment
from ..rules import Relevance, Rule, ZBox
from ..step import Step
from .certificates import LayerCertificate
from .pieces import Pieces

EXACT = 1e-6
"""Largest |Σ q − 1| of a root that counts as exact."""
CLOSED = 1e-6
"""How far outside a margin may be, as a share of its layer's largest, for a point to count as inside."""
POINTS = 4
"""Points that pass through the network above together: memory."""

Box = tuple[Tensor | float, Tensor | float]


@dataclass(frozen=True)
class Roots:
    """Root points of some neurons of one layer, for one sample."""

    neurons: Tensor
    """(n,) flat indices into z."""
    points: Tensor
    """(n, …): x̃."""
    z: Tensor
    """(n,): pre-activations."""
    kept_back: Tensor
    """(n,): 1 − Σ q."""
    left: Tensor
    """(n,): w·x̃ + b."""
    bias: Tensor
    """(n,): b."""


def roots_of(rule: Rule, step: Step, neurons: Tensor, leads: bool = True) -> Roots:
    """The roots of the rule's own messages.

    Args:
        rule: an affine rule.
        step: an affine step of one sample.
        neurons: flat indices into `step.z`.
        leads: whether the first axis of `step.x` is the batch, which points then lack.
    """
    assert step.affine is not None
    z = step.z.flatten()[neurons]
    bias = torch.zeros(()) if step.affine.bias is None else step.affine.bias
    points, given, left = [], [], []
    for neuron, value in zip(neurons.tolist(), z, strict=True):
        seed = torch.zeros_like(step.z)
        seed.view(-1)[neuron] = 1.0
        (message,) = rule(step, Relevance(seed)).messages
        assert message is not None
        q = message.total(step.x)
        weight = step.affine.transpose(seed, step.affine.weight).expand_as(step.x)
        moved = torch.where(weight == 0, 0.0, value * q / weight.masked_fill(weight == 0, 1.0))
        points.append((step.x - moved)[0] if leads else step.x - moved)
        given.append(q.sum())
        left.append(value - (weight * moved).sum())
    return Roots(
        neurons,
        torch.stack(points),
        z,
        1 - torch.stack(given),
        torch.stack(left),
        bias.to(step.z).expand_as(step.z).flatten()[neurons],
    )


def carriers(relevance: Tensor, limit: int, generator: torch.Generator) -> tuple[Tensor, int]:
    """(neurons that carry relevance, at most `limit` of them drawn at random; how many there are)."""
    found = relevance.flatten().nonzero()[:, 0]
    count = len(found)
    if count > limit:
        found = found[torch.randperm(count, generator=generator)[:limit]].sort().values
    return found, count


def certificate(
    sample: int,
    assignment: Assignment,
    step: Step,
    found: tuple[Tensor, int],
    above: Pieces,
    box: Box | None,
) -> LayerCertificate:
    """What holds for the roots of one layer.

    Args:
        sample: number of the sample in its batch.
        assignment: the layer and its rule.
        step: what it saw.
        found: neurons to look at, and how many carry relevance.
        above: the network above the layer's input, as a function of it.
        box: bounds of the explained input, where this layer reads it.
    """
    neurons, count = found
    node, rule = assignment.place.node, assignment.rule
    roots = roots_of(rule, step, neurons, above.leads)
    size = roots.z.abs().clamp(min=1e-300)
    domain, low, high = _domain(step, rule, box if assignment.place.first else None)
    outside = _outside(roots.points, step.x, low, high)
    is_outside = outside > CLOSED
    place = _where(roots.points, above)
    remainder, change = (None, None) if place is not None else _beyond_first_order(roots.points, above)
    n = len(neurons)
    return LayerCertificate(
        sample=sample,
        name=node.name,
        op=node.short,
        module=node.module,
        source=f"{node.file}:{node.line}" if node.file else "",
        rule=str(rule),
        neurons=count,
        sampled=n,
        error=math.sqrt(0.25 / n * (count - n) / max(count - 1, 1)),
        exact=_share(roots.kept_back.abs() <= EXACT),
        kept_back=float(roots.kept_back.abs().max()),
        identity=float(((roots.left - roots.z * roots.kept_back).abs() / size).max()),
        domain=domain,
        in_domain=None if domain == "R^d" else _share(~is_outside),
        outside=float(outside.max()),
        positive_biases=int((is_outside & (roots.bias > 0)).sum()),
        in_region=None if place is None else _share(place[0]),
        boundary=None if place is None else float(place[1].median()),
        distance=float(((roots.points - step.x).flatten(1).norm(dim=1) / step.x.norm().clamp(min=1e-300)).median()),
        remainder=remainder,
        gradient_change=change,
    )


def _share(values: Tensor) -> float:
    return float(values.double().mean())


def _domain(step: Step, rule: Rule, box: Box | None) -> tuple[str, Tensor | float | None, Tensor | float | None]:
    """What the layer's inputs are known to lie in: the rule's own box, the user's, R₊, or anything."""
    if isinstance(rule, ZBox):
        low, high = step.memo.get("box", lambda: rule._box(step))
        return "box", low, high
    if box is not None:
        return "box", *box
    return ("R+", 0.0, None) if step.nonnegative else ("R^d", None, None)


def _outside(points: Tensor, x: Tensor, low: Tensor | float | None, high: Tensor | float | None) -> Tensor:
    """(n,): how far each point lies outside the domain, as a share of the largest input."""
    worst = torch.zeros(len(points), dtype=points.dtype)
    for bound, sign in ((low, 1.0), (high, -1.0)):
        if bound is not None:
            value = bound.to(points) if isinstance(bound, Tensor) else bound
            worst = torch.maximum(worst, (sign * (value - points)).flatten(1).amax(1))
    return worst / x.abs().max().clamp(min=1e-300)


def _where(points: Tensor, above: Pieces) -> tuple[Tensor, Tensor] | None:
    """(whether each point is in the closed region of x, first boundary on the way to it, the way being 1)."""
    if not above.is_piecewise_linear:
        return None
    inside = torch.ones(len(points), dtype=torch.bool)
    speed = torch.zeros(len(points), dtype=torch.float64)
    at_x = {name: margins.flatten(1) for name, margins in above.margins_at_x.items()}
    inverse = {name: 1 / here.clamp(min=1e-300) for name, here in at_x.items()}
    part = slice(0, 0)

    def see(name: str, margins: Tensor) -> None:
        there = margins.flatten(1)
        inside[part] &= there.amin(1) >= -CLOSED * above.scales[name]
        # a margin m is used up at t = m/(m − m'), so the first boundary is where (m − m')/m is largest
        speed[part] = torch.maximum(speed[part], ((at_x[name] - there) * inverse[name]).amax(1))

    with torch.no_grad():
        for start in range(0, len(points), POINTS):
            part = slice(start, start + POINTS)
            above.run(points[part], see)
    return inside, 1 / speed


def _beyond_first_order(points: Tensor, above: Pieces) -> tuple[float, float]:
    """Medians of the first-order remainder of the network itself, and of the change of its gradient on the way."""
    remainders, changes = [], []
    size = max(abs(above.value), 1e-300)
    slope = max(float(above.gradient.norm()), 1e-300)
    for chunk in points.split(POINTS):
        with torch.no_grad():
            there = above.run(chunk, real=True)
            along = ((chunk - above.start) * above.gradient).flatten(1).sum(1)
            remainders.append((there - above.value - along).abs() / size)
        # half-way, and just before the root: a ReLU at exactly 0 has two derivatives
        ways = [above.start + t * (chunk - above.start) for t in (0.5, 1 - 1e-6)]
        at = torch.stack([(above.gradients(way, real=True) - above.gradient).flatten(1).norm(dim=1) for way in ways])
        changes.append(at.amax(0) / slope)
    return float(torch.cat(remainders).median()), float(torch.cat(changes).median())
