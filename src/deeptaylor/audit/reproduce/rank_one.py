"""Products of non-negative matrices converge to rank one: why z⁺ forgets where relevance came from.

Sixt, Granz and Landgraf (ICML 2020): a chain of random matrices with VGG-16's channel widths, from the output down;
random relevance vectors are sent through it, and the cosine between them is watched.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .tables import Reproduction, Table, Tell, new_figure

WIDTHS = (512,) * 9 + (256,) * 3 + (128,) * 2 + (64,) * 2 + (3,)
"""VGG-16's channels from the logits to the pixels; dense layers (and the 1000 logits) are capped at 512."""
AFTER = (1, 2, 3, 4, 8, 15, 16)
STARTS = 32
RUNS = 5
"""Random chains of each kind behind the expected figures, …"""
FURTHER = 20
"""… and with other random numbers, as many as the paper takes: what is chance."""
ROUNDING = 1e-12
"""Below this, 1 − |cos| is rounding."""

Matrix = Callable[[Tensor], Tensor]


def alpha_beta(alpha: float, beta: float) -> Matrix:
    """α w⁺ + β w⁻."""
    return lambda w: alpha * w.clamp(min=0) + beta * w.clamp(max=0)


@dataclass(frozen=True)
class Chain:
    """A kind of chain: what is made of Gaussian matrices."""

    name: str
    matrix: Matrix
    rectified: bool = False
    """Whether vectors pass a ReLU after every matrix."""
    expected: tuple[float, ...] = ()
    """1 − mean |cos| by a separate program, three digits: medians of `RUNS` chains, after `AFTER` matrices."""


# fmt: off
CHAINS = (  # in the order in which the expected figures drew their random numbers
    Chain("Gaussian", lambda w: w, expected=(0.951, 0.940, 0.931, 0.923, 0.896, 0.799, 0.488)),
    Chain("Gaussian, ReLU", lambda w: w, True, (0.679, 0.516, 0.387, 0.306, 0.164, 0.094, 0.014)),
    Chain("|Gaussian|", torch.abs, expected=(0.714, 0.049, 9.8e-5, 1.1e-7, 0.0, 0.0, 0.0)),
    Chain("drawn in between, with no figure of its own", alpha_beta(1, 0)),
    Chain("α1 β0", alpha_beta(1, 0), expected=(0.827, 0.138, 1.1e-3, 4.3e-6, 0.0, 0.0, 0.0)),
    Chain("α2 β1", alpha_beta(2, 1), expected=(0.938, 0.601, 0.174, 9.4e-3, 6.8e-9, 0.0, 0.0)),
    Chain("α3 β2", alpha_beta(3, 2), expected=(0.947, 0.826, 0.449, 0.125, 2.2e-5, 2e-10, 1e-10)),
    Chain("α5 β4", alpha_beta(5, 4), expected=(0.949, 0.932, 0.879, 0.738, 0.068, 6.7e-4, 1.9e-4)),
    Chain("α10 β9", alpha_beta(10, 9), expected=(0.949, 0.939, 0.928, 0.921, 0.892, 0.789, 0.474)),
)
# fmt: on


def apartness(chain: Chain, generator: np.random.Generator) -> list[float]:
    """1 − mean |cos| between random vectors after every matrix of one random chain."""
    vectors = torch.from_numpy(generator.standard_normal((STARTS, WIDTHS[0])))
    pairs = torch.triu(torch.ones(STARTS, STARTS, dtype=torch.bool), 1)
    found = []
    for shape in pairwise(WIDTHS):
        vectors = vectors @ chain.matrix(torch.from_numpy(generator.standard_normal(shape)))
        vectors = vectors.clamp(min=0) if chain.rectified else vectors
        vectors = vectors / vectors.norm(dim=1, keepdim=True)
        cosines = (vectors @ vectors.T).abs()[pairs]
        found.append(float((1 - cosines[torch.isfinite(cosines)]).mean()))
    return found


