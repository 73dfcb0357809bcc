"""Shape arithmetic of ONNX graphs on Python numbers.

An exported graph computes sizes with tensors: Shape, Gather, Concat, Reshape. As data, they would hide from the tracer
that a size is a size. Here they are lists of (symbolic) integers, and the operations that take them are PyTorch's own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Numbers = Any
"""An integer (perhaps symbolic), or a list of them."""


def shape_of(x: Tensor, start: int = 0, end: int | None = None) -> Numbers:
    """The sizes of a tensor."""
    return list(x.shape)[start:end]


def size_of(x: Tensor) -> Numbers:
    """The number of elements of a tensor."""
    return math.prod(x.shape)


def pick(values: Numbers, index: Numbers) -> Numbers:
    """Gather along the only axis."""
    return [values[i] for i in index] if isinstance(index, list) else values[index]


def join(*values: Numbers) -> Numbers:
    """Concat."""
    return [number for part in values for number in part]


def part(values: Numbers, starts: Numbers, ends: Numbers, axes: Numbers = None, steps: Numbers = None) -> Numbers:
    """Slice."""
    return values[_one(starts) : _one(ends) : _one(steps) if steps is not None else 1]


def wrap(value: Numbers, *_: Numbers) -> Numbers:
    """Unsqueeze of a number."""
    return [value] if not isinstance(value, list) else value


def unwrap(values: Numbers, *_: Numbers) -> Numbers:
    """Squeeze to a number."""
    return _one(values)


def same(value: Numbers) -> Numbers:
    """Identity."""
    return value


def cast(values: Numbers, *, to_float: bool = False) -> Numbers:
    """Cast; fractions are cut."""
    if isinstance(values, list):
        return [cast(value, to_float=to_float) for value in values]
    return torch.sym_float(values) if to_float else torch.sym_int(values)


def product(values: Numbers, *_: Numbers) -> Numbers:
    """ReduceProd."""
    return math.prod(values) if isinstance(values, list) else values


def flat(values: Numbers, *_: Numbers) -> Numbers:
    """Reshape to one axis."""
    return values if isinstance(values, list) else [values]


def count(values: Numbers) -> Numbers:
    """Shape of sizes."""
    return [len(values)]


def repeat(size: Numbers, value: int) -> Numbers:
    """ConstantOfShape with one axis."""
    return [value] * size[0]


def filled(shape: Numbers, value: float, dtype: torch.dtype) -> Tensor:
    """ConstantOfShape as a tensor."""
    return torch.full(shape, value, dtype=dtype)


def choose(condition: Numbers, yes: Numbers, no: Numbers) -> Numbers:
    """Where."""
    if not isinstance(condition, list):
        return yes if condition else no
    n = len(condition)
    return [y if c else z for c, y, z in zip(condition, _long(yes, n), _long(no, n), strict=True)]


def _elementwise(function: Callable[[Any, Any], Any]) -> Callable[[Numbers, Numbers], Numbers]:
    def both(a: Numbers, b: Numbers) -> Numbers:
        if not isinstance(a, list) and not isinstance(b, list):
            return function(a, b)
        n = max(len(v) for v in (a, b) if isinstance(v, list))
        return [function(x, y) for x, y in zip(_long(a, n), _long(b, n), strict=True)]

    return both


def floor(values: Numbers) -> Numbers:
    """Floor."""
    return [math.floor(value) for value in values] if isinstance(values, list) else math.floor(values)


def ceil(values: Numbers) -> Numbers:
    """Ceil."""
    return [math.ceil(value) for value in values] if isinstance(values, list) else math.ceil(values)


add = _elementwise(lambda a, b: a + b)
subtract = _elementwise(lambda a, b: a - b)
multiply = _elementwise(lambda a, b: a * b)
divide = _elementwise(lambda a, b: a // b if _is_whole(a) and _is_whole(b) else a / b)
remainder = _elementwise(lambda a, b: a % b)
equal = _elementwise(lambda a, b: a == b)

ON_NUMBERS: dict[str, Callable[..., Numbers]] = {
    "Gather": pick, "Concat": join, "Slice": part, "Unsqueeze": wrap, "Squeeze": unwrap, "Cast": cast,
    "Floor": floor, "Ceil": ceil,
    "ReduceProd": product, "Where": choose, "Add": add, "Sub": subtract, "Mul": multiply, "Div": divide,
    "Mod": remainder, "Equal": equal, "Identity": same, "Reshape": flat, "Shape": count,
}  # fmt: skip
"""Operations that give sizes where all their inputs are sizes."""


def as_tensor(values: Numbers, dtype: torch.dtype) -> Tensor:
    """Sizes as a tensor, for operations that want one."""
    return torch.tensor(values, dtype=dtype)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int | torch.SymInt)


def _one(values: Numbers) -> Numbers:
    return values[0] if isinstance(values, list) else values


def _long(values: Numbers, n: int) -> Sequence[Any]:
    if not isinstance(values, list):
        return [values] * n
    return values * n if len(values) == 1 else values
