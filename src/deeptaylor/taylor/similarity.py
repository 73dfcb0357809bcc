"""Which parts of x and y make φ(x) and φ(y) similar: s(x, y) = ⟨φ(x), φ(y)⟩ as a product of two thin matrices.

Any complete attribution A of the *vector* φ(x) − φ(x₀) (S × M, column sums φ(x) − φ(x₀)), and B of φ(y) − φ(y₀), give

    R = A Bᵀ,    Σ R = ⟨φ(x) − φ(x₀), φ(y) − φ(y₀)⟩,

so that R never has to be formed at the size pixels × pixels. BiLRP (Eberle et al. 2020) takes LRP for A and B; the
integrated Jacobian (Moeller et al. 2023) is ∫ J(x₀ + tδ) δ_s dt. The latter is made in forward mode: one tangent per
segment gives all M outputs at once, where backward passes need M.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import InputError, MissingExtra
from ..explainer import Explainer
from ..inputs import Model
from ..origin import plain_torch
from .pure import Function, check_batch, pure
from .references import Kind, reference
from .result import RESIDUAL, Cost
from .safe import safe_mode
from .segments import Segments, as_segments

METHODS = ("integrated", "gradient", "shapley", "lrp")
NORMS = ("none", "frozen", "full")
MAX_NODES = 64


@dataclass(frozen=True)
class Similarity:
    """s(x, y) shared out among pairs of one segment of x and one of y, as factors."""

    A: Tensor
    """(S, M), float64: what each segment of x gives to each entry of φ(x), divided by |φ(x)| where norms are used."""
    B: Tensor
    """(T, M): the same of y."""
    value: float
    """s(x, y)."""
    explained_value: float
    """⟨φ(x) − φ(x₀), φ(y) − φ(y₀)⟩, over the norms: what complete factors add up to."""
    segments_x: Segments
    segments_y: Segments
    method: str
    norm: str
    nodes: tuple[int, int]
    """Nodes of the path integrals of x and y; 0 without one."""
    cost: Cost
    notes: tuple[str, ...] = ()
    """What was chosen and why."""

    @property
    def explained(self) -> float:
        """Σ R, from the factors alone."""
        return float(self.A.sum(0) @ self.B.sum(0))

    @property
    def residual(self) -> float:
        """What the pairs miss of `explained_value`."""
        return self.explained_value - self.explained

    @property
    def relative_residual(self) -> float:
        """|residual| / |explained_value|."""
        return abs(self.residual) / abs(self.explained_value) if self.explained_value else float("inf")

    @property
    def references_part(self) -> float:
        """s(x, y) − `explained_value`: the part of the similarity that the references have to do with."""
        return self.value - self.explained_value

    @property
    def warnings(self) -> tuple[str, ...]:
        """What has to be known before believing the pairs."""
        found = []
        if self.relative_residual > RESIDUAL:
            cure = "method='integrated'" if self.method != "integrated" else "more nodes"
            found.append(
                f"the pairs add up to {self.explained:.4g}, not to {self.explained_value:.4g}: they leave "
                f"{self.relative_residual:.0%} unexplained; take {cure}"
            )
        size = float(self.matrix().abs().sum())
        if size > 3 * abs(self.explained_value):
            found.append(
                f"pairs cancel: their sizes add up to {size:.4g} for {self.explained_value:.4g}; single pairs are not "
                "shares of the similarity"
            )
        return tuple(found)

    def matrix(self) -> Tensor:
        """(S, T): R. Segments, not pixels: for many of them use `top` or the factors."""
        return self.A @ self.B.T

    def top(self, k: int = 10, chunk: int = 1024) -> list[tuple[tuple[str, str], float]]:
        """The k largest pairs by size, with names; takes memory for `chunk` rows of R at a time."""
        best = torch.zeros(0, dtype=self.A.dtype)
        places = torch.zeros(0, dtype=torch.long)
        for start in range(0, len(self.A), chunk):
            rows = (self.A[start : start + chunk] @ self.B.T).flatten()
            values = torch.cat([best, rows])
            index = torch.cat([places, torch.arange(len(rows)) + start * len(self.B)])
            kept = values.abs().topk(min(k, len(values))).indices
            best, places = values[kept], index[kept]
        return [
            ((self.segments_x.names[p // len(self.B)], self.segments_y.names[p % len(self.B)]), float(value))
            for p, value in zip(places.tolist(), best, strict=True)
        ]

    def to_frame(self) -> Any:
        """R as a pandas table: segments of x down, those of y across."""
        try:
            import pandas
        except ImportError as error:
            raise MissingExtra("tables need pandas", "tables") from error
        return pandas.DataFrame(self.matrix().numpy(), index=self.segments_x.names, columns=self.segments_y.names)

    def plot(self, **options: Any) -> Any:
        """A matplotlib figure: the strongest pairs as lines between the two inputs' segments."""
        from .pictures import between

        return between(self, **options)

    def __str__(self) -> str:
        lines = [
            f"similarity {self.value:.6g} ({self.method}, norm {self.norm}); of that, from references "
            f"{self.references_part:.4g}; pairs {self.explained:.6g}, residual {self.residual:.2g}"
        ]
        lines += [f"  {a} · {b}: {value:+.4g}" for (a, b), value in self.top(5)]
        lines += [f"  cost: {self.cost}", *(f"  note: {text}" for text in self.notes)]
        return "\n".join([*lines, *(f"  warning: {text}" for text in self.warnings)])


