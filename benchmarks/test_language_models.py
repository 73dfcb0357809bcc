"""Decoders of transformers under attn-lrp: relevance stays of the output's size, in every precision (`make slices`)."""

from __future__ import annotations

import os

import shim  # noqa: F401  before torchvision, which transformers imports

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
from torch import Tensor, nn

import deeptaylor as dt

SIZES = {
    "vocab_size": 120,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
}


def decoder(name: str) -> nn.Module:
    import transformers

    config = getattr(transformers, f"{name}Config")(**SIZES, num_key_value_heads=2)
    torch.manual_seed(0)
    model = getattr(transformers, f"{name}ForCausalLM")(config)
    for key, parameter in model.named_parameters():
        if "norm" in key:
            nn.init.uniform_(parameter, 0.7, 1.3)
        elif parameter.dim() == 2:
            nn.init.normal_(parameter, 0, parameter.shape[1] ** -0.5)
        else:
            nn.init.normal_(parameter, 0, 0.1)
    return model.eval()


def words() -> dict[str, Tensor]:
    ids = torch.randint(0, 120, (2, 12), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, 9:] = 0
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize("composite", ["auto", "cp-lrp", "res-lrp"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["Llama", "Qwen2", "Qwen3"])
def test_relevance_does_not_explode(name: str, dtype: torch.dtype, composite: str) -> None:
    model = decoder(name).to(dtype)
    result = dt.explain(model, words(), composite=composite)
    assert result.relevance.dtype == torch.float32
    assert torch.isfinite(result.relevance).all()
    assert (result.relevance.abs().sum(1) < 20 * result.explained.abs()).all()
    assert (result.relevance[1, 9:] == 0).all()


@pytest.mark.parametrize("name", ["Llama", "Qwen2", "Qwen3"])
def test_autocast_around_the_call_changes_nothing_beyond_two_percent(name: str) -> None:
    model = decoder(name)
    plain = dt.explain(model, words(), target=3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = dt.explain(model, words(), target=3)
    off = (inside.relevance - plain.relevance).abs().max() / plain.relevance.abs().max()
    assert off <= 0.02


@pytest.mark.parametrize("name", ["Llama", "Qwen3"])
def test_padding_on_the_right_and_a_batch_change_nothing(name: str) -> None:
    model, inputs = decoder(name), words()
    batch = dt.explain(model, inputs, target=3)
    alone = dt.explain(model, {key: value[1:, :9] for key, value in inputs.items()}, target=3)
    assert torch.allclose(batch.relevance[1, :9], alone.relevance[0], atol=1e-5)


def test_a_fast_encoder_of_images_gives_relevance_per_pixel_and_per_patch() -> None:
    import transformers

    config = transformers.ViTConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, image_size=32, patch_size=8,
        num_labels=5,
    )  # fmt: skip
    model = transformers.ViTForImageClassification(config).eval()
    pixels = torch.randn(2, 3, 32, 32)
    result = dt.explain(model, pixels, target=1)
    assert result.relevance.shape == (2, 3, 32, 32)
    patches = result.per_patch(8)
    assert patches.shape == (2, 4, 4)
    assert torch.allclose(patches.sum((1, 2)), result.relevance.sum((1, 2, 3)), atol=1e-6)


def test_the_image_tower_of_clip_needs_no_head() -> None:
    import transformers

    config = transformers.CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, image_size=32, patch_size=8,
        projection_dim=6,
    )  # fmt: skip
    model = transformers.CLIPVisionModelWithProjection(config).eval()
    result = dt.explain(model, torch.randn(2, 3, 32, 32), target=1, ledger=True)
    assert result.output.shape == (2, 6)
    assert result.ledger.gap.abs().max() < 1e-4
