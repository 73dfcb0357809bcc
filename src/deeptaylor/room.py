"""Room for a deep call: its frames in one piece of memory, and no garbage collection meanwhile."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")


def with_room(run: Callable[[], Result]) -> Result:
    """Calls a function that nests hundreds of calls and makes many objects, such as an export of a model.

    Python keeps frames in pieces of 16 KB of memory, which it maps when a call needs one and unmaps when that call
    returns. Where a loop stands at the end of a piece, every call in it maps and unmaps one: up to a third of the time
    of an export, or none, depending on how deep it was called. A frame that asks for more than a piece gets a larger
    one, with room for the calls inside. Collecting garbage takes a seventh of an export that makes little of it.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        return _wide(run)
    finally:
        if collects:
            gc.enable()


def _wide(run: Callable[[], Result]) -> Result:
    return run()


# The sizes of pieces are powers of two: 2**15 words and a header take 512 KB, and leave half of it.
_wide.__code__ = _wide.__code__.replace(co_stacksize=2**15)
