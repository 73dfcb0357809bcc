"""Affine operations as maps of input and weight: forward, transpose, and the two without a weight.

Every rule for an affine layer needs only these five, with weights of its choice:

* `forward(x, w)`    z_j = Σ_i w_ij x_i, without the bias
* `transpose(s, w)`  Σ_j w_ij s_j
* `spread(s)`        Σ_j s_j over the neurons j that i feeds: `transpose` with all weights 1, at no linear operation
* `count()`          the number of inputs of each neuron (padding does not count)
* `terms(x, units)`  w_ij x_i one by one, for a few chosen neurons j
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from . import columns
from .symbolic import is_symbolic

aten = torch.ops.aten


@dataclass(frozen=True)
class Affine(ABC):
    """One affine operation with the sizes that it saw."""

    weight: Tensor
    bias: Tensor | None
    """Broadcasts onto z."""
    shape: tuple[int, ...]
    """Shape of the input."""

    @abstractmethod
    def forward(self, x: Tensor, weight: Tensor) -> Tensor: ...

    @abstractmethod
    def transpose(self, s: Tensor, weight: Tensor) -> Tensor: ...

    @abstractmethod
    def spread(self, s: Tensor) -> Tensor: ...

    @abstractmethod
    def count(self) -> Tensor: ...

    def light(self) -> Affine:
        """The same, holding no input."""
        return self

    def of(self, samples: int) -> Affine:
        """The same for so many samples, where the first axis is the batch."""
        return replace(self, shape=(samples, *self.shape[1:]))

    def one(self) -> Tensor:
        """An input of ones, for one sample where the first axis is the batch."""
        return self.weight.new_ones(()).expand(1, *self.shape[1:])

    @abstractmethod
    def terms(self, x: Tensor, units: tuple[Tensor, ...]) -> Tensor:
        """w_ij x_i of the neurons at the index `units` of z, shape (neurons, inputs of each); 0 in the padding."""


@dataclass(frozen=True)
class Linear(Affine):
    """z = x Wᵀ + b over the last axis; `weight` is (out, in)."""

    def forward(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.linear(x, weight)

    def transpose(self, s: Tensor, weight: Tensor) -> Tensor:
        return s @ weight

    def spread(self, s: Tensor) -> Tensor:
        return s.sum(-1, keepdim=True).expand(*s.shape[:-1], self.weight.shape[1])

    def count(self) -> Tensor:
        return self.weight.new_full((1,), self.weight.shape[1])

    def terms(self, x: Tensor, units: tuple[Tensor, ...]) -> Tensor:
        *rows, out = units
        return x[tuple(rows)] * self.weight[out]


@dataclass(frozen=True)
class LeftMatmul(Affine):
    """z = W x with the parameter on the left: `weight` is (..., out, in), x is (..., in, n)."""

    def one(self) -> Tensor:
        return _columns(self)

    def forward(self, x: Tensor, weight: Tensor) -> Tensor:
        return weight @ x

    def transpose(self, s: Tensor, weight: Tensor) -> Tensor:
        return (weight.mT @ s).sum_to_size(self.shape)

    def spread(self, s: Tensor) -> Tensor:
        return s.sum(-2, keepdim=True).expand(*s.shape[:-2], self.weight.shape[-1], s.shape[-1]).sum_to_size(self.shape)

    def count(self) -> Tensor:
        return self.weight.new_full((1,), self.weight.shape[-1])

    def terms(self, x: Tensor, units: tuple[Tensor, ...]) -> Tensor:
        return _products(self.weight, x, units)


@dataclass(frozen=True)
class RightMatmul(Affine):
    """z = x W with a parameter that may itself be batched: `weight` is (..., in, out)."""

    def forward(self, x: Tensor, weight: Tensor) -> Tensor:
        return x @ weight

    def transpose(self, s: Tensor, weight: Tensor) -> Tensor:
        return (s @ weight.mT).sum_to_size(self.shape)

    def spread(self, s: Tensor) -> Tensor:
        return s.sum(-1, keepdim=True).expand(*s.shape[:-1], self.weight.shape[-2]).sum_to_size(self.shape)

    def count(self) -> Tensor:
        return self.weight.new_full((1,), self.weight.shape[-2])

    def terms(self, x: Tensor, units: tuple[Tensor, ...]) -> Tensor:
        return _products(x, self.weight, units)


@dataclass(frozen=True)
class VectorProduct(Affine):
    """z = Σ_i w_i x_i over one axis of x, `x @ w` or `w @ x` with w of one axis: z has no axis for neurons."""

    axis: int

    def one(self) -> Tensor:
        return _columns(self) if self.axis == -2 else super().one()

    def forward(self, x: Tensor, weight: Tensor) -> Tensor:
        return x.movedim(self.axis, -1) @ weight

    def transpose(self, s: Tensor, weight: Tensor) -> Tensor:
        return (s[..., None] * weight).movedim(-1, self.axis)

    def spread(self, s: Tensor) -> Tensor:
        return s[..., None].expand(*s.shape, self.weight.shape[0]).movedim(-1, self.axis)

    def count(self) -> Tensor:
        return self.weight.new_full((1,), self.weight.shape[0])

    def terms(self, x: Tensor, units: tuple[Tensor, ...]) -> Tensor:
        return x.movedim(self.axis, -1)[units] * self.weight


def _columns(affine: Affine) -> Tensor:
    """Ones for an input whose samples may be the columns of a matrix."""
    keep = len(affine.shape) == 2
    return affine.weight.new_ones(()).expand(affine.shape if keep else (1, *affine.shape[1:]))


def _products(left: Tensor, right: Tensor, units: tuple[Tensor, ...]) -> Tensor:
    """The products that `left @ right` sums, at the index `units`."""
    *batch, row, column = units
    axes = torch.broadcast_shapes(left.shape[:-2], right.shape[:-2])
    rows = left.expand(*axes, *left.shape[-2:])[(*batch, row)]
    return rows * right.expand(*axes, *right.shape[-2:]).mT[(*batch, column)]


@dataclass(frozen=True)
class Geometry:
    """How a convolution's window moves; per axis."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    transposed: bool
    output_padding: tuple[int, ...]
    groups: int
    before: tuple[int, ...] = ()
    """Padding of the input done first: `padding='same'` with an even kernel is lopsided."""

    @cached_property
    def settings(self) -> tuple[Sequence[int], Sequence[int], Sequence[int], bool, Sequence[int], int]:
        """As `aten.convolution` takes them."""
        return self.stride, self.padding, self.dilation, self.transposed, self.output_padding, self.groups


