"""What `Explainer.export` and `Explainer.compile` do first: refuse what can't be a program."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..composites import EXACT_ROOT
from ..errors import InputError
from ..origin import live_state
from ..targets import contrast, log_odds
from .ask import fixed
from .export import export as write

if TYPE_CHECKING:
    from ..explainer import Explainer


def export(
    explainer: Explainer,
    path: str | Path,
    target: contrast | log_odds | None,
    preprocessing: Mapping[str, Any] | None,
) -> Path:
    """See `Explainer.export`."""
    refuse_one_input(explainer)
    ask = fixed(target)
    call = explainer._example
    expected = explainer._by_rules(call, explainer.plan, target, False, ())
    state = live_state(explainer.model)
    return write(path, explainer.plan, call.tensors, state, ask, preprocessing, expected.relevances)


def refuse_one_input(explainer: Explainer) -> None:
    """Refuses explanations that hold for one input only: no program stands for them."""
    if explainer.record:
        raise InputError("a recorded explanation holds for one input only; trace the model (record=False) instead")
    if explainer.plan.composite.name == EXACT_ROOT:
        raise InputError("an exact root is searched for each input anew, so no program finds it; use another composite")
