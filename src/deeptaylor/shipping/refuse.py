"""What can't be a program is refused, in one place."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..composites import EXACT_ROOT
from ..errors import InputError

if TYPE_CHECKING:
    from ..explainer import Explainer


def refuse_one_input(explainer: Explainer) -> None:
    """Refuses explanations that hold for one input only: no program stands for them."""
    if explainer.record:
        raise InputError("a recorded explanation holds for one input only; trace the model (record=False) instead")
    composite = explainer.plan.composite
    if composite.name == EXACT_ROOT:
        raise InputError("an exact root is searched for each input anew, so no program finds it; use another composite")
    if composite.instead is not None:
        raise InputError(f"{composite.name} is no chain of rules, so no program stands for it; use another composite")
