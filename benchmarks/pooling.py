"""Time of 2 × 2 max-pooling and its transpose as deeptaylor does them on a CPU, beside torch's own.

The pools of VGG-16, one thread, in one process, interleaved; prints milliseconds of the fastest runs and their ratio.
"""

from __future__ import annotations

import torch
from bench_protocol import rounds_of
from torch import Tensor

from deeptaylor.adjoints import ADJOINTS

aten = torch.ops.aten
POOLS = ((64, 224), (128, 112), (256, 56), (512, 28), (512, 14))
"""Channels and pixels."""


def torch_pools(x: Tensor, c: Tensor) -> Tensor:
    settings = [2, 2], [2, 2], [0, 0], [1, 1], False
    _, indices = aten.max_pool2d_with_indices.default(x, *settings)
    grad: Tensor = aten.max_pool2d_with_indices_backward.default(c, x, *settings, indices)
    return grad


def ours(x: Tensor, c: Tensor) -> Tensor:
    _, back = ADJOINTS[aten.max_pool2d.default](x, [2, 2], [2, 2])
    return back(c)


def measure(batch: int) -> None:
    for channels, pixels in POOLS:
        x, c = (
            torch.randn(batch, channels, pixels, pixels).relu(),
            torch.randn(batch, channels, pixels // 2, pixels // 2),
        )
        assert torch.equal(torch_pools(x, c), ours(x, c))
        found = rounds_of({"torch": lambda x=x, c=c: torch_pools(x, c), "ours": lambda x=x, c=c: ours(x, c)}, 15)
        own, halved = (1e3 * min(taken) for taken in found.values())
        print(
            f"batch {batch}  {channels:3} x {pixels:3}  torch {own:6.2f} ms  ours {halved:6.2f} ms  {halved / own:.2f}"
        )


if __name__ == "__main__":
    torch.set_num_threads(1)
    with torch.no_grad():
        for batch in (1, 8):
            measure(batch)
