"""What an explanation costs: linear operations per layer, in units of the layer's own forward pass.

A gradient costs 2. The figures are for an explainer that has been called before: what depends on the weights or on
the shape alone is computed once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from counting import LinearOperations, forward_work, work
from torch import Tensor, nn

import deeptaylor as dt
from deeptaylor.rules import AlphaBeta, Epsilon, Flat, Gamma, GeneralizedGamma, LRPZero, WSquare, ZBox, ZPlus

SLACK = 0.05  # a box filter of one channel (flat) is 1/64 of a layer with 8 channels in and out

# rule: units per layer for non-negative and for signed input, and units of every further target
COSTS = {
    "LRP-0": (LRPZero(), 2, 2, 1, 1),
    "epsilon": (Epsilon(), 2, 2, 1, 1),
    "epsilon as a fraction of the rms": (Epsilon(1e-6, rms=0.25), 2, 2, 1, 1),
    "z+": (ZPlus(), 3, 4, 1, 2),
    "z+ of zennit": (ZPlus(convention="zennit"), 3, 4, 1, 2),
    "gamma": (Gamma(0.25), 3, 3, 1, 1),
    "generalised gamma": (GeneralizedGamma(0.25), 3, 4, 1, 2),
    # one less for non-negative input, where few units cancel: see the wide layer below
    "alpha-beta": (AlphaBeta(2.0, 1.0), 5, 6, 2, 4),
    "alpha-beta of zennit": (AlphaBeta(2.0, 1.0, convention="zennit"), 5, 6, 2, 4),
    "w^2": (WSquare(), 2, 2, 1, 1),
    "flat": (Flat(), 1, 1, 0, 0),
    "z^B": (ZBox(-5.0, 5.0), 3, 3, 2, 2),
}

CONV = (lambda: nn.Conv2d(8, 8, 3, padding=1), (8, 6, 6))
LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "convolution": CONV,
    "strided convolution": (lambda: nn.Conv2d(8, 8, 2, stride=2), (8, 6, 6)),
    "transposed convolution": (lambda: nn.ConvTranspose1d(8, 8, 3, stride=2), (8, 9)),
    "linear": (lambda: nn.Linear(16, 16), (16,)),
}


def one_layer(layer: str, signed: bool) -> tuple[nn.Module, Tensor]:
    """The layer before a ReLU, on a batch of 3; for non-negative input also behind one: the graph shows the sign."""
    torch.manual_seed(0)
    make, shape = LAYERS[layer]
    layers = [make(), nn.ReLU()] if signed else [nn.ReLU(), make(), nn.ReLU()]
    return nn.Sequential(*layers).eval(), torch.randn(3, *shape).clamp(-4, 4)


def warm(module: nn.Module, x: Tensor, rule: object, target: Tensor) -> dt.Explainer:
    explainer = dt.Explainer(module, x, composite=rule)
    explainer(x, target=target)
    return explainer


def seed_for(module: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return (module(x) > 0).to(x.dtype)  # as a network would have it: none where the ReLU is off


def test_the_counter_finds_two_units_in_a_gradient() -> None:
    for layer in LAYERS:
        module, x = one_layer(layer, signed=True)
        for parameter in module.parameters():
            parameter.requires_grad_(False)
        x.requires_grad_()
        gradient = work(lambda module=module, x=x: torch.autograd.grad(module(x).sum(), x))
        assert gradient == 2 * forward_work(module, x.detach())


def test_the_counter_counts_work_and_not_calls() -> None:
    x = torch.randn(6, 5)
    with LinearOperations() as together:
        nn.functional.linear(x, torch.ones(4, 5))
    assert [call.multiplications for call in together.calls] == [6 * 5 * 4]


@pytest.mark.parametrize("signed", [False, True], ids=["non-negative input", "signed input"])
@pytest.mark.parametrize("rule", COSTS)
@pytest.mark.parametrize("layer", LAYERS)
def test_a_rule_costs_no_more_than_its_floor(layer: str, rule: str, signed: bool) -> None:
    module, x = one_layer(layer, signed)
    applied, plain, general, *_ = COSTS[rule]
    target = seed_for(module, x)
    explainer = warm(module, x, applied, target)
    units = work(lambda: explainer(x, target=target)) / forward_work(module, x)
    assert units <= (general if signed else plain) + SLACK


@pytest.mark.parametrize("convention", ["paper", "zennit"])
def test_alpha_beta_takes_its_negative_side_from_the_layers_own_sum(convention: Any) -> None:
    torch.manual_seed(0)
    module, x = nn.Sequential(nn.ReLU(), nn.Linear(256, 256), nn.ReLU()).eval(), torch.randn(3, 256)
    target = seed_for(module, x)
    explainer = warm(module, x, AlphaBeta(2.0, 1.0, convention), target)
    assert work(lambda: explainer(x, target=target)) <= (4 + SLACK + 1 / 3) * forward_work(
        module, x
    )  # the check of the weights reads them once


@pytest.mark.parametrize("rule", ["z+", "gamma", "w^2", "flat", "z^B"])
def test_another_batch_of_another_size_finds_the_caches_warm(rule: str) -> None:
    module, x = one_layer("convolution", signed=False)
    applied, plain, *_ = COSTS[rule]
    explainer = warm(module, x, applied, seed_for(module, x))
    other = torch.randn(5, *x.shape[1:])
    target = seed_for(module, other)
    units = work(lambda: explainer(other, target=target)) / forward_work(module, other)
    assert units <= plain + SLACK


def chain() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.ReLU()]
    for _ in range(3):
        layers += [nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval(), torch.randn(3, 8, 6, 6)


@pytest.mark.parametrize("rule", [name for name in COSTS if name not in ("z^B", "w^2", "flat")])
@pytest.mark.parametrize("k", [2, 5])
def test_more_targets_repeat_the_backward_pass_only(rule: str, k: int) -> None:
    model, x = chain()
    applied, plain, _, further, _ = COSTS[rule]
    explainer = dt.Explainer(model, x, composite=applied)
    targets = torch.arange(k).repeat(3, 1)
    explainer(x, target=targets)
    units = work(lambda: explainer(x, target=targets)) / forward_work(model, x)
    assert units <= plain + (k - 1) * further + SLACK


@pytest.mark.parametrize("k", [1, 4])
def test_a_preset_costs_the_sum_of_its_layers(k: int) -> None:
    model, x = chain()
    explainer = dt.Explainer(model, x, composite="epsilon-plus")
    targets = torch.arange(k).repeat(3, 1)
    explainer(x, target=targets)
    units = work(lambda: explainer(x, target=targets)) / forward_work(model, x)
    assert units <= 2 + k + SLACK


def test_ten_classes_share_forward_pass_and_denominators() -> None:
    model, x = chain()
    for rule, shared in ((Epsilon(), 1), (ZPlus(), 2), (GeneralizedGamma(), 2)):
        explainer = dt.Explainer(model, x, composite=rule)
        targets = torch.arange(8).repeat(3, 1)
        explainer(x, target=targets)
        assert work(lambda e=explainer, t=targets: e(x, target=t)) <= (shared + 8 + SLACK) * forward_work(model, x)


def test_the_ledger_adds_no_linear_operation() -> None:
    model, x = chain()
    for composite in ("epsilon", "epsilon-plus"):
        explainer = dt.Explainer(model, x, composite=composite)
        explainer(x, target=0, ledger=True)
        assert work(lambda e=explainer: e(x, target=0, ledger=True)) == work(lambda e=explainer: e(x, target=0))
