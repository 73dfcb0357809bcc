"""The transpose of a convolution as one matrix product, where a CPU takes less time for that than torch's own.

Wᵀ s gives, for every place of the output, the columns that its window adds to the input ("im2col" the other way). A
kernel of one point has columns of one channel each, which need no adding; for other kernels they are added up by
`fold`. Torch's own backward of a convolution takes up to four times as long for strides and for the three channels of
a picture (`benchmarks/convolutions.py` measures both).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .symbolic import is_symbolic

MOST_COLUMNS, MOST_CHANNELS = 3, 4
"""Columns may hold so many times the values of the output, of so many input channels; beyond that adding them up takes
longer than it saves."""
FEW_PLACES = 400
"""Of inputs smaller than this, torch's own backward takes all samples at once, which a matrix product does not."""


def pays(s: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int], groups: int) -> bool:
    """Whether `transpose` takes less time than torch's own backward of a convolution."""
    outputs, channels, *kernel = weight.shape
    pointwise = max(kernel) == 1
    if groups > 1 or not (pointwise or channels <= MOST_CHANNELS):
        return False
    if s.device.type != "cpu" or s.dtype not in (torch.float32, torch.float64) or not s.is_contiguous():
        return False
    if pointwise:
        places = math.prod(s.shape[2:]) * math.prod(stride)
        small = places < FEW_PLACES and (is_symbolic(s) or len(s) > 1)
        return not any(padding) and not small
    return channels * math.prod(kernel) <= MOST_COLUMNS * outputs and s.dim() == 4 and not is_symbolic(s)


def transpose(
    s: Tensor,
    weight: Tensor,
    size: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
) -> Tensor:
    """Σ_j w_ij s_j of an ungrouped convolution: of `s` (N, out, …) and `weight` (out, in, …), as (N, in, *size)."""
    matrix = weight.flatten(1).mT
    kernel = weight.shape[2:]
    if all(n == 1 for n in kernel):
        sums = matrix @ s.flatten(2)
        return _spaced(sums.view(*sums.shape[:2], *s.shape[2:]), size, stride)
    made = s.new_empty((len(s), weight.shape[1], *size))
    for i, one in enumerate(s):  # the columns of a whole batch may be larger than all that is held otherwise
        made[i] = F.fold(matrix @ one.flatten(1), size, kernel, dilation, padding, stride)
    return made


def _spaced(values: Tensor, size: Sequence[int], stride: Sequence[int]) -> Tensor:
    """The places `stride` apart, of a tensor that is zero elsewhere."""
    if all(step == 1 for step in stride):
        return values
    between = [n for step in reversed(stride) for n in (0, step - 1, 0, 0)]
    spaced = F.pad(values[(..., *(slice(None), None) * len(stride))], between)
    spaced = spaced.reshape(*values.shape[:2], *(n * step for n, step in zip(values.shape[2:], stride, strict=True)))
    beyond = [n for own, have in zip(reversed(size), reversed(spaced.shape), strict=False) for n in (0, own - have)]
    return F.pad(spaced, beyond) if any(beyond) else spaced
