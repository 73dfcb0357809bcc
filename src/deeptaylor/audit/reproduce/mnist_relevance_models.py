"""The MNIST experiment of Montavon et al. (2017): which decompositions are conservative, positive, consistent.

Images of two digits side by side; the network's output is 100 for every digit of the classes 0 to 3, and the others
distract. Network A: one detection layer and its sum; B: detection, sum-pooling by four, detection, sum; biases ≤ 0.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ...composites import deep_taylor
from ...explainer import Explainer
from ...rules import ZPlus
from ..minmax import MinMax
from .digits import mnist, train
from .tables import Reproduction, Table, Tell, new_figure

LOW, HIGH = -0.5, 1.5
CONSERVED = 0.02
"""Median |ΣR − f| / f below which a decomposition counts as conservative; below ten times that, as nearly so."""
SIZE = 28 * 56
PAPER = {
    "sensitivity": ("no", "yes", "no"),
    "nearest-root Taylor": ("no", "?", "no"),
    "deep Taylor, training-free": ("yes", "yes", "yes"),
    "deep Taylor, min-max": ("nearly", "yes", "nearly"),
}
"""(conservative, positive, consistent), as summaries of the paper have it; ? where they do not say."""


class Pool(nn.Module):
    """Sums over groups of neighbouring units; all of them without a size."""

    def __init__(self, size: int | None = None) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        return x.sum(-1, keepdim=True) if self.size is None else x.unflatten(-1, (-1, self.size)).sum(-1)


def network(name: str) -> nn.Sequential:
    """A or B."""
    if name == "A":
        return nn.Sequential(nn.Linear(SIZE, 400), nn.ReLU(), Pool())
    return nn.Sequential(
        nn.Linear(SIZE, 400), nn.ReLU(), Pool(4), nn.Linear(100, 400), nn.ReLU(), Pool()
    )  # fmt: skip


def pairs(images: Tensor, labels: Tensor, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """`count` images of two digits, (N, 28 · 56) in −0.5..1.5, and 100 for every digit below 4: (N, 1)."""
    generator = torch.Generator().manual_seed(seed)
    left, right = torch.randint(len(images), (2, count), generator=generator)
    both = torch.cat([images[left], images[right]], 2).flatten(1)
    wanted = (labels[left] < 4).float() + (labels[right] < 4).float()
    return LOW + (HIGH - LOW) * both, 100 * wanted[:, None]


def gradient(model: nn.Module, x: Tensor) -> Tensor:
    """∇f, like x."""
    leaf = x.detach().requires_grad_()
    with torch.enable_grad():
        (found,) = torch.autograd.grad(model(leaf).sum(), leaf)
    return found


def sensitivity(model: nn.Module, x: Tensor) -> Tensor:
    """(∂f/∂x)²."""
    return gradient(model, x).square()


def nearest_root(model: nn.Module, x: Tensor, steps: int = 200) -> Tensor:
    """∇f(x̃)·(x − x̃) at the root that projected descent from x comes to, approached to 1 % of f(x)."""
    point, start = x.clone(), model(x).detach()
    for _ in range(steps):
        value, slope = model(point).detach(), gradient(model, point)
        going = (value > 0.01 * start).float()
        length = going * 0.2 * value / slope.square().sum(1, keepdim=True).clamp(min=1e-12)
        point = (point - length * slope).clamp(LOW, HIGH)
    return gradient(model, point) * (x - point)


def training_free(model: nn.Module, x: Tensor) -> Tensor:
    """z^B at the pixels, z⁺ above."""
    rules = deep_taylor(low=LOW, high=HIGH, logits=ZPlus())
    relevance: Tensor = Explainer(model, x, composite=rules)(x, target=torch.ones(len(x), 1) * model(x)).relevance
    return relevance


def answers(relevance: Tensor, value: Tensor) -> tuple[float, float, str, str, str]:
    """(median |ΣR − f|/f, negative share, conservative?, positive?, consistent?)."""
    gap = float(((relevance.sum(1) - value).abs() / value).median())
    negative = float(relevance.clamp(max=0).abs().sum() / relevance.abs().sum().clamp(min=1e-12))
    conserves = "yes" if gap < CONSERVED else "nearly" if gap < 10 * CONSERVED else "no"
    positive = "yes" if negative < 1e-6 else "no"
    consistent = "no" if "no" in (conserves, positive) else conserves
    return gap, negative, conserves, positive, consistent


def _trained(name: str, x: Tensor, y: Tensor, epochs: int, part: Callable[..., None]) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = network(name)
        done = partial(part, 0.0, 0.5, f"training network {name}")
        return train(model, x, y, lambda f, aim: (f - aim).square().mean() / 1e4, epochs=epochs, rate=1e-3, tell=done)


def _part(tell: Tell, start: float, offset: float, width: float, what: str, done: float) -> None:
    """Tells of a part of one half of the work."""
    tell(start + (offset + width * done) / 2, what)


def reproduce(tell: Tell, count: int = 6000, epochs: int = 12, test: int = 300) -> Reproduction:
    """Both networks, all methods."""
    images, labels = mnist()
    x, y = pairs(images[:4000], labels[:4000], count, 0)
    tested, aims = pairs(images[4000:], labels[4000:], test, 1)
    rows: list[tuple[Any, ...]] = []
    clouds: dict[str, tuple[Tensor, Tensor]] = {}
    errors = {}
    for number, name in enumerate("AB"):
        part = partial(_part, tell, number / 2)
        model = _trained(name, x, y, epochs, part)
        with torch.no_grad():
            value = model(tested)[:, 0]
        errors[name] = float((value - aims[:, 0]).abs().mean())
        seen, active = tested[value > 10], value[value > 10]
        methods: dict[str, Callable[[Tensor], Tensor]] = {
            "sensitivity": partial(sensitivity, model),
            "nearest-root Taylor": partial(nearest_root, model),
            "deep Taylor, training-free": partial(training_free, model),
        }
        if name == "B":
            models = partial(part, 0.5, 0.3, "training relevance models")
            methods["deep Taylor, min-max"] = MinMax(model, x, low=LOW, high=HIGH, epochs=epochs, tell=models)
        for method, explain in methods.items():
            part(0.9, 0.0, f"network {name}: {method}", 0.0)
            relevance = explain(seen).detach()
            clouds[f"{name}: {method}"] = (active, relevance.sum(1))
            rows.append((name, method, *answers(relevance, active), "/".join(PAPER[method])))
    table = Table(
        "Two digits, those below 4 wanted",
        ("network", "method", "median |ΣR − f|/f", "negative share", "conservative", "positive", "consistent", "paper"),
        tuple(rows),
        ".3g",
        f"On {test} pairs of digits that the networks were not trained on, where f > 10. Mean |f − aim|: "
        + ", ".join(f"{name} {error:.1f}" for name, error in errors.items())
        + f". Conservative: within {CONSERVED:.0%} (median); nearly: within {10 * CONSERVED:.0%}.",
    )
    return Reproduction(
        "mnist-relevance-models",
        "Relevance models on pairs of digits (Montavon et al. 2017)",
        "The claim: sensitivity analysis and Taylor decomposition at the nearest root of the whole function are not "
        "conservative, deep Taylor decomposition is, with the trained min-max model nearly and with the training-free "
        "one exactly. The paper prints its result as figures with yes and no; the answers stand in the last column. "
        "It uses all of MNIST, here there are 5,000 digits; network A needs no relevance model.",
        (table,),
        lambda: _figure(clouds),
        {"pairs": count, "epochs": epochs, "tested": test},
    )


def _figure(clouds: dict[str, tuple[Tensor, Tensor]]) -> Any:
    shown = {name: cloud for name, cloud in clouds.items() if name.startswith("B")}
    figure, axes = new_figure(11, 3.2, [name.removeprefix("B: ") for name in shown])
    for axis, (value, total) in zip(axes, shown.values(), strict=True):
        axis.axline((0, 0), slope=1, color="#bbbbbb", linewidth=0.8)
        axis.scatter(value, total, s=5, color="#1b6ca8", alpha=0.5, linewidths=0)
        axis.set_xlabel("f(x)")
        axis.set_xlim(left=0)
    axes[0].set_ylabel("sum of relevance (network B)")
    return figure
