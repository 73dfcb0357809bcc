"""Exact nearest roots in the input's own linear region, by lazy constraints.

    min ‖ξ − x‖²   such that   f(ξ) = 0,   ξ in the closed linear region of x,   ξ in the domain

All margins of a point come from one pass through the network held on its linear piece; only those that a candidate
violates become rows, by one backward pass each. When none is violated, the optimum of the few is that of all.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..composites import gradient_times_input
from ..errors import DeepTaylorError, DomainError, InputError, TargetError
from ..explainer import Explainer
from ..inputs import Model, batch_size
from ..targets import Target, resolve
from ..trace import Head
from .least_distance import Array, NoRoot, nearest, no_root
from .pieces import Pieces
from .replica import Replica

INSIDE = 1e-9
"""How far outside a margin may be, as a share of its layer's largest, for a candidate to be the answer."""
ADDED = 10
"""Margins of the network that become rows in one round, at first; later half as many as there are."""
ADDED_BOUNDS = 200
"""Bounds of the domain that become rows in one round."""
ROUNDS = 500
ROOM = 2**28
"""Most numbers that rows may take (2 GiB)."""

Domain = None | str | tuple[Any, Any]


@dataclass(frozen=True)
class ExactRoot:
    """The exact nearest root in the region, and the Taylor decomposition there; or proof that there is none."""

    point: Tensor
    """(N, …), float64: x̃; NaN where there is no root."""
    found: Tensor
    """(N,) booleans."""
    distance: Tensor
    """(N,): ‖x̃ − x‖."""
    relevance: Tensor
    """(N, …): ∇f·(x − x̃), whose sum is f(x), with no remainder: between x̃ and x the network is linear."""
    start_value: Tensor
    """(N,): f(x)."""
    proof: tuple[NoRoot | None, ...]
    """Where there is no root, why."""
    constraints: tuple[int, ...]
    """How many of the region's margins became rows."""
    rounds: tuple[int, ...]

    def __str__(self) -> str:
        lines = []
        for n, found in enumerate(self.found.tolist()):
            proof = self.proof[n]
            if found:
                told = f"root at distance {float(self.distance[n]):.4g}"
            else:
                told = f"no root in this region: |f| ≥ {abs(proof.bound):.4g} there" if proof else "no root"
            lines.append(f"sample {n}: f(x) = {float(self.start_value[n]):.4g}, {told}; {self.constraints[n]} rows")
        return "\n".join(lines)


def exact_nearest_root(
    f: Model,
    x: Tensor,
    *,
    target: Target = None,
    domain: Domain = None,
    head: Head | None = None,
) -> ExactRoot:
    """The exact nearest root of a piecewise linear network in the closed linear region of each input, in float64.

    Args:
        f: the network, in evaluation mode: (N, …) to (N, classes), (N, 1) or (N,).
        x: (N, …), floating.
        target: a class, one per sample or `contrast(a, b)`; by default the class predicted.
        domain: None (all reals), "positive" (ξ ≥ 0), or (low, high), which broadcast to one sample.
        head: picks (batch, classes) from the output.

    Raises:
        InputError: the network is not piecewise linear (the operations are named), or rows need more than 2 GiB.
        DomainError: x lies outside the domain.
        MissingExtra: scipy is not installed.
    """
    results = [_one(pieces, *_bounds(domain, pieces.x)) for pieces in pieces_of(f, x, target=target, head=head)]
    points = torch.cat([point for point, *_ in results])
    found = torch.tensor([proof is None for _, proof, *_ in results])
    origin, gradient = (torch.cat([getattr(r[-1], name) for r in results]) for name in ("x", "gradient"))
    return ExactRoot(
        point=points,
        found=found,
        distance=(points - origin).flatten(1).norm(dim=1),
        relevance=gradient * (origin - points),
        start_value=torch.tensor([r[-1].value for r in results], dtype=torch.float64),
        proof=tuple(proof for _, proof, *_ in results),
        constraints=tuple(rows for *_, rows, _, _ in results),
        rounds=tuple(rounds for *_, rounds, _ in results),
    )


def pieces_of(f: Model, x: Tensor, *, target: Target = None, head: Head | None = None) -> list[Pieces]:
    """The linear piece of each sample, as a function of the input.

    Raises:
        InputError: the network is not piecewise linear; names the operations.
    """
    explainer = Explainer(f, x, composite=gradient_times_input(), head=head)
    call = explainer._call(x, None)
    batch = batch_size(call, explainer._names(call))
    found = []
    for sample in range(batch):
        replica = Replica.of(explainer, call, sample, batch)
        pieces = replica.above(replica.explained, _weights(target, replica.values, replica, sample, batch))
        if not pieces.is_piecewise_linear:
            where = "; ".join(
                dict.fromkeys(f"{n.kind} in {n.module or 'the model'} ({n.file}:{n.line})" for n in pieces.smooth)
            )
            raise InputError(
                f"linear regions need a piecewise linear network; these operations are not, or their pieces are not "
                f"known: {where}"
            )
        found.append(pieces)
    return found


