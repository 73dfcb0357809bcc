"""`explain_text`: from texts to relevance per token, for every kind of model that reads text."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..attribution import Attribution
from ..composites import Composite
from ..errors import InputError
from ..explainer import Explainer
from ..inputs import Model, bind, check_model
from ..origin import own_output
from ..rules import Rule
from ..unwrap import unwrapped
from .encode import Vocabulary, check_texts
from .heads import SIMILARITY, TASKS, Read, Scores, Similarity, task_of
from .items import Item, batches, stacked, wire
from .prepare import At, Reader, labels_of
from .questions import Names, Question, own_target, questions
from .result import TextAttribution, TextExplanation

Told = Callable[[int, int], None]


def explain_text(
    model: Model,
    tokenizer: Any,
    texts: str | tuple[str, str] | Sequence[str | tuple[str, str]],
    *,
    target: Any = None,
    at: At | None = None,
    answer: str | int | None = None,
    task: str | None = None,
    composite: str | Composite | Rule = "auto",
    labels: Sequence[str] | None = None,
    head: Read | None = None,
    max_length: int | None = None,
    batch_size: int = 16,
    ledger: bool = False,
    told: Told | None = None,
) -> TextAttribution:
    """Relevance of every token of texts, in one call.

    Args:
        model: Hugging Face's (with its head, or a bare encoder to compare pairs), or a module or function of ids.
        tokenizer: Hugging Face's, a `tokenizers.Tokenizer`, a `deeptaylor.Vocabulary`, or a mapping word -> id.
        texts: one text or several; pairs for models that read two.
        target: None (what the model itself chose), a class or word by name or index, `contrast(a, b)`, `log_odds(c)`,
            `top(k)`; or a list with one of these per text, or with a list of several per text.
        at: tokens whose scores are explained, by index or by a word of the text: of a decoder, each is explained from
            the tokens before it; of a token classifier, each one's label.
        answer: of models that write, an answer whose every token is explained from the text and the answer so far; a
            number writes the likeliest one, of that many tokens at most.
        task: what the model does, where its class name does not say; one of `deeptaylor.text.TASKS` or "similarity".
        composite: rules, as for `deeptaylor.explain`.
        labels: names of the classes, where the model knows none.
        head: picks scores (texts, classes) or (texts, tokens, classes) from the model's output.
        max_length: tokens to read of a text; by default what the model takes.
        batch_size: texts at a time.
        ledger: account for every unit of relevance; it is in `.attributions`.
        told: called with (texts done, texts in all) after every batch.

    Returns:
        One explanation per text and target, in that order.

    Raises:
        InputError, TargetError: before any relevance is computed.

    Warns:
        TextWarning: a text was cut; says what was lost.
    """
    listed = check_texts(texts)
    check_model(model)
    if task not in (None, SIMILARITY, *TASKS):
        raise InputError(f"no task is called {task!r}; one of {', '.join((*TASKS, SIMILARITY))}")
    for name, number in (("batch_size", batch_size), ("max_length", max_length)):
        if number is not None and (not isinstance(number, int) or number < 1):
            raise InputError(f"{name}={number!r}: at least 1")
    if at is not None and answer is not None:
        raise InputError("at asks for tokens of the text, answer for those after it; explain them one after the other")
    model, tokenizer = unwrapped(model), Vocabulary(tokenizer) if isinstance(tokenizer, Mapping) else tokenizer
    task = task or task_of(model, paired=isinstance(listed[0], tuple))
    scores = Similarity(model) if task == SIMILARITY else Scores(model, head, task)
    reader = Reader(model, tokenizer, scores, wire(model, tokenizer), task, _device(model), max_length)
    items = reader.items(listed, at, answer)
    names = Names(task, _labels(model, task, labels), tokenizer)
    found: dict[int, list[TextExplanation]] = {}
    attributions = []
    done = 0
    for group in batches(items, batch_size, masked=reader.wiring.mask is not None):
        batch = [items[n] for n in group]
        asked, attribution = _explained(reader, batch, target, len(listed), names, composite, ledger)
        attributions.append(attribution)
        for row, (item, own) in enumerate(zip(batch, asked, strict=True)):
            found[item.number] = [_explanation(item, q, attribution, row, k) for k, q in enumerate(own)]
        done += len(batch)
        if told is not None:
            told(done, len(items))
    return TextAttribution(tuple(e for number in sorted(found) for e in found[number]), tuple(attributions), task)


def _explained(
    reader: Reader,
    batch: Sequence[Item],
    target: Any,
    texts: int,
    names: Names,
    composite: str | Composite | Rule,
    ledger: bool,
) -> tuple[list[list[Question]], Attribution]:
    """The questions of each text of a batch, and the relevance of their scores: (N, K, tokens)."""
    inputs = stacked(batch, reader.wiring, reader.device)
    table = own_output(_Table(reader.scores), bind(_Table(reader.scores), inputs, None), None)
    asked = [
        questions(item, table[row], own_target(target, item.number, texts), names) for row, item in enumerate(batch)
    ]
    several = max(map(len, asked))
    width = max(len(q.cells) for own in asked for q in own)
    cells = torch.zeros(len(batch), several, width, dtype=torch.long, device=table.device)
    weights = torch.zeros(len(batch), several, width, dtype=table.dtype, device=table.device)
    for row, own in enumerate(asked):
        for k, question in enumerate(own):
            cells[row, k, : len(question.cells)] = question.cells
            weights[row, k, : len(question.cells)] = question.weights
    call = {"cells": cells, "weights": weights, **inputs}
    explained = tuple(batch[0].explained)
    # Recorded, not traced: every length would be traced anew, which for a deep decoder takes a minute; and what is
    # recorded holds for just these ids.
    explainer = Explainer(reader.scores, call, composite=composite, explain=explained, record=True)
    columns = torch.arange(several).expand(len(batch), several)
    return asked, explainer(call, target=columns, ledger=ledger)


class _Table(nn.Module):
    """The table of scores as a module, so that it is computed as every other output is."""

    def __init__(self, scores: Scores) -> None:
        super().__init__()
        self.training = False
        self.scores = scores

    def forward(self, **inputs: Tensor) -> Tensor:
        return self.scores.table(inputs)


def _explanation(item: Item, question: Question, attribution: Attribution, row: int, k: int) -> TextExplanation:
    pieces = [attribution.relevances[name][row, k, : len(tokens)] for name, tokens in item.explained.items()]
    seen = question.asked.seen
    return TextExplanation(
        parts=item.parts,
        tokens=item.tokens[:seen],
        relevance=torch.cat(pieces).detach().cpu()[:seen],
        target=question.name,
        explained=question.explained,
        probability=question.probability,
        text=item.number,
        token=question.asked.token,
    )


def _device(model: Any) -> torch.device:
    parameter = next(iter(model.parameters()), None) if isinstance(model, nn.Module) else None
    return parameter.device if parameter is not None else torch.device("cpu")


def _labels(model: Any, task: str, labels: Sequence[str] | None) -> dict[int, str]:
    if labels is not None:
        return dict(enumerate(labels))
    return {0: "similarity"} if task == SIMILARITY else labels_of(model)
