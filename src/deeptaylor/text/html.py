"""Relevance of words as HTML: a fragment for notebooks and reports, or one self-contained page."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from importlib import resources

from .. import plots
from .layout import Stretch, balance, colour, headline, limit, listed, number, stretches, strongest
from .result import TextExplanation

SENTENCES_FROM = 4
"""Sentences from which their sums are listed above the text."""


def style(name: str = "words.css") -> str:
    """A style sheet of this package; every class name begins with `dt-`."""
    return (resources.files("deeptaylor.text") / name).read_text(encoding="utf-8")


def fragment(explanations: Sequence[TextExplanation], styled: bool = True) -> str:
    """The texts as HTML without a page around it; nothing in it asks a server for anything."""
    return (f"<style>{style()}</style>" if styled else "") + "\n".join(_one(each) for each in explanations)


def legend() -> str:
    """The colour scale in words and colours."""
    stops = ", ".join("#" + plots.COLOURS[i] for i in range(0, len(plots.COLOURS), 2))
    return (
        f'<div class="dt-strip" role="img" aria-label="Colour scale from blue over white to red" '
        f'style="background: linear-gradient(90deg, {stops})"></div>'
        '<div class="dt-ends"><span>speaks against</span><span>no say</span><span>speaks for</span></div>'
    )


def page(explanations: Sequence[TextExplanation], title: str) -> str:
    """One self-contained page."""
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{style("page.css")}{style("words.css")}</style></head>
<body><h1>{escape(title)}</h1>
<p class="dt-small">Each text shares out one score among its words; full colour is the strongest word of that text.</p>
{legend()}
{fragment(explanations, styled=False)}
</body></html>
"""


def _one(explanation: TextExplanation) -> str:
    full = limit(explanation)
    ahead, against = strongest(explanation)
    parts = [
        "".join(_stretch(one, full, explanation.explained) for one in stretches(explanation) if one.part == part)
        for part in range(len(explanation.parts))
    ]
    words = "".join(f'<div class="dt-words" dir="auto" tabindex="0">{part}</div>' for part in parts)
    return (
        f'<section class="dt-text"><h3>{escape(headline(explanation))}</h3>{_sentences(explanation)}{words}'
        f'<p class="dt-small"><b>For:</b> {escape(listed(ahead))}. <b>Against:</b> '
        f"{escape(listed(against))}.<br>{escape(balance(explanation).capitalize())}.</p></section>"
    )


def _stretch(one: Stretch, full: float, explained: float) -> str:
    text = escape(one.text)
    if one.relevance is None:
        return text if not one.text.strip() else f"<u>{text}</u>"
    share = f" ({one.relevance / explained:.0%} of the score)" if explained else ""
    title = f'title="{number(one.relevance)}{share.replace("-", "−")}"'
    if one.special:
        return f"<i {title}>{text} {number(one.relevance)}</i>"
    background, ink = colour(one.relevance, full)
    return f'<b {title} style="background:{background};color:{ink}">{text}</b>'


def _sentences(explanation: TextExplanation) -> str:
    """Sums per sentence as bars, for texts of several."""
    sentences = [one for one in explanation.sentences() if one.start < one.end]
    if len(sentences) < SENTENCES_FROM:
        return ""
    full = max(abs(one.relevance) for one in sentences)
    rows = "".join(
        f"<span>{escape(' '.join(one.text.split()))}</span><em>{number(one.relevance)}</em>"
        f'<s style="background:{colour(0.6 * one.relevance, abs(one.relevance))[0]};'
        f'width:{100 * abs(one.relevance) / full if full else 0:.0f}%"></s>'
        for one in sentences
    )
    return f'<div class="dt-bars">{rows}</div>'
