"""Units and attention heads inside a model as segments: f as a function of gates that multiply them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..targets import Target
from .score import Score


class Hidden:
    """f of gates (N, channels): the score of one input while a module's channels are multiplied by them.

    Gates of 1 are the model as it is, gates of 0 take channels away. Give it to any estimator:

        gated = dt.taylor.Hidden(model, "layers.3", x)
        dt.integrated_terms(gated, gated.open, "zero")                              # every channel
        dt.shapley_taylor(gated, gated.open, "zero", groups=gated.heads(8))         # eight heads

    Args:
        model: a module in eval mode.
        module: the path of the module whose channels are gated.
        x: one sample.
        axis: of the channels; 1 for convolutions, −1 for transformers.
        of: "output" of the module, or its first "input" (heads: the input of the projection that joins them).
        target: what is decomposed, as for `Score`.
        head: picks (batch, classes) from the model's output.

    Raises:
        InputError: no such module, or it is not called with tensors.
    """

    def __init__(
        self,
        model: nn.Module,
        module: str,
        x: Tensor,
        *,
        axis: int = -1,
        of: str = "output",
        target: Target | Callable[[Tensor], Tensor] = None,
        head: Callable[[Any], Tensor] | None = None,
    ) -> None:
        if of not in ("output", "input"):
            raise InputError(f"of={of!r} is neither 'output' nor 'input'")
        paths = dict(model.named_modules())
        if module not in paths or not module:
            raise InputError(f"the model has no module {module!r}; model.named_modules() lists them")
        self._score = Score(model, x, target=target, head=head)
        self._gated, self._path, self._axis, self._of = paths[module], module, axis, of
        self._x, self._width = x, 0
        with torch.no_grad():
            self._run(self._measure, 1)
        if not self._width:
            raise InputError(f"module {module!r} was not called with a tensor while the model ran: it has no gates")
        dtype = x.dtype if x.is_floating_point() else torch.float32
        self.open = torch.ones(1, self._width, dtype=dtype, device=x.device)
        """Gates of the model as it is."""

    def heads(self, count: int) -> Tensor:
        """Labels that make `count` equal groups of neighbouring channels."""
        if self._width % count:
            raise InputError(f"{self._width} channels do not divide into {count} heads")
        return torch.arange(self._width) // (self._width // count)

    def __call__(self, gates: Tensor) -> Tensor:
        def gate(value: Tensor) -> Tensor:
            shape = [1] * value.dim()
            shape[0], shape[self._axis] = gates.shape
            return value * gates.view(shape)

        return self._run(gate, gates.shape[0])

    def _measure(self, value: Tensor) -> Tensor:
        if not -value.dim() <= self._axis < value.dim() or self._axis % value.dim() == 0:
            raise InputError(
                f"module {self._path!r} works on shape {tuple(value.shape)}: no channels on axis {self._axis}"
            )
        self._width = value.shape[self._axis]
        return value

    def _run(self, change: Callable[[Tensor], Tensor], samples: int) -> Tensor:
        """The score, with `change` applied at the module; the hook is gone afterwards."""

        def after(_module: nn.Module, _args: Any, out: Any) -> Any:
            if isinstance(out, tuple) and out and isinstance(out[0], Tensor):
                return (change(out[0]), *out[1:])
            return change(out) if isinstance(out, Tensor) else out

        def before(_module: nn.Module, args: Any) -> Any:
            return (change(args[0]), *args[1:]) if args and isinstance(args[0], Tensor) else None

        output = self._of == "output"
        hook = self._gated.register_forward_hook(after) if output else self._gated.register_forward_pre_hook(before)
        try:
            return self._score.rows(self._x.expand(samples, *self._x.shape[1:]))
        finally:
            hook.remove()