def similarity(
    phi: Model,
    x: Tensor,
    y: Tensor,
    *,
    groups_x: Any = None,
    groups_y: Any = None,
    reference_x: Kind = "zero",
    reference_y: Kind = "zero",
    method: str = "integrated",
    norm: str = "frozen",
    nodes: int | None = None,
    rtol: float = 0.01,
    kwargs_x: Mapping[str, Any] | None = None,
    kwargs_y: Mapping[str, Any] | None = None,
    head: Callable[[Any], Tensor] | None = None,
    composite: Any = "auto",
    permutations: int = 32,
    chunk: int = 32,
) -> Similarity:
    """The similarity of two inputs, shared out among pairs of their segments.

    Args:
        phi: the encoder, in evaluation mode: (N, ...) to (N, M).
        x: (1, ...), floating; of texts, embeddings.
        y: (1, ...); may have another shape.
        groups_x: segments of x: None (every entry), (rows, columns) of a grid, labels, or `Segments`.
        groups_y: those of y.
        reference_x: where x's path begins, see `references.reference`.
        reference_y: the same for y.
        method: "integrated": the Jacobian over the path, complete; "gradient": the Jacobian at x, complete for encoders
            without biases that are homogeneous; "shapley": permutations of present segments, complete, runs forwards
            only; "lrp": one relevance map per output under `composite` (BiLRP; the module must be traceable).
        norm: "none": ⟨φ, φ⟩; "frozen": the cosine with |φ(x)| and |φ(y)| held constant; "full": the cosine with the
            norms differentiated too, whose pairs then also say what made the vectors long.
        nodes: of the path integral (Gauss-Legendre); by default doubled from 4 until Σ_s A_s is within `rtol` of
            φ(x) − φ(x₀), at most 64.
        rtol: see `nodes`.
        kwargs_x: further arguments of phi for x, such as an attention mask; kwargs_y those for y.
        kwargs_y: see kwargs_x.
        head: picks (N, M) from phi's output.
        composite: of method "lrp".
        permutations: of method "shapley".
        chunk: tangents, samples or outputs at once: bounds memory.

    Raises:
        InputError: not single finite samples, unknown names, an encoder that gives no vectors or vectors of other
            lengths, a vector of length 0 under a norm.
    """
    if method not in METHODS:
        raise InputError(f"method {method!r} is none of {', '.join(METHODS)}")
    if norm not in NORMS:
        raise InputError(f"norm {norm!r} is none of {', '.join(NORMS)}")
    sides = []
    with plain_torch(), torch.random.fork_rng(devices=[]):
        for name, sample, groups, kind, kwargs in (
            ("x", x, groups_x, reference_x, kwargs_x), ("y", y, groups_y, reference_y, kwargs_y),
        ):  # fmt: skip
            sides.append(_Side(pure(phi, kwargs, head), name, sample, groups, kind, norm))
        if sides[0].end.shape != sides[1].end.shape:
            raise InputError(f"phi gives {sides[0].end.numel()} numbers for x and {sides[1].end.numel()} for y")
        factors = []
        for side, kwargs in zip(sides, (kwargs_x, kwargs_y), strict=True):
            if method == "integrated":
                factors.append(side.integrated(nodes, rtol, chunk))
            elif method == "gradient":
                factors.append(side.jacobian(torch.ones(1), torch.ones(1), chunk))
            elif method == "shapley":
                factors.append(side.shapley(permutations, chunk))
            else:
                factors.append(side.relevance(phi, kwargs, head, composite, chunk))
    first, second = sides
    return Similarity(
        A=factors[0] / first.size,
        B=factors[1] / second.size,
        value=float(first.end @ second.end) / (first.size * second.size),
        explained_value=float((first.end - first.begin) @ (second.end - second.begin)) / (first.size * second.size),
        segments_x=first.segments,
        segments_y=second.segments,
        method=method,
        norm=norm,
        nodes=(first.nodes, second.nodes),
        cost=first.cost + second.cost,
    )


