"""`Score`: the one number per sample that is decomposed, its values and gradients counted, the model left as it was."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import DeepTaylorError, InputError, TargetError
from ..inputs import Model, check_model
from ..origin import live_state, plain_torch
from ..targets import Target, contrast, log_odds
from ..unwrap import needed_arguments, no_tensor, opened, unwrapped
from .result import Cost

BATCH = 32
"""Samples sent through the model at once, where the caller says nothing."""


class Score:
    """f: inputs (N, *sample) to scores (N,), with what it cost so far.

    Args:
        model: a module in eval mode, a scripted or exported module, or a function of a batch.
        x: one sample, (1, *sample); the target "predicted class" is the one predicted here.
        target: None (predicted class; where the output is one number per sample, that number), a class index,
            `contrast(a, b)`, `log_odds(c)`, or a function of the model's output (N, …) to (N,).
        kwargs: further arguments of the model, the same for all samples.
        head: picks (batch, classes) from the model's output.
        batch: samples sent through the model at once.

    Raises:
        InputError, TargetError: before any work.
    """

    def __init__(
        self,
        model: Model,
        x: Tensor,
        *,
        target: Target | Callable[[Tensor], Tensor] = None,
        kwargs: Mapping[str, Any] | None = None,
        head: Callable[[Any], Tensor] | None = None,
        batch: int = BATCH,
    ) -> None:
        model = model if isinstance(model, torch.jit.ScriptModule) else unwrapped(model)
        check_model(model)
        check_sample(model, x)
        self.model, self.head, self.batch = model, head, batch
        if isinstance(model, torch.export.ExportedProgram):
            # Its graph may be bound to the one sample that it was made with.
            self._program, self.batch = model.module(), 1
        self.kwargs = {**needed_arguments(self.model), **(kwargs or {})}
        self.x = x
        self.checked: dict[int, bool] = {}
        self.cost = Cost()
        self.progress: Callable[[int], None] | None = None
        self.probabilities = False
        try:
            self._pick, self.target = self._resolve(target, x)
        except (RuntimeError, IndexError) as error:
            if x.is_floating_point() or isinstance(error, DeepTaylorError):
                raise
            raise InputError(
                f"the model can't read an input of {x.dtype} ({error}); numbers are passed as x.float(), ids to models "
                "that look them up"
            ) from error
        self.value = float(self.values(x)[0])
        if not _finite(self.value):
            raise InputError(f"f(x) is {self.value}; look at the model's output for this input")

    def values(self, xs: Tensor) -> Tensor:
        """Scores without gradients, float64: (N,)."""
        found = []
        with self._ready(), torch.no_grad():
            for part in xs.split(self.batch):
                found.append(self._pick(self._output(part)).double().cpu())
                self.spend(Cost(forwards=len(part)))
        return torch.cat(found) if found else torch.zeros(0, dtype=torch.float64)

    def gradients(self, xs: Tensor) -> Tensor:
        """Input gradients, (N, *sample); stock kernels, one backward pass each."""
        found = []
        differentiable(xs)
        with self._ready(), torch.enable_grad():
            for part in xs.split(self.batch):
                leaf = part.detach().clone().requires_grad_()
                score = self._pick(self._output(leaf)).sum()
                if not score.requires_grad:
                    found.append(torch.zeros_like(part))
                else:
                    (gradient,) = torch.autograd.grad(score, leaf, allow_unused=True)
                    found.append(torch.zeros_like(part) if gradient is None else gradient)
                self.spend(Cost(gradients=len(part)))
        return torch.cat(found)

    def __call__(self, x: Tensor) -> Tensor:
        """f of one sample (1, *sample) as a tensor without axes, for `torch.func`: parameters are constants."""
        return self._pick(self._output(x, frozen=True)).sum()

    def rows(self, xs: Tensor) -> Tensor:
        """Scores of a batch as a differentiable tensor, (N,); not counted."""
        return self._pick(self._output(xs))

    def spend(self, cost: Cost) -> None:
        """Adds to the cost, and tells `progress` how many passes were made."""
        self.cost += cost
        if self.progress is not None:
            self.progress(cost.passes)

    def on(self, model: Model) -> Score:
        """The same score of another model; its cost starts anew."""
        twin = copy.copy(self)
        twin.model, twin.cost, twin.checked = model, Cost(), {}
        return twin

    @contextmanager
    def _ready(self) -> Iterator[None]:
        """Neither inference mode nor autocast, and the random state as it was."""
        with plain_torch(), torch.random.fork_rng(devices=[]):
            yield

    def _output(self, xs: Tensor, frozen: bool = False) -> Tensor:
        run = self._run(xs, frozen)
        out = self.head(run) if self.head is not None else opened(self.model, run, {})
        if not isinstance(out, Tensor):
            raise no_tensor(out)
        if out.dim() == 0 and xs.shape[0] == 1:
            return out[None]
        if out.dim() == 0 or out.shape[0] != xs.shape[0]:
            raise InputError(
                f"for {xs.shape[0]} samples the model returns shape {tuple(out.shape)}; f must give every sample its "
                "own number: (N, …) to (N,) or (N, classes)"
            )
        return out

    def _run(self, xs: Tensor, frozen: bool) -> Any:
        """The model's output; `frozen` takes its parameters as constants, which keeps nested transforms small.

        Plain gradients need no freezing: only what leads to the input is computed.
        """
        if isinstance(self.model, torch.export.ExportedProgram):
            return self._program(xs, **self.kwargs)
        if not frozen or not isinstance(self.model, nn.Module) or isinstance(self.model, torch.jit.ScriptModule):
            return self.model(xs, **self.kwargs)
        state = {name: tensor.detach() for name, tensor in live_state(self.model).items()}
        return torch.func.functional_call(self.model, state, (xs,), self.kwargs, tie_weights=False)

    def _resolve(self, target: Any, x: Tensor) -> tuple[Callable[[Tensor], Tensor], str]:
        if callable(target) and not isinstance(target, type):
            return target, getattr(target, "__name__", "a function of the output")
        with self._ready(), torch.no_grad():
            out = self._output(x)
            self.spend(Cost(forwards=1))
        one_number = out.dim() == 1 or (out.dim() == 2 and out.shape[1] == 1)
        if one_number and target in (None, 0):
            return lambda out: out.reshape(len(out)), "the output"
        if out.dim() != 2:
            raise InputError(
                f"the output has shape {tuple(out.shape)}, not (batch, classes); choose a part of it with head=..., or "
                "pass a function as target"
            )
        classes = out.shape[1]
        sums_to_one = bool(((out.sum(1) - 1).abs() < 1e-4).all()) and bool((out >= 0).all())
        self.probabilities = sums_to_one and not isinstance(target, log_odds)

        def index(c: Any) -> int:
            if isinstance(c, bool) or not hasattr(c, "__index__"):
                raise TargetError(
                    f"target {c!r}: pass a class index, contrast(a, b), log_odds(c), or a function of the output"
                )
            if not -classes <= c.__index__() < classes:
                raise TargetError(f"target {c} is out of range: the output has {classes} classes, 0 to {classes - 1}")
            return c.__index__() % classes

        if isinstance(target, contrast):
            a, b = index(target.positive), index(target.negative)
            return lambda out: out[:, a] - out[:, b], f"class {a} against class {b}"
        if isinstance(target, log_odds):
            own = int(out[0].argmax()) if target.index is None else index(target.index)
            if classes < 2:
                raise TargetError("log-odds need at least two classes")
            return partial(_log_odds, own), f"log-odds of class {own}"
        if isinstance(target, Tensor | list | tuple):
            numbers = torch.as_tensor(target).flatten()
            if numbers.is_floating_point() or len(numbers) != 1:
                raise TargetError("an expansion is of one score: pass one class index, or a function of the output")
            target = int(numbers[0])
        own = int(out[0].argmax()) if target is None else index(target)
        return lambda out: out[:, own], f"class {own}"


def check_sample(model: Model, x: Tensor) -> None:
    """Refuses what is no single finite sample, or lies elsewhere than the model."""
    if not isinstance(x, Tensor):
        raise InputError(f"the input is a {type(x).__name__}; pass a tensor (1, *sample): torch.as_tensor(x)[None]")
    if x.dim() < 2 or x.shape[0] != 1:
        raise InputError(
            f"the input has shape {tuple(x.shape)}; an expansion is of one sample with its batch "
            "axis: x[:1], or x[None]"
        )
    if x.is_floating_point() and not bool(torch.isfinite(x).all()):
        raise InputError("the input holds NaN or Inf; clean it, for example torch.nan_to_num(x)")
    own = next((p for p in model.parameters() if p.is_floating_point()), None) if isinstance(model, nn.Module) else None
    if own is not None and x.device != own.device:
        raise InputError(f"the input is on {x.device}, the model on {own.device}: x.to({str(own.device)!r})")
    if own is not None and x.is_floating_point() and x.dtype != own.dtype:
        raise InputError(f"the input is {x.dtype}, the model {own.dtype}: x.to({own.dtype}), or model.double()")


def check_reference(x: Tensor, x0: Any) -> Tensor:
    """The reference as a tensor like x.

    Raises:
        InputError: it has another shape, holds NaN or Inf, or is x itself.
    """
    x0 = torch.as_tensor(x0, dtype=x.dtype, device=x.device).detach()
    if x0.dim() == x.dim() - 1 and x0.dim() > 0:
        x0 = x0[None]
    try:
        x0 = x0.expand_as(x)
    except RuntimeError as error:
        raise InputError(f"the reference has shape {tuple(x0.shape)}, the input {tuple(x.shape)}") from error
    if x0.is_floating_point() and not bool(torch.isfinite(x0).all()):
        raise InputError("the reference holds NaN or Inf")
    if bool((x0 == x).all()):
        raise InputError(
            "the reference equals the input, so there is nothing to decompose; pass another one, for example zeros, a "
            "mean, or a blurred copy (deeptaylor.taylor.reference)"
        )
    return x0


def _log_odds(own: int, out: Tensor) -> Tensor:
    others = torch.arange(out.shape[1], device=out.device) != own
    return out[:, own] - out[:, others].logsumexp(1)


def differentiable(xs: Tensor) -> None:
    """Refuses ids and other whole numbers."""
    if isinstance(xs, Tensor) and not xs.is_floating_point():
        raise InputError(
            f"derivatives need floating-point inputs, got {xs.dtype}; for ids use differences, shapley_taylor or "
            "fit_taylor, which only run the model, or explain the embeddings"
        )


def _finite(value: float) -> bool:
    return value == value and abs(value) != float("inf")
