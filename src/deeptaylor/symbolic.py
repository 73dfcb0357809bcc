"""Tensors without values: what rules see while an explanation is recorded as a program."""

from __future__ import annotations

from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor


def is_symbolic(tensor: Tensor) -> bool:
    """Whether a tensor has a shape but no values yet, so that no Python branch may look at them."""
    return isinstance(tensor, FakeTensor)
