"""Models as users hold them: wrappers taken off, Hugging Face's outputs opened, the arguments that tracing needs.

Nothing here imports transformers; its models are known by their base class's name.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .errors import InputError
from .inputs import Call, Model

LOGITS = ("logits", "logits_per_image", "image_embeds", "text_embeds", "pooler_output")
"""Entries of a model's output that are explained without being asked for, in this order."""
_GENERATES = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration", "DoubleHeadsModel")


def unwrapped(model: Model) -> Model:
    """The model inside `nn.DataParallel`, `DistributedDataParallel` and `torch.compile`."""
    while True:
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        elif isinstance(model, nn.Module) and "_orig_mod" in dict(model.named_children()):
            model = model.get_submodule("_orig_mod")
        elif hasattr(model, "_torchdynamo_orig_callable") and not isinstance(model, nn.Module):
            model = model._torchdynamo_orig_callable
        else:
            return model


def is_hugging_face(model: Model) -> bool:
    """Whether a model is one of transformers'."""
    return any(
        c.__name__ == "PreTrainedModel" and c.__module__.startswith("transformers.") for c in type(model).__mro__
    )


def needed_arguments(model: Model) -> dict[str, Any]:
    """Keyword arguments without which a model can't be traced: Hugging Face's decoders must not fill a cache."""
    if not is_hugging_face(model):
        return {}
    takes = inspect.signature(model.forward).parameters  # type: ignore[attr-defined]
    return {"use_cache": False} if "use_cache" in takes else {}


def refuse_unmasked_padding(model: Model, call: Call) -> None:
    """Refuses ids that are padded in some rows only, where the mask that tells padding from words is missing.

    Raises:
        InputError: the model would read the padding as words.
    """
    ids, pad = call.tensors.get("input_ids"), getattr(getattr(model, "config", None), "pad_token_id", None)
    if ids is None or ids.dim() != 2 or not isinstance(pad, int) or not is_hugging_face(model):
        return
    takes = inspect.signature(model.forward).parameters  # type: ignore[attr-defined]
    padded = (ids[:, 0] == pad) | (ids[:, -1] == pad)
    if "attention_mask" in takes and "attention_mask" not in call.tensors and padded.any() and not padded.all():
        raise InputError(
            f"input_ids are padded (id {pad}) in some rows, and attention_mask is missing, so padding would be read as "
            "words; pass the mask that the tokenizer returns: {'input_ids': ..., 'attention_mask': ...}"
        )


def default_explained(model: Model, call: Call) -> tuple[str, ...] | None:
    """Of a Hugging Face model's ids, those of words: not token types or positions."""
    floating = any(tensor.is_floating_point() for tensor in call.tensors.values())
    words = tuple(name for name in call.tensors if name.endswith("input_ids"))
    return words if words and not floating and is_hugging_face(model) else None


def opened(model: Model, output: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The tensor to explain in a model's output, where there is no doubt; anything else unchanged.

    Of a model that generates text, the scores of the next word: those at the last position that is not padding.
    """
    if isinstance(output, Tensor) or not isinstance(output, Mapping):
        return output
    name = next((name for name in LOGITS if isinstance(output.get(name), Tensor)), None)
    if name is None:
        return output
    logits = output[name]
    if logits.dim() == 3 and name == "logits" and _generates(model):
        return _next_word(logits, tensors)
    return logits


def _generates(model: Model) -> bool:
    return is_hugging_face(model) and any(type(model).__name__.endswith(name) for name in _GENERATES)


def _next_word(logits: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
    decodes = any(name.startswith("decoder_input") for name in tensors)
    mask = tensors.get("decoder_attention_mask" if decodes else "attention_mask")
    if mask is None or mask.dim() != 2 or mask.shape[1] != logits.shape[1]:
        return logits[:, -1]
    places = torch.arange(mask.shape[1], device=mask.device)
    last = (places * (mask != 0)).argmax(1)
    return logits.gather(1, last[:, None, None].expand(-1, 1, logits.shape[2]))[:, 0]


def no_tensor(output: Any) -> InputError:
    """The error for an output of which the part to explain can't be told."""
    if isinstance(output, Mapping):
        keys = [key for key, value in output.items() if value is not None]
        what, cure = f"a mapping with keys {keys}", f"head=lambda out: out[{keys[0]!r}]" if keys else "head=..."
    elif isinstance(output, tuple | list):
        what, cure = f"a {type(output).__name__} of {len(output)}", "head=lambda out: out[0]"
    else:
        what, cure = f"a {type(output).__name__}", "head=lambda out: ..."
    return InputError(
        f"the model returns {what}, not a tensor of shape (batch, classes); say which part to explain: {cure}"
    )
