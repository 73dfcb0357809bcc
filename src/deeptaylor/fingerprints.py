"""Telling that a weight was replaced or written to, also behind autograd's back: `p.data.mul_(2)` leaves no trace.

Versions and addresses are compared, and the values: of large tensors one product with fixed numbers per row, so that
they are read once; small ones are kept and compared as they are.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from .step import HALF

ROW = 4096
SMALL = 4 * ROW
"""Up to so many values, a call costs more than the reading."""


@dataclass(frozen=True)
class _Piece:
    """One tensor's memory, laid out to be read with two calls, and what was read at first."""

    rows: Tensor | None
    """(rows, ROW)."""
    rest: Tensor | None
    """What fills no row; a small tensor, one of integers, or one whose memory can't be viewed in order."""
    sums: Tensor | None
    values: Tensor | None

    @staticmethod
    def of(tensor: Tensor) -> _Piece:
        straight = _in_memory_order(tensor)
        if straight is None or len(straight) <= SMALL or not straight.is_floating_point():
            rest = tensor if straight is None else straight
            return _Piece(None, rest, None, rest.reshape(-1).clone())
        end = len(straight) // ROW * ROW
        rows, rest = straight[:end].view(-1, ROW), straight[end:]
        return _Piece(rows, rest if len(rest) else None, _sums(rows), rest.clone() if len(rest) else None)


def _sums(rows: Tensor) -> Tensor:
    """One number per row; in half precision, a sum would not see a small change."""
    dtype = torch.float32 if rows.dtype in HALF else rows.dtype
    return torch.mv(rows.to(dtype), _weights(rows.device, dtype))


def _are_same(pieces: Sequence[_Piece]) -> bool:
    """Whether all of them, of one device and dtype, read as they did at first."""
    rows = [(piece.sums, _sums(piece.rows)) for piece in pieces if piece.rows is not None]
    rest = [(piece.values, piece.rest.reshape(-1)) for piece in pieces if piece.rest is not None]
    return all(torch.equal(*map(torch.cat, zip(*pairs, strict=True))) for pairs in (rest, rows) if pairs)


class Fingerprint:
    """Of named tensors, as they were when it was taken; it looks at their memory, which it keeps alive."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._labels = {name: _label(tensor) for name, tensor in tensors.items()}
        self._pieces = {name: _Piece.of(tensor.detach()) for name, tensor in tensors.items() if tensor.numel()}
        self._chosen: Collection[str] = ()
        self._groups: list[list[_Piece]] = []

    def holds(self, tensors: Mapping[str, Tensor], names: Collection[str]) -> bool:
        """Whether those of these names are the tensors that it was taken of, and hold the same values."""
        if not all(_label(tensors[name]) == self._labels[name] for name in names):
            return False
        if names is not self._chosen:
            groups: dict[Any, list[_Piece]] = {}
            for name in names:
                if name in self._pieces:
                    groups.setdefault(self._labels[name][1:3], []).append(self._pieces[name])
            self._chosen, self._groups = names, list(groups.values())
        return all(map(_are_same, self._groups))


def _label(tensor: Tensor) -> tuple[Any, ...]:
    version = 0 if tensor.is_inference() else tensor._version
    return tensor.data_ptr(), tensor.dtype, tensor.device, tensor.shape, version


def _in_memory_order(tensor: Tensor) -> Tensor | None:
    """The tensor's values as they lie in memory, without a copy; None where there are gaps or repetitions."""
    strides: tuple[int, ...] = tensor.stride()
    for axis, stride in enumerate(strides):
        tensor = tensor if stride else tensor.narrow(axis, 0, 1)
    turned = tensor.permute(sorted(range(tensor.dim()), key=lambda axis: (-strides[axis], -tensor.shape[axis])))
    return turned.view(-1) if turned.is_contiguous() else None


@lru_cache(maxsize=16)
def _weights(device: torch.device, dtype: torch.dtype) -> Tensor:
    """Numbers from 1 to 2 that all differ, so that values that swap places show."""
    return (1 + torch.arange(ROW, device=device, dtype=torch.float64).mul(0.618034).frac()).to(dtype)
