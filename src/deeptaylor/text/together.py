"""Words that act together: interactions of one text's words, and the words that make two texts similar."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..inputs import Model, check_model
from ..taylor import Expansion, Segments, Similarity, interactions, similarity
from ..taylor.problem import BUDGET
from ..taylor.score import BATCH
from ..unwrap import is_hugging_face, unwrapped
from .encode import Encoded, Vocabulary, check_fit, check_texts, encode, token_limit
from .heads import Scores, task_of
from .items import Wiring, wire
from .tokens import merge_words

TASKS = ("classification", "next-token")


class Reading(nn.Module):
    """A model as a function of ids (N, T) alone: scores (N, K) of one text's versions."""

    def __init__(self, scores: Scores, ids: str, others: Mapping[str, Sequence[int]]) -> None:
        super().__init__()
        self.training = False
        self.scores, self.ids, self.others = scores, ids, dict(others)

    def forward(self, ids: Tensor) -> Tensor:
        others = {name: torch.tensor([row], device=ids.device) for name, row in self.others.items()}
        inputs = {self.ids: ids} | {name: row.expand(len(ids), -1) for name, row in others.items()}
        return self.scores.table(inputs)[:, -1]


class Pooled(nn.Module):
    """An encoder as a function of its word vectors (N, T, width): the mean state (N, M) of one text's versions."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.training = False
        self.model = model

    def forward(self, vectors: Tensor) -> Tensor:
        found: Tensor = self.model(inputs_embeds=vectors)["last_hidden_state"].mean(1)
        return found


def text_interactions(
    model: Model,
    tokenizer: Any,
    text: str,
    *,
    target: int | Callable[[Tensor], Tensor] | None = None,
    absent: int | None = None,
    head: Callable[[Any], Tensor] | None = None,
    method: str | None = None,
    batch: int = BATCH,
    progress: bool = False,
    budget: int = BUDGET,
) -> Expansion:
    """Which words of a text act together on a score; `interactions` over its words.

    Sub-tokens of a word are one segment; special tokens stay. An absent word's tokens are the mask token's, or, where
    the tokenizer has none, the padding's or the unknown word's; a note says which.

    Args:
        model: a classifier, or a model that writes (then the score of its next token).
        tokenizer: as `explain_text` takes it.
        text: one text.
        target: a class or token id, contrast, log_odds, or a function of the scores; by default the predicted one.
        absent: the id that stands for an absent word.
        head: picks scores (texts, classes) from the model's output.
        method: as of `interactions`, like the rest.
        batch: versions of the text read at once.
        progress: show choice, cost and a bar on stderr.
        budget: passes above which the work is refused.

    Raises:
        InputError: no id can stand for an absent word, or the model does something else.
    """
    model, tokenizer, encoded, wiring = _read(model, tokenizer, text)
    task = task_of(model, paired=False)
    if task not in TASKS:
        raise InputError(f"words act together on scores of {' or '.join(TASKS)}; this model does {task}")
    stand_in, why = (absent, "as asked for") if absent is not None else stand_in_of(tokenizer)
    inputs = wiring.inputs(encoded)
    others = {name: row for name, row in inputs.items() if name != wiring.ids}
    reading = Reading(Scores(model, head, task), wiring.ids, others)
    ids = torch.tensor([encoded.ids], device=_device(model))
    segments = _words(encoded)
    blank = torch.where(segments.labels.to(ids.device) < 0, ids, torch.full_like(ids, stand_in))
    found = interactions(
        reading, ids, blank, segments, target=target, method=method, batch=batch, progress=progress, budget=budget
    )
    return found.saying(f"an absent word is id {stand_in}: {why}")


def text_similarity(model: nn.Module, tokenizer: Any, one: str, other: str, **options: Any) -> Similarity:
    """Which words of two texts make an encoder's mean states similar; `similarity` over their words.

    Args:
        model: a Hugging Face encoder without a head.
        tokenizer: its own, with a mask token, which stands for absent words.
        one: a text.
        other: another.
        options: method, norm, nodes, rtol, chunk as of `similarity`.
    """
    sides: list[tuple[Tensor, Tensor, Segments]] = []
    for text in (one, other):
        encoder, own, encoded, _ = _read(model, tokenizer, text)
        if not is_hugging_face(encoder):
            raise InputError(
                f"{type(encoder).__name__} is no Hugging Face encoder; call dt.similarity with word vectors of your own"
            )
        stand_in, _ = stand_in_of(own)
        ids = torch.tensor([encoded.ids], device=_device(encoder))
        tokens = _words(encoded)
        blank = torch.where(tokens.labels.to(ids.device) < 0, ids, torch.full_like(ids, stand_in))
        with torch.no_grad():
            lookup = encoder.get_input_embeddings()
            x, x0 = lookup(ids), lookup(blank)
        labels = tokens.labels[:, None].expand(-1, x.shape[-1]).contiguous()
        sides.append((x, x0, Segments(labels, tokens.names, "words")))
    (x, x0, words_x), (y, y0, words_y) = sides
    return similarity(
        Pooled(encoder), x, y, groups_x=words_x, groups_y=words_y, reference_x=x0, reference_y=y0, **options
    )


def _read(model: Any, tokenizer: Any, text: Any) -> tuple[Any, Any, Encoded, Wiring]:
    if not isinstance(text, str):
        raise InputError(f"pass one text, not {type(text).__name__}; for two texts text_similarity")
    check_texts(text)
    check_model(model)
    model = unwrapped(model)
    tokenizer = Vocabulary(tokenizer) if isinstance(tokenizer, Mapping) else tokenizer
    encoded = encode(tokenizer, text, limit=token_limit(model, tokenizer))
    check_fit(model, tokenizer, [encoded])
    return model, tokenizer, encoded, wire(model, tokenizer)


def _words(encoded: Encoded) -> Segments:
    """One segment per word, in the text's order; words that come twice are numbered."""
    spans = merge_words(encoded.parts, encoded.tokens, [0.0] * len(encoded.tokens))
    spans = [span for span in spans if not span.special and span.text.strip()]
    labels = torch.full((len(encoded.tokens),), -1)
    for number, span in enumerate(spans):
        labels[torch.tensor(span.tokens)] = number
    texts = [span.text for span in spans]
    names = [t if texts.count(t) == 1 else f"{t} ({texts[: n + 1].count(t)})" for n, t in enumerate(texts)]
    return Segments(labels, tuple(names), "words")


def stand_in_of(tokenizer: Any) -> tuple[int, str]:
    """The id of an absent word, and what it is."""
    if isinstance(tokenizer, Vocabulary):
        for word, what in ((tokenizer.pad, "padding"), (tokenizer.unknown, "the unknown word")):
            if word is not None:
                return tokenizer.table[word], f"{what}, {word!r}"
    for name, what in (("mask", "the mask token"), ("pad", "padding"), ("unk", "the unknown word"), ("eos", "the end")):
        number = getattr(tokenizer, f"{name}_token_id", None)
        if isinstance(number, int):
            return number, f"{what}, {getattr(tokenizer, f'{name}_token')}"
    raise InputError("the tokenizer has no mask, padding or unknown token; say what an absent word is: absent=id")


def _device(model: Any) -> torch.device:
    parameter = next(iter(model.parameters()), None) if isinstance(model, nn.Module) else None
    return parameter.device if parameter is not None else torch.device("cpu")
