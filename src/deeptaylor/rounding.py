"""What float32 is too coarse for: the same explanation once more, in float64.

Where positive and negative shares cancel, Σ|R| inside the network is many times the explained value, and float32's
rounding of it is no longer small beside that value. The ledger sees it: something is missing. Then everything is
computed again in float64, and a warning says so.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .attribution import Attribution
from .errors import RelevanceWarning
from .plan import Plan

CLOSED = 1e-4
"""A ledger may miss this share of max(|f|, Σ|R| / 1000) in float32."""


def is_open(result: Attribution) -> bool:
    """Whether rounding left the ledger of a float32 explanation open."""
    if result.ledger is None or any(relevance.dtype != torch.float32 for relevance in result.relevances.values()):
        return False
    return bool((_missing(result) > CLOSED).any())


def _missing(result: Attribution) -> Tensor:
    """|gap| over max(|f|, Σ|R| / 1000), per sample."""
    assert result.ledger is not None
    shape = result.explained.shape
    size = sum(r.double().abs().reshape(*shape, -1).sum(-1) for r in result.relevances.values())
    return result.ledger.gap.abs() / torch.maximum(result.ledger.explained.abs(), torch.as_tensor(size) / 1000)


def wide_plan(plan: Plan) -> Plan:
    """The plan with its constants in float64, and nothing kept from float32."""
    return replace(plan, graph=replace(plan.graph, constants=wide(plan.graph.constants)), caches={}, _held={})


def wide(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Floating tensors in float64, others as they are."""
    return {name: t.double() if t.is_floating_point() else t for name, t in values.items()}


def rounded(exact: Attribution, first: Attribution) -> Attribution:
    """The explanation in float64 in the first one's dtype, with its output; the account is of what is handed out."""
    assert exact.ledger is not None
    relevances = {name: value.to(first.relevances[name].dtype) for name, value in exact.relevances.items()}
    inputs = sum(r.double().reshape(*first.explained.shape, -1).sum(-1) for r in relevances.values())
    result = replace(
        exact,
        relevances=relevances,
        inner={name: value.to(first.inner[name].dtype) for name, value in exact.inner.items()},
        output=first.output,
        explained=first.explained,
        target=first.target,
        ledger=replace(exact.ledger, inputs=torch.as_tensor(inputs)),
        settings={**exact.settings, "computed_in": "float64"},
    )
    _warn(first, f"computed again in float64, which misses {float(_missing(result).max()):.1g}")
    return result


def left_open(first: Attribution, error: Exception) -> Attribution:
    """The explanation as it is, said aloud: there is no float64 for this model or device."""
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    _warn(first, f"left so, as float64 can't be had here ({reason})")
    return first


def _warn(first: Attribution, outcome: str) -> None:
    assert first.ledger is not None
    widest: Any = max(first.ledger.rows, key=lambda row: row.size)
    warnings.warn(
        f"float32 is too coarse for this explanation: relevance cancels, Σ|R| reaches {widest.size:.2g} at "
        f"{widest.op}, {widest.source or widest.name}, and rounding left {float(_missing(first).max()):.1g} of the "
        f"explained value unaccounted. It was {outcome}. "
        "Rules without cancelling denominators (ZPlus, GeneralizedGamma) don't need it.",
        RelevanceWarning,
        stacklevel=5,
    )
