"""Relevance of words as a matplotlib figure: the texts in a fixed-width face, each word on its colour."""

from __future__ import annotations

import textwrap
import unicodedata
from collections.abc import Iterator, Sequence
from typing import Any

from ..errors import InputError, MissingExtra
from .layout import Stretch, colour, folded, headline, limit, stretches
from .result import Level, TextExplanation

COLUMNS = 84
CHARACTER, LINE = 0.105, 0.27
"""Inches."""


def draw(explanations: Sequence[TextExplanation], level: Level = "word") -> Any:
    """A figure with every text under its target and score.

    Raises:
        InputError: nothing to draw.
        MissingExtra: matplotlib is not installed.
    """
    if not explanations:
        raise InputError("no texts to draw")
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtra("plots need matplotlib", "plots") from error
    lines: list[tuple[int, int, str, str, str, bool]] = []  # row, column, text, background, ink, bold
    row = 0
    for each in explanations:
        for title in textwrap.wrap(headline(each), COLUMNS):
            lines.append((row, 0, title, "none", "#1d1c1a", True))
            row += 1
        full = limit(each, level)
        row = _place(lines, folded(each) if level == "word" else stretches(each, level), full, row) + 2
    figure = Figure(figsize=(COLUMNS * CHARACTER + 0.4, (row + 1) * LINE))
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0.2 / (COLUMNS * CHARACTER + 0.4), 0.0, 1.0, 1.0))
    axes.set_axis_off()
    axes.set_xlim(0, COLUMNS * CHARACTER + 0.4)
    axes.set_ylim((row + 1) * LINE, 0)
    for y, x, text, background, ink, bold in lines:
        place = (x * CHARACTER, (y + 1) * LINE)
        box = {"facecolor": background, "edgecolor": "none", "boxstyle": "square,pad=0.12"}
        axes.text(
            *place, text, color=ink, family="monospace", fontsize=12.5 if not bold else 11, va="center",
            fontweight="bold" if bold else "normal", bbox=box if background != "none" else None, parse_math=False,
        )  # fmt: skip
    return figure


def _place(lines: list[Any], found: Sequence[Stretch], full: float, row: int) -> int:
    """Sets the stretches in rows; gives the last row used."""
    column, part = 0, 0
    for one in found:
        if one.part != part:
            row, column, part = row + 1, 0, one.part
        background, ink = ("none", "#8d8981")
        if one.relevance is not None and not one.special:
            background, ink = colour(one.relevance, full)
        for piece in _pieces(one.text, one.relevance is None):
            if piece == "\n":
                row, column = row + 1, 0
                continue
            width = _width(piece)
            if column + width > COLUMNS and column:
                row, column = row + 1, 0
                piece = piece.lstrip()
                width = _width(piece)
            if piece.strip():
                lines.append((row, column, piece, background, ink, False))
            column += width
    return row


def _pieces(text: str, between: bool) -> Iterator[str]:
    """What may stand at the end of a row: white space by itself, unseen text word by word, never more than a row."""
    for n, line in enumerate(text.split("\n")):
        if n:
            yield "\n"
        words = line.split(" ") if between else [line]
        for m, word in enumerate(words):
            if m:
                yield " "
            yield from (word[i : i + COLUMNS] for i in range(0, len(word), COLUMNS))


def _width(text: str) -> int:
    """Columns that a text takes: two for each wide character, none for marks."""
    return sum(
        0 if unicodedata.combining(c) or c == "\u200d" else 2 if unicodedata.east_asian_width(c) in "WF" else 1
        for c in text
    )