@dataclass(frozen=True)
class Convolution(Affine):
    """A convolution of 1 to 3 axes, grouped, strided, dilated, or transposed; the bias is (C, 1, …)."""

    geometry: Geometry
    like: Tensor | None = None
    """The input, where it may stand in for its shape."""

    def forward(self, x: Tensor, weight: Tensor) -> Tensor:
        its = self.geometry
        x = F.pad(x, its.before) if its.before else x
        return aten.convolution.default(x, weight, None, *its.settings)

    def transpose(self, s: Tensor, weight: Tensor) -> Tensor:
        its = self.geometry
        if not its.transposed and columns.pays(s, weight, its.stride, its.padding, its.groups):
            grad = columns.transpose(s, weight, self._padded()[2:], its.stride, its.padding, its.dilation)
        else:
            grad = self._own_transpose(s, weight)
        return F.pad(grad, tuple(-n for n in its.before)) if its.before else grad

    def _own_transpose(self, s: Tensor, weight: Tensor) -> Tensor:
        # convolution_backward reads of the input only its shape, but copies what is not contiguous
        like = self.like
        if like is None or not (is_symbolic(s) or (len(like) == len(s) and like.dtype == s.dtype)):
            like = s.new_empty((s.shape[0], *self._padded()[1:]))
        only_input = [True, False, False]
        grad: Tensor = aten.convolution_backward.default(s, like, weight, None, *self.geometry.settings, only_input)[0]
        return grad

    def light(self) -> Affine:
        return self if self.like is None or is_symbolic(self.like) else replace(self, like=None)

    def spread(self, s: Tensor) -> Tensor:
        its = self.geometry
        outputs = s.shape[1] // its.groups
        s = s.unflatten(1, (its.groups, outputs)).sum(2)
        move = _gather if its.transposed else _scatter
        for axis, (kernel, size) in enumerate(zip(self._kernel(), self._padded()[2:], strict=True)):
            s = move(s, axis + 2, kernel, its.stride[axis], its.padding[axis], its.dilation[axis], size)
        s = s.repeat_interleave(self.shape[1] // its.groups, dim=1)
        return F.pad(s, tuple(-n for n in its.before)) if its.before else s

    def count(self) -> Tensor:
        its = self.geometry
        size = self._padded()[2:]
        ones = self.weight.new_ones((1, 1, *self.shape[2:]))
        ones = F.pad(ones, its.before) if its.before else ones
        for axis, kernel in enumerate(self._kernel()):
            span = its.dilation[axis] * (kernel - 1)
            move = _scatter if its.transposed else _gather
            if its.transposed:
                out = (size[axis] - 1) * its.stride[axis] - 2 * its.padding[axis] + span + its.output_padding[axis] + 1
            else:
                out = (size[axis] + 2 * its.padding[axis] - span - 1) // its.stride[axis] + 1
            ones = move(ones, axis + 2, kernel, its.stride[axis], its.padding[axis], its.dilation[axis], out)
        return ones * (self.shape[1] // its.groups)

    def terms(self, x: Tensor, units: tuple[Tensor, ...]) -> Tensor:
        its = self.geometry
        x = F.pad(x, its.before) if its.before else x
        sample, out, *place = units
        ins, outs = x.shape[1] // its.groups, self.weight.shape[1 if its.transposed else 0]
        outs = outs if its.transposed else outs // its.groups
        channels = (out // outs)[:, None] * ins + torch.arange(ins, device=x.device)  # (neurons, inputs of the group)
        at, held = torch.zeros_like(out)[:, None], torch.ones_like(out, dtype=torch.bool)[:, None]
        for axis, (kernel, size) in enumerate(zip(self._kernel(), x.shape[2:], strict=True)):
            taps = torch.arange(kernel, device=x.device) * its.dilation[axis]
            if its.transposed:
                reached = place[axis][:, None] + its.padding[axis] - taps
                where, inside = reached // its.stride[axis], reached % its.stride[axis] == 0
            else:
                where = place[axis][:, None] * its.stride[axis] - its.padding[axis] + taps
                inside = torch.ones_like(where, dtype=torch.bool)
            inside = inside & (where >= 0) & (where < size)
            at = (at[:, :, None] * size + where.clamp(0, size - 1)[:, None]).flatten(1)
            held = (held[:, :, None] & inside[:, None]).flatten(1)
        values = x.flatten(2)[sample[:, None, None], channels[:, :, None], at[:, None]] * held[:, None]
        weights = self.weight[channels, (out % outs)[:, None]] if its.transposed else self.weight[out]
        return (values * weights.flatten(2)).flatten(1)

    def _kernel(self) -> tuple[int, ...]:
        return tuple(self.weight.shape[2:])

    def _padded(self) -> tuple[int, ...]:
        its = self.geometry
        if not its.before:
            return self.shape
        extra = [its.before[2 * i] + its.before[2 * i + 1] for i in range(len(its.before) // 2)][::-1]
        return tuple(n + e for n, e in zip(self.shape, [0, 0, *extra], strict=True))


def _scatter(s: Tensor, axis: int, kernel: int, stride: int, padding: int, dilation: int, size: int) -> Tensor:
    """Adds s[o] to every position o·stride − padding + t·dilation, t < kernel, along one axis of length `size`."""
    length = s.shape[axis]
    reach = max(size + 2 * padding, (length - 1) * stride + dilation * (kernel - 1) + 1)
    buffer = s.new_zeros((*s.shape[:axis], reach, *s.shape[axis + 1 :]))
    for t in range(kernel):
        start = t * dilation
        index = [slice(None)] * axis + [slice(start, start + (length - 1) * stride + 1, stride)]
        buffer[tuple(index)] += s
    return buffer.narrow(axis, padding, size)


def _gather(x: Tensor, axis: int, kernel: int, stride: int, padding: int, dilation: int, size: int) -> Tensor:
    """Sums x over the window of every output along one axis: the transpose of `_scatter`."""
    reach = max(x.shape[axis] + 2 * padding, (size - 1) * stride + dilation * (kernel - 1) + 1)
    before = [0, 0] * (x.dim() - 1 - axis)
    x = F.pad(x, (*before, padding, reach - padding - x.shape[axis]))
    windows = [x.narrow(axis, t * dilation, (size - 1) * stride + 1) for t in range(kernel)]
    index = (slice(None),) * axis + (slice(None, None, stride),)
    return torch.stack([window[index] for window in windows]).sum(0)


@dataclass(frozen=True)
class Window:
    """The sliding window of a pooling operation: `sum` over it, and `spread`, its transpose."""

    shape: tuple[int, ...]
    """Shape of the input's last axes."""
    out: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]

    def sum(self, x: Tensor) -> Tensor:
        """Sum of x over every window; what lies in the padding counts as 0."""
        for i, axis in enumerate(self._axes(x)):
            x = _gather(x, axis, self.kernel[i], self.stride[i], self.padding[i], self.dilation[i], self.out[i])
        return x

    def spread(self, s: Tensor) -> Tensor:
        """For every input, the sum of s over the windows that hold it."""
        for i, axis in enumerate(self._axes(s)):
            s = _scatter(s, axis, self.kernel[i], self.stride[i], self.padding[i], self.dilation[i], self.shape[i])
        return s

    def views(self, x: Tensor, fill: float) -> Tensor:
        """The values of every window, stacked along a new first axis; padding counts as `fill`."""
        reach = [max(n + 2 * p, (o - 1) * s + d * (k - 1) + 1) for n, p, o, s, d, k in self._sizes()]
        pads = [
            n
            for r, (size, p, *_) in zip(reversed(reach), reversed(self._sizes()), strict=True)
            for n in (p, r - p - size)
        ]
        padded = F.pad(x, pads, value=fill)
        axes = [[slice(t * d, t * d + (o - 1) * s + 1, s) for t in range(k)] for _, _, o, s, d, k in self._sizes()]
        return torch.stack([padded[cast(Any, (..., *index))] for index in itertools.product(*axes)])

    def _sizes(self) -> list[tuple[int, int, int, int, int, int]]:
        return list(zip(self.shape, self.padding, self.out, self.stride, self.dilation, self.kernel, strict=True))

    def _axes(self, x: Tensor) -> range:
        return range(x.dim() - len(self.kernel), x.dim())
