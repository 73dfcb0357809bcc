"""What is written beside a program: enough to call it rightly without deeptaylor, or the model, at hand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..attribution import versions
from .program import Program

FORMAT = "deeptaylor-program-1"
FILE = "deeptaylor.json"
"""Its name among the extra files of a .pt2, and without the suffix its key in the properties of an ONNX model."""


def metadata(
    program: Program, tensors: Mapping[str, Tensor], names: tuple[str, ...], preprocessing: Mapping[str, Any] | None
) -> dict[str, Any]:
    """A description of a program, ready for JSON.

    Args:
        program: what is shipped.
        tensors: an example of its inputs.
        names: what the program calls them, in order.
        preprocessing: what was done to the inputs before, in the user's words.
    """
    plan, dynamic = program.plan, program.plan.graph.dynamic_batch
    batch = tensors[plan.explained[0]].shape[0]

    def described(name: str) -> dict[str, Any]:
        shape: list[int | str] = list(tensors[name].shape)
        if dynamic and shape and shape[0] == batch:
            shape[0] = "N"
        return {"dtype": str(tensors[name].dtype).removeprefix("torch."), "shape": shape}

    called = dict(zip(names, program.inputs, strict=False))
    rows = plan.table.rows
    return {
        "format": FORMAT,
        "inputs": {
            name: described(own) | {"explained": own in plan.explained} for name, own in called.items()
        },
        "target": program.ask.convention,
        "outputs": {name: _SAYS[name.split(".")[0]] for name in program.outputs},
        "batch": "any" if dynamic else batch,
        "outside": "a sample outside the bounds of z^B gets NaN relevance; a class that does not exist is an error",
        "composite": plan.composite.name,
        "settings": {key: value if isinstance(value, bool | int | float | None) else str(value)
                     for key, value in plan.composite.settings.items()},
        "rules": [{"operation": row.op, "module": row.module, "role": row.role, "rule": row.rule} for row in rows],
        "preprocessing": None if preprocessing is None else dict(preprocessing),
        "versions": versions(),
    }  # fmt: skip


_SAYS = {
    "relevance": "shaped like the input that it explains",
    "output": "the model's output, after the head",
    "class": "the class that was explained, int64 (N,)",
    "explained": "the explained value, (N,): relevance and what was absorbed sum to it",
}
