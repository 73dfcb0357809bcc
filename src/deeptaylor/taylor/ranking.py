"""The table of a data set's Taylor coefficients: reductions with intervals, rankings, frames and pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import NormalDist
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError, MissingExtra
from .result import Cost

Interval = tuple[Tensor, Tensor, Tensor]
"""Value, low end and high end of each coefficient."""
Reducer = Callable[[Tensor], Interval]
Reduced = dict[str, tuple[float, float, float]]


@dataclass(frozen=True)
class DatasetCoefficients:
    """Reduced coefficients t_i, t_ij, t_ijk of a data set."""

    names: tuple[str, ...]
    """Of the features."""
    rows: Mapping[tuple[int, ...], Mapping[str, Reduced]]
    """index → group of rows → reduction → (value, low, high)."""
    count: int
    """Rows of the data."""
    groups: Mapping[str, int]
    """Rows in each group; "all" is one of them."""
    confidence: float
    scale: str | None
    target: str
    cost: Cost
    """In batched gradients and tangents: one serves all rows."""
    warnings: tuple[str, ...]

    def name(self, index: Sequence[int]) -> str:
        """As "slag × age"."""
        return " × ".join(self.names[i] for i in index)

    def top(
        self, k: int = 10, by: str = "mean_abs", group: str = "all", order: int | None = None
    ) -> list[tuple[str, float]]:
        """The k largest coefficients by size, with names; of one order if asked for."""
        ranked = self._ranked(by, group, order)
        return [(self.name(index), value) for index, (value, *_) in ranked[:k]]

    def to_dict(self, by: str = "mean_abs", group: str = "all") -> dict[tuple[int, ...], float]:
        """{index: value}."""
        return {index: value for index, (value, *_) in self._values(by, group).items()}

    def to_frame(self) -> Any:
        """A pandas table: one row per coefficient and group, every reduction with its interval."""
        try:
            import pandas
        except ImportError as error:
            raise MissingExtra("tables need pandas", "tables") from error
        lines = []
        for index, groups in self.rows.items():
            for group, found in groups.items():
                line: dict[str, Any] = {
                    "features": self.name(index),
                    "order": len(index),
                    "index": index,
                    "group": group,
                }
                for how, (value, low, high) in found.items():
                    line |= {how: value, f"{how}_low": low, f"{how}_high": high}
                lines.append(line)
        return pandas.DataFrame(lines)

    def plot_ranking(self, k: int = 20, by: str = "mean_abs", group: str = "all") -> Any:
        """A matplotlib figure: the k largest coefficients as points with their intervals, the largest on top."""
        pyplot = _pyplot()
        ranked = self._ranked(by, group, None)[:k][::-1]
        figure, axes = pyplot.subplots(figsize=(6, 1 + 0.25 * len(ranked)), layout="constrained")
        values = [value for _, (value, *_) in ranked]
        spans = [[v - low for _, (v, low, _) in ranked], [high - v for _, (v, _, high) in ranked]]
        axes.errorbar(values, range(len(ranked)), xerr=spans, fmt="+", color="#1f3b70", ecolor="#9aa7c0", capsize=2)
        axes.set_yticks(range(len(ranked)), [self.name(index) for index, _ in ranked])
        unit = "standardised" if self.scale else "in the data's units"
        axes.set_xlabel(
            f"{by} of Taylor coefficients, {unit} ({self.confidence:.0%} interval, {self.groups[group]:,} rows)"
        )
        return figure

    def _values(self, by: str, group: str) -> dict[tuple[int, ...], tuple[float, float, float]]:
        first = next(iter(self.rows.values()))
        if group not in first:
            raise InputError(f"no group {group!r}; there are {', '.join(first)}")
        if by not in first[group]:
            raise InputError(f"no reduction {by!r} was asked for; there are {', '.join(first[group])}: reduce=(...)")
        return {index: groups[group][by] for index, groups in self.rows.items()}

    def _ranked(
        self, by: str, group: str, order: int | None
    ) -> list[tuple[tuple[int, ...], tuple[float, float, float]]]:
        values = [(i, v) for i, v in self._values(by, group).items() if order is None or len(i) == order]
        return sorted(values, key=lambda pair: -abs(pair[1][0]))

    def __str__(self) -> str:
        by = (
            "mean_abs"
            if "mean_abs" in next(iter(self.rows.values()))["all"]
            else next(iter(next(iter(self.rows.values()))["all"]))
        )
        lines = [
            f"Taylor coefficients of {self.target} over {self.count:,} rows, {by}"
            + (", standardised" if self.scale else "")
        ]
        for index, (value, low, high) in self._ranked(by, "all", None)[:10]:
            lines.append(f"  {self.name(index):<32} {value:.4g}  [{low:.4g}, {high:.4g}]")
        return "\n".join([*lines, f"  cost: {self.cost}, batched", *(f"  warning: {text}" for text in self.warnings)])


def plot_evolution(
    tables: Mapping[Any, DatasetCoefficients], k: int = 8, by: str = "mean_abs", group: str = "all"
) -> Any:
    """A matplotlib figure: how coefficients change over epochs; those that are largest at the end, with intervals.

    Args:
        tables: epoch → coefficients then.
        k: lines.
        by: the reduction.
        group: of rows.
    """
    if len(tables) < 2:
        raise InputError("an evolution needs the tables of two epochs at least")
    pyplot = _pyplot()
    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    epochs, last = list(tables), list(tables.values())[-1]
    for index, _ in last._ranked(by, group, None)[:k]:
        points = [table._values(by, group)[index] for table in tables.values()]
        (line,) = axes.plot(epochs, [value for value, *_ in points], label=last.name(index))
        axes.fill_between(
            epochs, [p[1] for p in points], [p[2] for p in points], color=line.get_color(), alpha=0.2, lw=0
        )
    axes.set_xlabel("epoch")
    axes.set_ylabel(f"{by} of Taylor coefficients")
    axes.legend(frameon=False, fontsize="small")
    return figure


def reducers(names: Sequence[str], confidence: float) -> dict[str, Reducer]:
    """The reductions by name.

    Raises:
        InputError: a name that is not known, or a confidence outside 0..1.
    """
    if not 0 < confidence < 1:
        raise InputError(f"confidence {confidence} must lie between 0 and 1, for example 0.95")
    if isinstance(names, str) or not names:
        raise InputError(f"reduce {names!r}: pass a tuple of names, for example ('mean', 'mean_abs', 'q90')")
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    made: dict[str, Reducer] = {}
    for name in names:
        if name == "mean":
            made[name] = partial(_mean, z)
        elif name == "mean_abs":
            made[name] = partial(_mean_abs, z)
        elif name == "std":
            made[name] = partial(_deviation, z)
        elif name[:1] == "q" and name[1:].isdigit() and 0 < int(name[1:]) < 100:
            made[name] = partial(_quantile_abs, int(name[1:]) / 100, z)
        else:
            raise InputError(f"reduction {name!r} is not known: mean, mean_abs, std, or a quantile of |t| such as q90")
    return made


def reduced(values: Tensor, how: Mapping[str, Reducer]) -> dict[str, list[tuple[float, float, float]]]:
    """Every reduction of (rows, coefficients): (value, low, high) of each coefficient."""
    found = {}
    for name, reduce in how.items():
        value, low, high = reduce(values)
        found[name] = list(zip(value.tolist(), low.tolist(), high.tolist(), strict=True))
    return found


def _mean(z: float, t: Tensor) -> Interval:
    """Means, and the normal intervals of means."""
    mean = t.mean(0)
    half = z * t.std(0) / len(t) ** 0.5 if len(t) > 1 else torch.full_like(mean, float("inf"))
    return mean, mean - half, mean + half


def _mean_abs(z: float, t: Tensor) -> Interval:
    return _mean(z, t.abs())


def _deviation(z: float, t: Tensor) -> Interval:
    """Standard deviations; the intervals by the delta method, from the fourth moment."""
    centred = t - t.mean(0)
    second, fourth = centred.square().mean(0), centred.pow(4).mean(0)
    deviation = second.sqrt()
    half = z * ((fourth - second**2).clamp(min=0) / len(t)).sqrt() / (2 * deviation).clamp(min=1e-300)
    return deviation, (deviation - half).clamp(min=0), deviation + half


def _quantile_abs(p: float, z: float, t: Tensor) -> Interval:
    """Quantiles of |t|; intervals between two order statistics, whatever the distribution (normal binomial ranks)."""
    ordered, count = t.abs().sort(0).values, len(t)
    half = z * (count * p * (1 - p)) ** 0.5
    low, high = int(count * p - half), int(count * p + half) + 1
    # Linear between the two nearest ranks, as numpy's default.
    below = min(int(p * (count - 1)), count - 1)
    above = min(below + 1, count - 1)
    value = ordered[below] + (p * (count - 1) - below) * (ordered[above] - ordered[below])
    infinite = torch.full_like(value, float("inf"))
    return value, ordered[low - 1] if low >= 1 else -infinite, ordered[high - 1] if high <= count else infinite


def _pyplot() -> Any:
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise MissingExtra("plots need matplotlib", "plots") from error
    return pyplot
