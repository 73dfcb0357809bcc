"""Every error and warning of deeptaylor.

DeepTaylorError
├── InputError          what was passed in can't be explained: dtype, device, NaN, shape, train mode, no head
│   └── DomainError     an input lies outside the box that a rule was given
├── TargetError         the target does not fit the output
├── CompositeError      unknown composite, or one that does not cover a role
├── TraceError          the model could not be traced
├── UnsupportedOp       operations without a role carry relevance
├── NonFiniteRelevance  NaN or Inf on the way back, with the node
├── ModelLoadError      a model or its weights could not be loaded
├── PhotoError          a photo could not be read
├── FileFormatError     a saved attribution could not be read
├── MemoryExhausted     not even one sample fits into memory
├── CompilerError       torch.compile failed, for want of a C++ compiler for example
├── MissingExtra        an optional package is not installed
└── AuditFailed         an audit found what does not hold; `.findings` says what

RelevanceWarning (a UserWarning): relevance explodes or cancels; names the nodes.
TextWarning (a UserWarning): a text was cut, or its tokenizer looks like another model's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol


class SourceLine(Protocol):
    """Where an operation stands in the user's code."""

    @property
    def name(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def file(self) -> str: ...
    @property
    def line(self) -> int: ...
    @property
    def source(self) -> str: ...
    @property
    def module(self) -> str: ...


class DeepTaylorError(Exception):
    """The root of every error raised on purpose by deeptaylor."""


class InputError(DeepTaylorError, ValueError):
    """What was passed in can't be explained as it is."""


class DomainError(InputError):
    """An input lies outside the box that a rule was given."""


class TargetError(DeepTaylorError, ValueError):
    """The target does not fit the model's output."""


class CompositeError(DeepTaylorError, ValueError):
    """The composite is unknown, or gives an operation a rule that can't serve it."""


class TraceError(DeepTaylorError, RuntimeError):
    """The model could not be turned into a graph."""


class ModelLoadError(DeepTaylorError):
    """A model or its weights could not be loaded."""


class PhotoError(DeepTaylorError):
    """A photo could not be read."""


class FileFormatError(DeepTaylorError):
    """A file is not a saved attribution."""


class MemoryExhausted(DeepTaylorError, MemoryError):
    """Not even one sample's explanation fits into memory."""


class CompilerError(DeepTaylorError, RuntimeError):
    """An explanation could not be compiled."""


class MissingExtra(DeepTaylorError, ImportError):
    """An optional package is not installed."""

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(f"{what}: pip install 'deeptaylor[{extra}]'")


class UnsupportedOp(DeepTaylorError):
    """Operations that carry relevance have no role; `.nodes` lists every one of them.

    Each node has `.file`, `.line`, `.source` (the text of that line) and `.module` (the module's path).
    """

    def __init__(self, nodes: Sequence[SourceLine], reasons: Sequence[str]) -> None:
        self.nodes = tuple(nodes)
        lines = [f"  {node.kind} ({reason})\n    {describe(node)}" for node, reason in zip(nodes, reasons, strict=True)]
        count = f"{len(nodes)} operation{'s' if len(nodes) > 1 else ''}"
        super().__init__(
            f"{count} on the way from the inputs to the output can't be explained; nothing was computed.\n"
            + "\n".join(lines)
            + "\nIf you know what an operation is, declare it once before explaining, for example:\n"
            + f"  deeptaylor.extend.declare('activation', torch.ops.{nodes[0].kind})\n"
            + "Roles: constant, rearrange, sum, affine, activation, product, normalization, softmax."
        )


class NonFiniteRelevance(DeepTaylorError, ArithmeticError):
    """Relevance became NaN or Inf at `.node`."""

    def __init__(self, node: SourceLine, what: str) -> None:
        self.node = node
        super().__init__(
            f"{what} at {node.kind}\n    {describe(node)}\n"
            "Look at the values entering that line; a rule without small denominators there (ZPlus, GeneralizedGamma), "
            "or Epsilon with a larger epsilon, avoids a division by almost zero."
        )


class AuditFailed(DeepTaylorError, AssertionError):
    """An audit found what does not hold; `.findings` lists it."""

    def __init__(self, findings: Sequence[Any]) -> None:
        self.findings = tuple(findings)
        super().__init__("\n".join(f"{finding.check}: {finding.sentence}" for finding in findings))


class RelevanceWarning(UserWarning):
    """Relevance explodes or cancels on the way back."""


class TextWarning(UserWarning):
    """A text was cut to what the model takes, or its tokenizer looks like another model's."""


def describe(node: SourceLine) -> str:
    """One line of text: module path, file, line and source text of a node."""
    where = f"{node.file}:{node.line}" if node.file else "source line unknown"
    module = f"module {node.module!r}, " if node.module else ""
    return f"{module}{where}: {node.source}" if node.source else f"{module}{where}"
