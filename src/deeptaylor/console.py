"""What all commands share: where they print, how they fail, and what they say when pages are written."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.markup import escape

from .errors import DeepTaylorError, InputError

if TYPE_CHECKING:
    from .adapters.zoo import LoadedModel
    from .report.build import Story
    from .report.findings import Photo

NOTHING_DONE, SOME_FAILED, INTERRUPTED = 2, 1, 130

stderr = Console(stderr=True, highlight=False)
stdout = Console(highlight=False, soft_wrap=True)


def guarded(command: Callable[..., None]) -> Callable[..., None]:
    """A command that ends in one clear message and an exit code, never in a traceback."""

    @wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except DeepTaylorError as error:
            fail(str(error), NOTHING_DONE)
        except KeyboardInterrupt:
            fail("interrupted; nothing was written", INTERRUPTED)
        except (typer.Exit, typer.Abort):
            raise
        except Exception as error:
            if os.environ.get("DEEPTAYLOR_TRACEBACK"):
                raise
            cure = "Run it again with DEEPTAYLOR_TRACEBACK=1 and report what it prints"
            fail(f"this should not happen ({type(error).__name__}: {error}).\n{cure}", SOME_FAILED)

    return run


def fail(message: str, code: int) -> None:
    """Ends the command with a message and an exit code."""
    stderr.print(f"[bold red]error:[/] {escape(message)}", soft_wrap=True)
    raise typer.Exit(code)


def note(text: str) -> None:
    """A remark beside the result."""
    stderr.print(f"[yellow]note:[/] {escape(text)}", soft_wrap=True)


def numbers(text: str | None, option: str) -> list[float] | None:
    """What was typed as one number, or one per channel."""
    if text is None:
        return None
    try:
        numbers = [float(part) for part in text.split(",")]
        if not all(map(math.isfinite, numbers)):
            raise ValueError("not finite")
        return numbers
    except ValueError as error:
        raise InputError(f"{option} {text!r}: write one number, or one per channel with commas between") from error


def run_and_tell(
    loaded: LoadedModel,
    photos: Sequence[Photo],
    composites: Sequence[str],
    asks: Sequence[str],
    out: Path,
    story: Story,
    started: float,
) -> None:
    """Explains, writes, and says where and how long."""
    from .report.findings import top
    from .report.run import run

    outcome = run(loaded, photos, composites=composites, asks=asks, out=out, story=story, console=stderr)
    for text in outcome.warnings:
        note(text)
    for found in outcome.findings:
        best = ", ".join(f"{name} {chance:.0%}" for name, chance, _ in top(found.scores, loaded.labels, 3))
        stdout.print(escape(f"{found.photo.name}: {best}"))
    for path in outcome.written:
        stdout.print(escape(f"wrote {path}"))
    stderr.print(f"[dim]{time.perf_counter() - started:.0f} s[/]")
    if outcome.problems:
        fail("some maps are missing, the others were written:\n" + "\n".join(outcome.problems), SOME_FAILED)
    if outcome.interrupted:
        fail("interrupted; the photos explained so far were written", INTERRUPTED)
