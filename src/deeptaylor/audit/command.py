"""`deeptaylor audit` and `deeptaylor reproduce`: parse, check, call, print."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from ..errors import InputError, PhotoError

if TYPE_CHECKING:
    from ..adapters.zoo import LoadedModel
    from ..report.findings import Photo
    from .report import AuditReport

FAILED = 1
stderr = Console(stderr=True, highlight=False)
stdout = Console(highlight=False)
STYLES = {"holds": "green", "fails": "bold red", "note": "cyan"}


def audit(
    model: Annotated[
        str,
        typer.Argument(
            help="**torchvision:NAME**, **timm:NAME**, a **.pt2** program, **package.module:factory**, or `demo`: "
            "EfficientNet-Lite0 with its real weights.",
            show_default=False,
        ),
    ],
    photos: Annotated[
        list[str], typer.Argument(help="Photos; beside `demo`, also the names of its five.", show_default=False)
    ],
    composite: Annotated[str, typer.Option("--composite", "-c", help="Which rules to audit.")] = "auto",
    target: Annotated[
        str | None, typer.Option("--target", "-t", help="A class: index or name.", show_default="the predicted one")
    ] = None,
    fail_on: Annotated[
        str | None,
        typer.Option(
            help="Exit with status 1 where one of these checks fails: names with commas between, or `any`.",
            show_default="never",
        ),
    ] = None,
    json: Annotated[Path | None, typer.Option(help="Write all figures there as JSON.", show_default=False)] = None,
    neurons: Annotated[int, typer.Option(min=1, help="Neurons per layer whose roots are looked at.")] = 6,
    weights: Annotated[
        str | None, typer.Option(help="As for `explain`: a file of tensors, or `pretrained`.", show_default=False)
    ] = None,
    labels: Annotated[
        str | None, typer.Option(help="Class names: a file, or `imagenet`.", show_default="the model's own")
    ] = None,
    size: Annotated[int | None, typer.Option(min=1, help="Pixels along each side.", show_default=False)] = None,
    mean: Annotated[str | None, typer.Option(help="As for `explain`.", show_default=False)] = None,
    std: Annotated[str | None, typer.Option(help="As for `explain`.", show_default=False)] = None,
    channels: Annotated[int, typer.Option(min=1, help="As for `explain`.")] = 3,
) -> None:
    """Check an explanation against the theory: are its roots roots, in their domain, in the region of the input?

    Prints a verdict in sentences. For example, with real weights, and as a step of a pipeline:

    ```
    deeptaylor audit demo coffee -c deep-taylor --json audit.json
    deeptaylor audit lab.nets:build scan.png --size 128 --mean 0.5 --std 0.25 \
        --fail-on conservation,class-sensitivity
    ```
    """
    from ..composites import by_name
    from .report import known_checks

    by_name(composite)
    checks = () if fail_on in (None, "any") else tuple(part.strip() for part in str(fail_on).split(","))
    known_checks(checks)
    if json is not None and not json.parent.is_dir():
        raise InputError(f"--json {json}: there is no folder {json.parent}")
    started = time.perf_counter()
    with stderr.status(f"loading {model}"):
        loaded, ready = _loaded(model, photos, weights, labels, size, mean, std, channels)
    for note in loaded.notes:
        stderr.print(f"[yellow]note:[/] {escape(note)}", soft_wrap=True)
    report = _audited(loaded, ready, composite, target, neurons)
    _print(report, loaded.name, [photo.name for photo in ready])
    if json is not None:
        report.save(json)
        stdout.print(f"wrote {escape(str(json))}", soft_wrap=True)
    stderr.print(f"[dim]{time.perf_counter() - started:.0f} s[/]")
    failing = [f.check for f in report.failed if not checks or f.check in checks]
    if fail_on is not None and failing:
        stderr.print(f"[bold red]failed:[/] {', '.join(dict.fromkeys(failing))}")
        raise typer.Exit(FAILED)


def reproduce(
    name: Annotated[
        str, typer.Argument(help="rigorous-study, lenet, rank-one or mnist-relevance-models.", show_default=False)
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder to write table and figure to.")] = Path(
        "reproduction"
    ),
    data: Annotated[
        Path | None,
        typer.Option(help="lenet: a folder with the LRP Toolbox's LeNet-5.txt and its digits.", show_default=False),
    ] = None,
) -> None:
    """Measure again what the papers claim: a table beside the claim, and a figure; minutes each.

    ```
    deeptaylor reproduce rigorous-study --out study
    ```
    """
    from .reproduce import run

    if data is not None and not data.is_dir():
        raise InputError(f"--data {data}: no such folder")
    started = time.perf_counter()
    bars = [SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()]
    with Progress(*bars, console=stderr, transient=True, disable=not stderr.is_terminal) as progress:
        task = progress.add_task(name, total=1.0)
        found = run(name, lambda share, what: progress.update(task, completed=share, description=what), data)
        written = found.write(out)
    print(found)
    for path in written:
        stdout.print(f"wrote {escape(str(path))}", soft_wrap=True)
    stderr.print(f"[dim]{time.perf_counter() - started:.0f} s[/]")


def _loaded(
    model: str,
    photos: list[str],
    weights: str | None,
    labels: str | None,
    size: int | None,
    mean: str | None,
    std: str | None,
    channels: int,
) -> tuple[LoadedModel, list[Photo]]:
    from ..adapters.labels import read_labels
    from ..adapters.photos import check_photos
    from ..adapters.zoo import check_source, load_model
    from ..report.findings import read

    if model == "demo":
        return _demo(photos)
    paths = [Path(photo) for photo in photos]
    check_photos(paths)
    check_source(model, weights)
    names = read_labels(labels) if labels else None
    given = [_numbers(mean, "--mean"), _numbers(std, "--std")]
    loaded = load_model(model, weights).told(size, *given, channels=channels, labels=names)
    assert loaded.preprocessing is not None
    return loaded, [read(path, loaded.preprocessing) for path in paths]


def _demo(photos: list[str]) -> tuple[LoadedModel, list[Photo]]:
    """EfficientNet-Lite0, and photos by the demo's names or by path."""
    from .. import demo
    from ..adapters.photos import check_photos
    from ..report.findings import prepare, read

    loaded = demo.load_demo_model()
    own = {photo.name: (photo, image) for photo, image in demo.load_demo_photos()}
    paths = [Path(name) for name in photos if name not in own]
    missing = [str(path) for path in paths if not path.exists()]
    if missing:
        raise PhotoError(f"no photo at {missing[0]}; the demo's own are {', '.join(own)}")
    check_photos(paths)
    return loaded, [
        prepare(own[name][1], name, demo.PREPROCESSING, own[name][0].credit)
        if name in own
        else read(Path(name), demo.PREPROCESSING)
        for name in photos
    ]


