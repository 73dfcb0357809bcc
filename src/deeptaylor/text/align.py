"""Offsets for tokenizers that keep none: every piece finds its characters in the text.

Pieces that spell the text's bytes (byte-level BPE, SentencePiece, ByT5) are laid side by side. Others (WordPiece: small
letters, accents dropped, unknown words) are matched character by character, without case and marks.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from functools import cache

from ..errors import InputError
from .segments import Place, is_ideograph

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def align(text: str, pieces: Sequence[str], unknown: str | None = None) -> list[Place]:
    """Characters of each piece, in order.

    Args:
        text: what was tokenized.
        pieces: the tokenizer's names of the tokens, special ones left out.
        unknown: the piece that stands for words the tokenizer does not know.

    Raises:
        InputError: the pieces do not spell the text.
    """
    for spelling in (_byte_level, _sentencepiece, _latin):
        spelled = [spelling(piece) for piece in pieces]
        whole = [one for one in spelled if one is not None]
        if len(whole) == len(spelled):
            for space in (b"", b" "):
                if b"".join(whole) == space + text.encode():
                    return _by_bytes(text, whole, len(space))
    return _by_characters(text, pieces, unknown)


@cache
def _gpt2_bytes() -> dict[str, int]:
    """The character that stands for each byte in byte-level BPE (Radford et al. 2019)."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + n): byte for n, byte in enumerate(others)}


def _byte_level(piece: str) -> bytes | None:
    table = _gpt2_bytes()
    return bytes(table[c] for c in piece) if all(c in table for c in piece) else None


def _sentencepiece(piece: str) -> bytes | None:
    byte = _BYTE.fullmatch(piece)
    return bytes([int(byte[1], 16)]) if byte else piece.replace("▁", " ").encode()


def _latin(piece: str) -> bytes | None:
    return piece.encode("latin-1") if all(ord(c) < 256 for c in piece) else None


def _by_bytes(text: str, spelled: Sequence[bytes], shift: int) -> list[Place]:
    """A piece's characters are those of which it holds a byte."""
    owner = [n for n, character in enumerate(text) for _ in character.encode()]
    places, at = [], -shift
    for one in spelled:
        first, last = max(at, 0), at + len(one)
        at = last
        places.append((owner[first], owner[last - 1] + 1) if last > first else (_at(owner, first, text),) * 2)
    return [(start, end) for start, end in places]


def _at(owner: Sequence[int], byte: int, text: str) -> int:
    return owner[byte] if byte < len(owner) else len(text)


def _bare(text: str) -> list[tuple[str, int]]:
    """Characters without case, marks and white space, each with its index."""
    found = []
    for i, character in enumerate(text):
        for plain in unicodedata.normalize("NFKD", character).casefold():
            category = unicodedata.category(plain)
            if category != "Mn" and category[0] != "C" and not plain.isspace():
                found.append((plain, i))
    return found


def _by_characters(text: str, pieces: Sequence[str], unknown: str | None) -> list[Place]:
    bare = _bare(text)
    letters, index = "".join(c for c, _ in bare), [i for _, i in bare]
    places: list[Place] = []
    at, open_end = 0, False  # open_end: the last piece was unknown, and may reach further
    for number, piece in enumerate(pieces):
        start = index[at] if at < len(index) else len(text)
        if piece == unknown:
            end = _end_of_unknown(text, start)
            places.append((start, end))
            at, open_end = next((n for n in range(at, len(index)) if index[n] >= end), len(index)), True
            continue
        spelled = ["".join(c for c, _ in _bare(one)) for one in (piece, _core(piece))]
        wanted = next((one for one in spelled if letters.startswith(one, at)), spelled[1])
        found = letters.find(wanted, at)
        if found != at and not (open_end and found > at):
            raise InputError(
                f"piece {number}, {piece!r}, is not where it should be in the text, near character {start} "
                f"({text[start : start + 20]!r}): is this the tokenizer that made these ids?"
            )
        if open_end and found > at:
            places[-1] = (places[-1][0], _trimmed(text, index[found - 1] + 1))
        if wanted:
            places.append((index[found], _with_marks(text, index[found + len(wanted) - 1] + 1)))
            at = found + len(wanted)
            open_end = False
        else:
            places.append((start, start))
    return _disjoint_unknown(text, places, open_end)


def _end_of_unknown(text: str, start: int) -> int:
    """WordPiece gives up whole words: up to white space, punctuation, or an ideograph."""
    end = start
    while end < len(text) and not text[end].isspace():
        alone = _is_punctuation(text[end]) or is_ideograph(text[end])
        if alone and end > start:
            break
        end += 1
        if alone:
            break
    return end


def _is_punctuation(character: str) -> bool:
    is_ascii_symbol = character.isascii() and character.isprintable() and not character.isalnum()
    return is_ascii_symbol or unicodedata.category(character)[0] == "P"


def _core(piece: str) -> str:
    """A piece without the marks that say how it joins its neighbours."""
    for mark in ("##", "▁", "Ġ"):
        if piece.startswith(mark) and piece != mark:
            return piece.removeprefix(mark)
    for mark in ("</w>", "@@"):
        if piece.endswith(mark) and piece != mark:
            return piece.removesuffix(mark)
    return piece


def _with_marks(text: str, end: int) -> int:
    while end < len(text) and unicodedata.category(text[end]) == "Mn":
        end += 1
    return end


def _trimmed(text: str, end: int) -> int:
    return len(text[:end].rstrip())


def _disjoint_unknown(text: str, places: list[Place], open_end: bool) -> list[Place]:
    """An unknown piece at the end reaches to the end of its stretch without white space."""
    if open_end:
        start, end = places[-1]
        rest = re.compile(r"\S*").match(text, end)
        places[-1] = (start, rest.end() if rest else end)
    return places
