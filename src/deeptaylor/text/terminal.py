"""Relevance of words on a terminal: colours where there are some, and numbers in any case."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from .layout import balance, colour, folded, headline, limit, number, strongest
from .result import TextExplanation
from .tokens import Span


def drawn(explanation: TextExplanation) -> RenderableType:
    """The text with coloured words, the strongest words by number, and where the score went."""
    full = limit(explanation)
    line = Text()
    part = 0
    for one in folded(explanation):
        if one.part != part:
            line.append("\n")
            part = one.part
        if one.relevance is None:
            line.append(one.text, style="dim")
        elif one.special:
            line.append(one.text, style="dim italic")
        else:
            background, ink = colour(one.relevance, full)
            line.append(one.text, style=f"{ink} on {background}")
    ahead, against = strongest(explanation)
    said = Text(style="dim")
    said.append(f"for: {_listed(ahead)}\nagainst: {_listed(against)}\n")
    said.append("score = " + " ".join(f"{number(value)} {name}" for name, value in balance(explanation)))
    return Group(Text(headline(explanation), style="bold"), line, said, "")


def _listed(words: Sequence[Span]) -> str:
    return (
        ", ".join(f"{' '.join(word.text.split()) or repr(word.text)} {number(word.relevance)}" for word in words)
        or "nothing"
    )
