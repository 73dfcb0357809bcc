"""What a model's output says of each token: every kind of model becomes scores (batch, places, columns).

`Scores` wraps the user's model, unchanged, into a module whose output (N, K) are the scores asked for: each a weighted
sum of cells of that table. So one graph serves every place and every word.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..inputs import Model
from ..unwrap import LOGITS, is_hugging_face, needed_arguments, no_tensor, unwrapped

Read = Callable[[Any], Tensor]

TASKS = {
    "classification": ("ForSequenceClassification", "ForMultipleChoice"),
    "next-token": ("ForCausalLM", "LMHeadModel"),
    "sequence-to-sequence": ("ForConditionalGeneration",),
    "token-classification": ("ForTokenClassification",),
    "question-answering": ("ForQuestionAnswering",),
    "fill-mask": ("ForMaskedLM",),
}
"""By the end of a Hugging Face model's class name. A bare encoder given pairs: similarity."""
SIMILARITY = "similarity"


def task_of(model: Model, paired: bool) -> str:
    """What a model does, told from its class.

    Raises:
        InputError: a bare Hugging Face encoder, without pairs to compare.
    """
    name = type(model).__name__
    for task, ends in TASKS.items():
        if name.endswith(ends):
            return task
    if is_hugging_face(model):
        if paired:
            return SIMILARITY
        raise InputError(
            f"{name} has no head, so there is no score to explain; load it with one "
            "(AutoModelForSequenceClassification, AutoModelForCausalLM, ...), pass pairs of texts to explain how "
            "similar they are, or say task='classification' with head=lambda out: ..."
        )
    return "classification"


class Scores(nn.Module):
    """A model whose output (N, K) is the scores asked for: weighted sums of cells of its table (N, places, columns)."""

    def __init__(self, model: Model, head: Read | None = None, task: str = "classification") -> None:
        super().__init__()
        self.training = False
        model = unwrapped(model)
        if isinstance(model, nn.Module):
            self.model = model
        else:
            object.__setattr__(self, "model", model)
        self.head, self.task = head, task
        self.extra = needed_arguments(model)

    def forward(self, cells: Tensor, weights: Tensor, **inputs: Tensor) -> Tensor:
        table = self.table(inputs).flatten(1)
        return (table.gather(1, cells.flatten(1)).view_as(cells) * weights).sum(-1)

    def table(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """(N, places, columns); one place where the model says one thing of a whole text."""
        output = self.model(**inputs, **self.extra)
        if self.head is not None:
            output = self.head(output)
        elif self.task == "question-answering":
            return torch.stack([output["start_logits"], output["end_logits"]], -1)
        elif isinstance(output, Mapping):
            found = next((output[name] for name in LOGITS if isinstance(output.get(name), Tensor)), None)
            if found is None:
                raise no_tensor(output)
            output = found
        if not isinstance(output, Tensor):
            raise no_tensor(output)
        if output.dim() == 1:
            output = output[:, None]
        if output.dim() == 2:
            return output[:, None]
        if output.dim() == 3 and self.task != "classification":
            return output
        raise InputError(
            f"the model's output has shape {tuple(output.shape)}, not (texts, classes); pick a part of it with "
            "head=lambda out: ..., or say what the model does with task=..."
        )


class Similarity(Scores):
    """Cosine of two texts' mean token vectors as the only cell. The vectors' lengths are held constant."""

    def table(self, inputs: Mapping[str, Tensor]) -> Tensor:
        one, other = (self._pooled(inputs, which) for which in ("first_", "second_"))
        size = (one.norm(dim=-1) * other.norm(dim=-1)).detach()
        return ((one * other).sum(-1) / size)[:, None, None]

    def _pooled(self, inputs: Mapping[str, Tensor], which: str) -> Tensor:
        own = {name.removeprefix(which): tensor for name, tensor in inputs.items() if name.startswith(which)}
        vectors = self.model(**own, **self.extra)["last_hidden_state"]
        mask = own["attention_mask"][..., None].to(vectors.dtype)
        return (vectors * mask).sum(1) / mask.sum(1)


def takes(model: Model) -> dict[str, bool]:
    """Names of a model's parameters, and whether each has to be given."""
    model = unwrapped(model)
    try:
        found = inspect.signature(model.forward if isinstance(model, nn.Module) else model).parameters.values()
    except (TypeError, ValueError) as error:
        raise InputError("the model's signature can't be read; wrap it in a function of ids") from error
    return {p.name: p.default is p.empty for p in found if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
