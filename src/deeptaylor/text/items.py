"""One text as a model's inputs, with the places whose scores are asked for; and batches of them.

Texts are padded on the right, and only where the model takes a mask; where it takes none, texts of one length go
together.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from ..inputs import Model
from .encode import Encoded, Vocabulary
from .heads import takes
from .tokens import Token

MASKS = ("attention_mask", "mask")


@dataclass(frozen=True)
class Asked:
    """A place of the model's table whose score is asked for."""

    place: int
    column: int | None = None
    """The column asked for where the caller names none; None: the highest."""
    token: int | None = None
    """The token of the text that the place speaks of."""
    seen: int | None = None
    """Tokens of the item that can have counted; None: all of them."""


@dataclass(frozen=True)
class Item:
    """One text, ready for the model."""

    number: int
    """Of the text it came from."""
    parts: tuple[str, ...]
    inputs: Mapping[str, Sequence[int]]
    """By name of the model's parameter."""
    explained: Mapping[str, tuple[Token, ...]]
    """Tokens of the inputs that are explained, by the parameter's name."""
    asked: tuple[Asked, ...] = field(default=(Asked(0),))

    @property
    def tokens(self) -> tuple[Token, ...]:
        return tuple(token for tokens in self.explained.values() for token in tokens)

    @property
    def lengths(self) -> tuple[int, ...]:
        return tuple(len(values) for values in self.inputs.values())


@dataclass(frozen=True)
class Wiring:
    """Which of a model's parameters take ids, masks and token types."""

    ids: str
    mask: str | None
    types: str | None
    pad: int

    def inputs(self, encoded: Encoded, prefix: str = "") -> dict[str, list[int]]:
        """The model's inputs of one text."""
        found = {prefix + self.ids: encoded.ids}
        if self.mask:
            found[prefix + self.mask] = [1] * len(encoded.ids)
        if self.types and encoded.types is not None:
            found[prefix + self.types] = list(encoded.types)
        return found

    def fill(self, name: str) -> int:
        """What pads an input: the pad id where it holds ids, else 0."""
        return self.pad if name.endswith(self.ids) else 0


def wire(model: Model, tokenizer: Any) -> Wiring:
    """How ids reach a model, read from its signature.

    Raises:
        InputError: it needs arguments that no text gives.
    """
    parameters = takes(model)
    ids = next((name for name in ("input_ids", "ids", "tokens", *parameters) if name in parameters), None)
    if ids is None:
        raise InputError("the model takes no arguments by name; wrap it in a function of ids")
    mask = next((name for name in MASKS if name in parameters), None)
    types = "token_type_ids" if "token_type_ids" in parameters else None
    others = [name for name, needed in parameters.items() if needed and name not in (ids, mask, types)]
    if others:
        raise InputError(
            f"the model also needs {', '.join(others)}, which no tokenizer gives; wrap it: "
            f"lambda {ids}: model({ids}, {others[0]}=...)"
        )
    return Wiring(ids, mask, types, _pad_id(model, tokenizer))


def _pad_id(model: Any, tokenizer: Any) -> int:
    if isinstance(tokenizer, Vocabulary):
        return tokenizer.table[tokenizer.pad] if tokenizer.pad else 0
    stated = (getattr(tokenizer, "pad_token_id", None), getattr(getattr(model, "config", None), "pad_token_id", None))
    return next((one for one in stated if isinstance(one, int) and one >= 0), 0)


def batches(items: Sequence[Item], size: int, masked: bool) -> Iterator[list[int]]:
    """Indices of the items of each batch, of similar lengths; of equal ones where there is no mask."""
    order = sorted(range(len(items)), key=lambda n: (items[n].lengths, n))
    batch: list[int] = []
    for n in order:
        full = len(batch) == size
        if batch and (full or (not masked and items[n].lengths != items[batch[0]].lengths)):
            yield batch
            batch = []
        batch.append(n)
    if batch:
        yield batch


def stacked(items: Sequence[Item], wiring: Wiring, device: torch.device) -> dict[str, Tensor]:
    """The inputs of a batch, (N, T) each, padded on the right."""
    found = {}
    for name in items[0].inputs:
        width = max(len(item.inputs[name]) for item in items)
        rows = [[*item.inputs[name], *[wiring.fill(name)] * (width - len(item.inputs[name]))] for item in items]
        found[name] = torch.tensor(rows, dtype=torch.long, device=device)
    return found
