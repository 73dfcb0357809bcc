"""Relevance of words on a terminal: colours where there are some, and numbers in any case."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.text import Text

from .layout import balance, colour, folded, headline, limit, listed, strongest
from .result import TextExplanation


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
    said.append(f"for: {listed(ahead)}\nagainst: {listed(against)}\n{balance(explanation)}")
    return Group(Text(headline(explanation), style="bold"), line, said, "")
