"""What is asked of each text: a caller's target, in words or numbers, becomes weighted cells of the model's table."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import TargetError
from ..targets import contrast, log_odds, resolve
from .encode import Vocabulary
from .items import Asked, Item

OF_WORDS = ("next-token", "sequence-to-sequence", "fill-mask")
"""Tasks whose columns are the words of the vocabulary."""


@dataclass(frozen=True)
class Question:
    """One score: the sum of weighted cells (place × columns + column) of the model's table."""

    name: str
    cells: Tensor
    weights: Tensor
    explained: float
    absorbed: float
    """What no cell stands for: the entropy of log-odds."""
    probability: float | None
    asked: Asked


@dataclass(frozen=True)
class Names:
    """Columns by name, and back."""

    task: str
    labels: Mapping[int, str]
    tokenizer: Any

    def column(self, target: Any) -> Any:
        """A target with its words replaced by columns."""
        if isinstance(target, str):
            return self._word(target) if self.task in OF_WORDS else self._label(target)
        if isinstance(target, contrast):
            return contrast(self.column(target.positive), self.column(target.negative))
        if isinstance(target, log_odds):
            return log_odds(None if target.index is None else self.column(target.index))
        if isinstance(target, list | tuple):
            return torch.tensor([[self.column(one) for one in target]])
        return target

    def of(self, column: int) -> str:
        """What a column is called."""
        if self.task in OF_WORDS:
            own = isinstance(self.tokenizer, Vocabulary)
            return f"“{self.tokenizer.named(column) if own else self.tokenizer.decode([column])}”"
        return self.labels.get(column, str(column))

    def _label(self, name: str) -> int:
        by_name = {label.lower(): column for column, label in self.labels.items()}
        if name.lower() in by_name:
            return by_name[name.lower()]
        if not by_name:
            raise TargetError(f"target {name!r}: the model does not name its classes; pass labels=[...] or an index")
        near = difflib.get_close_matches(name.lower(), by_name, n=1, cutoff=0.3)
        hint = f"did you mean {self.labels[by_name[near[0]]]!r}? " if near else ""
        raise TargetError(f"no class is called {name!r}; {hint}The classes are {', '.join(self.labels.values())}")

    def _word(self, word: str) -> int:
        if isinstance(self.tokenizer, Vocabulary):
            if word not in self.tokenizer.table:
                raise TargetError(f"target {word!r} is not in the vocabulary of {len(self.tokenizer.table)} words")
            return self.tokenizer.table[word]
        if not word:
            raise TargetError("target '' names no token; None explains the likeliest")
        ids = list(self.tokenizer(word, add_special_tokens=False)["input_ids"])
        if len(ids) == 1:
            return int(ids[0])
        vocabulary = self.tokenizer.get_vocab()
        if word in vocabulary:
            return int(vocabulary[word])
        pieces = " ".join(repr(self.tokenizer.decode([id])) for id in ids)
        raise TargetError(
            f"target {word!r} is {len(ids)} tokens ({pieces}), and one score belongs to one token; explain them one by "
            f"one with answer={word!r}, or name a single token (most begin with a space)"
        )


def own_target(target: Any, number: int, texts: int) -> Any:
    """The target of one text: that of all, or its own from a list with one entry a text."""
    if isinstance(target, Tensor):
        if target.is_floating_point():
            raise TargetError("a floating target (relevance put at the output) is for deeptaylor.explain")
        target = target.tolist()
    if isinstance(target, list | tuple):
        if len(target) != texts:
            raise TargetError(
                f"target has {len(target)} entries for {texts} texts; pass one for all, one a text, or a list a text "
                "for several targets each"
            )
        return target[number]
    return target


def questions(item: Item, table: Tensor, target: Any, names: Names) -> list[Question]:
    """The scores asked for of one text.

    Args:
        item: the text.
        table: its scores (places, columns).
        target: as for `explain_text`, of this text alone.
        names: of the columns.
    """
    if names.task == "question-answering":
        return [_span(item, table, target)]
    found = []
    for asked in item.asked:
        wanted = asked.column if target is None and asked.column is not None else names.column(target)
        scores = table[asked.place][None]
        seeds = resolve(wanted, scores)
        for k, seed in enumerate(seeds.seeds):
            weights = seed.tensor[0]
            columns = weights.nonzero()[:, 0]
            column = _column(seeds.target, k)
            found.append(
                Question(
                    _name(wanted, column, names),
                    columns + asked.place * table.shape[1],
                    weights[columns],
                    float(seeds.explained.flatten()[k]),
                    float(torch.as_tensor(seeds.absorbed).flatten()[0]),
                    _probability(scores[0], column, names),
                    asked,
                )
            )
    return found


def _column(target: Any, k: int) -> int | None:
    return int(target.flatten()[k]) if isinstance(target, Tensor) else None


def _name(wanted: Any, column: int | None, names: Names) -> str:
    if isinstance(wanted, contrast):
        return f"{names.of(wanted.positive)} against {names.of(wanted.negative)}"
    assert column is not None
    return f"log-odds of {names.of(column)}" if isinstance(wanted, log_odds) else names.of(column)


def _probability(scores: Tensor, column: int | None, names: Names) -> float | None:
    if column is None or scores.numel() < 2 or names.task == "similarity":
        return None
    return float(scores.double().softmax(0)[column])


def _span(item: Item, table: Tensor, target: Any) -> Question:
    """The answer in the context: the start's score plus the end's; of all spans up to 30 tokens, or of a quoted one."""
    tokens = item.tokens
    inside = [n for n, token in enumerate(tokens) if token.part == len(item.parts) - 1 and not token.special]
    if target is None:
        pairs = [(a, b) for a in inside for b in inside if a <= b < a + 30]
        start, end = max(pairs, key=lambda pair: float(table[pair[0], 0] + table[pair[1], 1]))
    elif isinstance(target, str):
        start, end = token_range(item.parts[-1], [(n, tokens[n]) for n in inside], target)
    else:
        raise TargetError(
            "the target of a question is its answer, quoted from the context; or None for the model's own"
        )
    cells = torch.tensor([start * 2, end * 2 + 1], device=table.device)
    score = float(table[start, 0] + table[end, 1])
    chance = float(table[inside, 0].double().softmax(0)[inside.index(start)])
    chance *= float(table[inside, 1].double().softmax(0)[inside.index(end)])
    text = item.parts[-1][tokens[start].start : tokens[end].end].strip()
    return Question(f"“{text}”", cells, torch.ones_like(table[0]), score, 0.0, chance, Asked(start, token=start))


def token_range(text: str, tokens: Sequence[tuple[int, Any]], quoted: str) -> tuple[int, int]:
    """First and last token of the first place where `quoted` stands in the text."""
    at = text.find(quoted)
    if at < 0 or not quoted:
        raise TargetError(f"{quoted!r} does not stand in the text {text[:80]!r}; quote it letter by letter")
    found = [n for n, token in tokens if token.start < at + len(quoted) and token.end > at and not token.special]
    if not found:
        raise TargetError(f"no token of the text holds {quoted!r}; the text was cut before it")
    return found[0], found[-1]
