"""Rule for operations that move values: views, indexing, padding, concatenation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..ops import Role
from ..step import Function, Step
from .base import Habits, Redistribution, Relevance, Rule


class RearrangeRule(Rule):
    """A rule for operations that move values."""

    roles: ClassVar[tuple[Role, ...]] = ("rearrange",)


@dataclass(frozen=True)
class Move(RearrangeRule):
    """Relevance goes where the value came from; what sits on a constant (padding, a parameter) is booked."""

    def habits(self) -> Habits:
        return Habits(once=True)

    def as_function(self, step: Step) -> Function | None:
        return step.function

    def __call__(self, step: Step, relevance: Relevance) -> Redistribution:
        moved = step.vjp(relevance.tensor)
        own = relevance.own and len(moved) == 1 and moved[0].is_contiguous()  # no place stands for two
        messages = tuple(Relevance(g, relevance.product, own) for g in moved)
        if not step.op.offset:
            return Redistribution(messages)
        if relevance.product:
            return Redistribution(messages, {"constant": lambda: relevance.tensor * torch.nan_to_num(step.offset())})
        return Redistribution(messages, {"constant": lambda: relevance.tensor * _constant(step)})

    def several(self, step: Step, relevances: Sequence[Relevance | None], outputs: Sequence[Any]) -> Redistribution:
        """The same for an operation with several outputs, such as split."""
        product = all(r is None or r.product for r in relevances)
        tensors = [
            None if r is None else r.tensor if product else r.total(out)
            for r, out in zip(relevances, outputs, strict=True)
        ]
        return Redistribution(tuple(Relevance(g, product) for g in step.vjp(tensors)))


def _constant(step: Step) -> Tensor:
    """1 where the output is a constant, 0 where it is data."""
    moved = step.function(*(torch.ones_like(x) for x in step.xs)) - step.offset()
    return (torch.nan_to_num(moved) == 0).to(step.z.dtype)