class _Side:
    """One of the two inputs: its path, its segments and the factor made of them."""

    def __init__(self, phi: Function, name: str, x: Any, groups: Any, kind: Kind, norm: str) -> None:
        self.x = check_batch(x, name)
        if len(x) != 1:
            raise InputError(f"{name} holds {len(x)} samples; a similarity is of one pair: {name}[:1]")
        self.segments = as_segments(groups, self.x)
        self.x0 = self.segments.reference(self.x, reference(self.x, kind, groups=groups))
        self.delta = self.x - self.x0
        if not bool(self.delta.any()):
            raise InputError(f"the reference of {name} equals {name}, so there is nothing to decompose")
        self.phi = phi if norm != "full" else lambda v: nn.functional.normalize(phi(v), dim=1, eps=0.0)
        self.cost, self.nodes = Cost(), 0
        self.begin, self.end = self.values(torch.cat([self.x0, self.x]))
        for where, value in (("reference", self.begin), ("input", self.end)):
            if not bool(torch.isfinite(value).all()):
                raise InputError(
                    f"phi gives NaN or Inf at the {where} of {name}"
                    + (": its vector there has length 0, which has no direction" if norm == "full" else "")
                )
        self.size = float(self.end.norm()) if norm == "frozen" else 1.0
        if self.size == 0:
            raise InputError(f"phi({name}) is 0, so there is no cosine; take norm='none'")

    def values(self, points: Tensor, chunk: int = 32) -> Tensor:
        self.cost += Cost(forwards=len(points))
        with torch.no_grad():
            out = torch.cat([self.phi(part) for part in points.split(chunk)])
        if out.dim() != 2:
            raise InputError(f"phi gives shape {tuple(out.shape)}; it must give vectors (N, M), see head=")
        return out.double()

    def jacobian(self, places: Tensor, weights: Tensor, chunk: int) -> Tensor:
        """Σ_k w_k J(x₀ + t_k δ) δ_s: (S, M); S tangents per node, which share the node's forward pass."""
        total = torch.zeros(len(self.segments), self.end.numel(), dtype=torch.float64)
        # Outside the safe mode fused attention and recurrences have no forward mode.
        with safe_mode(), torch.no_grad():
            for t, w in zip(places.tolist(), weights.tolist(), strict=True):
                point = self.x0 + t * self.delta

                def tangent(direction: Tensor, point: Tensor = point) -> Tensor:
                    return torch.func.jvp(self.phi, (point,), (direction,))[1]

                for start in range(0, len(self.segments), chunk):
                    own = range(start, min(start + chunk, len(self.segments)))
                    pushed = torch.vmap(tangent)(self.segments.directions(self.delta, own))
                    total[start : start + chunk] += w * pushed[:, 0].double()
                    self.cost += Cost(tangents=len(own))
        return total

    def integrated(self, nodes: int | None, rtol: float, chunk: int) -> Tensor:
        change = self.end - self.begin
        self.nodes = nodes or 4
        while True:
            places, weights = _gauss(self.nodes)
            factor = self.jacobian(places, weights, chunk)
            miss = float((factor.sum(0) - change).norm() / change.norm().clamp(min=1e-30))
            if nodes or miss <= rtol or self.nodes >= MAX_NODES:
                return factor
            self.nodes *= 2

    def shapley(self, permutations: int, chunk: int) -> Tensor:
        """Means over random orders (and their reverses) of what a segment adds when it appears."""
        count = len(self.segments)
        chance = torch.Generator().manual_seed(0)
        total = torch.zeros(count, self.end.numel(), dtype=torch.float64)
        orders = []
        for _ in range((permutations + 1) // 2):
            order = torch.randperm(count, generator=chance)
            orders += [order, order.flip(0)]
        for order in orders:
            present = torch.zeros(count - 1, count)
            for k in range(count - 1):
                present[k:, order[k]] = 1
            between = self.values(self.segments.at(self.x, self.x0, present), chunk) if count > 1 else self.end[:0]
            steps = torch.cat([self.begin[None], between.reshape(count - 1, -1), self.end[None]]).diff(dim=0)
            total[order] += steps / len(orders)
        return total

    def relevance(self, phi: Model, kwargs: Mapping[str, Any] | None, head: Any, composite: Any, chunk: int) -> Tensor:
        explainer = Explainer(phi, self.x, composite=composite, kwargs=kwargs, head=head)
        rows = []
        for start in range(0, self.end.numel(), chunk):
            outputs = torch.arange(start, min(start + chunk, self.end.numel()))[None]
            rows.append(self.segments.sum(explainer(self.x, target=outputs, kwargs=kwargs).relevance[0].double()))
            self.cost += Cost(gradients=outputs.numel())
        return torch.cat(rows).T.contiguous()


def _gauss(nodes: int) -> tuple[Tensor, Tensor]:
    """Gauss-Legendre nodes and weights on 0..1."""
    places, weights = np.polynomial.legendre.leggauss(nodes)
    return torch.from_numpy((places + 1) / 2), torch.from_numpy(weights / 2)
