"""A text laid out for any view: coloured stretches and what lies between them, every character once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from .. import plots
from .result import Level, TextExplanation
from .tokens import Span

LONG = 150
"""Words from which the terminal and figures fold away sentences that say little."""
SHOWN = 6
"""Sentences that stay open in a folded text."""


@dataclass(frozen=True)
class Stretch:
    """Some characters of a text with one colour."""

    text: str
    relevance: float | None
    """None: white space, or characters that the model did not see."""
    special: bool = False
    part: int = 0
    folded: int = 0
    """Words that this stretch stands for, where it is folded."""


def stretches(explanation: TextExplanation, level: Level = "word") -> list[Stretch]:
    """The whole text in order; the characters of all but special stretches spell it exactly."""
    spans = explanation.spans(level)
    found: list[Stretch] = []
    for part, text in enumerate(explanation.parts):
        at = 0
        for span in (span for span in spans if span.part == part):
            if span.start == span.end:
                found.append(Stretch(span.text, span.relevance, True, part))
                continue
            if span.start < at and found:  # tokens that share one character, as bytes of an emoji do
                last = found[-1]
                grown = text[max(at, span.start) : span.end] if span.end > at else ""
                found[-1] = replace(last, text=last.text + grown, relevance=(last.relevance or 0.0) + span.relevance)
            else:
                if span.start > at:
                    found.append(Stretch(text[at : span.start], None, part=part))
                found.append(Stretch(text[span.start : span.end], span.relevance, span.special, part))
            at = max(at, span.end)
        if at < len(text):
            found.append(Stretch(text[at:], None, part=part))
    return found


def folded(explanation: TextExplanation) -> list[Stretch]:
    """The stretches of a long text with only its strongest sentences open; of a short one all of them."""
    whole = stretches(explanation)
    if sum(one.relevance is not None for one in whole) <= LONG:
        return whole
    sentences = [one for one in explanation.sentences() if one.start < one.end]
    strongest = sorted(sentences, key=lambda one: -abs(one.relevance))[:SHOWN]
    kept: list[Stretch] = []
    at, part = 0, 0
    for one in whole:
        if one.part != part:
            at, part = 0, one.part
        is_open = one.special or any(s.part == part and s.start <= at < s.end for s in strongest)
        at += 0 if one.special else len(one.text)
        if is_open:
            kept.append(one)
        elif kept and kept[-1].folded:
            more = 0 if one.relevance is None else 1
            sum_ = (kept[-1].relevance or 0.0) + (one.relevance or 0.0)
            kept[-1] = replace(kept[-1], relevance=sum_, folded=kept[-1].folded + more)
        elif one.relevance is not None:
            kept.append(replace(one, folded=1))
    return [replace(one, text=f" [… {one.folded} words …] ") if one.folded else one for one in kept]


def limit(explanation: TextExplanation, level: Level = "word") -> float:
    """The |relevance| of full colour: the largest of the text's own words."""
    spans = [span for span in explanation.spans(level) if not span.special]
    return max((abs(span.relevance) for span in spans), default=0.0)


def colour(relevance: float, limit: float) -> tuple[str, str]:
    """Background and ink of a word: red speaks for the target, blue against it, white not at all."""
    colours = plots.palette()
    share = max(-1.0, min(1.0, relevance / limit)) if limit > 0 else 0.0
    red, green, blue = (int(value) for value in colours[round((share + 1) / 2 * (len(colours) - 1))])
    dark = 0.2126 * red + 0.7152 * green + 0.0722 * blue < 140
    return f"#{red:02x}{green:02x}{blue:02x}", "#ffffff" if dark else "#1d1c1a"


def strongest(explanation: TextExplanation, n: int = 5) -> tuple[list[Span], list[Span]]:
    """The n words that spoke most for the target, and the n most against it."""
    words = [span for span in explanation.words() if not span.special]
    ahead = sorted((w for w in words if w.relevance > 0), key=lambda w: -w.relevance)
    return ahead[:n], sorted((w for w in words if w.relevance < 0), key=lambda w: w.relevance)[:n]


def balance(explanation: TextExplanation) -> str:
    """Where the explained score went: score +2.1 = words +2.3, special tokens −0.1, absorbed on the way −0.1."""
    special = explanation.on_special
    shares = {
        "words": float(explanation.relevance.double().sum()) - special,
        "special tokens": special,
        "absorbed on the way": explanation.absorbed,
    }
    said = ", ".join(f"{name} {number(share)}" for name, share in shares.items() if share or name == "words")
    return f"score {number(explanation.explained)} = {said}"


def listed(words: Sequence[Span]) -> str:
    """“gorgeous” +1.1, “witty” +1."""
    names = (" ".join(word.text.split()) or repr(word.text)[1:-1] for word in words)
    return ", ".join(f"“{name}” {number(word.relevance)}" for name, word in zip(names, words, strict=True)) or "nothing"


def headline(explanation: TextExplanation) -> str:
    """“positive”: score +2.31, probability 91 %."""
    chance = "" if explanation.probability is None else f", probability {explanation.probability:.1%}"
    return f"{explanation.target}: score {number(explanation.explained)}{chance}"


def number(value: float) -> str:
    """A signed number of three digits, with a real minus."""
    return f"{value:+.3g}".replace("-", "−")
