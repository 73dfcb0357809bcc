"""Texts become items by task: which inputs, which tokens, which places are asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError, TargetError
from ..inputs import Model
from .encode import Encoded, Text, check_fit, encode, token_limit, tokens_of_ids
from .heads import SIMILARITY, Scores
from .items import Asked, Item, Wiring
from .questions import token_range
from .tokens import Token

At = int | str | Sequence[int | str]


@dataclass(frozen=True)
class Reader:
    """Everything that turns texts into items for one model."""

    model: Model
    tokenizer: Any
    scores: Scores
    wiring: Wiring
    task: str
    device: torch.device
    max_length: int | None = None

    def items(self, texts: Sequence[Text], at: At | None, answer: str | int | None) -> list[Item]:
        """One item per text.

        Raises:
            InputError, TargetError: the texts, or what is asked of them, do not fit the task.
        """
        if answer is not None and self.task not in ("next-token", "sequence-to-sequence"):
            raise InputError(f"answer is for models that write text; this one does {self.task}")
        if at is not None and self.task not in ("next-token", "token-classification", "fill-mask"):
            raise InputError(f"at is for scores of single tokens; this model does {self.task}")
        if self.task == SIMILARITY:
            return [self._pair(number, text) for number, text in enumerate(texts)]
        limit = self.max_length or token_limit(self.model, self.tokenizer)
        encoded = [encode(self.tokenizer, text, limit=limit, number=n) for n, text in enumerate(texts)]
        check_fit(self.model, self.tokenizer, encoded)
        return [self._item(number, one, at, answer) for number, one in enumerate(encoded)]

    def _item(self, number: int, encoded: Encoded, at: At | None, answer: str | int | None) -> Item:
        if self.task == "sequence-to-sequence":
            return self._translated(number, encoded, answer)
        if self.task == "next-token":
            encoded = _open_ended(encoded)
        if answer is not None:
            return self._answered(number, encoded, answer)
        asked: tuple[Asked, ...] = (Asked(0),)
        if self.task == "next-token":
            asked = self._next(encoded, at)
        elif self.task == "fill-mask":
            mask = getattr(self.tokenizer, "mask_token_id", None)
            masked = [n for n, token in enumerate(encoded.tokens) if token.id == mask]
            if at is None and not masked:
                raise InputError(f"text {number} holds no {self.tokenizer.mask_token}; put one in, or pass at=")
            asked = tuple(Asked(n, token=n) for n in (masked if at is None else _chosen(encoded, at)))
        elif self.task == "token-classification":
            asked = tuple(Asked(n, token=n) for n in self._labelled(number, encoded, at))
        return Item(number, encoded.parts, self.wiring.inputs(encoded), {self.wiring.ids: encoded.tokens}, asked)

    def _next(self, encoded: Encoded, at: At | None) -> tuple[Asked, ...]:
        """The token after the text, or tokens of the text, each from those before it."""
        if at is None:
            return (Asked(len(encoded.tokens) - 1),)
        chosen = _chosen(encoded, at)
        if 0 in chosen:
            raise TargetError("nothing comes before token 0, so there is nothing to explain it by; ask for a later one")
        return tuple(Asked(n - 1, encoded.ids[n], n, seen=n) for n in chosen)

    def _labelled(self, number: int, encoded: Encoded, at: At | None) -> Sequence[int]:
        """The tokens asked for; by default those with another label than O."""
        if at is not None:
            return _chosen(encoded, at)
        table = self.table(self.wiring.inputs(encoded))
        labels = labels_of(self.model)
        named = [
            n
            for n, token in enumerate(encoded.tokens)
            if not token.special and labels.get(int(table[n].argmax()), "") not in ("O", "")
        ]
        if not named:
            raise InputError(f"text {number} has no token with a label other than O; say which to explain: at='word'")
        return named

    def _answered(self, number: int, encoded: Encoded, answer: str | int) -> Item:
        """A decoder's answer: every token of it from the prompt and the answer so far."""
        prompt = len(encoded.ids)
        text = encoded.parts[0]
        if isinstance(answer, str):
            whole = _open_ended(encode(self.tokenizer, text + answer, limit=None, number=number))
            tokens, text = whole.tokens, text + answer
            first = next((n for n, t in enumerate(tokens) if t.end > len(encoded.parts[0])), len(tokens))
        else:
            ids = self._written(encoded.ids, answer)
            said, new = tokens_of_ids(self.tokenizer, ids[:prompt], ids[prompt:], len(text), 0)
            tokens, text, first = encoded.tokens + new, text + said, prompt
        asked = tuple(Asked(n - 1, tokens[n].id, n, seen=n) for n in range(max(first, 1), len(tokens)))
        if not asked:
            raise InputError(f"the answer to text {number} is empty")
        # the last token is only asked for, nothing follows from it
        seen = Encoded((text,), tokens[:-1])
        return Item(number, (text,), self.wiring.inputs(seen), {self.wiring.ids: tokens[:-1]}, asked)

    def _translated(self, number: int, encoded: Encoded, answer: str | int | None) -> Item:
        """An encoder-decoder's answer, from the source and the answer so far."""
        config = self.model.config  # type: ignore[attr-defined]
        start = config.decoder_start_token_id
        if start is None:
            raise InputError("model.config.decoder_start_token_id is not set, so the decoder can't begin; set it")
        if isinstance(answer, str):
            own = encode(self.tokenizer, answer, limit=None, number=number)
            said, new = answer, tuple(Token(t.piece, t.id, t.start, t.end, 1, t.special) for t in own.tokens)
        else:
            ids = self._written([start], answer or 20, encoded)
            said, new = tokens_of_ids(self.tokenizer, [], ids[1:], 0, 1)
        begin = Token(self.tokenizer.convert_ids_to_tokens([start])[0], start, 0, 0, 1, True)
        decoder = (begin, *new[:-1])
        inputs = self.wiring.inputs(encoded) | {
            "decoder_input_ids": [token.id for token in decoder],
            "decoder_attention_mask": [1] * len(decoder),
        }
        before = len(encoded.tokens)
        asked = tuple(Asked(n, token.id, before + n + 1, seen=before + n + 1) for n, token in enumerate(new))
        return Item(
            number,
            (*encoded.parts, said),
            inputs,
            {self.wiring.ids: encoded.tokens, "decoder_input_ids": decoder},
            asked,
        )

    def _written(self, ids: Sequence[int], count: int, source: Encoded | None = None) -> list[int]:
        """The likeliest continuation, token by token, until it ends or `count` tokens are written."""
        written = list(ids)
        config = getattr(self.model, "generation_config", None) or self.model.config  # type: ignore[attr-defined]
        ends = config.eos_token_id
        stop = set(ends) if isinstance(ends, list | tuple) else {ends}
        for _ in range(count):
            inputs = {self.wiring.ids: written} if source is None else self.wiring.inputs(source)
            if source is not None:
                inputs = inputs | {"decoder_input_ids": written}
            written.append(int(self.table(inputs)[-1].argmax()))
            if written[-1] in stop:
                break
        return written

    def _pair(self, number: int, text: Text) -> Item:
        if isinstance(text, str):
            raise InputError(f"text {number} is single; similarity needs pairs: (text, other)")
        limit = self.max_length or token_limit(self.model, self.tokenizer)
        sides = [encode(self.tokenizer, side, limit=limit, number=number) for side in text]
        check_fit(self.model, self.tokenizer, sides)
        inputs: dict[str, Sequence[int]] = {}
        explained = {}
        for part, (which, side) in enumerate(zip(("first_", "second_"), sides, strict=True)):
            inputs |= self.wiring.inputs(side, which)
            explained[which + self.wiring.ids] = tuple(
                Token(t.piece, t.id, t.start, t.end, part, t.special) for t in side.tokens
            )
        return Item(number, text, inputs, explained)

    def table(self, inputs: dict[str, Any]) -> Tensor:
        """The model's table (places, columns) of one text."""
        ready = {name: torch.tensor([list(values)], device=self.device) for name, values in inputs.items()}
        with torch.no_grad():
            return self.scores.table(ready)[0]