def _weights(target: Target, values: Any, replica: Replica, sample: int, batch: int) -> Tensor:
    """Weights of the outputs, whose sum is f."""
    output: Tensor = values[replica.graph.output.name]
    if output.dim() == 1 or output.shape[1:].numel() == 1:
        if target not in (None, 0):
            raise TargetError(f"target {target!r}: the network has one output per sample")
        return torch.ones_like(output)
    if isinstance(target, list | tuple | Tensor) and len(target) == batch:
        target = [int(target[sample])]
    seeds = resolve(target, output).seeds
    if len(seeds) != 1 or not seeds[0].product:
        raise TargetError("a root is one of one linear function of the outputs: pass a class or dt.contrast(a, b)")
    return seeds[0].tensor


def _bounds(domain: Domain, x: Tensor) -> tuple[Tensor, Tensor]:
    """Bounds of the domain, shaped like x."""
    if isinstance(domain, str):
        if domain != "positive":
            raise InputError(f'domain {domain!r}: pass None, "positive" or (low, high)')
        domain = (0.0, float("inf"))
    low, high = domain if domain is not None else (-float("inf"), float("inf"))
    bounds = [torch.as_tensor(bound, dtype=x.dtype).expand_as(x) for bound in (low, high)]
    if bool((x < bounds[0]).any()) or bool((x > bounds[1]).any()):
        raise DomainError(f"the input lies outside the domain: its values run from {x.min():g} to {x.max():g}")
    return bounds[0], bounds[1]


class Region:
    """The margins of a region and of a box around it, as one list."""

    def __init__(self, pieces: Pieces, low: Tensor, high: Tensor) -> None:
        self.pieces, self.low, self.high = pieces, low.flatten(), high.flatten()
        self.at_x = self.margins(pieces.x)

    @cached_property
    def scale(self) -> Tensor:
        """What a violation is measured against."""
        parts = [torch.full((m[0].numel(),), self.pieces.scales[n]) for n, m in self.pieces.margins_at_x.items()]
        bounds = torch.full((2 * self.pieces.x.numel(),), float(self.pieces.x.abs().max().clamp(min=1e-300)))
        return torch.cat([*parts, bounds]).double()

    def margins(self, point: Tensor) -> Tensor:
        """All margins at a point: those of the network, then ξ − low, then high − ξ."""
        with torch.no_grad():
            own = self.pieces.margins(point)[0]
        flat = point.flatten()
        return torch.cat([own, flat - self.low, self.high - flat])

    def rows(self, indices: list[int]) -> Array:
        """Gradients of some of the margins."""
        count, n = len(self.at_x) - 2 * len(self.low), len(self.low)
        own = [i for i in indices if i < count]
        rows = np.zeros((len(indices), n))
        if own:
            places = [k for k, i in enumerate(indices) if i < count]
            rows[places] = self.pieces.rows(torch.tensor(own)).numpy()
        for k, i in enumerate(indices):
            if i >= count:
                rows[k, (i - count) % n] = 1.0 if i < count + n else -1.0
        return rows

    def worst(self, margins: Tensor, known: set[int]) -> list[int]:
        """The most violated margins that are not rows yet."""
        count = len(margins) - 2 * len(self.low)
        relative = torch.where(torch.isfinite(margins), margins / self.scale, 1.0)
        chosen: list[int] = []
        for start, stop, most in ((0, count, max(ADDED, len(known) // 2)), (count, len(margins), ADDED_BOUNDS)):
            part = relative[start:stop]
            bad = (part < -INSIDE).nonzero()[:, 0]
            order = bad[part[bad].argsort()][: most + len(known)]
            chosen += [i for i in (order + start).tolist() if i not in known][:most]
        return chosen


def _one(pieces: Pieces, low: Tensor, high: Tensor) -> tuple[Tensor, NoRoot | None, int, int, Pieces]:
    """(root or NaN, proof that there is none, rows, rounds, pieces) of one sample."""
    value, x = pieces.value, pieces.x
    if value == 0:
        return x, None, 0, 0, pieces
    gradient = pieces.gradient.flatten().numpy()
    region = Region(pieces, low, high)
    nowhere = torch.full_like(x, float("nan"))
    indices: list[int] = []
    rows, offsets = np.zeros((0, x.numel())), np.zeros(0)
    for round_ in range(1, ROUNDS + 1):
        step = None if not gradient.any() else nearest(gradient, value, rows, offsets)
        if step is None:
            proof = no_root(gradient, value, rows, offsets, tuple(indices))
            if proof is None or not proof.holds:
                raise DeepTaylorError(
                    "rounding hides whether this region holds a root: the nearest one lies very far away, or the "
                    f"constraints nearly exclude it ({len(indices)} rows)"
                )
            return nowhere, proof, len(indices), round_, pieces
        point = x + torch.from_numpy(step).view_as(x)
        new = region.worst(region.margins(point), set(indices))
        if not new:
            return point, None, len(indices), round_, pieces
        if (len(indices) + len(new)) * x.numel() > ROOM:
            raise InputError(
                f"{len(indices) + len(new)} constraints on {x.numel()} inputs need more than 2 GiB; "
                "leave the domain out, or explain a smaller input"
            )
        indices += new
        rows = np.vstack([rows, region.rows(new)])
        offsets = np.concatenate([offsets, region.at_x[new].numpy()])
    raise DeepTaylorError(f"no optimum within {ROUNDS} rounds ({len(indices)} rows); please report this network")