def _audited(loaded: LoadedModel, ready: list[Photo], composite: str, target: str | None, neurons: int) -> AuditReport:
    import torch

    from ..explainer import Explainer
    from .run import audit as run_audit

    assert loaded.preprocessing is not None
    index = None if target is None else _class(target, loaded)
    batch = torch.cat([photo.inputs for photo in ready])
    bars = [SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()]
    with Progress(*bars, console=stderr, transient=True, disable=not stderr.is_terminal) as progress:
        task = progress.add_task(f"planning {composite}", total=1.0)
        explainer = Explainer(loaded.model, batch[:1], composite=composite, bounds=loaded.preprocessing.bounds())
        return run_audit(
            explainer,
            batch,
            target=index,
            neurons=neurons,
            labels=loaded.labels,
            tell=lambda share, what: progress.update(task, completed=share, description=what),
        )


def _class(text: str, loaded: LoadedModel) -> int:
    if text.isdigit():
        return int(text)
    for index, name in enumerate(loaded.labels or ()):
        if text.lower() in [part.strip().lower() for part in name.split(",")]:
            return index
    raise InputError(f"no class is called {text!r}; pass its index, or --labels")


def _numbers(text: str | None, option: str) -> list[float] | None:
    try:
        return None if text is None else [float(part) for part in text.split(",")]
    except ValueError as error:
        raise InputError(f"{option} {text!r}: write one number, or one per channel with commas between") from error


def _print(report: AuditReport, model: str, photos: list[str]) -> None:
    """The verdict, with the failures first."""
    stdout.print(f"[bold]{escape(report.composite)}[/] on {escape(model)}, {escape(', '.join(photos))}\n")
    order = {"fails": 0, "holds": 1, "note": 2}
    table = Table.grid(padding=(0, 2))
    for finding in sorted(report.findings, key=lambda f: order[f.status]):
        style, mark = STYLES[finding.status], "FAILS" if finding.status == "fails" else finding.status
        text = Text(finding.sentence)
        if len(finding.layers) > 1:
            text.append(f"\nwhere: {'; '.join(finding.layers)}", "dim")
        if finding.status == "fails" and finding.instead:
            text.append(f"\ninstead: {finding.instead}", "dim")
        table.add_row(f"[{style}]{mark}[/]", f"[bold]{finding.check}[/]", text)
    stdout.print(table)
    for line in report.sampling():
        stdout.print(f"\n[dim]{escape(line)}[/]")