def labels_of(model: Any) -> dict[int, str]:
    """Names of a Hugging Face model's classes; empty where it has none."""
    named = getattr(getattr(model, "config", None), "id2label", None) or {}
    return {int(column): str(name) for column, name in named.items()}


def _open_ended(encoded: Encoded) -> Encoded:
    """Without the end-of-text mark that some tokenizers add: the text is to go on."""
    length = len(encoded.tokens)
    while (
        length > 1
        and encoded.tokens[length - 1].special
        and encoded.tokens[length - 1].end == encoded.tokens[length - 1].start
    ):
        length -= 1
    types = encoded.types[:length] if encoded.types is not None else None
    return Encoded(encoded.parts, encoded.tokens[:length], types)


def _chosen(encoded: Encoded, at: At) -> list[int]:
    """Indices of the tokens asked for: by number (from the end where negative), or by a word of the text."""
    found = []
    for one in [at] if isinstance(at, int | str) else at:
        if isinstance(one, str):
            part = len(encoded.parts) - 1
            members = [(n, token) for n, token in enumerate(encoded.tokens) if token.part == part]
            found.append(token_range(encoded.parts[part], members, one)[0])
        elif -len(encoded.tokens) <= one < len(encoded.tokens):
            found.append(one % len(encoded.tokens))
        else:
            raise TargetError(f"at={one}: the text has {len(encoded.tokens)} tokens, 0 to {len(encoded.tokens) - 1}")
    return found
