"""What an audit measures, as data: a `LayerCertificate` per layer, rule and sample, a `MapCertificate` per sample."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LayerCertificate:
    """The root points of one rule at one layer, for one sample.

    Shares are over the neurons looked at; `error` is the standard error of a share of 1/2 among so many drawn of so
    many, 0 where all were looked at.
    """

    sample: int
    name: str
    op: str
    module: str
    source: str
    rule: str
    neurons: int
    """Neurons that carry relevance."""
    sampled: int
    """How many of them were looked at."""
    error: float
    exact: float
    """Share of roots with w·x̃ + b = 0, to 1e-6 of |z|."""
    kept_back: float
    """Largest |1 − Σ q|: what a neuron does not hand on; w·x̃ + b = z (1 − Σ q)."""
    identity: float
    """Largest violation of that identity, as a share of |z|: 0 unless relevance goes where the weight is 0."""
    domain: str
    in_domain: float | None
    """Share of roots in the domain, or None where the layer's inputs are unbounded."""
    outside: float
    """How far the worst root lies outside, as a share of the largest input."""
    positive_biases: int
    """How many of the neurons whose root is outside have a bias > 0."""
    in_region: float | None
    """Share of roots in the closed linear region of the network above; None where regions do not apply."""
    boundary: float | None
    """Median way to the region's first boundary along the search direction, the way to the root being 1."""
    distance: float
    """Median |x̃ − x| as a share of |x|."""
    remainder: float | None
    """Where regions do not apply: median |f(x̃) − f(x) − ∇f(x)·(x̃ − x)| / |f(x)| of the network above."""
    gradient_change: float | None
    """Where regions do not apply: median |∇f(x̃) − ∇f(x)| / |∇f(x)|, the larger of half-way and at the root."""


@dataclass(frozen=True)
class Depth:
    """Something measured at one layer on the way back."""

    name: str
    module: str
    cosine: float


@dataclass(frozen=True)
class Randomized:
    """The map after the weights of the uppermost layers were drawn anew."""

    layers: int
    of: int
    cosine: float
    rank_correlation: float


@dataclass(frozen=True)
class MapCertificate:
    """The relevance map of one sample."""

    sample: int
    target: int | None
    explained: float
    relevance: float
    """Σ R of the inputs."""
    gap: float
    """What the ledger misses, as a share of the explained value."""
    gap_at: str
    """The operation that misses most."""
    absorbed: dict[str, float]
    """By cause, as shares of the explained value."""
    absorbed_at: str
    """The operation that absorbs most."""
    negative: float
    """Σ of negative relevance as a share of Σ |R|."""
    gradient_input: float
    """Cosine with gradient × input."""
    classes: dict[int, float]
    """Cosine with the maps of other classes, relevance 1 put at each."""
    convergence: tuple[Depth, ...]
    """Median |cos| between relevance of random origin, per layer from the output down (1: the origin is forgotten)."""
    first_direction: float
    """Share of the energy of maps of random origin that lies in one direction; 1 is rank one."""
    randomized: tuple[Randomized, ...]
