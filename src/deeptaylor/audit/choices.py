"""Operations that pick values by their order, such as max, sort, top-k, median and adaptive max-pooling.

What they pick at a point, and the comparisons that hold while they pick the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..forms import Arguments

aten = torch.ops.aten


@dataclass(frozen=True)
class Choice:
    """Of rows (…, n): what an operation picks, and every margin rows[above] − rows[below] ≥ 0 of its picking that."""

    picked: Tensor
    """(…, k) places along the row."""
    above: Tensor
    """(…, m) places; where it equals `below`, there is no margin."""
    below: Tensor
    """(…, m)."""


def _every(row: Tensor) -> Tensor:
    return torch.arange(row.shape[-1], device=row.device).expand(row.shape)


def _extreme(row: Tensor, sign: float) -> Choice:
    winner = (sign * row).argmax(-1, keepdim=True)
    everywhere, others = winner.expand(row.shape), _every(row)
    return Choice(winner, *((everywhere, others) if sign > 0 else (others, everywhere)))


def _ranked(row: Tensor, k: int, falling: bool) -> Choice:
    """The k largest (smallest) in order: neighbours keep theirs, and the last is ahead of all that are not picked."""
    order = row.argsort(dim=-1, descending=falling, stable=True)
    picked, rest = order[..., :k], order[..., k:]
    ahead = torch.cat([picked[..., :-1], picked[..., -1:].expand(rest.shape)], -1)
    behind = torch.cat([picked[..., 1:], rest], -1)
    return Choice(picked, *((ahead, behind) if falling else (behind, ahead)))


def _kth(row: Tensor, k: int) -> Choice:
    """The k-th smallest: what is smaller stays so, what is larger too."""
    order = row.argsort(dim=-1, stable=True)
    picked = order[..., k - 1 : k]
    smaller, larger = order[..., : k - 1], order[..., k:]
    above = torch.cat([picked.expand(smaller.shape), larger], -1)
    below = torch.cat([smaller, picked.expand(larger.shape)], -1)
    return Choice(picked, above, below)


def _running(row: Tensor, sign: float) -> Choice:
    """Each place's extreme so far: it is new there, or the one before stays."""
    picked = (torch.cummax if sign > 0 else torch.cummin)(row, -1).indices
    before, here = picked[..., :-1], _every(row)[..., 1:]
    new = picked[..., 1:] == here
    won, lost = torch.where(new, here, before), torch.where(new, before, here)
    return Choice(picked, *((won, lost) if sign > 0 else (lost, won)))


