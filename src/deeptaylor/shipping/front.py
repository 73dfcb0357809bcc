"""`Explainer.export`: from an explainer to what is written."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..origin import live_state
from ..targets import contrast, log_odds
from .ask import fixed
from .export import export as write
from .refuse import refuse_one_input

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
