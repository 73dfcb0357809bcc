"""From photos to a file: progress is shown, and what was found is written even when something fails on the way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from ..adapters.labels import check_count
from ..adapters.targets import resolve
from ..adapters.zoo import LoadedModel
from ..errors import DeepTaylorError
from .build import Story
from .findings import Findings, Photo, explain_photos, scores_of
from .write import write


@dataclass(frozen=True)
class Outcome:
    """What a run left behind."""

    written: tuple[Path, ...]
    findings: tuple[Findings, ...]
    problems: tuple[str, ...]
    """What could not be explained, one text each; everything else was written."""
    warnings: tuple[str, ...] = ()
    interrupted: bool = False


def run(
    loaded: LoadedModel,
    photos: Sequence[Photo],
    *,
    composites: Sequence[str],
    asks: Sequence[str],
    out: Path,
    story: Story,
    console: Console,
) -> Outcome:
    """Explains the photos under every composite and writes `out`.

    Args:
        loaded: the model.
        photos: ready for it.
        composites: names of presets.
        asks: targets as typed: `281`, `tabby`, `top2`, `top1 vs top2`.
        out: the file to write; its suffix says what.
        story: title and the like of a page.
        console: where progress is shown.

    Raises:
        DeepTaylorError: nothing could be explained, or a target does not exist. Later failures are `Outcome.problems`.
    """
    import deeptaylor

    assert loaded.preprocessing is not None
    bounds = loaded.preprocessing.bounds()
    steps = 1 + len(composites) * (1 + len(photos))
    with _progress(console) as progress:
        task = progress.add_task("asking the network", total=steps)
        scores = [scores_of(loaded, photo) for photo in photos]
        for row in scores:
            check_count(loaded.labels, len(row))
            resolve(asks, row, loaded.labels)
        progress.advance(task)
        explainers = {}
        for composite in composites:
            progress.update(task, description=f"planning {composite}")
            explainers[composite] = deeptaylor.Explainer(
                loaded.model, photos[0].inputs, composite=composite, bounds=bounds
            )
            progress.advance(task)
        findings: list[Findings] = []
        interrupted = False
        try:
            progress.update(task, description=f"explaining {photos[0].name}")
            for found in explain_photos(explainers, photos, scores, asks, loaded.labels):
                if found is None:
                    progress.advance(task)
                    continue
                findings.append(found)
                name = photos[len(findings)].name if len(findings) < len(photos) else "done"
                progress.update(task, description=f"explaining {name}" if name != "done" else "writing")
        except KeyboardInterrupt:
            interrupted = True
        problems = [problem for found in findings for problem in found.problems]
        if not any(found.maps for found in findings):
            raise DeepTaylorError(
                "\n".join(problems) or "interrupted before the first photo was explained; nothing was written"
            )
        plans = {name: explainer.plan for name, explainer in explainers.items()}
        complete = [found for found in findings if found.maps]
        written = write(out, complete, plans, loaded.labels, story)
    said = dict.fromkeys(text for found in findings for one in found.maps.values() for text in one.warnings)
    return Outcome(tuple(written), tuple(complete), tuple(problems), tuple(said), interrupted)


def _progress(console: Console) -> Progress:
    """A bar on a terminal, nothing elsewhere."""
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
