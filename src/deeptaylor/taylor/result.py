"""`Expansion`: the one result of every Taylor estimator, in which what is not explained is part of the account.

An expansion is a polynomial in a around a = c (0: the reference, 1: the input, ½: halfway),

    g(a) ≈ g(c) + Σ_s C₁[s] u_s + Σ_st C₂[s,t] u_s u_t + Σ_stu C₃[s,t,u] u_s u_t u_u,     u = a − c,

whose tensors C_k hold 1/k! times the k-th derivatives (or what stands for them: path integrals, differences, a fit) for
*ordered* tuples. Order k then explains F_k ΣC_k of f(x) − f(x₀) with F_k = (1−c)^k − (−c)^k: (1, 1, 1) at the
reference, (1, −1, 1) at the input, (1, 0, ¼) halfway. Always

    value = constant + Σ shares + residual.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError, MissingExtra
from .segments import Segments

RESIDUAL = 0.05
"""|residual| / |f(x) − f(x₀)| from which an expansion is warned about."""
CANCELLING = 3.0
"""Σ|pairs| / |f(x) − f(x₀)| from which interactions are said to cancel."""
TRUST = 0.2
"""Trust radius below which an expansion is said not to reach the reference."""

SPLITS = ("equal", "powers", "full", "alone")


@dataclass(frozen=True)
class Cost:
    """What an estimate took."""

    forwards: int = 0
    """Samples sent through the model."""
    gradients: int = 0
    """Input gradients; one is a forward and a backward pass."""
    tangents: int = 0
    """Products of a second or higher derivative with a direction; about one gradient each where many share a point."""

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.forwards + other.forwards, self.gradients + other.gradients, self.tangents + other.tangents)

    def __sub__(self, other: Cost) -> Cost:
        return self + Cost(-other.forwards, -other.gradients, -other.tangents)

    @property
    def passes(self) -> int:
        """Everything that ran through the model."""
        return self.forwards + self.gradients + self.tangents

    def __str__(self) -> str:
        parts = [(self.forwards, "forward"), (self.gradients, "gradient"), (self.tangents, "tangent")]
        return ", ".join(f"{n:,} {what}{'s' if n != 1 else ''}" for n, what in parts if n) or "nothing"


@dataclass(frozen=True)
class Expansion:
    """f(x) − f(x₀) as terms of segments, interactions of segments, and a residual."""

    method: str
    value: float
    """f(x)."""
    reference_value: float
    """f(x₀); where it is not 0, x₀ is no root."""
    coefficients: tuple[Tensor, ...] = ()
    """C₁ (S,), C₂ (S, S), C₃ (S, S, S), float64, for ordered tuples of segments."""
    centre: float = 0.0
    """Where the expansion stands: 0 at the reference, 1 at the input, 0.5 halfway."""
    centre_value: float = 0.0
    """g there."""
    segments: Segments | None = None
    maps: Tensor | None = None
    """(orders, *sample): what each order gives to each entry; maps[k].sum() is the share of order k + 1."""
    trust_radius: Tensor | None = None
    """Per order: the part of the way from the centre to the other end on which the polynomial is within `tolerance`."""
    tolerance: float = 0.1
    fidelity: Mapping[int, float] = field(default_factory=dict)
    """R² on inputs not used for the estimate (segments present at random), by order of the polynomial."""
    errors: tuple[Tensor, ...] = ()
    """Standard errors of the coefficients, where they were sampled."""
    cost: Cost = Cost()
    target: str = ""
    notes: tuple[str, ...] = ()
    """What was chosen and why."""
    details: Mapping[str, Any] = field(default_factory=dict)
    extra_warnings: tuple[str, ...] = ()

    @property
    def constant(self) -> float:
        """What the terms are added to: f(x₀)."""
        return self.reference_value

    @property
    def total(self) -> float:
        """f(x) − f(x₀)."""
        return self.value - self.reference_value

    @property
    def order(self) -> int:
        return max(len(self.coefficients), 0 if self.maps is None else len(self.maps))

    @property
    def signs(self) -> tuple[float, ...]:
        """F_k: the factor with which order k enters f(x) − f(x₀). At the input the signs alternate."""
        return tuple((1 - self.centre) ** k - (-self.centre) ** k for k in range(1, self.order + 1))

    @property
    def shares(self) -> Tensor:
        """(orders,): what each order explains of f(x) − f(x₀)."""
        if self.maps is not None and not self.coefficients:
            return self.maps.double().flatten(1).sum(1)
        return torch.stack([sign * c.sum() for sign, c in zip(self.signs, self.coefficients, strict=True)])

    @property
    def residual(self) -> float:
        """f(x) − f(x₀) − Σ shares."""
        return self.total - float(self.shares.sum())

    @property
    def relative_residual(self) -> float:
        """|residual| / |f(x) − f(x₀)|."""
        return abs(self.residual) / abs(self.total) if self.total else (float("inf") if self.residual else 0.0)

    @property
    def terms(self) -> Tensor:
        """What belongs to one segment alone, all orders: (S,); of order maps, the sum over the orders."""
        if not self.coefficients:
            return self._maps().double().sum(0)
        return sum(
            (sign * _diagonal(c) for sign, c in zip(self.signs, self.coefficients, strict=True)),
            torch.zeros_like(self.coefficients[0]),
        )

    @property
    def interactions(self) -> Tensor:
        """(S, S), symmetric, zero diagonal: the whole interaction of each pair, positive where two do more together.

        At the reference it is the pair's share; at the input it enters the sum with the sign of its order.
        """
        return self._pairs([(1 - 2 * self.centre) ** (k - 2) if k > 1 else 0.0 for k in range(1, self.order + 1)])

    @property
    def pair_shares(self) -> Tensor:
        """(S, S), symmetric, zero diagonal: what each pair adds to f(x) − f(x₀)."""
        return self._pairs(list(self.signs))

    @property
    def triples(self) -> Tensor | None:
        """(S, S, S), symmetric: the interaction of every three different segments; None below order 3."""
        if len(self.coefficients) < 3:
            return None
        return _all_different(6 * _symmetric(self.coefficients[2]))

    @property
    def warnings(self) -> tuple[str, ...]:
        """What has to be known before believing this expansion."""
        found = list(self.extra_warnings)
        if self.relative_residual > RESIDUAL:
            found.append(
                f"the residual is {percent(self.relative_residual)} of f(x) − f(x₀) = {self.total:.4g}: this "
                "expansion leaves that much unexplained"
            )
        if len(self.coefficients) > 1:
            size = float(self.pair_shares.abs().sum()) / 2
            if size > CANCELLING * abs(self.total):
                found.append(
                    f"interactions cancel: their sizes add up to {size:.4g} for f(x) − f(x₀) = {self.total:.4g}; "
                    "single pairs are not shares of the prediction"
                )
        if self.trust_radius is not None and self.trust_radius.numel():
            reach = float(self.trust_radius[-1])
            if reach < TRUST:
                end = "the input" if self.centre < 0.5 else "the reference" if self.centre > 0.5 else "both ends"
                found.append(
                    f"this expansion of order {self.order} is valid for {part_of_the_way(reach)} of the way to {end}: "
                    "it describes that neighbourhood, not f(x) − f(x₀)"
                )
        return tuple(found)

    def predict(self, a: Tensor, order: int | None = None) -> Tensor:
        """The polynomial's g(a) for (N, S) numbers a, with orders up to `order`: (N,)."""
        if not self.coefficients:
            raise InputError(f"{self.method} holds no coefficients of segments, so it can't predict")
        u = a.double() - self.centre
        out = torch.full((len(u),), self.centre_value, dtype=torch.float64)
        for c in self.coefficients[: order or self.order]:
            value = c
            for _ in range(c.dim()):
                # The last axis is contracted first; after the first contraction each sample has its own tensor.
                value = (
                    torch.einsum("...s,ns->n...", value, u) if value is c else torch.einsum("n...s,ns->n...", value, u)
                )
            out = out + value
        return out

    def to_features(self, split: str = "equal") -> Tensor:
        """One number per segment (S,).

        Args:
            split: how a term is shared among its segments. "equal": in equal parts (Shapley); "powers": by how often a
                segment occurs in it (integrated gradients); "full": each gets all of it (occlusion; does not add up);
                "alone": interactions are left out. Deng et al. 2021 compare these.
        """
        if split not in SPLITS:
            raise InputError(f"split {split!r} is none of {', '.join(SPLITS)}")
        if not self.coefficients:
            maps = self._maps().double().sum(0)
            return maps if self.segments is None else self.segments.sum(maps)
        if split == "alone":
            return self.terms
        if split == "powers":
            rows = [sign * _symmetric(c).flatten(1).sum(1) if c.dim() > 1 else sign * c
                    for sign, c in zip(self.signs, self.coefficients, strict=True)]  # fmt: skip
            return torch.stack(rows).sum(0)
        out = self.terms + self.pair_shares.sum(1) / (2 if split == "equal" else 1)
        if (triples := self.triples) is not None:
            out = out + self.signs[2] * triples.flatten(1).sum(1) / 2 / (3 if split == "equal" else 1)
        return out

    def matrix(self) -> Tensor:
        """(S, S): terms on the diagonal, half of each pair's share beside it; adds up to orders 1 and 2."""
        return torch.diag(self.terms) + self.pair_shares / 2

    def top(self, k: int = 10) -> list[tuple[tuple[str, ...], float]]:
        """The k strongest pairs (for expansions without pairs: terms), by size, with the segments' names."""
        names = self.names
        if len(self.coefficients) < 2:
            values = self.to_features("alone").flatten()
            return [((names[int(i)],), float(values[i])) for i in values.abs().argsort(descending=True)[:k]]
        pairs = self.interactions
        rows, columns = torch.triu_indices(len(pairs), len(pairs), 1)
        values = pairs[rows, columns]
        best = values.abs().argsort(descending=True, stable=True)[:k]
        return [((names[int(rows[i])], names[int(columns[i])]), float(values[i])) for i in best]

    def to_dict(self) -> dict[tuple[int, ...], float]:
        """{(): f(x₀), (s,): term, (s, t): share of the pair, …}: numbers that add up to f(x) − residual."""
        out: dict[tuple[int, ...], float] = {(): self.constant}
        terms = self.to_features("alone").flatten()
        out |= {(s,): float(terms[s]) for s in range(len(terms))}
        if len(self.coefficients) > 1:
            pairs = self.pair_shares
            out |= {(s, t): float(pairs[s, t]) for s, t in combinations(range(len(pairs)), 2)}
        if (triples := self.triples) is not None:
            out |= {key: self.signs[2] * float(triples[key]) for key in combinations(range(len(triples)), 3)}
        return out

    def to_frame(self) -> Any:
        """A pandas table, one row per term: segments' names, order, share; the residual is a row too."""
        try:
            import pandas
        except ImportError as error:
            raise MissingExtra("tables need pandas", "tables") from error
        names = self.names
        rows = [
            {"segments": " × ".join(names[s] for s in key) or "f(x₀)", "size": len(key), "share": value}
            for key, value in self.to_dict().items()
        ]
        return pandas.DataFrame([*rows, {"segments": "residual", "size": -1, "share": self.residual}])

    def to_shapiq(self) -> Any:
        """The same numbers as `shapiq.InteractionValues`, for its plots."""
        try:
            from shapiq import InteractionValues
        except ImportError as error:
            raise MissingExtra("this needs shapiq", "tables") from error
        import numpy as np

        values = self.to_dict()
        return InteractionValues(
            values=np.array(list(values.values())),
            index="STII" if self.method.startswith("shapley") else "k-SII",
            max_order=self.order,
            n_players=len(self.names),
            min_order=0,
            interaction_lookup={key: i for i, key in enumerate(values)},
            estimated=bool(self.errors),
            baseline_value=self.constant,
        )

    def plot(self, **options: Any) -> Any:
        """A matplotlib figure: order maps, or terms and interaction matrix; see `deeptaylor.taylor.pictures`."""
        from .pictures import draw

        return draw(self, **options)

    def saying(self, *notes: str) -> Expansion:
        """The same result with further notes."""
        return replace(self, notes=(*self.notes, *notes))

    def __str__(self) -> str:
        lines = [
            f"{self.method}: f(x) = {self.value:.6g}, f(x₀) = {self.reference_value:.6g}, difference {self.total:.6g}",
            "  shares of orders " + ", ".join(f"{k}: {float(v):.4g}" for k, v in enumerate(self.shares, 1))
            + f"; residual {self.residual:.4g} ({percent(self.relative_residual)})",
        ]  # fmt: skip
        if self.trust_radius is not None:
            reach = ", ".join(f"{k}: {part_of_the_way(float(r))}" for k, r in enumerate(self.trust_radius, 1))
            lines.append(f"  trust radius of orders {reach} of the way (within {percent(self.tolerance)})")
        if self.fidelity:
            lines.append("  held-out R² of orders " + ", ".join(f"{k}: {v:.3f}" for k, v in self.fidelity.items()))
        lines += [f"  {' × '.join(names)}: {value:+.4g}" for names, value in self.top(5)] if self.segments else []
        lines.append(f"  cost: {self.cost}")
        lines += [f"  note: {note}" for note in self.notes]
        return "\n".join([*lines, *(f"  warning: {text}" for text in self.warnings)])

    def _maps(self) -> Tensor:
        if self.maps is None:
            raise InputError(f"{self.method} holds no terms")
        return self.maps

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the segments; numbers where there are none."""
        if self.segments is not None:
            return self.segments.names
        size = self.coefficients[0].numel() if self.coefficients else self._maps()[0].numel()
        return tuple(str(s) for s in range(size))

    def _pairs(self, weights: list[float]) -> Tensor:
        if len(self.coefficients) < 2:
            raise InputError(f"{self.method} of order {self.order} holds no interactions of segments")
        out = torch.zeros_like(self.coefficients[1])
        for weight, c in zip(weights[1:], self.coefficients[1:], strict=True):
            out = out + weight * _of_two(c)
        return out


def _diagonal(c: Tensor) -> Tensor:
    """Entries whose indices are all the same: (S,)."""
    while c.dim() > 1:
        c = c.diagonal(dim1=0, dim2=1).movedim(-1, 0) if c.dim() > 2 else c.diagonal()
    return c


def _symmetric(c: Tensor) -> Tensor:
    """The mean over all orders of the indices."""
    if c.dim() == 1:
        return c
    if c.dim() == 2:
        return (c + c.T) / 2
    orders = [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)]
    return sum((c.permute(o) for o in orders), torch.zeros_like(c)) / 6


def _of_two(c: Tensor) -> Tensor:
    """Sums over the ordered tuples that hold exactly the two segments s and t: (S, S), zero diagonal."""
    c = _symmetric(c)
    if c.dim() == 2:
        pairs = 2 * c
    else:
        twice = c.diagonal(dim1=0, dim2=1).T  # [s, t] = C[s, s, t]
        pairs = 3 * (twice + twice.T)
    return pairs - torch.diag(pairs.diagonal())


def _all_different(c: Tensor) -> Tensor:
    same = torch.eye(len(c), dtype=torch.bool)
    return c.masked_fill(same[:, :, None] | same[:, None] | same[None], 0.0)


def percent(part: float) -> str:
    """A part of 1 in per cent, two digits where it is small; as a multiple where it is large."""
    if part >= 10:
        return f"{part:,.0f} times" if part < float("inf") else "infinitely many times"
    return f"{100 * part:.0f} %" if part >= 0.1 else f"{100 * part:.2g} %"


def part_of_the_way(radius: float) -> str:
    """A trust radius in words; below a thousandth of the way none is looked for."""
    return percent(radius) if radius > 0 else "less than 0.1 %"
