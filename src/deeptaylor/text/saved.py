"""The file of a `TextAttribution`: safetensors, with texts and tokens as JSON in one of its tensors. No pickle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..attribution import Attribution, read_safetensors
from ..errors import FileFormatError
from .result import TextAttribution, TextExplanation
from .tokens import Token

FORMAT = "deeptaylor-text-1"
_TOLD = ("target", "explained", "probability", "text", "token")


def write(found: TextAttribution, path: str | Path) -> None:
    """Writes explanations, and what the engine found batch by batch."""
    from safetensors.torch import save_file

    tensors: dict[str, Tensor] = {}
    batches = []
    for n, attribution in enumerate(found.attributions):
        own, described = attribution.packed()
        tensors |= {f"batch.{n}.{name}": value for name, value in own.items()}
        batches.append(described)
    for n, one in enumerate(found):
        tensors[f"relevance.{n}"] = one.relevance.detach().cpu().clone().contiguous()
    told = {"task": found.task, "explanations": [_described(one) for one in found], "batches": batches}
    # a tensor and not the header, whose size safetensors limits: a thousand reviews are more than that
    tensors["told"] = torch.frombuffer(bytearray(json.dumps(told).encode()), dtype=torch.uint8)
    save_file(tensors, str(path), metadata={"format": FORMAT})


def read(path: str | Path) -> TextAttribution:
    """Reads what `write` wrote.

    Raises:
        FileFormatError: the file is missing, damaged, or something else.
    """
    tensors, metadata = read_safetensors(path)
    if metadata.get("format") != FORMAT:
        raise FileFormatError(f"{path} is a safetensors file, but not a TextAttribution saved by deeptaylor")
    try:
        told = json.loads(tensors["told"].numpy().tobytes())
        explanations = tuple(_explanation(one, tensors[f"relevance.{n}"]) for n, one in enumerate(told["explanations"]))
        batches = tuple(
            Attribution.unpacked(_below(tensors, f"batch.{n}."), described)
            for n, described in enumerate(told["batches"])
        )
        return TextAttribution(explanations, batches, told["task"])
    except (KeyError, TypeError, ValueError) as error:
        raise FileFormatError(f"{path} is a damaged TextAttribution ({type(error).__name__}: {error})") from error


def _described(one: TextExplanation) -> dict[str, Any]:
    """All but the relevance; tokens column by column."""
    columns = {name: [getattr(token, name) for token in one.tokens] for name in Token.__dataclass_fields__}
    return {"parts": one.parts, "tokens": columns} | {name: getattr(one, name) for name in _TOLD}


def _explanation(told: Mapping[str, Any], relevance: Tensor) -> TextExplanation:
    rows = zip(*(told["tokens"][name] for name in Token.__dataclass_fields__), strict=True)
    tokens = tuple(Token(*row) for row in rows)
    if len(tokens) != len(relevance):
        raise ValueError(f"{len(tokens)} tokens, relevance of {len(relevance)}")
    return TextExplanation(tuple(told["parts"]), tokens, relevance, **{name: told[name] for name in _TOLD})


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
