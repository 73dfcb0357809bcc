"""Where words and sentences of a text lie, in any script; nothing of a model or a tokenizer is needed."""

from __future__ import annotations

import re
import unicodedata

Place = tuple[int, int]
"""Characters from … to (exclusive)."""

_ZERO_WIDTH_JOINER = "\u200d"
_APOSTROPHES = "'’"
# Scripts without spaces between words: each character is a word of its own.
_IDEOGRAPHS = ("CJK UNIFIED", "CJK COMPATIBILITY IDEOGRAPH", "HIRAGANA", "KATAKANA")
_END = re.compile(r"""[.!?…]+["'”’»)\]]*(?=\s+(?![a-z]))|[。！？]+["”’」』)]*|\n+""")


def word_places(text: str) -> list[Place]:
    """Words, punctuation marks and symbols, each with its combining marks; white space is left out.

    Letters and digits in a row are a word, with an apostrophe between letters; ideographs and emoji stand alone. An
    emoji keeps its modifiers and whatever a zero-width joiner ties to it.
    """
    places: list[Place] = []
    kinds: list[str] = []
    for i, character in enumerate(text):
        kind = _kind(character)
        if places and places[-1][1] == i and _continues(text, i, kind, kinds[-1], places[-1]):
            places[-1] = (places[-1][0], i + 1)
        elif kind != "space":
            places.append((i, i + 1))
            kinds.append(kind)
    return places


def sentence_places(text: str) -> list[Place]:
    """Sentences: up to a full stop, question or exclamation mark that no small letter follows, or a line's end."""
    ends = [match.end() for match in _END.finditer(text)]
    places = []
    start = 0
    for end in [*ends, len(text)]:
        if text[start:end].strip():
            places.append((start, end))
            start = end
    return places


def is_ideograph(character: str) -> bool:
    """Whether a character is a word of its own, in a script without spaces."""
    return unicodedata.name(character, "").startswith(_IDEOGRAPHS)


def _kind(character: str) -> str:
    category = unicodedata.category(character)
    if character.isspace():
        return "space"
    if category[0] == "M" or character == _ZERO_WIDTH_JOINER or "\U0001f3fb" <= character <= "\U0001f3ff":
        return "mark"
    if "\U0001f1e6" <= character <= "\U0001f1ff":
        return "flag"
    if is_ideograph(character):
        return "ideograph"
    if character.isalnum() or character == "_":
        return "letter"
    return "symbol"


def _continues(text: str, i: int, kind: str, before: str, place: Place) -> bool:
    """Whether character i goes on with the word before it."""
    if kind == "mark":
        return True
    if text[i - 1] == _ZERO_WIDTH_JOINER:
        return kind != "space"
    if kind == "flag":  # two regional letters make a flag
        return before == "flag" and i - place[0] == 1
    if kind == "letter":
        return before == "letter"
    between = 0 < i < len(text) - 1 and _kind(text[i + 1]) == "letter"
    return text[i] in _APOSTROPHES and before == "letter" and between
