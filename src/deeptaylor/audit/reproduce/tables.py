"""Tables of a reproduction: rows beside what was expected, as Markdown and JSON, and a figure."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..._version import __version__
from ...errors import InputError, MissingExtra

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Cell = float | int | str | None
Tell = Callable[[float, str], None]
"""Told the share that is done, and what comes next."""


@dataclass(frozen=True)
class Table:
    """One table: measured rows, and below each what another computation expects there."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    digits: str = ".4g"
    note: str = ""

    def __str__(self) -> str:
        cells = [[self._text(cell) for cell in row] for row in (self.columns, *self.rows)]
        widths = [max(len(row[i]) for row in cells) for i in range(len(self.columns))]
        lines = ["| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |" for row in cells]
        lines.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
        note = ["", self.note] if self.note else []
        return "\n".join([f"### {self.title}", "", *lines, *note])

    def _text(self, cell: Cell) -> str:
        if cell is None:
            return "–"
        # a bar would end the cell
        return format(cell, self.digits) if isinstance(cell, float) else str(cell).replace("|", "\\|")

    def column(self, name: str) -> list[Cell]:
        """The cells of one column."""
        return [row[self.columns.index(name)] for row in self.rows]


@dataclass(frozen=True)
class Reproduction:
    """What one reproduction found."""

    name: str
    title: str
    says: str
    """What the paper claims, and what was and was not reproduced."""
    tables: tuple[Table, ...]
    draw: Callable[[], Figure] | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return "\n\n".join([f"## {self.title}", self.says, *(str(table) for table in self.tables)]) + "\n"

    def write(self, folder: Path) -> list[Path]:
        """Writes `<name>.md`, `<name>.json` and, with matplotlib, `<name>.png`.

        Raises:
            InputError: the folder can't be made.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"--out {folder}: {error}") from error
        written = [folder / f"{self.name}.md", folder / f"{self.name}.json"]
        written[0].write_text(str(self), encoding="utf-8")
        versions = {"deeptaylor": __version__, "torch": torch.__version__, "python": platform.python_version()}
        data = {
            "name": self.name,
            "settings": dict(self.settings),
            "versions": versions,
            "tables": [asdict(table) for table in self.tables],
        }
        written[1].write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        if self.draw is not None:
            figure = self.draw()
            written.append(folder / f"{self.name}.png")
            figure.savefig(written[-1], dpi=120)
        return written


def new_figure(width: float, height: float, panels: Sequence[str] | int = 1) -> tuple[Figure, list[Any]]:
    """A matplotlib figure without a window, and its axes in a row."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtra("figures need matplotlib", "plots") from error
    count = panels if isinstance(panels, int) else len(panels)
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = list(figure.subplots(1, count, squeeze=False)[0])
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    if not isinstance(panels, int):
        for axis, title in zip(axes, panels, strict=True):
            axis.set_title(title, loc="left", fontsize=10)
    return figure, axes
