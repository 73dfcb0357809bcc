"""What the papers claim, measured again: `deeptaylor reproduce NAME`."""

from __future__ import annotations

from pathlib import Path

from ...errors import InputError
from .tables import Reproduction, Tell

NAMES = ("rigorous-study", "lenet", "rank-one", "mnist-relevance-models")


def run(name: str, tell: Tell, data: Path | None = None) -> Reproduction:
    """One reproduction.

    Args:
        name: one of `NAMES`.
        tell: is told how far it is.
        data: lenet: where the LRP Toolbox's files are.

    Raises:
        InputError: no reproduction has that name.
        MissingExtra: a package it needs is not installed.
    """
    if name == "rigorous-study":
        from .rigorous_study import reproduce

        return reproduce(tell)
    if name == "lenet":
        from .lenet import reproduce as lenet

        return lenet(tell, data)
    if name == "rank-one":
        from .rank_one import reproduce as rank_one

        return rank_one(tell)
    if name == "mnist-relevance-models":
        from .mnist_relevance_models import reproduce as relevance_models

        return relevance_models(tell)
    raise InputError(f"no reproduction is called {name!r}; there are {', '.join(NAMES)}")
