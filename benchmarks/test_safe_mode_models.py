"""Second and third derivatives of stock transformers are right in safe mode: random weights, small configurations."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import deeptaylor as dt
from deeptaylor.adapters.optional import import_zoo

import_zoo("torchvision")  # which transformers imports, and which fails beside a CPU build of torch
import transformers as hf  # noqa: E402

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
IMAGE = {"image_size": 16, "patch_size": 8, **SMALL}
TEXT: dict[str, Any] = {
    "BERT": lambda: hf.BertModel(hf.BertConfig(vocab_size=20, max_position_embeddings=16, **SMALL)),
    "DistilBERT": lambda: hf.DistilBertModel(
        hf.DistilBertConfig(vocab_size=20, dim=16, n_layers=2, n_heads=2, hidden_dim=24, max_position_embeddings=16)
    ),
    "RoBERTa": lambda: hf.RobertaModel(hf.RobertaConfig(vocab_size=20, max_position_embeddings=16, **SMALL)),
    "GPT-2": lambda: hf.GPT2Model(hf.GPT2Config(vocab_size=20, n_embd=16, n_layer=2, n_head=2, n_positions=16)),
    "Llama": lambda: hf.LlamaModel(hf.LlamaConfig(vocab_size=20, max_position_embeddings=16, **SMALL)),
    "ModernBERT": lambda: hf.ModernBertModel(
        hf.ModernBertConfig(vocab_size=20, max_position_embeddings=16, pad_token_id=0, **SMALL)
    ),
}
VISION: dict[str, Any] = {
    "ViT": lambda: hf.ViTModel(hf.ViTConfig(**IMAGE)),
    "DeiT": lambda: hf.DeiTModel(hf.DeiTConfig(**IMAGE)),
    "DINOv2": lambda: hf.Dinov2Model(hf.Dinov2Config(**IMAGE)),
    "Swin": lambda: hf.SwinModel(
        hf.SwinConfig(image_size=32, patch_size=4, embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=4)
    ),
}


@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize("name", [*TEXT, *VISION])
def test_stock_transformers_have_right_derivatives(name: str, order: int) -> None:
    torch.manual_seed(0)
    net = {**TEXT, **VISION}[name]().double().eval().requires_grad_(False)
    if name in TEXT:
        x = torch.randn(1, 5, 16, dtype=torch.float64)

        def f(z: torch.Tensor) -> torch.Tensor:
            more = {"use_cache": False} if name in ("GPT-2", "Llama") else {}
            return net(inputs_embeds=z, **more).last_hidden_state.cos().sum((1, 2))
    else:
        x = torch.randn(1, 3, 32 if name == "Swin" else 16, 32 if name == "Swin" else 16, dtype=torch.float64)

        def f(z: torch.Tensor) -> torch.Tensor:
            return net(z).last_hidden_state.cos().sum((1, 2))

    rows = dt.check_derivatives(f, x, order=order)
    assert all(row.right for row in rows)
