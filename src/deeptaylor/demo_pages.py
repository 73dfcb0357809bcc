"""`deeptaylor demo-llm` and `deeptaylor demo-minilm`: load, explain, draw, write."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from .demo_language import ANSWERED, PROMPTS, WRITTEN, load_llm, tuned_minilm
from .demo_sentiment import LABELS, read_corpus
from .demo_texts import FIXED
from .errors import InputError
from .text import TextAttribution, TextExplanation, explain_text

FILM_SENTENCES = 3
"""Held-out sentences beside the two fixed ones."""


def llm_page(out: Path, prompts: Sequence[str], console: Console, errors: Console) -> None:
    """What in each prompt made SmolLM2 say its next token, and an answer token by token."""
    _check_page(out)
    started = time.perf_counter()
    with errors.status("loading SmolLM2-135M (about half a minute)"):
        model, tokenizer = load_llm()
    found: list[TextExplanation] = []
    with errors.status("explaining its next tokens"):
        for prompt in prompts or PROMPTS:
            found += explain_text(model, tokenizer, prompt)
        if not prompts:
            found += explain_text(model, tokenizer, ANSWERED, answer=WRITTEN)
    _show(found, out, "What made SmolLM2-135M say its next token", console)
    errors.print(f"[dim]{time.perf_counter() - started:.0f} s[/]")


def minilm_page(out: Path, console: Console, errors: Console) -> None:
    """Five sentences and the words that MiniLM judged them by."""
    _check_page(out)
    started = time.perf_counter()
    corpus = read_corpus()
    with errors.status("tuning MiniLM on film reviews") as status:
        model, tokenizer = tuned_minilm(
            corpus.train, told=lambda done, of: status.update(f"tuning MiniLM: {done} of {of} sentences")
        )
        status.update("explaining five sentences")
        texts = [*FIXED, *corpus.held_out.texts[:FILM_SENTENCES]]
        found = explain_text(model, tokenizer, texts, target="positive", labels=LABELS)
    _show(found, out, "What MiniLM, tuned on film reviews, read in five sentences", console)
    errors.print(f"[dim]{time.perf_counter() - started:.0f} s[/]")


def _check_page(out: Path) -> None:
    if out.suffix.lower() != ".html" or not out.absolute().parent.is_dir():
        raise InputError(f"--out {out}: name an .html file in a folder that exists")


def _show(found: Sequence[TextExplanation], out: Path, title: str, console: Console) -> None:
    for one in found:
        console.print(one)
    TextAttribution(tuple(found), (), "").to_html(out, title)
    console.print(escape(f"wrote {out}"))
