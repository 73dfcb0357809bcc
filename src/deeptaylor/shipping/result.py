"""What a program gives, as an `Attribution`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..attribution import Attribution, versions
from ..finite import EXPLOSION
from .program import Program


def attribution(program: Program, found: Mapping[str, Tensor], **settings: Any) -> Attribution:
    """The result that the explainer itself would give.

    Args:
        program: what was run.
        found: its outputs, by name.
        settings: to be noted beside the composite's.
    """
    plan, ask = program.plan, program.ask
    composite = {"composite": plan.composite.name, **plan.composite.settings, "frontend": plan.graph.frontend}
    return Attribution(
        relevances={name: found[own] for name, own in zip(plan.explained, program.outputs, strict=False)},
        output=found["output"],
        target="seed" if ask.seed else found.get("class", str(ask.fixed)),
        explained=found["explained"],
        plan=plan.table,
        settings={**composite, **settings},
        versions=versions(),
    )


def is_suspect(result: Attribution) -> bool:
    """Whether relevance may be NaN, Inf or exploding: worth running the explainer itself, which says where."""
    size = torch.stack([r.detach().double().abs().sum() for r in result.relevances.values()]).sum()
    return not bool(size <= EXPLOSION * result.explained.detach().double().abs().sum())
