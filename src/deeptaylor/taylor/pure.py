"""A model as a function of one tensor: parameters held constant, arguments filled in, its tensor picked out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..inputs import Model, check_model
from ..origin import live_state
from ..unwrap import needed_arguments, no_tensor, opened, unwrapped

Function = Callable[[Tensor], Tensor]


def pure(
    model: Model, kwargs: Mapping[str, Any] | None = None, head: Callable[[Any], Tensor] | None = None
) -> Function:
    """The model as a function from a batch to a tensor; gradients then cost one backward pass to the input alone.

    Raises:
        InputError: the model is in train mode, or returns something of which the tensor can't be told.
    """
    model = unwrapped(model)
    check_model(model)
    arguments = {**needed_arguments(model), **(kwargs or {})}

    def call(x: Tensor) -> Tensor:
        if isinstance(model, nn.Module) and not isinstance(model, torch.jit.ScriptModule):
            state = {name: tensor.detach() for name, tensor in live_state(model).items()}
            output = torch.func.functional_call(model, state, (x,), arguments, tie_weights=False)
        else:
            output = (model.module() if isinstance(model, torch.export.ExportedProgram) else model)(x, **arguments)
        output = head(output) if head is not None else opened(model, output, {})
        if not isinstance(output, Tensor):
            raise no_tensor(output)
        if output.dim() == 0 or output.shape[0] != x.shape[0]:
            raise InputError(f"for {x.shape[0]} samples the model returns shape {tuple(output.shape)}, not (N, ...)")
        return output

    return call


def check_batch(x: Any, what: str = "x") -> Tensor:
    """Refuses what is no finite floating tensor with a batch axis."""
    if not isinstance(x, Tensor) or not x.is_floating_point():
        kind = f"{x.dtype} tensor" if isinstance(x, Tensor) else type(x).__name__
        raise InputError(f"derivatives need floating-point inputs: {what} is a {kind}; for ids explain the embeddings")
    if x.dim() < 2 or not len(x):
        raise InputError(f"{what} has shape {tuple(x.shape)}; give it a batch axis: {what}[None]")
    if not bool(torch.isfinite(x).all()):
        where = torch.nonzero(~torch.isfinite(x))[0].tolist()
        raise InputError(
            f"{what} holds NaN or Inf, first at index {where}; clean it, for example torch.nan_to_num({what})"
        )
    return x.detach()
