"""A batch in parts: slices of a call and its target, results put together again, and parts that fit into memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from .attribution import Attribution
from .errors import InputError, MemoryExhausted
from .inputs import Call
from .ledger import Ledger, merge
from .targets import Target

Explain = Callable[[Call, Target], Attribution]


def in_batches(
    explain: Explain, call: Call, target: Target, batch: int, size: int | Literal["auto"], fits: int | None
) -> tuple[Attribution, int | None]:
    """Explains a batch in parts.

    Args:
        explain: explains one part.
        call: the whole batch.
        target: its target.
        batch: number of samples.
        size: of a part; "auto" halves it where memory runs out.
        fits: the size that fitted before.

    Returns:
        The attribution of all samples, and the size that fits, where that was found out.

    Raises:
        InputError: size is neither a positive number nor "auto".
        MemoryExhausted: one sample alone does not fit.
    """
    if size != "auto" and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
        raise InputError(f'batch_size={size!r}; pass a number of samples, at least 1, or "auto"')
    now = min(batch, (fits or batch) if size == "auto" else size)
    results: list[Attribution] = []
    start = 0
    while start < batch:
        stop = min(start + now, batch)
        try:
            results.append(explain(part(call, batch, start, stop), part_of_target(target, batch, start, stop)))
        except Exception as error:
            if size != "auto" or not out_of_memory(error):
                raise
            failed = error
        else:
            start = stop
            continue
        if now == 1:
            raise MemoryExhausted(
                "the explanation of one sample alone does not fit into memory; checkpoint=True needs much less, "
                "smaller inputs too"
            ) from failed
        now = fits = (stop - start + 1) // 2
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return concatenated(results), fits


def out_of_memory(error: Exception) -> bool:
    """Whether an allocator gave up: CUDA's, or that of the processor."""
    said = isinstance(error, RuntimeError) and ("not enough memory" in str(error) or "can't allocate" in str(error))
    return said or isinstance(error, torch.OutOfMemoryError | MemoryError)


def part(call: Call, batch: int, start: int, stop: int) -> Call:
    """Some samples of a call; tensors without the batch axis stay whole."""
    tensors = {name: t[start:stop] if t.dim() and t.shape[0] == batch else t for name, t in call.tensors.items()}
    return Call(tensors, call.leaves, call.spec)


def part_of_target(target: Target, batch: int, start: int, stop: int) -> Any:
    """The target of those samples."""
    if isinstance(target, Tensor) and target.dim() and target.shape[0] == batch:
        return target[start:stop]
    if isinstance(target, list | tuple) and len(target) == batch:
        return target[start:stop]
    return target


def concatenated(results: Sequence[Attribution]) -> Attribution:
    """The results of parts as one."""
    first = results[0]
    if len(results) == 1:
        return first
    target = torch.cat([r.target for r in results]) if isinstance(first.target, Tensor) else first.target
    return Attribution(
        relevances={name: torch.cat([r.relevances[name] for r in results]) for name in first.relevances},
        output=torch.cat([r.output for r in results]),
        target=target,
        explained=torch.cat([r.explained for r in results]),
        plan=first.plan,
        ledger=_joined([r.ledger for r in results if r.ledger is not None]),
        inner={name: torch.cat([r.inner[name] for r in results]) for name in first.inner},
        settings={key: value for r in results for key, value in r.settings.items()},
        versions=first.versions,
    )


def _joined(ledgers: Sequence[Ledger]) -> Ledger | None:
    if not ledgers:
        return None
    return Ledger(
        torch.cat([ledger.explained for ledger in ledgers]),
        torch.cat([ledger.inputs for ledger in ledgers]),
        torch.cat([ledger.absorbed for ledger in ledgers]),
        merge([list(ledger.rows) for ledger in ledgers]),
    )
