"""Weights from a file into a model, safely: tensors only, every key accounted for."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import ModelLoadError

SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")


def check_weights_file(path: Path) -> None:
    """Refuse what can't be a weights file, without opening it."""
    if not path.is_file():
        raise ModelLoadError(f"no weights at {path}: {'that is a folder' if path.is_dir() else 'check the path'}")
    if path.suffix.lower() not in SUFFIXES:
        raise ModelLoadError(f"{path}: weights are read from {', '.join(SUFFIXES)} files")


def load_weights(model: nn.Module, path: Path) -> list[str]:
    """Put the tensors of a file into a model; what was done beyond that comes back as notes for the user.

    Raises:
        ModelLoadError: missing file, a file that holds more than tensors, or tensors that do not fit (names the first
            of each kind).
    """
    state, notes = read_state(path)
    own = model.state_dict()
    stripped = {key.removeprefix("module."): tensor for key, tensor in state.items()}
    if len(stripped) == len(state) and not set(state) & set(own) and set(stripped) & set(own):
        state, notes = stripped, [*notes, "prefix 'module.' of DataParallel was dropped from the keys"]
    # Batch norm counts the batches of training there; evaluation does not read it and older files lack it.
    missing = [key for key in own if key not in state and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in state if key not in own]
    misshaped = [key for key in own if key in state and own[key].shape != state[key].shape]
    if missing or unexpected or misshaped:
        lines = []
        if missing:
            lines.append(f"  {len(missing)} of {len(own)} missing from the file, first {missing[0]!r}")
        if unexpected:
            lines.append(f"  {len(unexpected)} of {len(state)} unknown to the model, first {unexpected[0]!r}")
        if misshaped:
            key = misshaped[0]
            lines.append(
                f"  {len(misshaped)} of another shape, first {key!r}: "
                f"file {_shape(state[key])}, model {_shape(own[key])}"
            )
        raise ModelLoadError(
            f"{path} does not fit the model:\n" + "\n".join(lines) + "\n"
            "Choose the model these weights were trained for, or build it in a function: --model package.module:name"
        )
    model.load_state_dict(state, strict=False)
    return notes


def read_state(path: Path) -> tuple[dict[str, Tensor], list[str]]:
    """The named tensors of a weights file, and notes on how they were found in it."""
    check_weights_file(path)
    if path.suffix.lower() == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return dict(load_file(path)), []
        except (SafetensorError, OSError) as error:
            raise ModelLoadError(f"{path} is not a readable safetensors file ({error})") from error
    try:
        with warnings.catch_warnings():
            # It says that an unusual file might not load; whether it does is known a moment later.
            warnings.filterwarnings("ignore", "Detected pickle protocol")
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ModelLoadError(
            f"{path} holds more than tensors, or is no weights file; nothing was run from it. "
            "Where it comes from, save the tensors alone: torch.save(model.state_dict(), 'weights.pt')"
        ) from error
    except (OSError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise ModelLoadError(f"{path} can't be read as weights ({error})") from error
    return _state_in(loaded, path)


def _state_in(loaded: object, path: Path) -> tuple[dict[str, Tensor], list[str]]:
    """The state dict in a checkpoint, which training scripts like to wrap once."""
    if not isinstance(loaded, Mapping):
        raise ModelLoadError(f"{path} holds a {type(loaded).__name__}, not a state dict")
    for key in ("state_dict", "model_state_dict", "model"):
        inner = loaded.get(key)
        if isinstance(inner, Mapping):
            return _state_in(inner, path)[0], [f"weights taken from the checkpoint's entry {key!r}"]
    tensors = {str(key): value for key, value in loaded.items() if isinstance(value, Tensor)}
    if not tensors or len(tensors) < len(loaded):
        other = next((str(key) for key, value in loaded.items() if not isinstance(value, Tensor)), "nothing")
        raise ModelLoadError(f"{path} is not a state dict: it holds {other!r}, which is no tensor")
    return tensors, []


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"
