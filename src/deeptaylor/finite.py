"""What is checked of every explanation: a finite output, finite relevance, and none that explodes."""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from .errors import InputError, NonFiniteRelevance, RelevanceWarning
from .ledger import Watch
from .plan import Plan
from .propagate import Forward, backward
from .targets import Seeds

EXPLOSION = 1e4
"""Σ|R| of the inputs, as a multiple of the explained value's size, from which a warning names the nodes."""


def check_output(output: Tensor) -> None:
    """Refuses NaN and Inf."""
    if not bool(torch.isfinite(output).all()):
        raise InputError("the model's output is NaN or Inf on these inputs, so there is nothing to explain")


def check_sizes(
    plan: Plan, seeds: Seeds, found: Sequence[Mapping[str, Tensor]], output: Tensor, again: Callable[[], Forward]
) -> None:
    """Raises at NaN or Inf, warns where nothing arrives, and of explosion, whose nodes it names by running `again`."""
    sizes = _sizes([[values[name] for name in plan.explained] for values in found])
    puts = _sizes([[seed.total(output)] for seed in seeds.seeds])
    for seed, size in zip(seeds.seeds, sizes, strict=True):
        if not math.isfinite(size):
            backward(plan, again(), seed, Watch())
            node = plan.graph[plan.graph.output.name]
            raise NonFiniteRelevance(node, "relevance became NaN or Inf")
    for seed, size, put in zip(seeds.seeds, sizes, puts, strict=True):
        if size == 0 < put:
            warn_of_nothing(put)
            return
        if size > EXPLOSION * put > 0:
            watch = Watch()
            backward(plan, again(), seed, watch)
            worst = "\n".join(
                f"  ×{growth:.3g} at {node.short}, module {node.module!r}, {node.file}:{node.line}: {node.source}"
                for growth, node in watch.worst()
            )
            _warn(
                f"relevance explodes: the inputs hold {size:.3g} in absolute value for {put:.3g} explained; "
                f"positive and negative shares cancel at denominators near zero. It grows most at\n{worst}\n"
                "Rules without such denominators (ZPlus, GeneralizedGamma) or a larger epsilon there will help."
            )
            return


def _sizes(relevances: Sequence[Sequence[Tensor]]) -> list[float]:
    """Σ|R| of each target's tensors."""
    sums = [torch.stack([r.abs().sum(dtype=torch.float64) for r in own]).sum() for own in relevances]
    return list(torch.stack(sums).tolist())


@contextmanager
def unwarned() -> Iterator[None]:
    """For an explanation inside another answer: what its relevance is like is not what was asked."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RelevanceWarning)
        yield


def warn_of_nothing(put: float) -> None:
    """Warns that no relevance arrived at the inputs."""
    _warn(
        f"no relevance reached the inputs: {put:.3g} in absolute value was absorbed on the way, by biases or "
        "by a stabilizer that is large beside the values of a layer; ledger=True says where"
    )


def _warn(message: str) -> None:
    """Warns at the line of the user's that called."""
    frame, level = sys._getframe(), 1
    while frame.f_back is not None and frame.f_globals["__name__"].partition(".")[0] == __package__:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, RelevanceWarning, stacklevel=level)


def refuse_mixing(together: Tensor, alone: Tensor) -> None:
    """Refuses a model whose output for a sample depends on the others: no account per sample is right."""
    off = float((together - alone).abs().max() / together.abs().max().clamp(min=1e-6))
    if off > 1e-2:
        raise InputError(
            f"the model mixes the samples of a batch: alone, they differ by {off:.2g} of the largest output; "
            "explain them one by one, or without a ledger"
        )
