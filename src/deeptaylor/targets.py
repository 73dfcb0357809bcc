"""What is explained: a class, several, a contrast, log-odds, or any relevance put at the output."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .errors import InputError, TargetError
from .rules import Relevance


@dataclass(frozen=True)
class contrast:
    """Class `positive` against class `negative`: explains the difference of their scores."""

    positive: int
    negative: int


@dataclass(frozen=True)
class log_odds:
    """log(p / (1 − p)) of a class's softmax probability p; by default of the predicted class.

    log(p_c/(1−p_c)) = −log Σ_c' exp(−(z_c − z_c')) over c' ≠ c. Relevance is put on the differences z_c − z_c' with
    weights exp(−(z_c − z_c'))/Σ; the entropy of these weights is booked at the output. Montavon et al. 2019.
    """

    index: int | None = None


@dataclass(frozen=True)
class top:
    """The k classes with the highest scores, best first."""

    k: int


Target = int | Sequence[Any] | Tensor | contrast | log_odds | top | None


@dataclass(frozen=True)
class Seeds:
    """Relevance put at the output: one `Relevance` per target, and what it explains."""

    seeds: tuple[Relevance, ...]
    explained: Tensor
    """(N,), or (N, K) for K targets per sample."""
    target: Any
    absorbed: Tensor | float = 0.0
    """(N,): explained value that no relevance stands for (the entropy of log-odds)."""


def resolve(target: Target, output: Tensor) -> Seeds:
    """The seeds of a target.

    Args:
        target: see `deeptaylor.explain`.
        output: (N, classes), or of any shape where `target` is a seed tensor of that shape.
    """
    output = output.float() if output.dtype in (torch.float16, torch.bfloat16) else output
    if isinstance(target, Tensor) and target.is_floating_point():
        return _seed(target, output)
    if output.dim() != 2:
        raise InputError(
            f"the output has shape {tuple(output.shape)}, not (batch, classes); choose a part of it with "
            f"head={_head_for(output)}, or pass a seed tensor of that shape as target"
        )
    classes = output.shape[1]
    if target is None:
        return _seeds_of(output.argmax(1), output)
    if isinstance(target, contrast):
        a, b = _in_range(target.positive, classes), _in_range(target.negative, classes)
        weights = torch.zeros_like(output)
        weights[:, a] += 1
        weights[:, b] -= 1
        return Seeds((Relevance(weights, product=True),), (output * weights).sum(1), f"contrast({a}, {b})")
    if isinstance(target, log_odds):
        return _log_odds(target.index, output)
    if isinstance(target, top):
        if not 1 <= target.k <= classes:
            raise TargetError(f"top({target.k}) asks for more classes than there are ({classes}), or for none")
        return _seeds_of(output.topk(target.k, dim=1).indices, output)
    if isinstance(target, np.ndarray | np.generic):
        target = torch.as_tensor(target)
    if isinstance(target, bool) or not isinstance(target, int | Sequence | Tensor):
        raise TargetError(
            f"target {target!r} is a {type(target).__name__}; pass a class index, one per sample, or a seed tensor"
        )
    try:
        index = torch.as_tensor(target, device=output.device)
    except (TypeError, ValueError) as error:
        raise TargetError(f"target {target!r} can't be read as class indices; pass one integer per sample") from error
    if index.dtype == torch.bool or index.is_complex():
        raise TargetError(f"target holds {index.dtype}; pass class indices, or a floating tensor of the output's shape")
    if index.is_floating_point():
        return _seed(index, output)
    return _indices(index, output)


def _indices(index: Tensor, output: Tensor) -> Seeds:
    samples, classes = output.shape
    if index.dim() == 0:
        index = index.expand(samples)
    if index.dim() > 2 or index.shape[0] != samples:
        raise TargetError(
            f"target has shape {tuple(index.shape)} for {samples} samples; pass one index, {samples} indices, "
            f"or shape ({samples}, K) for K targets per sample"
        )
    if not index.numel():
        raise TargetError(f"target of shape {tuple(index.shape)} names no class; pass one at least, or None")
    for value in (int(index.min()), int(index.max())):
        _in_range(value, classes)
    return _seeds_of(index, output)


def _seeds_of(index: Tensor, output: Tensor) -> Seeds:
    """One seed per column of (N, K) indices that are in range; or one, of (N,)."""
    columns = index if index.dim() == 2 else index[:, None]
    hot = output.new_zeros((columns.shape[1], *output.shape)).scatter_(2, columns.T[:, :, None], 1.0)
    explained = output.gather(1, columns)
    return Seeds(
        tuple(Relevance(seed, product=True) for seed in hot.unbind(0)),
        explained if index.dim() == 2 else explained[:, 0],
        columns if index.dim() == 2 else columns[:, 0],
    )


def _in_range(index: int, classes: int) -> int:
    if not 0 <= index < classes:  # counted from the end, a label such as -1 for "none" would pass for a class
        raise TargetError(f"target {index} is out of range: the output has {classes} classes, 0 to {classes - 1}")
    return index


def _log_odds(index: int | None, output: Tensor) -> Seeds:
    own = (
        output.argmax(1)
        if index is None
        else torch.full((output.shape[0],), _in_range(index, output.shape[1]), device=output.device)
    )
    if output.shape[1] < 2:
        raise TargetError("log-odds need at least two classes")
    is_own = torch.nn.functional.one_hot(own, output.shape[1]).bool()
    others = output.masked_fill(is_own, float("-inf"))
    weights = is_own.to(output.dtype) - others.softmax(1)
    put = (output * weights).sum(1)
    explained = output.gather(1, own[:, None])[:, 0] - others.logsumexp(1)
    return Seeds((Relevance(weights, product=True),), explained, own, absorbed=explained - put)


def _seed(target: Tensor, output: Tensor) -> Seeds:
    if target.shape != output.shape:
        raise TargetError(
            f"the seed has shape {tuple(target.shape)}, the output {tuple(output.shape)}; a floating target is the "
            "relevance put at the output and must have its shape (class indices are integers: target.long())"
        )
    if not bool(torch.isfinite(target).all()):
        raise TargetError("the seed holds NaN or Inf")
    seed = target.to(output).detach()
    return Seeds((Relevance(seed),), seed.flatten(1).sum(1) if seed.dim() > 1 else seed, "seed")


def _head_for(output: Tensor) -> str:
    heads = {1: "lambda out: out[:, None]", 3: "lambda out: out[:, 0]", 4: "lambda out: out.mean((2, 3))"}
    return heads.get(output.dim(), "lambda out: ...")
