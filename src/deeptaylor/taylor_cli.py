"""`deeptaylor taylor` and `deeptaylor interactions`: what the orders say, and which pairs act together."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from .console import numbers, stderr, stdout
from .errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from .adapters.zoo import LoadedModel

Reference = Annotated[
    str | None,
    typer.Option(
        "--reference",
        "-r",
        help="What an absent part looks like: `blur`, `mean`, `zero`, or a number.",
        show_default="blur of a photo, zero of a table",
    ),
]
Figure = Annotated[
    Path, typer.Option("--out", "-o", help="A page, **.html**, or the figure alone: a **.png** or **.pdf** file.")
]
Size = Annotated[int | None, typer.Option(min=1, help="Pixels along each side of a photo.")]
Mean = Annotated[str | None, typer.Option(help="Subtracted from pixels in 0..1.", show_default="the model makers'")]
Std = Annotated[str | None, typer.Option(help="Divides them afterwards.", show_default="the model makers'")]
Table = Annotated[
    Path | None,
    typer.Option(
        help="A **.csv** with a header instead of a photo: numbers, as the model takes them.", show_default=False
    ),
]


def register(app: typer.Typer, guarded: Any) -> None:
    """Adds both commands to the application."""
    app.command("taylor")(guarded(taylor))
    app.command("interactions")(guarded(interactions))


def taylor(
    model: Annotated[str, typer.Option("--model", "-m", help="As for `explain`.", show_default=False)],
    photo: Annotated[Path | None, typer.Argument(help="A photo.", show_default=False)] = None,
    out: Figure = Path("orders.html"),
    reference: Reference = None,
    order: Annotated[int, typer.Option(min=1, max=4, help="The highest order.")] = 4,
    at: Annotated[str, typer.Option(help="Where the expansion stands: `input`, `reference`, `middle`.")] = "input",
    target: Annotated[
        str | None, typer.Option("--target", "-t", help="An index, a class name, or `tabby vs lynx`.")
    ] = None,
    table: Table = None,
    row: Annotated[int, typer.Option(min=0, help="The row of the table.")] = 0,
    weights: Annotated[str | None, typer.Option(help="As for `explain`.", show_default=False)] = None,
    size: Size = None,
    mean: Mean = None,
    std: Std = None,
) -> None:
    r"""Taylor orders of a score: one map per order, and on what part of the way each order holds.

    ```
    deeptaylor taylor cat.jpg -m timm:convnext_tiny --weights convnext.safetensors -o orders.html
    deeptaylor taylor --table cars.csv --row 3 -m lab.nets:build
    ```
    """
    from .report.expansions import Shown
    from .taylor import Score, taylor_orders
    from .taylor.pictures import draw, waterfall

    _check_out(out)
    loaded, x, seen, names = _given(model, photo, table, row, weights, size, mean, std)
    score = Score(loaded.model, x, target=_aim(target, loaded, x))
    result = taylor_orders(score, x, _absent(reference, names), order=order, at=at)
    _say(str(result))
    title = f"Taylor orders of {result.target}: {(photo or table or out).name}"
    if names is None:
        _write(out, [Shown("What each order says", result, seen)], title, lambda: draw(result, photo=seen))
        return
    widest = max(map(len, names))
    _say(f"{'':{widest}}" + "".join(f"{f'order {k}':>12}" for k in range(1, result.order + 1)))
    assert result.maps is not None
    for name, values in zip(names, result.maps.T.tolist(), strict=True):
        _say(f"{name:{widest}}" + "".join(f"{value:12.4g}" for value in values))
    _write(out, [Shown("What each order says", result)], title, lambda: waterfall(result))


def interactions(
    model: Annotated[str, typer.Option("--model", "-m", help="As for `explain`.", show_default=False)],
    photo: Annotated[Path | None, typer.Argument(help="A photo.", show_default=False)] = None,
    out: Figure = Path("interactions.html"),
    reference: Reference = None,
    grid: Annotated[int, typer.Option(min=2, help="Patches along each side of a photo.")] = 7,
    method: Annotated[
        str | None, typer.Option(help="An estimator, to choose yourself.", show_default="what suits input and network")
    ] = None,
    target: Annotated[
        str | None, typer.Option("--target", "-t", help="An index, a class name, or `tabby vs lynx`.")
    ] = None,
    table: Table = None,
    row: Annotated[int, typer.Option(min=0, help="The row of the table.")] = 0,
    text: Annotated[
        list[str] | None,
        typer.Option(help="A text instead of a photo; twice: which words make the two similar.", show_default=False),
    ] = None,
    weights: Annotated[str | None, typer.Option(help="As for `explain`.", show_default=False)] = None,
    size: Size = None,
    mean: Mean = None,
    std: Std = None,
) -> None:
    r"""Which patches, columns or words act together; with the remainder and how well pairs predict.

    ```
    deeptaylor interactions cat.jpg -m timm:convnext_tiny --weights convnext.safetensors
    deeptaylor interactions --table cars.csv --row 3 -m lab.nets:build -o cars.png
    deeptaylor interactions --text "it is not a bad movie" -m hf:path/to/classifier
    deeptaylor interactions --text "a man plays guitar" --text "someone strums" -m hf:path/to/encoder
    ```
    """
    from .report.expansions import Shown
    from .taylor import Score, taylor_orders
    from .taylor import interactions as find
    from .taylor.pictures import panels
    from .taylor.segments import each_feature

    _check_out(out)
    if text:
        if photo is not None or table is not None:
            raise InputError("give a photo, --table, or --text")
        _of_texts(text, model, target, method, out)
        return
    loaded, x, seen, names = _given(model, photo, table, row, weights, size, mean, std)
    score = Score(loaded.model, x, target=_aim(target, loaded, x))
    groups = (grid, grid) if names is None else each_feature(x, names)
    result = find(score, x, _absent(reference, names), groups, method=method, progress=True)
    _say(str(result))
    shown = [Shown("Which parts act together", result, seen)]
    if out.suffix.lower() == ".html":
        shown.append(Shown("What each order says", taylor_orders(score, x, _absent(reference, names)), seen))
    title = f"Interactions in {result.target}: {(photo or table or out).name}"
    _write(out, shown, title, lambda: panels(result, photo=seen))


def _of_texts(texts: list[str], model: str, target: str | None, method: str | None, out: Path) -> None:
    """Words of one text that act together, or words of two that make them similar."""
    from .report.expansions import Shown
    from .taylor.pictures import between, panels
    from .text import text_interactions, text_similarity
    from .text.hub import load_reader

    if len(texts) > 2:
        raise InputError(f"--text was given {len(texts)} times; one text, or two to compare")
    if len(texts) == 2 and target is not None:
        raise InputError("two texts are compared, which has no --target")
    with stderr.status(f"loading {model}"):
        network, tokenizer = load_reader(model)
    if len(texts) == 2:
        alike = text_similarity(network, tokenizer, *texts, **({} if method is None else {"method": method}))
        _say(str(alike))
        _write(out, [Shown(" · ".join(texts), alike)], "Which words make two texts similar", lambda: between(alike))
        return
    aim = int(target) if target is not None and target.lstrip("-").isdigit() else target
    if isinstance(aim, str):
        labels = {name: n for n, name in getattr(getattr(network, "config", None), "id2label", {}).items()}
        if aim not in labels:
            known = f", or one of {', '.join(map(str, labels))}" if labels else ""
            raise InputError(f"--target {target!r}: pass a class index{known}")
        aim = labels[aim]
    result = text_interactions(network, tokenizer, texts[0], target=aim, method=method, progress=True)
    _say(str(result))
    _write(out, [Shown(texts[0], result)], f"Words that act together on {result.target}", lambda: panels(result))


def _given(
    model: str,
    photo: Path | None,
    table: Path | None,
    row: int,
    weights: str | None,
    size: int | None,
    mean: str | None,
    std: str | None,
) -> tuple[LoadedModel, Tensor, Any, list[str] | None]:
    """Model, one input, the photo as the network sees it, the table's columns."""
    from .adapters.zoo import check_source, load_model

    if (photo is None) == (table is None):
        raise InputError("give one photo, or --table file.csv")
    check_source(model, weights)
    if table is not None:
        x, names = _row(table, row)
        loaded = load_model(model, weights)
        parameter = next((p for p in loaded.model.parameters() if p.is_floating_point()), None)
        return loaded, x if parameter is None else x.to(parameter), None, names
    from .adapters.photos import check_photos
    from .report.findings import read

    assert photo is not None
    check_photos([photo])
    loaded = load_model(model, weights).told(size, numbers(mean, "--mean"), numbers(std, "--std"))
    assert loaded.preprocessing is not None
    ready = read(photo, loaded.preprocessing)
    return loaded, ready.inputs, ready.pixels, None


