"""What the user passed in: `bind` names it as the model's signature does, `check` refuses what can't be explained."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from .errors import InputError

Model = Callable[..., Any]


@dataclass(frozen=True)
class Call:
    """One call of the model: its tensors by name, and the rest of the arguments around them."""

    tensors: Mapping[str, Tensor]
    leaves: tuple[Any, ...]
    """Every leaf of (args, kwargs); a tensor's place holds its name, wrapped in `Slot`."""
    spec: Any

    def arguments(self, tensors: Sequence[Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """(args, kwargs) for the model, with `tensors` (in the order of `self.tensors`) in their places."""
        by_name = dict(zip(self.tensors, tensors, strict=True))
        leaves = [by_name[leaf.name] if isinstance(leaf, Slot) else leaf for leaf in self.leaves]
        args, kwargs = pytree.tree_unflatten(leaves, self.spec)
        return args, kwargs

    def signature(self) -> tuple[Any, ...]:
        """Everything but the tensors' values and sizes: two calls with one signature share a trace."""
        return tuple(leaf.name if isinstance(leaf, Slot) else repr(leaf) for leaf in self.leaves)


@dataclass(frozen=True)
class Slot:
    """Marks the place of a tensor among the leaves of a call."""

    name: str


def bind(model: Model, inputs: Any, kwargs: Mapping[str, Any] | None) -> Call:
    """Names every tensor after the parameter of the model's signature that receives it."""
    args = inputs if isinstance(inputs, tuple) else (inputs,)
    if isinstance(inputs, Mapping):
        args, kwargs = (), {**inputs, **(kwargs or {})}
    kwargs = dict(kwargs or {})
    flat, spec = pytree.tree_flatten((args, kwargs))
    names = _names(model, args, kwargs)
    tensors: dict[str, Tensor] = {}
    leaves: list[Any] = []
    for name, leaf in zip(names, flat, strict=True):
        if isinstance(leaf, Tensor):
            tensors[name] = leaf
            leaves.append(Slot(name))
        else:
            leaves.append(leaf)
    if not tensors:
        kind = type(inputs).__name__
        raise InputError(
            f"no tensor among the inputs (got {kind}); pass a tensor, or a tuple of them: torch.as_tensor(x)"
        )
    return Call(tensors, tuple(leaves), spec)


def _names(model: Model, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[str]:
    """A name for every leaf of (args, kwargs): the parameter's, with a dotted path inside nested arguments."""
    forward = model.forward if isinstance(model, nn.Module) else model
    if isinstance(forward, MethodType):
        named, rest = _parameters_of_method(forward.__func__)
    else:
        named, rest = _parameters(forward)
    top = [named[i] if i < len(named) else f"{rest}_{i - len(named)}" for i in range(len(args))]
    names: list[str] = []
    for prefix, value in [*zip(top, args, strict=True), *kwargs.items()]:
        paths = [pytree.keystr(path) for path, _ in pytree.tree_flatten_with_path(value)[0]]
        names += [prefix + "".join(c if c.isalnum() else "_" for c in path).rstrip("_") for path in paths]
    return names


@lru_cache(maxsize=64)  # a class's own function, which keeps no model alive
def _parameters_of_method(function: Callable[..., Any]) -> tuple[tuple[str, ...], str]:
    named, rest = _parameters(function)
    return named[1:], rest


def _parameters(function: Callable[..., Any]) -> tuple[tuple[str, ...], str]:
    """Names of the positional parameters, and of the one that takes all further arguments."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        parameters = []
    named = tuple(p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD))
    return named, next((p.name for p in parameters if p.kind is p.VAR_POSITIONAL), "input")


def explained_names(call: Call, wanted: Sequence[str] | None) -> tuple[str, ...]:
    """Names of the inputs to be explained: those asked for, or every floating tensor, or else every tensor of ids."""
    floating = [name for name, tensor in call.tensors.items() if tensor.is_floating_point()]
    ids = [name for name, tensor in call.tensors.items() if tensor.dtype in _IDS]
    if wanted is None:
        if not floating and not ids:
            kinds = ", ".join(f"{name}: {tensor.dtype}" for name, tensor in call.tensors.items())
            raise InputError(
                f"neither a floating tensor nor ids among the inputs ({kinds}), so there is nothing to explain; "
                "convert images with x.float() / 255"
            )
        return tuple(floating or ids)
    wanted = (wanted,) if isinstance(wanted, str) else tuple(wanted)
    for name in wanted:
        if name not in call.tensors:
            raise InputError(f"no tensor input is called {name!r}; the inputs are {', '.join(call.tensors)}")
        if name not in floating and name not in ids:
            raise InputError(
                f"input {name!r} is {call.tensors[name].dtype}; only floating tensors and ids can be explained"
            )
    return wanted


_IDS = (torch.int32, torch.int64)


def batch_size(call: Call, explained: Sequence[str]) -> int:
    """Number of samples: the first axis of the first explained input."""
    first = call.tensors[explained[0]]
    if first.dim() == 0:
        raise InputError(f"input {explained[0]!r} has no batch axis; add one: x[None]")
    return first.shape[0]


def refuse_script(model: Model) -> None:
    """Refuses TorchScript, into which tracing can't look."""
    if isinstance(model, torch.jit.ScriptModule | torch.jit.ScriptFunction):
        raise InputError(
            "the model is a TorchScript program, whose code can't be traced; pass the nn.Module that it was made of, "
            "or an ONNX export of it: dt.importers.from_onnx(path)"
        )


def check_model(model: Model) -> None:
    """Refuses what is no model, and train mode: dropout and batch norm would not be functions of one sample."""
    if isinstance(model, type) or not (callable(model) or isinstance(model, ExportedProgram)):
        what = (
            f"the class {model.__name__}: make one, {model.__name__}(...)" if isinstance(model, type) else repr(model)
        )
        raise InputError(f"model is {what}; pass an nn.Module, a function of tensors, or an exported program")
    if isinstance(model, nn.Module):
        if any(module.training for module in model.modules()):
            training = [name or "the model itself" for name, module in model.named_modules() if module.training]
            more = f" and {len(training) - 3} more" if len(training) > 3 else ""
            raise InputError(
                f"the model is in train mode ({', '.join(training[:3])}{more}); call model.eval() before explaining it"
            )


def check_inputs(model: Model, call: Call, explained: Sequence[str]) -> None:
    """Refuses an empty batch, NaN or Inf, and tensors of another dtype or device than the model's parameters."""
    if batch_size(call, explained) == 0:
        raise InputError(f"empty batch: input {explained[0]!r} has shape {tuple(call.tensors[explained[0]].shape)}")
    batch = batch_size(call, explained)
    for name in explained:
        shape = tuple(call.tensors[name].shape)
        if not shape or shape[0] != batch:
            raise InputError(
                f"input {name!r} has shape {shape}, while {explained[0]!r} holds {batch} samples; give every sample "
                f"its own, or leave it out: explain={tuple(n for n in explained if n != name)}"
            )
    parameters = model.parameters() if isinstance(model, nn.Module) else ()
    parameter = next((p for p in parameters if p.is_floating_point()), None)
    for name, tensor in call.tensors.items():
        if parameter is not None and tensor.device != parameter.device:
            raise InputError(
                f"input {name!r} is on {tensor.device}, the model's parameters on {parameter.device}; "
                f"move one of them: {name}.to({str(parameter.device)!r})"
            )
        if tensor.layout is not torch.strided:
            raise InputError(f"input {name!r} is sparse ({tensor.layout}); pass {name}.to_dense()")
        if name not in explained or not tensor.is_floating_point():
            continue
        if (
            parameter is not None
            and tensor.dtype != parameter.dtype
            and not torch.is_autocast_enabled(tensor.device.type)
        ):
            raise InputError(
                f"input {name!r} is {tensor.dtype}, the model's parameters are {parameter.dtype}; "
                f"convert one of them: {name}.to({parameter.dtype})"
            )
        if not bool(torch.isfinite(tensor).all()):
            bad = "NaN" if bool(torch.isnan(tensor).any()) else "Inf"
            where = torch.nonzero(~torch.isfinite(tensor))[0].tolist()
            raise InputError(
                f"input {name!r} holds {bad}, first at index {where}; clean it, for example torch.nan_to_num(x)"
            )
