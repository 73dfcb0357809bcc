"""ONNX operators that take sizes, axes or limits: as PyTorch's own functions of numbers.

Their first argument is data, the others are Python numbers (or None where a graph leaves them out); keywords are the
operators' attributes, under ONNX's names. Every conversion is proven against onnxruntime afterwards.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .onnx_shapes import Numbers


def reshape(x: Tensor, shape: Numbers, *, allowzero: int = 0) -> Tensor:
    """Reshape: 0 keeps an axis, unless `allowzero`."""
    return x.reshape([x.shape[i] if not allowzero and _is_zero(size) else size for i, size in enumerate(shape)])


def expand(x: Tensor, shape: Numbers) -> Tensor:
    """Expand: both sides broadcast."""
    missing = len(shape) - x.dim()
    wanted = [-1] * max(-missing, 0) + list(shape)
    return x.expand([-1 if i >= missing and _is_one(size) else size for i, size in enumerate(wanted)])


def slices(x: Tensor, starts: Numbers, ends: Numbers, axes: Numbers = None, steps: Numbers = None) -> Tensor:
    """Slice along several axes; negative steps run backwards."""
    for i, axis in enumerate(axes if axes is not None else range(len(starts))):
        step = steps[i] if steps is not None else 1
        if step < 0:
            wanted = range(int(x.shape[axis]))[starts[i] : ends[i] : step]
            x = x.index_select(axis, torch.tensor(list(wanted), dtype=torch.long, device=x.device))
        else:
            index: list[Any] = [slice(None)] * x.dim()
            index[axis] = slice(starts[i], ends[i], step)
            x = x[tuple(index)]
    return x


def clip(x: Tensor, low: Numbers = None, high: Numbers = None) -> Tensor:
    """Clip with constant limits."""
    low, high = (value[0] if isinstance(value, list) else value for value in (low, high))
    return x.clamp(low, high)


def gelu(x: Tensor, *, approximate: bytes = b"none") -> Tensor:
    """Gelu, exact or by tanh."""
    return F.gelu(x, approximate=approximate.decode())


def squeeze(x: Tensor, axes: Numbers = None) -> Tensor:
    """Squeeze of the given axes, or of all of size 1."""
    return x.squeeze() if axes is None else x.squeeze(tuple(axes))


def unsqueeze(x: Tensor, axes: Numbers) -> Tensor:
    """Unsqueeze; axes count in the result."""
    rank = x.dim() + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        x = x.unsqueeze(axis)
    return x


def split(x: Tensor, split: Numbers = None, *, axis: int = 0, num_outputs: int = 0) -> tuple[Tensor, ...]:
    """Split into the given sizes, or into equal parts of which the last may be smaller."""
    if split is not None:
        return x.split(split, axis)
    return x.split(-(-x.shape[axis] // num_outputs), axis)


def pad(x: Tensor, pads: Numbers, value: Numbers = None, axes: Numbers = None, *, mode: bytes = b"constant") -> Tensor:
    """Pad with a constant, the edge, or reflected."""
    axes = list(range(x.dim())) if axes is None else [axis % x.dim() for axis in axes]
    both = {axis: (pads[i], pads[i + len(axes)]) for i, axis in enumerate(axes)}
    first = min((axis for axis, ends in both.items() if any(ends)), default=x.dim())
    flat = [end for axis in reversed(range(first, x.dim())) for end in both.get(axis, (0, 0))]
    if mode == b"constant":
        return F.pad(x, flat, value=value[0] if isinstance(value, list) else value or 0.0)
    return F.pad(x, flat, mode={b"edge": "replicate", b"reflect": "reflect", b"wrap": "circular"}[mode])


def gather(x: Tensor, indices: Any, *, axis: int = 0) -> Tensor:
    """Gather: the look-up of a table's rows, or a selection along an axis; numbers may count from the end."""
    if isinstance(indices, int):
        return x.select(axis, indices)
    if isinstance(indices, list):
        indices = torch.tensor([index % int(x.shape[axis]) for index in indices], device=x.device)
    elif axis == 0 and x.dim() == 2 and x.is_floating_point():
        return F.embedding(indices if indices.dtype == torch.int32 else indices.long(), x)
    else:
        indices = torch.where(indices < 0, indices + x.shape[axis], indices).long()
    axis %= x.dim()
    found = x.index_select(axis, indices.reshape(-1))
    return found.reshape([*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]])


