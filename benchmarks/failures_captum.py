"""Cases in which captum 0.9.0 fails; see `failures.py`."""

from __future__ import annotations

import captum.attr
import torch
from agree import captum_lrp, difference, drawn, ours, seed_at
from captum.attr._utils import lrp_rules
from failures import PAPER, Finding, Joined, attempt, case, functions, gap, images, residual_blocks, reused, share, zoo
from torch import nn

import deeptaylor as dt
from deeptaylor.rules import ZPlus


@case("captum", "`x + f(x)` in a forward, no biases")
def _() -> Finding:
    return residual_blocks(lambda model, x: captum_lrp(model, x, lrp_rules.EpsilonRule))


@case("captum", "F.gelu, F.silu, torch.tanh in a forward, no biases")
def _() -> Finding:
    return functions(lambda model, x: captum_lrp(model, x, lrp_rules.EpsilonRule))


@case("captum", "one linear layer used twice")
def _() -> Finding:
    shared, unrolled, x = reused()
    seed = seed_at(shared, x)
    there = attempt(lambda: captum_lrp(shared, x, lrp_rules.EpsilonRule))
    here = difference(ours(shared, x, seed, "epsilon"), ours(unrolled, x, seed, "epsilon"))
    return Finding(there, f"differs from two copies by {here:.2g}", bool(there), here < 1e-12)


@case("captum", "resnet18 without biases")
def _() -> Finding:
    model, x = zoo("resnet18"), images(1, 64)
    seed = seed_at(model, x)
    there, here = (
        share(captum_lrp(model, x, lrp_rules.EpsilonRule), seed).item(),
        share(ours(model, x, seed, PAPER), seed).item(),
    )
    return Finding(f"ΣR/f = {there:.2g}", f"ΣR/f = {here:.4g}", abs(there) > 100, abs(here - 1) < 1e-3)


@case("captum", "mobilenet_v2, efficientnet_b0, convnext_tiny")
def _() -> Finding:
    x, there, here = images(1, 64), [], []
    for name in ("mobilenet_v2", "efficientnet_b0", "convnext_tiny"):
        model = zoo(name)
        there.append(attempt(lambda model=model: captum_lrp(model, x, lrp_rules.EpsilonRule)).split(":")[0])
        here.append(gap(model, x, PAPER))
    return Finding(", ".join(there), f"ledgers close to {max(here):.1g}", all(there), max(here) < 1e-9)


@case("captum", "the same call twice, with rules set by the user")
def _() -> Finding:
    model, x = (
        drawn(nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Conv2d(6, 3, 1))),
        images(),
    )
    model = Joined(lambda s, x: s.body(x).flatten(1), body=model)
    model.body[0].rule = lrp_rules.GammaRule()
    lrp = captum.attr.LRP(model)
    first, second = (lrp.attribute(x.clone().requires_grad_(), target=0).detach() for _ in range(2))
    explainer = dt.Explainer(model, x, composite=ZPlus())
    same = torch.equal(explainer(x, target=0).relevance, explainer(x, target=0).relevance)
    there = difference(second, first)
    return Finding(f"differ by {there:.2g}", "equal" if same else "differ", there > 1e-3, same)


@case("captum", "z⁺ on signed input with a positive seed: smallest relevance")
def _() -> Finding:
    model, x = (
        drawn(nn.Sequential(nn.Linear(12, 8, bias=False), nn.ReLU(), nn.Linear(8, 3, bias=False))),
        torch.randn(4, 12, dtype=torch.float64),
    )
    keep = seed_at(model, x).sum(1) > 0
    x = x[keep]
    there = captum_lrp(model, x, lrp_rules.Alpha1_Beta0_Rule).min().item()
    here = ours(model, x, seed_at(model, x), ZPlus()).min().item()
    return Finding(f"{there:.2g}", f"{here + 0.0:.2g}", there < -1e-3, here >= 0)
