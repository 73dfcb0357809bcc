"""Graphs kept per model, so that a second explainer of a model does not trace it again.

A kept graph is used only while the model looks the same: the same modules with the same plain attributes, and the same
methods. Parameters' values do not matter, since graphs hold none. Functions are traced every time: what they close over
can't be seen.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from .graph import Graph
from .inputs import Model

_GRAPHS: weakref.WeakKeyDictionary[nn.Module, dict[Any, tuple[Any, Graph]]] = weakref.WeakKeyDictionary()
_PLAIN = (bool, int, float, str, bytes, type(None))


def kept(model: Model, key: Any, make: Callable[[], Graph]) -> Graph:
    """The graph kept under `key`, or a new one where there is none or the model has changed."""
    if not isinstance(model, nn.Module):
        return make()
    graphs = _GRAPHS.setdefault(model, {})
    look = _look(model)
    held = graphs.get(key)
    if held is None or held[0] != look:
        graphs[key] = held = (look, make())
    return held[1]


def _look(model: nn.Module) -> tuple[Any, ...]:
    """What the model's code and settings look like: module by module, their plain attributes and hooks."""
    return tuple(
        (
            name,
            id(module),
            type(module),
            tuple((k, _print(v)) for k, v in vars(module).items()),
            tuple(module._parameters),
        )
        for name, module in model.named_modules(remove_duplicate=False)
    )


def _print(value: Any) -> Any:
    """Plain values by what they say (tracing may put equal copies in their place), others by identity, no tensors."""
    if isinstance(value, Tensor):
        return "tensor"
    if isinstance(value, dict):
        return tuple((key, _print(item)) for key, item in value.items())
    if isinstance(value, list | tuple):
        return tuple(_print(item) for item in value)
    return repr(value) if isinstance(value, _PLAIN) else id(value)