def _row(table: Path, row: int) -> tuple[Tensor, list[str]]:
    import csv

    import torch

    try:
        with table.open(newline="") as file:
            header, *rows = [line for line in csv.reader(file) if line]
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise InputError(f"{table} can't be read as a table with a header: {error}") from error
    if row >= len(rows):
        raise InputError(f"{table} has {len(rows)} rows; --row counts from 0")
    try:
        return torch.tensor([[float(cell) for cell in rows[row]]]), header
    except ValueError as error:
        raise InputError(f"row {row} of {table} holds something that is no number: {error}") from error


def _absent(text: str | None, columns: list[str] | None) -> str | float:
    if text is None:
        return "blur" if columns is None else "zero"
    try:
        return float(text)
    except ValueError:
        return text


def _aim(target: str | None, loaded: LoadedModel, x: Tensor) -> Any:
    """The target as `Score` takes it: None, a class, or one class against another."""
    if target is None:
        return None
    import torch

    from .adapters.targets import check_syntax, resolve
    from .targets import contrast

    check_syntax([target])
    with torch.no_grad():
        output = loaded.model(x)
    aims = resolve([target], output[0], loaded.labels)
    if len(aims) != 1:
        raise InputError(f"--target {target!r} names {len(aims)} classes; an expansion is of one score")
    return aims[0].index if aims[0].against is None else contrast(aims[0].index, aims[0].against)


def _check_out(out: Path) -> None:
    from .report.expansions import check_installed

    if out.suffix.lower() not in (".html", ".png", ".pdf"):
        raise InputError(f"--out {out}: a page is written as .html, a figure as .png or .pdf")
    check_installed()
    if not out.absolute().parent.is_dir():
        raise InputError(f"--out {out}: there is no folder {out.absolute().parent}")


def _write(out: Path, shown: list[Any], title: str, figure: Callable[[], Any]) -> None:
    """The page, or the figure alone."""
    if out.suffix.lower() != ".html":
        _save(figure(), out)
        return
    from .report.expansions import write

    write(out, shown, title)
    _say(f"wrote {out}")


def _save(figure: Any, out: Path) -> None:
    try:
        figure.savefig(out, dpi=110)
    except OSError as error:
        raise InputError(f"--out {out} can't be written: {error}") from error
    _say(f"wrote {out}")


def _say(text: str) -> None:
    stdout.print(escape(text))
