"""The command line: parse, check, call, print."""

from __future__ import annotations

import shlex
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from . import demo_cli, taylor_cli
from .audit import command as audit_command
from .console import guarded, note, numbers, run_and_tell, stderr, stdout
from .errors import InputError

if TYPE_CHECKING:
    pass

app = typer.Typer(
    name="deeptaylor",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Explains what a PyTorch network saw in a photo: deep Taylor decomposition and LRP.",
)

Model = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        help="**torchvision:NAME**, **timm:NAME**, **package.module:factory** (a function without arguments that "
        "returns the model), or a file: **.onnx**, **.pt2** (saved by torch.export.save), **.txt** (of the LRP "
        "Toolbox). For texts **hf:PATH**, or a factory that returns (model, tokenizer). Programs and factories are "
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
    model: Model,
    photos: Annotated[
        list[Path] | None, typer.Argument(help="Photos: PNG, JPEG, anything Pillow reads.", show_default=False)
    ] = None,
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
    text: Annotated[
        list[str] | None, typer.Option("--text", help="A text to explain instead of photos.", show_default=False)
    ] = None,
    texts: Annotated[
        Path | None,
        typer.Option(help="Texts: a .csv or .tsv with --column, or a .txt, one a line.", show_default=False),
    ] = None,
    column: Annotated[
        str | None, typer.Option(help="The column of --texts that holds them.", show_default=False)
    ] = None,
    answer: Annotated[
        str | None,
        typer.Option(
            help="Of a model that writes: an answer to explain token by token, or how many tokens to write.",
            show_default=False,
        ),
    ] = None,
) -> None:
    r"""Explain photos or texts: which pixels or words spoke for a class, and which against.

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

    Texts, with a model of Hugging Face or a function that gives (model, tokenizer):

    ```
    deeptaylor explain --text "not a bad movie" -m hf:path/to/model -t positive
    deeptaylor explain --texts reviews.csv --column text -m hf:path/to/model -o words.csv
    ```
    """
    if text or texts:
        from .text.command import explain_texts

        if photos:
            raise InputError("photos and texts in one call: explain them one after the other")
        explain_texts(
            text or [],
            texts,
            column,
            model=model,
            out=out,
            composite=composite or [],
            target=target or [],
            answer=answer,
            labels=_read_labels(labels),
            console=stdout,
            errors=stderr,
            note=note,
        )
        return
    if not photos:
        raise InputError("nothing to explain: name photos, or pass --text or --texts")
    # Whatever can be refused is refused before the model is built and anything is computed.
    from .adapters.photos import check_photos
    from .adapters.targets import check_syntax
    from .adapters.zoo import check_source, load_model
    from .composites import by_name
    from .report.write import check_out

    composites = list(dict.fromkeys(composite or ["auto"]))
    asks = target or (["top2", "top1 vs top2"] if out.suffix.lower() == ".html" else ["top1"])
    check_out(out)
    for path in (*photos, model, weights, labels):
        if path and out.exists() and Path(path).exists() and out.samefile(path):
            raise InputError(f"--out {out} is a file that is read here, and would be overwritten: choose another name")
    check_syntax(asks)
    for name in composites:
        by_name(name)
    check_photos(photos)
    check_source(model, weights)
    names = _read_labels(labels)
    given = [numbers(mean, "--mean"), numbers(std, "--std")]

    from .report.build import Story
    from .report.findings import read

    started = time.perf_counter()
    with stderr.status(f"loading {model}"):
        loaded = load_model(model, weights).told(size, *given, channels=channels, labels=names)
        assert loaded.preprocessing is not None
        ready = [read(path, loaded.preprocessing) for path in photos]
    for remark in loaded.notes:
        note(remark)
    if given[0] and max(given[0]) > 1:
        note(f"--mean {mean} is subtracted from pixels in 0..1; for pixels in 0..255 divide mean and std by 255")
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
    run_and_tell(loaded, ready, composites, asks, out, story, started)


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
    deeptaylor plan model.onnx
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


demo_cli.register(app, guarded)
taylor_cli.register(app, guarded)
app.command("audit")(guarded(audit_command.audit))
app.command("reproduce")(guarded(audit_command.reproduce))


def _read_labels(source: str | None) -> tuple[str, ...] | None:
    from .adapters.labels import read_labels

    return read_labels(source) if source else None
