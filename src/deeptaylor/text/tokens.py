"""Tokens with their place in the text, and spans: tokens merged per word or sentence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from .segments import Place, sentence_places, word_places


@dataclass(frozen=True)
class Token:
    """One id that the model sees."""

    piece: str
    """As the tokenizer calls it: `##ing`, `Ġfilm`, `▁film`."""
    id: int
    start: int
    """Its characters are `text[start:end]`; none (start == end) where the tokenizer added it."""
    end: int
    part: int = 0
    """Which text of a pair it belongs to."""
    special: bool = False
    """Added by the tokenizer or a template, as [CLS] and [SEP] are, rather than a piece of a word."""


@dataclass(frozen=True)
class Span:
    """Characters `text[start:end]` of a part and the relevance of the tokens that make them up."""

    text: str
    start: int
    end: int
    relevance: float
    part: int = 0
    special: bool = False
    tokens: tuple[int, ...] = ()
    """Indices of its tokens."""


def merge_words(parts: Sequence[str], tokens: Sequence[Token], relevance: Sequence[float]) -> list[Span]:
    """Words in the order of the text, special tokens among them; every token is in exactly one span.

    A token that reaches over several words makes one span of them; one of white space alone is a span of its own.
    """
    found = []
    for part, text in enumerate(parts):
        members = [i for i, token in enumerate(tokens) if token.part == part]
        places = _joined(word_places(text), [tokens[i] for i in members if tokens[i].end > tokens[i].start], text)
        found += _spans(text, part, places, tokens, members, relevance)
    return sorted(found, key=lambda span: span.tokens[0])


def merge_sentences(parts: Sequence[str], tokens: Sequence[Token], relevance: Sequence[float]) -> list[Span]:
    """Sentences in the order of the text; special tokens without characters stay spans of their own."""
    words = merge_words(parts, tokens, relevance)
    found: dict[tuple[int, int], Span] = {}
    for word in words:
        if word.special and word.start == word.end:
            found[-1, word.tokens[0]] = word
            continue
        places = sentence_places(parts[word.part])
        number = next((n for n, (_, end) in enumerate(places) if word.start < end), len(places))
        before = found.get((word.part, number))
        start, end = (before.start, max(before.end, word.end)) if before else (word.start, word.end)
        found[word.part, number] = Span(
            parts[word.part][start:end],
            start,
            end,
            word.relevance + (before.relevance if before else 0.0),
            word.part,
            word.special and (before is None or before.special),
            (before.tokens if before else ()) + word.tokens,
        )
    return list(found.values())


def _joined(places: list[Place], tokens: Sequence[Token], text: str) -> list[Place]:
    """Words and white-space tokens as places that don't overlap; those that one token reaches over become one."""
    spaces = [(t.start, t.end) for t in tokens if not text[t.start : t.end].strip()]
    inside = [_stripped(text, t.start, t.end) for t in tokens if text[t.start : t.end].strip()]
    joined: list[Place] = []
    for start, end in sorted({*places, *inside, *spaces}):
        if joined and start < joined[-1][1]:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((start, end))
    return joined


def _stripped(text: str, start: int, end: int) -> Place:
    inner = text[start:end]
    return start + len(inner) - len(inner.lstrip()), end - len(inner) + len(inner.rstrip())


def _spans(
    text: str,
    part: int,
    places: Sequence[Place],
    tokens: Sequence[Token],
    members: Sequence[int],
    relevance: Sequence[float],
) -> list[Span]:
    found: dict[Place, Span] = {}
    alone = []
    for i in members:
        token = tokens[i]
        if token.special and token.start == token.end:
            alone.append(Span(token.piece, token.start, token.end, float(relevance[i]), part, True, (i,)))
            continue
        place = _home(text, token, places)
        span = found.get(place) or Span(text[slice(*place)], *place, 0.0, part, token.special)
        found[place] = replace(
            span,
            relevance=span.relevance + float(relevance[i]),
            special=span.special and token.special,
            tokens=(*span.tokens, i),
        )
    return alone + list(found.values())


def _home(text: str, token: Token, places: Sequence[Place]) -> Place:
    """The place of a token: that which holds its first character; the next one for a token without characters."""
    start = _stripped(text, token.start, token.end)[0] if text[token.start : token.end].strip() else token.start
    later = [place for place in places if place[1] > start]
    return later[0] if later else places[-1] if places else (token.start, token.end)
