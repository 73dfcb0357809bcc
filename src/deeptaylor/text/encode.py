"""Texts become ids, and every id keeps its place in the text: Hugging Face's tokenizers, `tokenizers`, a vocabulary."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import InputError, TextWarning
from .align import align
from .segments import Place, word_places
from .tokens import Token

_UNSET = 10**9  # tokenizers without a limit state a huge one


@dataclass(frozen=True)
class Encoded:
    """One text (or pair) as ids."""

    parts: tuple[str, ...]
    tokens: tuple[Token, ...]
    types: tuple[int, ...] | None = None
    """Token types, where the tokenizer makes them."""

    @property
    def ids(self) -> list[int]:
        return [token.id for token in self.tokens]


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer for hand-written models: a table of words and a function that splits a text.

    Args:
        words: id of each word; or the words, whose places are their ids.
        split: text -> its words, in order. By default words, punctuation marks and symbols, in small letters.
        unknown: the word whose id stands for words that aren't in the table; without one they are an error.
        pad: the word whose id fills up texts that are shorter than `at_least`.
        at_least: tokens that the model needs, for example the width of its largest kernel.
    """

    words: Mapping[str, int] | Sequence[str]
    split: Callable[[str], Sequence[str]] | None = None
    unknown: str | None = None
    pad: str | None = None
    at_least: int = 1
    table: Mapping[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        table = self.words if isinstance(self.words, Mapping) else {word: n for n, word in enumerate(self.words)}
        object.__setattr__(self, "table", table)
        for name in ("unknown", "pad"):
            word = getattr(self, name)
            if word is not None and word not in table:
                raise InputError(f"Vocabulary({name}={word!r}): the table has no such word; add it or name another")

    def __len__(self) -> int:
        return max(self.table.values(), default=-1) + 1

    def encode(self, text: str) -> tuple[Token, ...]:
        """The words of a text with their ids and places.

        Raises:
            InputError: a word is not in the table and no `unknown` was named, or `split` made up words.
        """
        if self.split is None:
            places: Sequence[Place] = word_places(text)
            pieces: Sequence[str] = [text[a:b].lower() for a, b in places]
        else:
            pieces = list(self.split(text))
            places = align(text, pieces)
        tokens = [
            Token(piece, self._id(piece, text), *place) for piece, place in zip(pieces, places, strict=True) if piece
        ]
        missing = self.at_least - len(tokens)
        if tokens and missing > 0:
            if self.pad is None:
                raise InputError(
                    f"{text!r} has {len(tokens)} tokens, the model takes {self.at_least} at least; name the word that "
                    "fills up: Vocabulary(pad=...)"
                )
            tokens += [Token(self.pad, self.table[self.pad], len(text), len(text), special=True)] * missing
        return tuple(tokens)

    def _id(self, word: str, text: str) -> int:
        if word in self.table:
            return self.table[word]
        if self.unknown is None:
            raise InputError(
                f"{word!r} in {text!r} is not in the vocabulary of {len(self.table)} words; name the word that stands "
                "for unknown ones: Vocabulary(words, unknown='<unk>')"
            )
        return self.table[self.unknown]

    def named(self, id: int) -> str:
        """The word of an id."""
        return next((word for word, own in self.table.items() if own == id), str(id))


Text = str | tuple[str, str]


def check_texts(texts: Any) -> list[Text]:
    """Texts as a list; a lone text or pair becomes a list of one.

    Raises:
        InputError: empty, or no text.
    """
    if isinstance(texts, bytes):
        raise InputError("texts are bytes; decode them first: texts.decode('utf-8')")
    lone = isinstance(texts, str) or (isinstance(texts, tuple) and len(texts) == 2 and isinstance(texts[0], str))
    listed: list[Text] = [texts] if lone else list(texts)
    if not listed:
        raise InputError("no texts: the list is empty")
    for n, text in enumerate(listed):
        parts: Sequence[Any] = text if isinstance(text, tuple | list) else (text,)
        if len(parts) > 2 or not all(isinstance(part, str) for part in parts):
            raise InputError(
                f"text {n} is {type(text).__name__} {str(text)[:60]!r}; pass a string, or a tuple of two for models "
                "that read pairs"
            )
        if not all(part.strip() for part in parts):
            raise InputError(f"text {n} is empty: {text!r}; leave it out")
        listed[n] = text if isinstance(text, str) else (parts[0], parts[1])
    return listed


def encode(tokenizer: Any, text: Text, *, limit: int | None, number: int = 0) -> Encoded:
    """One text or pair as ids with their places.

    Args:
        tokenizer: Hugging Face's (fast or slow), a `tokenizers.Tokenizer`, a `Vocabulary`, or a mapping word -> id.
        text: a string or a pair.
        limit: tokens that the model takes; what is longer is cut, with a warning.
        number: of the text, for messages.

    Raises:
        InputError: the tokenizer is none of these, or does not fit the text.

    Warns:
        TextWarning: the text was cut; says what was lost.
    """
    parts: tuple[str, ...] = (text,) if isinstance(text, str) else text
    if isinstance(tokenizer, Mapping):
        tokenizer = Vocabulary(tokenizer)
    if isinstance(tokenizer, Vocabulary):
        if len(parts) > 1:
            raise InputError(f"text {number} is a pair; a Vocabulary reads single texts")
        found = Encoded(parts, tokenizer.encode(parts[0]))
    elif hasattr(tokenizer, "convert_ids_to_tokens"):
        found = _hugging_face(tokenizer, parts)
    elif hasattr(tokenizer, "encode") and hasattr(tokenizer, "token_to_id"):
        found = _from_encoding(tokenizer.encode(*parts), parts, ())
    else:
        raise InputError(
            f"{type(tokenizer).__name__} does not say which ids stand for which words; pass Hugging Face's "
            "tokenizer, or deeptaylor.Vocabulary(words, split=your_function)"
        )
    if not any(not token.special for token in found.tokens):
        raise InputError(f"text {number}, {parts[0]!r}, has no tokens but special ones; leave it out")
    return _cut(found, limit, number)


def tokens_of_ids(
    tokenizer: Any, before: Sequence[int], ids: Sequence[int], start: int, part: int
) -> tuple[str, tuple[Token, ...]]:
    """Text and tokens of ids generated after those `before`; places count from `start`."""
    if not hasattr(tokenizer, "convert_ids_to_tokens"):
        raise InputError("only Hugging Face's tokenizers can turn a generated answer into text")
    special = _special_ids(tokenizer)
    plain = [id for id in ids if id not in special]
    # decoded alone, many would lose the space that they begin with
    whole, known = (tokenizer.decode(some, clean_up_tokenization_spaces=False) for some in ([*before, *plain], before))
    text = whole.removeprefix(known) if whole.startswith(known) else tokenizer.decode(plain)
    places = iter(align(text, tokenizer.convert_ids_to_tokens(plain), getattr(tokenizer, "unk_token", None)))
    tokens = []
    end = start
    for id, piece in zip(ids, tokenizer.convert_ids_to_tokens(list(ids)), strict=True):
        place = (end, end) if id in special else tuple(start + at for at in next(places))
        end = place[1]
        tokens.append(Token(piece, id, place[0], end, part, id in special))
    return text, tuple(tokens)


def token_limit(model: Any, tokenizer: Any) -> int | None:
    """Tokens that a model takes; None where neither it nor its tokenizer says."""
    config = getattr(model, "config", None)
    stated = [getattr(tokenizer, "model_max_length", None), getattr(config, "n_positions", None)]
    positions = getattr(config, "max_position_embeddings", None)
    if isinstance(positions, int) and getattr(config, "position_embedding_type", "absolute") == "absolute":
        # RoBERTa and its kin count positions from the padding id on
        embedding = next((m for n, m in _modules(model) if n.endswith("position_embeddings")), None)
        offset = getattr(embedding, "padding_idx", None)
        stated.append(positions - (offset + 1 if isinstance(offset, int) else 0))
    limits = [int(one) for one in stated if isinstance(one, int | float) and 0 < one < _UNSET]
    return min(limits, default=None)


def check_fit(model: Any, tokenizer: Any, encoded: Sequence[Encoded]) -> None:
    """Refuses a tokenizer that knows no words, or whose ids go beyond the model's embedding table.

    Raises:
        InputError: it has special tokens alone; an id has no row; the vocabulary as a whole is larger than the table.

    Warns:
        TextWarning: a text has no word that the tokenizer knows; the vocabulary is much smaller than the table.
    """
    if hasattr(tokenizer, "all_special_ids") and len(tokenizer) <= len(set(tokenizer.all_special_ids)):
        raise InputError(
            f"the tokenizer knows {len(tokenizer)} special tokens and not a single word: its vocabulary was not found "
            "where it was loaded from; save it beside the model (tokenizer.save_pretrained)"
        )
    _tell_unknown(tokenizer, encoded)
    rows = _embedding_rows(model)
    if rows is None:
        return
    size = len(tokenizer) if hasattr(tokenizer, "__len__") else None
    highest, where = max((token.id, token.piece) for one in encoded for token in one.tokens)
    if highest >= rows or (size is not None and size > rows):
        raise InputError(
            f"the tokenizer knows {size or highest + 1} ids, up to {highest} ({where!r}) in these texts, but the "
            f"model's embedding table has {rows} rows: it is the tokenizer of another model, or the model was not "
            "resized after tokens were added (model.resize_token_embeddings(len(tokenizer)))"
        )
    if size is not None and size < 0.8 * rows:
        warnings.warn(
            f"the tokenizer knows {size} ids, the model's embedding table has {rows} rows: are they of one model?",
            TextWarning,
            stacklevel=3,
        )


def _tell_unknown(tokenizer: Any, encoded: Sequence[Encoded]) -> None:
    """Warns of texts that are one unknown word after the other to the model."""
    if isinstance(tokenizer, Vocabulary):
        word, id = tokenizer.unknown, tokenizer.table.get(tokenizer.unknown or "")
    else:
        word, id = getattr(tokenizer, "unk_token", None), getattr(tokenizer, "unk_token_id", None)
    for one in encoded:
        if all(token.special or token.id == id for token in one.tokens):
            text = " ".join(one.parts)
            warnings.warn(
                f"the tokenizer knows no word of {text[:60]!r}: the model sees {word!r} for each",
                TextWarning,
                stacklevel=4,
            )


def _modules(model: Any) -> Sequence[tuple[str, Any]]:
    return list(model.named_modules()) if hasattr(model, "named_modules") else []


def _embedding_rows(model: Any) -> int | None:
    table = model.get_input_embeddings() if hasattr(model, "get_input_embeddings") else None
    rows = getattr(table, "num_embeddings", None)
    return rows if isinstance(rows, int) else None


def _special_ids(tokenizer: Any) -> set[int]:
    """Ids that stand for no piece of text: unknown words and masked ones do."""
    words = {getattr(tokenizer, "unk_token_id", None), getattr(tokenizer, "mask_token_id", None)}
    return set(tokenizer.all_special_ids) - words


def _hugging_face(tokenizer: Any, parts: Sequence[str]) -> Encoded:
    fast = bool(getattr(tokenizer, "is_fast", False))
    made = tokenizer(
        *parts,
        truncation=False,
        return_special_tokens_mask=True,
        verbose=False,
        **({"return_offsets_mapping": True} if fast else {}),
    )
    types = made.get("token_type_ids")
    if fast:
        found = _from_encoding(made.encodings[0], parts, _special_ids(tokenizer))
    else:
        found = _slow(tokenizer, made, parts)
    return Encoded(found.parts, found.tokens, tuple(types) if types is not None else None)


def _from_encoding(encoding: Any, parts: Sequence[str], special: set[int] | tuple[()]) -> Encoded:
    """From what the tokenizers library returns, which keeps offsets."""
    tokens = []
    last: dict[int, int] = {}
    for n, (id, piece, place) in enumerate(zip(encoding.ids, encoding.tokens, encoding.offsets, strict=True)):
        part = encoding.sequence_ids[n]
        added = bool(encoding.special_tokens_mask[n]) or id in special
        if part is None:  # belongs to no text: stands where the text before it ended
            part = max(last, default=0)
            place = (last.get(part, 0),) * 2
        tokens.append(Token(piece, id, place[0], place[1], part, added))
        last[part] = max(last.get(part, 0), place[1])
    return Encoded(tuple(parts), tuple(tokens))


def _slow(tokenizer: Any, made: Mapping[str, Any], parts: Sequence[str]) -> Encoded:
    ids, mask = made["input_ids"], made["special_tokens_mask"]
    pieces = tokenizer.convert_ids_to_tokens(ids)
    special = [
        bool(flag) and id != getattr(tokenizer, "unk_token_id", None) for flag, id in zip(mask, ids, strict=True)
    ]
    first = len(tokenizer(parts[0], add_special_tokens=False)["input_ids"]) if len(parts) > 1 else len(ids)
    belongs, seen = [], 0
    for added in special:
        seen += not added
        belongs.append(int(seen > first))
    places: dict[int, Place] = {}
    for part, text in enumerate(parts):
        own = [n for n in range(len(ids)) if belongs[n] == part and not special[n]]
        found = align(text, [pieces[n] for n in own], getattr(tokenizer, "unk_token", None))
        places |= dict(zip(own, found, strict=True))
    tokens, last = [], (0, 0)
    for n, (id, piece) in enumerate(zip(ids, pieces, strict=True)):
        last = places.get(n, (last[1], last[1]))
        tokens.append(Token(piece, id, last[0], last[1], belongs[n], special[n]))
    return Encoded(tuple(parts), tuple(tokens))


def _cut(encoded: Encoded, limit: int | None, number: int) -> Encoded:
    """The text within the limit: the last pieces of the longest part go, special tokens stay."""
    excess = len(encoded.tokens) - limit if limit else 0
    if excess <= 0:
        return encoded
    gone: set[int] = set()
    for _ in range(excess):
        left = [
            [n for n, t in enumerate(encoded.tokens) if t.part == p and not t.special and n not in gone] for p in (0, 1)
        ]
        longest = max(left, key=len)
        if not longest:
            raise InputError(f"the limit of {limit} tokens leaves no room for text {number} beside its special tokens")
        gone.add(longest[-1])
    lost = [encoded.tokens[n] for n in sorted(gone)]
    said = []
    for part in sorted({token.part for token in lost}):
        own = [token for token in lost if token.part == part]
        text = encoded.parts[part][own[0].start : own[-1].end]
        said.append(f"characters {own[0].start} to {own[-1].end} ({' '.join(text.split())[:60]!r} …)")
    warnings.warn(
        f"text {number} has {len(encoded.tokens)} tokens, the model takes {limit}: the last {len(lost)} were cut off "
        f"and not seen, {' and '.join(said)}",
        TextWarning,
        stacklevel=4,
    )
    kept = [n for n in range(len(encoded.tokens)) if n not in gone]
    types = tuple(encoded.types[n] for n in kept) if encoded.types is not None else None
    return Encoded(encoded.parts, tuple(encoded.tokens[n] for n in kept), types)
