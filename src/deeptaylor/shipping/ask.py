"""What a program explains: classes given with every batch, a seed, or a contrast or log-odds fixed once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import InputError, TargetError
from ..plan import Plan
from ..rules import Relevance
from ..targets import Seeds, Target, contrast, log_odds, resolve, top

PREDICTED = -1
"""Stands for the predicted class among a program's targets."""


@dataclass(frozen=True)
class Ask:
    """The target of a program, as far as it is fixed when the program is recorded."""

    fixed: contrast | log_odds | top | None = None
    """The target itself; the program then takes none."""
    count: int | None = None
    """Of classes: so many per sample, on an axis after the batch; None for one, without that axis."""
    seed: bool = False
    """The target is relevance put at the output, shaped like it."""

    @property
    def given(self) -> bool:
        """Whether the program takes a target."""
        return self.fixed is None

    @property
    def indexed(self) -> bool:
        """Whether what is explained are classes, whose indices are an output."""
        return not self.seed and not isinstance(self.fixed, contrast)

    @property
    def convention(self) -> str:
        """The convention in words, for whoever runs the program."""
        if self.fixed is not None:
            return f"fixed: {self.fixed}; the program takes no target"
        if self.seed:
            return "relevance put at the output, floating, shaped like the output"
        shape = "(N,)" if self.count is None else f"(N, {self.count})"
        return f"int64 {shape}: class index from 0; {PREDICTED} stands for the predicted class; others are an error"

    def example(self, output: Tensor) -> Tensor | None:
        """A target for that output."""
        if not self.given:
            return None
        if self.seed:
            return torch.ones_like(output)
        shape = output.shape[:1] if self.count is None else (output.shape[0], self.count)
        return torch.full(shape, PREDICTED, dtype=torch.int64, device=output.device)

    def seeds(self, output: Tensor, target: Tensor | None) -> Seeds:
        """The relevance put at the output, without a look at values."""
        output = output.float() if output.dtype in (torch.float16, torch.bfloat16) else output
        if target is not None and self.seed:
            return Seeds((Relevance(target),), target.flatten(1).sum(1) if target.dim() > 1 else target, "seed")
        if isinstance(self.fixed, contrast | log_odds) or output.dim() != 2:
            return resolve(self.fixed, output)
        if isinstance(self.fixed, top):
            columns = output.topk(self.fixed.k, dim=1).indices
        else:
            assert target is not None
            columns = target if self.count is not None else target[:, None]
            columns = torch.where(columns == PREDICTED, output.argmax(1, keepdim=True), columns)
        explained = output.gather(1, columns)  # an error where the class does not exist
        classes = torch.arange(output.shape[1], device=output.device)
        hot = [Relevance((classes == column[:, None]).to(output.dtype), product=True) for column in columns.unbind(1)]
        if self.count is None and self.fixed is None:
            return Seeds(tuple(hot), explained[:, 0], columns[:, 0])
        return Seeds(tuple(hot), explained, columns)


def asked(target: Target, output: Tensor) -> tuple[Ask, Tensor | None]:
    """The kind of a target, and its values for a program: class indices from 0, PREDICTED, or a seed.

    Args:
        target: see `deeptaylor.explain`.
        output: shaped and typed like the model's, (N, classes); its values are not read.
    """
    if isinstance(target, top) and not 1 <= target.k <= output.shape[-1]:
        resolve(target, output)  # which raises
    if isinstance(target, contrast | log_odds | top):
        return Ask(fixed=target), None
    if target is None:
        ask = Ask()
        return ask, ask.example(output)
    seeds = resolve(target, output)
    if (isinstance(target, Tensor) and target.is_floating_point()) or not isinstance(seeds.target, Tensor):
        return Ask(seed=True), torch.as_tensor(target, dtype=output.dtype, device=output.device)
    index: Tensor = seeds.target
    return Ask(count=index.shape[1] if index.dim() == 2 else None), index


def output_like(plan: Plan, tensors: Mapping[str, Tensor]) -> Tensor:
    """A tensor shaped like the model's output; nothing but classes and samples is read from it."""
    first = tensors[plan.explained[0]]
    shape = [first.shape[0] if size == "N" else int(size) for size in plan.graph.output_shape]
    return first.new_zeros(shape, dtype=first.dtype if first.is_floating_point() else torch.float32)


def fixed(target: Target) -> Ask:
    """The target that an exported program is made for: given with every batch, or a contrast or log-odds."""
    if target is None:
        return Ask()
    if isinstance(target, contrast | log_odds):
        return Ask(fixed=target)
    if isinstance(target, top):
        raise TargetError("an exported program explains one class per sample: leave target out, and ask k times")
    raise InputError(
        "an exported program is given its class with every batch: leave target out, or pass a contrast or log-odds"
    )
