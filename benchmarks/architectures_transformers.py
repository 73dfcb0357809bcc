"""Families of transformers as tiny random models: a configuration, a head and a batch of inputs each.

Two layers, 32 channels, 4 heads (2 of keys and values where the family groups them), 100 words, two samples of which one is padded:
on the right for encoders, on the left for decoders, whose last position is explained.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

WORDS = 100
LABELS = 5
LENGTH = 9
PADDED = 3
BATCH = 2
PIXELS = 32

Inputs = dict[str, Tensor]


@dataclass(frozen=True)
class Recipe:
    """How to make one model of transformers."""

    config: str
    """The configuration's class."""
    model: str
    """The model's class."""
    settings: Mapping[str, Any]
    inputs: Callable[[], Inputs]
    read: Callable[[Any, Inputs], Tensor]
    """Picks (batch, classes) from the model's output, given its inputs."""
    note: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    """What the explainer must be told."""
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    """What the model is called with besides its inputs."""

    def create(self) -> nn.Module:
        import transformers

        return getattr(transformers, self.model)(getattr(transformers, self.config)(**self.settings))


def _text(padding: str, count: int = BATCH) -> Inputs:
    ids = torch.randint(3, WORDS - 1, (count, LENGTH))
    mask = torch.ones(count, LENGTH, dtype=torch.long)
    where = slice(-PADDED, None) if padding == "right" else slice(PADDED)
    ids[1, where], mask[1, where] = 0, 0
    return {"input_ids": ids, "attention_mask": mask}


def _unmasked() -> Inputs:
    return {"input_ids": torch.randint(3, WORDS, (BATCH, LENGTH))}


def _pair() -> Inputs:
    return {**_text("right"), "decoder_input_ids": torch.randint(3, WORDS, (BATCH, LENGTH - 2))}


def _masked_scores() -> Inputs:
    """One padded text, its mask as what is added to attention's scores: Nyströmformer's own way to it fails."""
    text = {name: tensor[1:] for name, tensor in _text("right").items()}
    mask = (1 - text.pop("attention_mask").float()) * torch.finfo(torch.float32).min / 2
    return {**text, "attention_mask": mask[:, None, None]}


def _image() -> Inputs:
    return {"pixel_values": torch.randn(BATCH, 3, PIXELS, PIXELS)}


def _image_and_texts() -> Inputs:
    """Two images and three texts, each a class."""
    return {**_image(), **_closed_text(BATCH + 1)}


def _closed_text(count: int = BATCH) -> Inputs:
    """Texts as CLIP reads them: the summary stands where the largest id does."""
    text = _text("right", count)
    ends = text["attention_mask"].sum(1) - 1
    text["input_ids"][torch.arange(count), ends] = WORDS - 1
    return text


def _logits(output: Any, inputs: Inputs) -> Tensor:
    return output.logits


def _next_word(output: Any, inputs: Inputs) -> Tensor:
    """The scores at the last position that is not padding."""
    scores = output.logits
    mask = torch.ones(scores.shape[:2]) if "decoder_input_ids" in inputs else inputs["attention_mask"]
    last = (mask * torch.arange(scores.shape[1])).argmax(1)
    return scores[torch.arange(len(scores)), last]


def _embedding(output: Any, inputs: Inputs) -> Tensor:
    return output.image_embeds if "pixel_values" in inputs else output.text_embeds


def _per_image(output: Any, inputs: Inputs) -> Tensor:
    return output.logits_per_image


SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
WORDY = {"vocab_size": WORDS, "max_position_embeddings": 40, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
GROUPED = {"num_key_value_heads": 2}
NARROW = {"head_dim": 8}
EXPERTS = {"experts_implementation": "batched_mm"}

# family: its class names begin with, what is different from SIZES and WORDY
ENCODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("Bert", {}),
    "roberta": ("Roberta", {}),
    "distilbert": ("DistilBert", {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48}),
    "albert": ("Albert", {"embedding_size": 16}),
    "electra": ("Electra", {"embedding_size": 16}),
    "deberta": (
        "Deberta",
        {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "type_vocab_size": 0, "position_biased_input": False},
    ),
    "deberta-v2": (
        "DebertaV2",
        {
            "relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_buckets": 8, "norm_rel_ebd": "layer_norm",
            "share_att_key": True, "conv_kernel_size": 3, "conv_act": "gelu", "type_vocab_size": 0, "position_biased_input": False,
        },
    ),
    "mpnet": ("MPNet", {}),
    "modernbert": ("ModernBert", {"global_attn_every_n_layers": 2, "local_attention": 4, "cls_token_id": 1, "sep_token_id": 2}),
    "mobilebert": ("MobileBert", {"embedding_size": 16, "intra_bottleneck_size": 16}),
    "convbert": ("ConvBert", {"embedding_size": 16, "conv_kernel_size": 3}),
    "squeezebert": ("SqueezeBert", {"embedding_size": 32, **{f"{name}_groups": 2 for name in ("q", "k", "v", "intermediate", "output")}}),
    "nystromformer": ("Nystromformer", {"num_landmarks": 3, "segment_means_seq_len": LENGTH, "conv_kernel_size": 3}),
    "fnet": ("FNet", {}),
    "roformer": ("RoFormer", {"embedding_size": 16}),
    "bigbird": ("BigBird", {"attention_type": "original_full"}),
}  # fmt: skip
RIGHT = "padded on the right: on the left it is NaN in float64, whose lowest number its softmax takes to float32"
OTHER_INPUTS: dict[str, Callable[[], Inputs]] = {
    "fnet": _unmasked,
    "nystromformer": _masked_scores,
    **dict.fromkeys(("bloom", "gemma2", "mpt"), lambda: _text("right")),
}
OPTIONS: dict[str, dict[str, Any]] = {"nystromformer": {"explain": ["input_ids"]}}
NOTES = {
    "bigbird": "full attention",
    **dict.fromkeys(("bloom", "gemma2", "mpt"), RIGHT),
    "clip": "images explained, by three texts as classes; a score of image and text together mixes the samples of a batch",
    "mamba": "the scan in plain PyTorch",
    "mixtral": "experts_implementation='batched_mm'",
    "nystromformer": "with landmarks, which take a mask of scores only; one text at a time: its pseudo-inverse is scaled by a maximum over "
    "the whole batch, so that texts change each other's output",
    "qwen2-moe": "experts_implementation='batched_mm'",
}

DECODERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "gpt2": ("GPT2", "GPT2LMHeadModel", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 40}),
    "gpt-neo": ("GPTNeo", "", {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]], "window_size": 4}),
    "gpt-j": ("GPTJ", "", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 40, "rotary_dim": 4}),
    "gpt-neox": ("GPTNeoX", "", {}),
    "opt": ("OPT", "", {"ffn_dim": 48, "word_embed_proj_dim": 32}),
    "bloom": ("Bloom", "", {"n_layer": 2, "n_head": 4}),
    "falcon": ("Falcon", "", {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "mpt": ("Mpt", "", {"d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 40}),
    "llama": ("Llama", "", GROUPED),
    "mistral": ("Mistral", "", {**GROUPED, **NARROW, "sliding_window": 4}),
    "mixtral": ("Mixtral", "", {**GROUPED, **NARROW, "num_local_experts": 4, "num_experts_per_tok": 2, **EXPERTS}),
    "qwen2": ("Qwen2", "", GROUPED),
    "qwen3": ("Qwen3", "", {**GROUPED, **NARROW}),
    "qwen2-moe": (
        "Qwen2Moe",
        "",
        {**GROUPED, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 24, **EXPERTS},
    ),
    "gemma": ("Gemma", "", {**GROUPED, **NARROW}),
    "gemma2": ("Gemma2", "", {**GROUPED, **NARROW, "sliding_window": 4, "query_pre_attn_scalar": 8}),
    "gemma3": (
        "Gemma3Text",
        "Gemma3ForCausalLM",
        {
            **GROUPED, **NARROW, "sliding_window": 4, "query_pre_attn_scalar": 8,
            "layer_types": ["sliding_attention", "full_attention"],
        },
    ),
    "phi": ("Phi", "", {}),
    "phi3": ("Phi3", "", {**GROUPED, "sliding_window": None}),
    "stablelm": ("StableLm", "", {**GROUPED, "use_qkv_bias": True}),
    "starcoder2": ("Starcoder2", "", GROUPED),
    "olmo": ("Olmo", "", {**GROUPED, "clip_qkv": 8.0}),
    "mamba": ("Mamba", "", {"state_size": 8, "time_step_rank": 4, "use_mambapy": False}),
}  # fmt: skip

LAYERED = {"encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4}
PATCHES = {"image_size": PIXELS, "patch_size": 8, "num_labels": LABELS}


def _recipes() -> dict[str, Recipe]:
    found = {}
    for name, (stem, more) in ENCODERS.items():
        settings = {**SIZES, **WORDY, "num_labels": LABELS, **more}
        inputs, options = OTHER_INPUTS.get(name, lambda: _text("right")), OPTIONS.get(name, {})
        found[name] = Recipe(
            f"{stem}Config", f"{stem}ForSequenceClassification", settings, inputs, _logits, NOTES.get(name, ""), options
        )
    for name, (stem, model, more) in DECODERS.items():
        settings = {**SIZES, **WORDY, **more}
        inputs = OTHER_INPUTS.get(name, lambda: _text("left"))
        found[name] = Recipe(
            f"{stem}Config", model or f"{stem}ForCausalLM", settings, inputs, _next_word, NOTES.get(name, "")
        )
    seq = {**WORDY, "decoder_start_token_id": 0}
    t5 = {**seq, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
    found["t5"] = Recipe("T5Config", "T5ForConditionalGeneration", t5, _pair, _next_word)
    bart = {**seq, **LAYERED, "d_model": 32, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48}
    found["bart"] = Recipe("BartConfig", "BartForConditionalGeneration", bart, _pair, _next_word)
    for name, stem in {"vit": "ViT", "deit": "DeiT", "dinov2": "Dinov2"}.items():
        settings = {**SIZES, **PATCHES, "mlp_ratio": 2}
        found[name] = Recipe(f"{stem}Config", f"{stem}ForImageClassification", settings, _image, _logits)
    swin = {**PATCHES, "patch_size": 4, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4}
    found["swin"] = Recipe("SwinConfig", "SwinForImageClassification", swin, _image, _logits)
    words = {**SIZES, **WORDY, "eos_token_id": WORDS - 1}
    eyes = {**SIZES, **PATCHES}
    both = {"vision_config": eyes, "text_config": words, "projection_dim": 16}
    found["clip"] = Recipe(
        "CLIPConfig", "CLIPModel", both, _image_and_texts, _per_image, NOTES["clip"], {"explain": ["pixel_values"]}
    )
    for name, settings, inputs in (("Vision", eyes, _image), ("Text", words, _closed_text)):
        settings = {**settings, "projection_dim": LABELS}
        found[f"clip-{name.lower()}"] = Recipe(
            f"CLIP{name}Config", f"CLIP{name}ModelWithProjection", settings, inputs, _embedding
        )
    return found


RECIPES = _recipes()