CHOOSERS: Mapping[Any, Callable[[Tensor, Arguments], Choice]] = {
    aten.max.default: lambda row, a: _extreme(row, 1.0),
    aten.max.dim: lambda row, a: _extreme(row, 1.0),
    aten.amax.default: lambda row, a: _extreme(row, 1.0),
    aten.min.default: lambda row, a: _extreme(row, -1.0),
    aten.min.dim: lambda row, a: _extreme(row, -1.0),
    aten.amin.default: lambda row, a: _extreme(row, -1.0),
    aten.sort.default: lambda row, a: _ranked(row, row.shape[-1], bool(a.get("descending"))),
    aten.sort.stable: lambda row, a: _ranked(row, row.shape[-1], bool(a.get("descending"))),
    aten.topk.default: lambda row, a: _ranked(row, int(a["k"]), bool(a["largest"])),
    aten.kthvalue.default: lambda row, a: _kth(row, int(a["k"])),
    aten.median.default: lambda row, a: _kth(row, (row.shape[-1] + 1) // 2),
    aten.median.dim: lambda row, a: _kth(row, (row.shape[-1] + 1) // 2),
    aten.cummax.default: lambda row, a: _running(row, 1.0),
    aten.cummin.default: lambda row, a: _running(row, -1.0),
}
"""By operation; `mode` and `nanmedian` compare for equality or look for NaN, and have no regions."""
ADAPTIVE = {
    aten.adaptive_max_pool1d.default: 1, aten.adaptive_max_pool2d.default: 2, aten.adaptive_max_pool3d.default: 3,
}  # fmt: skip
KEEP_PLACE = ("sort", "topk", "cummax", "cummin")
"""Operations whose picked axis stays where it was."""


def held(op: Any, arguments: Arguments, x: Tensor, real: Any) -> tuple[Callable[..., Any], Callable[..., list[Tensor]]]:
    """(the operation with its picks at x held, the margins of doing so), as functions of points like x, (points, …).

    Args:
        op: the operation.
        arguments: its arguments by name.
        x: what it picks from.
        real: its result at x: a tensor, or a tuple whose first entry is the values.
    """
    rows_of = _windows(x, real[0], ADAPTIVE[op]) if op in ADAPTIVE else _lines(x, arguments)
    at = rows_of(x)
    choice = _extreme(at, 1.0) if op in ADAPTIVE else CHOOSERS[op](at, arguments)
    value = real[0] if isinstance(real, tuple) else real
    there = [*range(at.dim() - 1)]
    if str(op).split(".")[1] in KEEP_PLACE:
        dim = int(arguments.get("dim", -1)) % max(x.dim(), 1)
        there.insert(dim, at.dim() - 1)
    else:
        there.append(at.dim() - 1)

    def frozen(point: Tensor) -> Any:
        rows = rows_of(point)
        picked = rows.gather(-1, _like(choice.picked, rows)).permute(there)
        sizes = [*value.shape]
        if sizes:
            sizes[0] = sizes[0] * len(point) // len(x)
        out = picked.reshape(sizes)
        return (out, *real[1:]) if isinstance(real, tuple) else out

    def margins(point: Tensor) -> list[Tensor]:
        rows = rows_of(point)
        above, below = _like(choice.above, rows), _like(choice.below, rows)
        ahead = rows.gather(-1, above) - rows.gather(-1, below)
        return [ahead.masked_fill(above == below, 1.0).nan_to_num(nan=1.0, posinf=1.0)]

    return frozen, margins


def _like(places: Tensor, rows: Tensor) -> Tensor:
    """Places found at one sample, for all points."""
    return places.expand(*rows.shape[:-1], places.shape[-1])


def _lines(x: Tensor, arguments: Arguments) -> Callable[[Tensor], Tensor]:
    """The axes that are picked from, last and flattened."""
    named = arguments.get("dim")
    dims = [named] if isinstance(named, int) else [*(named or range(x.dim()))]
    dims = sorted(d % max(x.dim(), 1) for d in dims) if x.dim() else []
    others = [d for d in range(x.dim()) if d not in dims]
    return lambda point: point.permute(*others, *dims).flatten(len(others)) if dims else point.reshape(1)


def _windows(x: Tensor, out: Tensor, axes: int) -> Callable[[Tensor], Tensor]:
    """Adaptive pooling's windows: from ⌊i L/o⌋ to ⌈(i+1) L/o⌉ along each axis; shorter ones are filled with −inf."""
    places = [_stretches(x.shape[d - axes], out.shape[d - axes]) for d in range(axes)]

    def rows(point: Tensor) -> Tensor:
        found = torch.cat([point, point.new_full((*point.shape[:-1], 1), float("-inf"))], -1)
        for d in range(axes - 1):
            shape = [*found.shape]
            shape[d - axes] = 1
            found = torch.cat([found, found.new_full(shape, float("-inf"))], d - axes)
        for d, index in enumerate(places):
            axis = point.dim() - axes + d
            split = found.index_select(axis, index.flatten()).unflatten(axis, (-1, index.shape[1]))
            found = split.movedim(axis + 1, -1)
        return found.flatten(-axes)

    return rows


def _stretches(length: int, out: int) -> Tensor:
    """(out, widest) places along one axis; `length` stands for the filling."""
    starts = [i * length // out for i in range(out)]
    ends = [-(-(i + 1) * length // out) for i in range(out)]
    widest = max(b - a for a, b in zip(starts, ends, strict=True))
    rows: Sequence[list[int]] = [
        [a + k if a + k < b else length for k in range(widest)] for a, b in zip(starts, ends, strict=True)
    ]
    return torch.tensor(rows)