def tile(x: Tensor, repeats: Numbers) -> Tensor:
    """Tile."""
    return x.repeat(repeats)


def resize(
    x: Tensor,
    roi: Numbers = None,
    scales: Numbers = None,
    sizes: Numbers = None,
    *,
    mode: bytes = b"nearest",
    coordinate_transformation_mode: bytes = b"half_pixel",
    nearest_mode: bytes = b"round_prefer_floor",
    cubic_coeff_a: float = -0.75,
    antialias: int = 0,
    exclude_outside: int = 0,
    extrapolation_value: float = 0.0,
    axes: Any = None,
    keep_aspect_ratio_policy: bytes = b"stretch",
) -> Tensor:
    """Resize of the spatial axes: nearest as PyTorch rounds, linear and cubic with half pixels or aligned corners."""
    how = {1: "linear", 2: "bilinear", 3: "trilinear"}[x.dim() - 2] if mode == b"linear" else mode.decode()
    how = {"cubic": "bicubic"}.get(how, how)
    # For whole factors the ways to round agree, or the comparison with onnxruntime refuses the file.
    corners = coordinate_transformation_mode == b"align_corners" if how != "nearest" else None
    if sizes:
        return F.interpolate(x, size=sizes[2:], mode=how, align_corners=corners)
    return F.interpolate(x, scale_factor=scales[2:], mode=how, align_corners=corners)


def top_k(x: Tensor, k: Numbers, *, axis: int = -1, largest: int = 1, sorted: int = 1) -> tuple[Tensor, Tensor]:
    """TopK."""
    found = x.topk(k[0] if isinstance(k, list) else k, axis, bool(largest), bool(sorted))
    return found.values, found.indices


def _reduction(
    over: Callable[[Tensor, tuple[int, ...], bool], Tensor],
) -> Callable[..., Tensor]:
    def reduce(x: Tensor, axes: Numbers = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Tensor:
        if not axes and noop_with_empty_axes:
            return x
        return over(x, tuple(axes) if axes else tuple(range(x.dim())), bool(keepdims))

    return reduce


ON_TENSORS: dict[str, Callable[..., Any]] = {
    "Reshape": reshape,
    "Expand": expand,
    "Slice": slices,
    "Clip": clip,
    "Gelu": gelu,
    "Squeeze": squeeze,
    "Unsqueeze": unsqueeze,
    "Split": split,
    "Pad": pad,
    "Tile": tile,
    "Resize": resize,
    "TopK": top_k,
    "ReduceMean": _reduction(lambda x, axes, keep: x.mean(axes, keep)),
    "ReduceSum": _reduction(lambda x, axes, keep: x.sum(axes, keep)),
    "ReduceMax": _reduction(lambda x, axes, keep: x.amax(axes, keep)),
    "ReduceMin": _reduction(lambda x, axes, keep: x.amin(axes, keep)),
    "ReduceL2": _reduction(lambda x, axes, keep: x.square().sum(axes, keep).sqrt()),
    "ReduceSumSquare": _reduction(lambda x, axes, keep: x.square().sum(axes, keep)),
    "ReduceLogSumExp": _reduction(lambda x, axes, keep: x.logsumexp(axes, keep)),
}
"""What is wired by these functions wherever all arguments after the data are sizes or constants."""
SEVERAL = ("Split", "TopK")
"""Those with several outputs."""
_AS_ATTRIBUTES = ("axes", "split")


def arguments(node: Any, given: list[Any], attributes: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    """The arguments behind the data, and keywords; what older opsets keep in attributes moves to its place.

    Raises:
        ValueError: an attribute that is not known.
    """
    function = ON_TENSORS[node.op_type]
    known = inspect.signature(function).parameters
    unknown = [name for name in attributes if name not in known]
    if unknown:
        raise ValueError(f"its attribute {unknown[0]!r} is not known")
    keywords = {name: value for name, value in attributes.items() if name not in _AS_ATTRIBUTES}
    named = {name: list(attributes[name]) for name in _AS_ATTRIBUTES if name in attributes}
    if node.op_type == "Split" and "split" not in named and len(given) < 1:
        keywords["num_outputs"] = len(node.output)
    return given, keywords | named


def _is_zero(size: Any) -> bool:
    return isinstance(size, int) and size == 0


def _is_one(size: Any) -> bool:
    return isinstance(size, int) and size == 1
