"""The ledger: where every unit of relevance went, per node and per sample."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .errors import NonFiniteRelevance
from .graph import Node
from .rules import Redistribution
from .step import Step

CAUSES = ("bias", "constant", "stabilizer", "rule")


@dataclass(frozen=True)
class LedgerRow:
    """One node's account, summed over the batch (and over targets)."""

    name: str
    op: str
    module: str
    source: str
    arrived: float
    handed: float
    bias: float
    constant: float
    stabilizer: float
    rule: float
    size: float
    """Σ|R| handed on: what cancels out in `handed` shows here."""

    @property
    def absorbed(self) -> float:
        """What the node kept, all causes together."""
        return self.bias + self.constant + self.stabilizer + self.rule

    @property
    def gap(self) -> float:
        """What is missing: arrived − handed − absorbed; rounding, or an error."""
        return self.arrived - self.handed - self.absorbed


@dataclass(frozen=True)
class Ledger:
    """Σ handed to the inputs + Σ absorbed = explained output, per sample: shape (N,), or (N, K) with K targets."""

    explained: Tensor
    inputs: Tensor
    absorbed: Tensor
    rows: tuple[LedgerRow, ...]

    @property
    def gap(self) -> Tensor:
        """What the account misses, per sample."""
        return self.explained - self.inputs - self.absorbed

    def worst(self, n: int = 5) -> tuple[LedgerRow, ...]:
        """The n nodes that absorbed most, by size."""
        return tuple(sorted(self.rows, key=lambda row: -abs(row.absorbed))[:n])

    def __str__(self) -> str:
        total = self.absorbed.sum().item()
        lines = [
            f"explained {self.explained.sum():.6g} = inputs {self.inputs.sum():.6g} + absorbed {total:.6g}"
            f" (missing {self.gap.abs().max():.2g} at most per sample)"
        ]
        for row in self.worst():
            causes = ", ".join(f"{cause} {getattr(row, cause):.4g}" for cause in CAUSES if getattr(row, cause))
            lines.append(f"  {row.op:<22} {row.absorbed:>12.5g}  ({causes or 'nothing'})  {row.module}  {row.source}")
        return "\n".join(lines)


class Bookkeeper:
    """Observes a backward pass and writes the ledger; one for one target of one batch."""

    def __init__(self, batch: int, single: bool) -> None:
        self.batch, self.single = batch, single
        self.absorbed: Tensor | float = 0.0
        self.rows: dict[str, dict[str, Any]] = {}

    def __call__(self, step: Step, arrived: Any, result: Redistribution) -> None:
        row: dict[str, Any] = dict.fromkeys(("bias", "constant", "stabilizer", "rule", "handed", "size"), 0.0)
        for cause, amount in result.absorbed.items():
            per_sample = self._per_sample(step.node, amount().double())
            self.absorbed = self.absorbed + per_sample
            row[cause] += float(per_sample.sum())
        for message, x in zip(result.messages, step.xs, strict=True):
            if message is not None:
                total = message.total(x).double()
                row["handed"] += float(total.sum())
                row["size"] += float(total.abs().sum())
        row["arrived"] = _arrived(step, arrived)
        row["node"] = step.node
        self.rows[step.node.name] = row

    def _per_sample(self, node: Node, amount: Tensor) -> Tensor:
        if self.single:
            return amount.sum().expand(self.batch)
        axis = node.batch_dim or 0
        return amount.movedim(axis, 0).flatten(1).sum(1) if amount.dim() > 1 else amount

    def write(self) -> list[LedgerRow]:
        """The rows in the order in which the operations ran."""
        rows = []
        for name, row in reversed(self.rows.items()):
            node = row.pop("node")
            source = f"{node.file}:{node.line}" if node.file else ""
            rows.append(LedgerRow(name, node.short, node.module, source, **row))
        return rows


def _arrived(step: Step, arrived: Any) -> float:
    if isinstance(arrived, Mapping):
        return float(sum(r.total(step.z[i]).double().sum() for i, r in arrived.items()))
    return float(arrived.total(step.z).double().sum())


def can_batch(nodes: list[Node]) -> bool:
    """Whether every node says which axis is the batch, so that a whole batch can be booked at once."""
    return all(node.batch_dim is not None for node in nodes)


def merge(accounts: list[list[LedgerRow]]) -> tuple[LedgerRow, ...]:
    """Rows of several passes (targets, or samples one at a time) added up."""
    merged: dict[str, LedgerRow] = {}
    for rows in accounts:
        for row in rows:
            held = merged.get(row.name)
            if held is None:
                merged[row.name] = row
                continue
            numbers = {
                name: getattr(held, name) + getattr(row, name)
                for name in ("arrived", "handed", "bias", "constant", "stabilizer", "rule", "size")
            }
            merged[row.name] = LedgerRow(row.name, row.op, row.module, row.source, **numbers)
    return tuple(merged.values())


def ledger_of(
    explained: Tensor,
    beforehand: Tensor | float,
    relevances: Mapping[str, Tensor],
    absorbed: list[Tensor],
    accounts: list[list[LedgerRow]],
) -> Ledger:
    """The account of an explanation; per target where `explained` has an axis for them.

    Args:
        explained: what is explained, of each sample (and target).
        beforehand: so much of it did not set out.
        relevances: of the inputs, by name.
        absorbed: what was kept on the way, of each sample, pass by pass.
        accounts: the rows of every pass.
    """
    several = explained.dim() == 2
    shape = explained.shape if several else explained.shape[:1]
    inputs = sum(r.double().reshape(*shape, -1).sum(-1) for r in relevances.values())
    kept = torch.stack(absorbed, 1) if several else absorbed[0]
    return Ledger(explained.double(), torch.as_tensor(inputs), kept.to(explained.device) + beforehand, merge(accounts))


class Watch:
    """Observes a backward pass for NaN, Inf and explosion."""

    def __init__(self) -> None:
        self.growth: list[tuple[float, Node]] = []

    def __call__(self, step: Step, arrived: Any, result: Redistribution) -> None:
        values = [m.total(x) for m, x in zip(result.messages, step.xs, strict=True) if m is not None]
        if not all(bool(torch.isfinite(value).all()) for value in values):
            raise NonFiniteRelevance(step.node, "relevance became NaN or Inf")
        before = _size(step, arrived)
        after = sum(float(value.double().abs().sum()) for value in values)
        if before > 0:
            self.growth.append((after / before, step.node))

    def worst(self, n: int = 3) -> list[tuple[float, Node]]:
        """The n nodes where Σ|R| grew most, with the factor."""
        return sorted(self.growth, key=lambda pair: -pair[0])[:n]


def _size(step: Step, arrived: Any) -> float:
    if isinstance(arrived, Mapping):
        return float(sum(r.total(step.z[i]).double().abs().sum() for i, r in arrived.items()))
    return float(arrived.total(step.z).double().abs().sum())
