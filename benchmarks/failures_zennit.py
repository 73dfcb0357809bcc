"""Cases in which zennit 1.0.0 fails; see `failures.py`."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from agree import HIGH, LOW, difference, drawn, ours, seed_at, small_net, vgg_like, zennit, zennit_rule
from failures import (
    PAPER,
    Finding,
    Joined,
    attempt,
    case,
    functions,
    gap,
    images,
    residual_blocks,
    reused,
    share,
    shares,
    zoo,
)
from torch import Tensor, nn
from zennit import composites, rules
from zennit.attribution import Gradient
from zennit.canonizers import SequentialMergeBatchNorm
from zennit.torchvision import ResNetCanonizer

import deeptaylor as dt
from deeptaylor.rules import ZBox


def pre_activation() -> nn.Module:
    def block() -> nn.Module:
        layers = {
            "norm": nn.BatchNorm2d(6),
            "conv": nn.Conv2d(6, 6, 3, padding=1),
            "norm2": nn.BatchNorm2d(6),
            "conv2": nn.Conv2d(6, 6, 3, padding=1),
        }
        return Joined(lambda s, x: x + s.conv2(F.relu(s.norm2(s.conv(F.relu(s.norm(x)))))), **layers)

    layers = [
        nn.Conv2d(3, 6, 3, padding=1),
        block(),
        block(),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    ]
    return drawn(nn.Sequential(*layers, nn.Linear(6, 4)))


def sums(name: str, size: int) -> Finding:
    model, x = zoo(name), images(1, size)
    seed = seed_at(model, x)
    there = share(
        zennit(model, x, seed, composites.EpsilonPlus(zero_params="bias", canonizers=[ResNetCanonizer()])), seed
    ).item()
    result = dt.explain(model, x, target=seed, composite=PAPER, ledger=True)
    handed, absorbed = share(result.relevance, seed).item(), (result.ledger.absorbed / result.explained).item()
    here = f"ΣR/f = {handed:.4g}, absorbed {absorbed:.2g}, together 1 {handed + absorbed - 1:+.0e}"
    return Finding(
        f"ΣR/f = {there:.3g}, nothing said of the rest", here, abs(there - 1) > 0.05, abs(handed + absorbed - 1) < 1e-9
    )


@case("zennit", "`x + f(x)` in a forward, no biases")
def _() -> Finding:
    return residual_blocks(lambda model, x: zennit(model, x, seed_at(model, x), composites.EpsilonPlus()))


@case("zennit", "F.gelu, F.silu, torch.tanh in a forward, no biases")
def _() -> Finding:
    return functions(lambda model, x: zennit(model, x, seed_at(model, x), zennit_rule(rules.Epsilon(1e-9))))


@case("zennit", "one linear layer used twice, against two copies of it")
def _() -> Finding:
    shared, unrolled, x = reused()
    seed, rule = seed_at(shared, x), zennit_rule(rules.Epsilon())
    there = difference(zennit(shared, x, seed, rule), zennit(unrolled, x, seed, rule))
    here = difference(ours(shared, x, seed, "epsilon"), ours(unrolled, x, seed, "epsilon"))
    return Finding(f"differs by {there:.2g}", f"differs by {here:.2g}", there > 0.1, here < 1e-12)


@case("zennit", "an optimizer made before one explanation")
def _() -> Finding:
    def training_stops(explain: Callable[[nn.Module, Tensor, Tensor], Any]) -> bool:
        model, x = small_net(True), images(size=8)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        explain(model, x, seed_at(model, x))
        before = model(x).detach()
        model(x).square().sum().backward()
        optimizer.step()
        return torch.equal(model(x), before)

    def on_the_model(model: nn.Module, x: Tensor, seed: Tensor) -> None:
        with Gradient(model, composites.EpsilonPlus()) as attributor:
            attributor(x, seed)

    there, here = (
        training_stops(on_the_model),
        training_stops(lambda model, x, seed: ours(model, x, seed, "epsilon-plus")),
    )
    texts = {True: "no longer trains the model", False: "trains the model"}
    return Finding(texts[there], texts[here], there, not here)


@case("zennit", "state_dict after an explanation with batch norm merged")
def _() -> Finding:
    def damage(explain: Callable[[nn.Module, Tensor, Tensor], Any]) -> str:
        model, x = (
            drawn(
                nn.Sequential(
                    nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 196, 3)
                )
            ),
            images(),
        )
        before = copy.deepcopy(model.state_dict())
        explain(model, x, seed_at(model, x))
        after = model.state_dict()
        extra = sorted(set(after) - set(before))
        changed = [key for key in before if not torch.equal(before[key], after[key])]
        return "; ".join(
            filter(None, [f"changed: {', '.join(changed)}" * bool(changed), f"new: {', '.join(extra)}" * bool(extra)])
        )

    def on_the_model(model: nn.Module, x: Tensor, seed: Tensor) -> None:
        with Gradient(model, composites.EpsilonPlus(canonizers=[SequentialMergeBatchNorm()])) as attributor:
            attributor(x, seed)

    there, here = damage(on_the_model), damage(lambda model, x, seed: ours(model, x, seed, "epsilon-plus"))
    return Finding(there, here or "bit for bit the same", bool(there), not here)


@case("zennit", "pre-activation residual network, batch norm merged: the logits while explaining")
def _() -> Finding:
    model, x = pre_activation(), images()
    expected = model(x).detach()
    with Gradient(copy.deepcopy(model), composites.EpsilonPlus(canonizers=[SequentialMergeBatchNorm()])) as attributor:
        there = difference(attributor(x, torch.ones_like(expected))[0].detach(), expected)
    here = difference(dt.explain(model, x, composite="epsilon-plus").output, expected)
    closed = gap(model, x, PAPER)
    return Finding(
        f"off by {there:.2g}",
        f"off by {here:.1g}, ledger closes to {closed:.1g}",
        there > 0.1,
        here < 1e-12 and closed < 1e-9,
    )


@case("zennit", "densenet121, batch norm merged")
def _() -> Finding:
    model, x = zoo("densenet121"), images(1, 32)
    composite = composites.EpsilonPlus(canonizers=[SequentialMergeBatchNorm()])
    there, closed = attempt(lambda: zennit(model, x, seed_at(model, x), composite)), gap(model, x, PAPER)
    return Finding(there, f"ledger closes to {closed:.1g}", bool(there), closed < 1e-9)


for _name, _size in (
    ("mobilenet_v2", 64),
    ("inception_v3", 96),
    ("efficientnet_b0", 64),
    ("shufflenet_v2_x0_5", 64),
    ("regnet_y_400mf", 64),
    ("convnext_tiny", 64),
):
    case("zennit", f"{_name} without biases, ResNetCanonizer")(lambda name=_name, size=_size: sums(name, size))


@case("zennit", "VGG with biases: what the biases took")
def _() -> Finding:
    model, x = vgg_like(), images()
    seed = seed_at(model, x)
    there = share(zennit(model, x, seed, composites.EpsilonPlus(canonizers=[SequentialMergeBatchNorm()])), seed)
    result = dt.explain(model, x, target=seed, composite="epsilon-plus", ledger=True)
    taken, closed = result.ledger.absorbed / result.explained, gap(model, x, "epsilon-plus")
    agrees = bool((share(result.relevance, seed) - there).abs().max() < 1e-6)
    here = f"the same; {shares(taken.tolist())} booked as absorbed, to {closed:.0e}"
    return Finding(
        f"ΣR/f = {shares(there.tolist())}, nothing said of the rest",
        here,
        bool((there - 1).abs().max() > 0.1),
        agrees and closed < 1e-9,
    )


@case("zennit", "batch norm without a canonizer, against batch norm merged by hand")
def _() -> Finding:
    model, x = vgg_like(), images()
    fused = nn.Sequential(*model)
    for position in reversed(range(len(fused) - 1)):
        if isinstance(fused[position], nn.Conv2d) and isinstance(fused[position + 1], nn.BatchNorm2d):
            fused[position] = torch.nn.utils.fuse_conv_bn_eval(fused[position], fused[position + 1])
            del fused[position + 1]
    fused.eval()
    seed = seed_at(model, x)
    there = difference(
        zennit(model, x, seed, composites.EpsilonPlus()), zennit(fused, x, seed, composites.EpsilonPlus())
    )
    here = difference(ours(model, x, seed, "epsilon-plus"), ours(fused, x, seed, "epsilon-plus"))
    return Finding(f"differs by {there:.2g}", f"differs by {here:.1g}", there > 0.01, here < 1e-10)


@case("zennit", "z^B with the input outside its box, and with a box above 0")
def _() -> Finding:
    model, x = drawn(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 196, 3))), images() + 4
    seed = seed_at(model, x)
    there = zennit(model, x, seed.abs(), composites.EpsilonGammaBox(low=LOW, high=HIGH)).min().item()
    errors = [attempt(lambda low=low: ours(model, x, seed, ZBox(low, 9.0 if low > 0 else HIGH))) for low in (LOW, 1.0)]
    return Finding(
        f"computed, relevance down to {there:.2g}",
        " / ".join(errors),
        there < 0,
        all(error.startswith("DomainError") for error in errors),
    )


@case("zennit", "dropout in train mode: two explanations of one input")
def _() -> Finding:
    model, x = (
        drawn(nn.Sequential(nn.Flatten(), nn.Linear(768, 32), nn.ReLU(), nn.Dropout(), nn.Linear(32, 3))).train(),
        images(),
    )
    seed = torch.ones(2, 3, dtype=torch.float64)
    there = difference(*(zennit(model, x, seed, composites.EpsilonPlus()) for _ in range(2)))
    here = attempt(lambda: ours(model, x, seed, "epsilon"))
    return Finding(f"differ by {there:.2g}", here, there > 0.1, here.startswith("InputError"))


@case("zennit", "a model of two inputs")
def _() -> Finding:
    model = Joined(lambda s, x: s.a(x), a=nn.Linear(4, 3, bias=False))

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model
            self.eval()

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return self.model(x) - 2 * self.model(y)

    x, y = torch.randn(2, 2, 4, dtype=torch.float64)
    seed = Two()(x, y).detach()

    def run() -> None:
        with Gradient(Two(), composites.EpsilonPlus()) as attributor:
            attributor((x, y), seed)

    result = dt.explain(Two(), (x, y), target=seed, composite="epsilon")
    total = sum(part.sum() for part in result.relevance.values()) / seed.sum()
    return Finding(
        attempt(run),
        f"relevance of {' and '.join(result.relevance)}, ΣR/f = {total:.4g}",
        bool(attempt(run)),
        abs(total - 1) < 1e-3,
    )


@case("zennit", "explaining under torch.inference_mode()")
def _() -> Finding:
    model, x = vgg_like(), images()
    seed = seed_at(model, x)
    expected = ours(model, x, seed, "epsilon-plus")
    with torch.inference_mode():
        there = attempt(lambda: zennit(model, x, seed, composites.EpsilonPlus()))
        here = difference(ours(model, x, seed, "epsilon-plus"), expected)
    return Finding(there, f"the same to {here:.1g}", bool(there), here < 1e-10)
