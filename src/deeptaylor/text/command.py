"""`deeptaylor explain --text "…"` and `--texts reviews.csv --column text`."""

from __future__ import annotations

import csv
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress

from ..errors import InputError, MissingExtra, RelevanceWarning, TargetError, TextWarning
from ..targets import contrast, top
from .explain import explain_text
from .hub import load_reader
from .result import TextAttribution, TextExplanation

SUFFIXES = (".html", ".csv", ".png", ".safetensors")
PRINTED = 20
"""Texts that are also drawn on the terminal."""


def explain_texts(
    texts: Sequence[str],
    file: Path | None,
    column: str | None,
    *,
    model: str,
    out: Path,
    composite: Sequence[str],
    target: Sequence[str],
    answer: str | None,
    labels: Sequence[str] | None,
    console: Console,
    errors: Console,
    note: Callable[[str], None],
) -> None:
    """Explains texts from the command line, draws the first of them, and writes what the suffix of `out` says."""
    started = time.perf_counter()
    _check_out(out)
    if len(composite) > 1:
        raise InputError("texts take one --composite at a time")
    listed = list(texts)
    if file is not None:
        rows, left_out = read_texts(file, column)
        listed += rows
        if left_out:
            note(f"{file}: {len(left_out)} rows hold no text and are left out, first line {left_out[0]}")
    targets = [parse_target(one) for one in target] or [None]
    with errors.status(f"loading {model}"):
        loaded, tokenizer = load_reader(model)
    written = int(answer) if answer is not None and answer.isdecimal() else answer
    found: list[TextExplanation] = []
    with warnings.catch_warnings(record=True) as said, Progress(console=errors, transient=True) as progress:
        warnings.simplefilter("ignore")
        for category in (TextWarning, RelevanceWarning):
            warnings.simplefilter("always", category)
        task = progress.add_task("explaining", total=len(listed) * len(targets))
        attributions: list[Any] = []
        for n, one in enumerate(targets):
            result = explain_text(
                loaded,
                tokenizer,
                listed,
                target=one,
                answer=written,
                composite=composite[0] if composite else "auto",
                labels=labels,
                told=lambda done, _, n=n: progress.update(task, completed=n * len(listed) + done),  # type: ignore[misc]
            )
            found += result
            attributions += result.attributions
    for text in dict.fromkeys(str(warning.message) for warning in said):
        note(text)
    found.sort(key=lambda one: one.text)
    for one in found[:PRINTED]:
        console.print(one)
    if len(found) > PRINTED:
        note(f"{len(found) - PRINTED} more are in {out}")
    write(TextAttribution(tuple(found), tuple(attributions), result.task), out)
    console.print(escape(f"wrote {out}"))
    errors.print(f"[dim]{time.perf_counter() - started:.0f} s[/]")


def read_texts(file: Path, column: str | None) -> tuple[list[str], list[int]]:
    """Texts of a .csv or .tsv file's column, or a .txt file's lines; and the lines that hold none.

    Raises:
        InputError: no such file or column, or no text in it.
    """
    if not file.is_file():
        raise InputError(f"--texts {file}: there is no such file")
    try:
        content = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"--texts {file} is not UTF-8 (byte {error.start}); convert it first") from error
    if file.suffix.lower() not in (".csv", ".tsv"):
        lines = content.splitlines()
        numbered = list(enumerate(lines, 1))
    else:
        rows = csv.DictReader(content.splitlines(keepends=True), delimiter="\t" if file.suffix == ".tsv" else ",")
        names = list(rows.fieldnames or [])
        if column is None:
            raise InputError(f"--texts {file}: say which column holds them, --column; it has {', '.join(names)}")
        if column not in names:
            raise InputError(f"--texts {file} has no column {column!r}; it has {', '.join(names)}")
        try:
            numbered = [(rows.line_num, row[column] or "") for row in rows]
        except csv.Error as error:
            raise InputError(f"--texts {file} is damaged near line {rows.line_num}: {error}") from error
    texts = [text for _, text in numbered if text.strip()]
    if not texts:
        raise InputError(f"--texts {file} holds no text")
    return texts, [number for number, text in numbered if not text.strip()]


def parse_target(typed: str) -> Any:
    """A target as typed: an index, a class or word, `top2`, `this vs that`."""
    if " vs " in typed:
        sides = typed.split(" vs ")
        if len(sides) != 2 or not all(side.strip() for side in sides):
            raise TargetError(f"target {typed!r}: write 'this vs that'")
        return contrast(*(_index_or_name(side) for side in sides))  # type: ignore[arg-type]
    if typed.startswith("top") and typed[3:].isdecimal():
        return top(int(typed[3:]))
    return _index_or_name(typed)


def _index_or_name(typed: str) -> int | str:
    return int(typed) if typed.isdecimal() else typed


def write(found: TextAttribution, out: Path) -> None:
    """A page, a picture, one row per word, or a file that `deeptaylor.TextAttribution.load` reads."""
    temporary = out.with_name(f".{out.name}.part")
    suffix = out.suffix.lower()
    if suffix == ".html":
        found.to_html(temporary)
    elif suffix == ".png":
        found.plot().savefig(temporary, format="png", dpi=140)
    elif suffix == ".safetensors":
        found.save(temporary)
    else:
        with temporary.open("w", encoding="utf-8", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["text", "target", "score", "part", "start", "end", "word", "special", "relevance"])
            for one in found:
                for span in one.words():
                    place = (span.part, span.start, span.end, span.text, int(span.special), f"{span.relevance:.6g}")
                    rows.writerow([one.text, one.target, f"{one.explained:.6g}", *place])
    temporary.replace(out)


def _check_out(out: Path) -> None:
    if out.suffix.lower() not in SUFFIXES:
        raise InputError(f"--out {out}: of texts can be written {', '.join(SUFFIXES)}")
    if out.is_dir() or not out.absolute().parent.is_dir():
        raise InputError(f"--out {out}: name a file in a folder that exists")
    if out.suffix.lower() == ".png":
        try:
            import matplotlib  # noqa: F401
        except ImportError as error:
            raise MissingExtra("plots need matplotlib", "plots") from error
