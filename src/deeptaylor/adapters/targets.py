"""What a person wants explained, as typed: `281`, `tabby`, `top2`, `tabby vs lynx`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ..errors import TargetError
from .labels import Labels, index_of, name_of


@dataclass(frozen=True)
class Aim:
    """One thing to explain about one photo: a class, or what speaks for a class against another."""

    index: int
    against: int | None = None
    title: str = ""


def check_syntax(asks: Sequence[str]) -> None:
    """Refuse what can't be a target whatever the model: empty words, top0, two 'vs'."""
    for ask in asks:
        sides = _sides(ask)
        if len(sides) > 2 or not all(side.strip() for side in sides):
            raise TargetError(f"target {ask!r}: write an index, a class name, top2, or 'this vs that'")
        for side in sides:
            if _top(side) == 0:
                raise TargetError(f"target {ask!r}: ranks start at top1")


def resolve(asks: Sequence[str], scores: Tensor, labels: Labels | None) -> list[Aim]:
    """What is to be explained for one photo, in the order asked, doubles dropped.

    Args:
        asks: as typed. `topN` stands for the N best classes; beside 'vs' it stands for the Nth best class alone.
        scores: the network's output for this photo, `(classes,)`.
        labels: class names, where there are any.
    """
    ranked = scores.argsort(descending=True).tolist()
    aims: list[Aim] = []
    for ask in asks:
        sides = _sides(ask)
        rank = _top(ask)
        if len(sides) == 2:
            one, other = (_index(side, ranked, labels) for side in sides)
            if one == other:
                raise TargetError(f"target {ask!r}: both sides are class {one} ({name_of(one, labels)})")
            aims.append(Aim(one, other, f"{name_of(one, labels)} vs {name_of(other, labels)}"))
        elif rank is not None:
            if rank > len(ranked):
                raise TargetError(f"target {ask!r}: the model has only {len(ranked)} classes")
            aims += [Aim(index, None, name_of(index, labels)) for index in ranked[:rank]]
        else:
            index = _index(ask, ranked, labels)
            aims.append(Aim(index, None, name_of(index, labels)))
    return list(dict.fromkeys(aims))


def _sides(ask: str) -> list[str]:
    return re.split(r"\s+vs\.?\s+", ask.strip(), flags=re.IGNORECASE)


def _top(text: str) -> int | None:
    match = re.fullmatch(r"top-?(\d+)", text.strip(), flags=re.IGNORECASE)
    return int(match[1]) if match else None


def _index(text: str, ranked: Sequence[int], labels: Labels | None) -> int:
    rank = _top(text)
    if rank is None:
        return index_of(text, labels, len(ranked))
    if rank > len(ranked):
        raise TargetError(f"{text}: the model has only {len(ranked)} classes")
    return ranked[rank - 1]
