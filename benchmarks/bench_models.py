"""The models of the bench, with their inputs. Weights are random: they do not change what an explanation costs."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

import shim  # noqa: F401  before torchvision

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from torch import Tensor, nn

Inputs = dict[str, Tensor]


@dataclass(frozen=True)
class Subject:
    """One model of the bench."""

    make: Callable[[], nn.Module]
    inputs: Callable[[int, int], Inputs]
    """Inputs for so many samples, of so many pixels where they are images."""
    attends: bool = False
    """Whether it is explained by the rules for attention, or by those for convolutions."""
    pixels: int | None = None
    """The only size that it takes; 0 where it reads no images."""


def _images(name: str) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        import torchvision

        model: nn.Module = getattr(torchvision.models, name)(weights=None)
        for module in model.modules():
            if isinstance(module, nn.ReLU):
                module.inplace = False  # captum and zennit hook its input
        return model

    return make


def _pictures(batch: int, pixels: int) -> Inputs:
    return {"x": torch.randn(batch, 3, pixels, pixels)}


def bert(**sizes: int) -> nn.Module:
    """BERT-base, classification."""
    from transformers import BertConfig, BertForSequenceClassification

    return BertForSequenceClassification(BertConfig(**{"num_labels": 10} | sizes))


def llama(**sizes: int) -> nn.Module:
    """LLaMA with the sizes of SmolLM2-135M, next word."""
    from transformers import LlamaConfig, LlamaForCausalLM

    smol = {
        "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
        "num_attention_heads": 9, "num_key_value_heads": 3,
    }  # fmt: skip
    return LlamaForCausalLM(LlamaConfig(**smol | sizes, tie_word_embeddings=True))


def _embedded(width: int, length: int = 128) -> Callable[[int, int], Inputs]:
    return lambda batch, _: {
        "inputs_embeds": torch.randn(batch, length, width),
        "attention_mask": torch.ones(batch, length).long(),
    }


class Tiny(nn.Sequential):
    """A network of a moment, for the test of the bench itself."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(8 * 16, 10),
        )  # fmt: skip


SUBJECTS = {
    "VGG-16": Subject(_images("vgg16"), _pictures),
    "ResNet-18": Subject(_images("resnet18"), _pictures, pixels=64),
    "ResNet-50": Subject(_images("resnet50"), _pictures),
    "EfficientNet-B0": Subject(_images("efficientnet_b0"), _pictures),
    "ViT-B/16": Subject(_images("vit_b_16"), _pictures, attends=True, pixels=224),
    "BERT-base, 128 tokens": Subject(bert, _embedded(768), attends=True, pixels=0),
    "LLaMA 135M, 128 tokens": Subject(llama, _embedded(576), attends=True, pixels=0),
}
TINY = Subject(Tiny, lambda batch, pixels: {"input": torch.randn(batch, 3, pixels, pixels)})
