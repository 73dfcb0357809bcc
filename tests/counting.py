"""Counts linear operations, in units of the work that each layer's own forward pass is.

One unit is the multiplications of the layer's forward operation; a gradient with respect to the input is another one.
Work is counted and not calls, so that batching K backward passes into one call does not look like a saving, nor does a
stack of inputs in one call look like one operation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten


def _convolution(x: Tensor, weight: Tensor, out: Tensor, transposed: bool) -> int:
    """Multiplications: each weight of a filter meets each place of the output (transposed: of the input)."""
    return (x if transposed else out).numel() * weight[0].numel()


def _matrix(a: Tensor, b: Tensor) -> int:
    return a.numel() * b.shape[-1]


@dataclass
class Call:
    name: str
    multiplications: int


@dataclass
class LinearOperations(TorchDispatchMode):
    """Every convolution, matrix product and backward convolution that runs inside the `with` block."""

    calls: list[Call] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    @property
    def multiplications(self) -> int:
        return sum(call.multiplications for call in self.calls)

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        packet = func.overloadpacket
        if packet is aten.convolution:
            self._add(packet, _convolution(args[0], args[1], out, transposed=args[6]))
        elif packet in (aten.conv1d, aten.conv2d, aten.conv3d):
            self._add(packet, _convolution(args[0], args[1], out, transposed=False))
        elif packet in (aten.conv_transpose1d, aten.conv_transpose2d, aten.conv_transpose3d):
            self._add(packet, _convolution(args[0], args[1], out, transposed=True))
        elif packet is aten.convolution_backward:
            grad, x, weight, *_, mask = args
            work = _convolution(x, weight, grad, transposed=args[7])
            self._add(packet, work * (bool(mask[0]) + bool(mask[1])))
        elif packet in (aten.mm, aten.bmm, aten.mv, aten.dot):
            self._add(packet, _matrix(args[0], args[1] if args[1].ndim > 1 else args[1][:, None]))
        elif packet in (aten.addmm, aten.baddbmm):
            self._add(packet, _matrix(args[1], args[2]))
        elif packet in (aten.linear, aten.matmul):
            weight = args[1].T if packet is aten.linear else args[1]
            self._add(packet, _matrix(args[0], weight))
        return out

    def _add(self, packet: Any, multiplications: int) -> None:
        self.calls.append(Call(str(packet), multiplications))


def work(run: Callable[[], object]) -> int:
    with LinearOperations() as counted:
        run()
    return counted.multiplications


def forward_work(model: nn.Module, x: Tensor) -> int:
    with torch.no_grad():
        return work(lambda: model(x))
