"""Input maps a(x) and weight maps b(w): what the parts of a rule for affine layers are made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .base import product_into, where_negative, where_positive


@dataclass(frozen=True)
class InputMap:
    """a(x), and a(x)/x times a message where that is defined: then the message is x times something (product form)."""

    name: str
    of: Callable[[Tensor], Tensor]
    of_one: float
    """a(1): how the map treats a bias, a neuron of activation 1."""
    per: Callable[[Tensor, Tensor], Tensor] | None = None
    """(c, x) ↦ a(x)/x · c, in the place of c, which nobody else reads."""


@dataclass(frozen=True)
class WeightMap:
    """b(w), elementwise."""

    name: str
    of: Callable[[Tensor], Tensor]


IDENTITY = InputMap("x", lambda x: x, 1.0, lambda c, x: c)
POSITIVE = InputMap("x⁺", lambda x: x.clamp(min=0), 1.0, lambda c, x: where_positive(c, x, own=True))
NEGATIVE = InputMap("x⁻", lambda x: x.clamp(max=0), 0.0, where_negative)
ABSOLUTE = InputMap("|x|", torch.abs, 1.0, lambda c, x: product_into(c, torch.sign(x)))
ONE = InputMap("1", torch.ones_like, 1.0)

SAME = WeightMap("w", lambda w: w)
PLUS = WeightMap("w⁺", lambda w: w.clamp(min=0))
MINUS = WeightMap("w⁻", lambda w: w.clamp(max=0))
SIZE = WeightMap("|w|", torch.abs)
SQUARE = WeightMap("w²", torch.square)
ONES = WeightMap("1", torch.ones_like)


def BOOST(gamma: float) -> WeightMap:
    """w + γ w⁺."""
    return WeightMap(f"w+{gamma:g}w⁺", lambda w: w + gamma * w.clamp(min=0))


def shifted(bound: Tensor) -> InputMap:
    """x − bound."""
    return InputMap("x−bound", lambda x: x - bound, 0.0)