def after_one(mean: float, spread: float) -> float:
    """1 − mean |cos| after one wide matrix of independent entries with this mean and spread, in closed form.

    A start vector with s of its length along the ones (s normal, times 1/√n) becomes m s · ones + σ · noise, whose
    cosine with the ones is c = m s/√(m² s² + σ²); two of them have the cosine c c′: the answer is 1 − (E|c|)².
    """
    s = torch.linspace(0, 10, 20001, dtype=torch.float64)
    density = (2 / torch.pi) ** 0.5 * torch.exp(-(s**2) / 2)
    along = mean * s / ((mean * s) ** 2 + spread**2).sqrt()
    return 1 - float(torch.trapezoid(density * along, s)) ** 2


HALF = (2 / torch.pi) ** 0.5
"""Mean of |w|, w normal."""
CLOSED = {
    "α1 β0": after_one(HALF / 2, (0.5 - HALF**2 / 4) ** 0.5),
    "|Gaussian|": after_one(HALF, (1 - HALF**2) ** 0.5),
}
"""After one matrix, for the chains whose entries have a mean that rules."""


def reproduce(tell: Tell, runs: int = RUNS, further: int = FURTHER) -> Reproduction:
    """The table and figure: the expected figures' chains, and `further` chains of each kind beside them."""
    rows: list[tuple[Any, ...]] = []
    curves: dict[str, list[float]] = {}
    same, other = np.random.default_rng(0), np.random.default_rng(1)
    for number, chain in enumerate(CHAINS):
        tell(number / len(CHAINS), chain.name)
        found = torch.tensor([apartness(chain, same) for _ in range(runs)])
        if not chain.expected:
            continue
        spread = torch.tensor([apartness(chain, other) for _ in range(further)])
        low, middle, high = (spread.quantile(q, 0).clamp(min=0).tolist() for q in (0.1, 0.5, 0.9))
        curves[chain.name] = middle
        rows.append((chain.name, *(_shown(v) for v in at(found.median(0).values))))
        rows.append(("  expected", *(_shown(v) for v in chain.expected)))
        rows.append(("  other chains", *(_shown(middle[n - 1]) for n in AFTER)))
        rows.append(("  10 to 90 %", *(f"{_shown(low[n - 1]):.2g}–{_shown(high[n - 1]):.2g}" for n in AFTER)))
    table = Table(
        "1 − mean |cos| between random vectors, after so many matrices",
        ("chain", *(str(n) for n in AFTER)),
        tuple(rows),
        ".3g",
        f"Medians of {runs} chains, with the random numbers of the expected figures, which a separate program gave; "
        f"below them the median and the spread of {further} chains with other random numbers. 0 stands for rounding; "
        "after 16 matrices 3 channels are left. Near rank one a single start vector that is almost orthogonal to the "
        "rest decides the mean, so that chains differ by orders of magnitude. After one matrix there is a closed form: "
        + ", ".join(f"{name} {value:.3f}" for name, value in CLOSED.items())
        + ". The expected figure of |Gaussian| there is a high draw of five.",
    )
    return Reproduction(
        "rank-one",
        "Products of non-negative matrices (Sixt, Granz and Landgraf 2020)",
        "The claim: without negative weights a chain converges to rank one, so that maps do not depend on the layers "
        "above. Reproduced with random matrices: z⁺ (α1 β0) forgets within three layers, α2 β1 within five, and only "
        "chains with nearly as much negative weight as positive stay apart. Not reproduced: the curves of trained "
        "VGG-16 weights, which are not shipped with this project.",
        (table,),
        lambda: _figure(curves),
        {"runs": runs, "further": further, "widths": list(WIDTHS)},
    )


def at(curve: Tensor) -> list[float]:
    """A curve's values after `AFTER` matrices."""
    return [float(curve[n - 1]) for n in AFTER]


def _shown(value: float) -> float:
    return 0.0 if value < ROUNDING else value


def _figure(curves: dict[str, list[float]]) -> Any:
    figure, (axis,) = new_figure(7, 4, ["How far apart random relevance stays"])
    for name, curve in curves.items():
        axis.semilogy(range(1, len(curve) + 1), [max(v, 1e-16) for v in curve], marker=".", label=name)
    axis.axhspan(1e-17, ROUNDING, color="#eeeeee", zorder=0)
    axis.set_ylim(1e-16, 2)
    axis.set_xlabel("matrices multiplied, from the output down")
    axis.set_ylabel("1 − mean |cos|")
    axis.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure
