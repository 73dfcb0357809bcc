"""deeptaylor beside zennit, captum and autolrp: where they agree, and where they fail (`python benchmarks/agree.py`).

Adapters with one signature, the layers and networks that are compared, and the writer of docs/peers.md. `test_peers.py` holds the
gates. The peers are run, never copied: zennit is under the GPL.

Every method starts from the same relevance at the output, the value of the explained class.
"""

from __future__ import annotations

import copy
import importlib.metadata
import platform
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import autolrp
import captum.attr
import shim  # noqa: F401  before zennit, which imports torchvision
import torch
from captum.attr._utils import lrp_rules as captum_rules
from torch import Tensor, nn
from zennit import composites as zennit_composites
from zennit import rules as zennit_rules
from zennit.attribution import Gradient
from zennit.canonizers import SequentialMergeBatchNorm
from zennit.composites import LayerMapComposite, layer_map_base
from zennit.layer import Sum
from zennit.types import Convolution, Linear

import deeptaylor as dt
from deeptaylor import rules

TABLE = Path(__file__).resolve().parent.parent / "docs" / "peers.md"
LOW, HIGH = -3.0, 3.0
# Where our rule has no stabilizer, zennit's is made too small to matter.
NONE = 1e-30


def difference(ours: Tensor, theirs: Tensor) -> float:
    """Largest difference, as a share of the largest entry of `theirs`."""
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


def seed_at(model: nn.Module, x: Tensor) -> Tensor:
    """The output, and zero but at each sample's largest class."""
    with torch.no_grad():
        output = model(x)
    return output * nn.functional.one_hot(output.argmax(1), output.shape[1])


# --- one adapter per library --------------------------------------------------------------------------------------------


def ours(model: nn.Module, x: Tensor, seed: Tensor, composite: Any, **options: Any) -> Tensor:
    return dt.explain(model, x, target=seed, composite=composite, **options).relevance


def zennit(model: nn.Module, x: Tensor, seed: Tensor, composite: Any) -> Tensor:
    """On a copy: zennit leaves other parameters behind in the model that it explains."""
    with Gradient(copy.deepcopy(model), composite) as attributor:
        return attributor(x.clone(), seed)[1].detach()


def zennit_rule(rule: Any) -> LayerMapComposite:
    """One rule for every convolution and linear layer."""
    return LayerMapComposite([*layer_map_base(stabilizer=NONE), (Convolution, rule), (Linear, rule)])


def captum_lrp(model: nn.Module, x: Tensor, rule: Callable[[], Any]) -> Tensor:
    """Captum takes a class, not relevance, and multiplies by its value."""
    model = copy.deepcopy(model)
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.rule = rule()
    with torch.no_grad():
        target = model(x).argmax(1)
    return captum.attr.LRP(model).attribute(x.clone().requires_grad_(), target=target).detach()


def autolrp_rule(model: nn.Module, x: Tensor, rule: Any, epsilon: float) -> Tensor:
    """Autolrp starts from 1, so its map is multiplied by the value of the class."""
    seed = seed_at(model, x).sum(1)
    config = autolrp.LRPConfig(
        rule={**autolrp.BASE, "ConvolutionBackward": rule, "AddmmBackward": rule, "MmBackward": rule}, eps=epsilon
    )
    wrapped = autolrp.tensor(x.clone())
    output = model(wrapped)
    output.gather(1, torch.as_tensor(output).argmax(1, keepdim=True))[:, 0].lrp(config=config)
    return wrapped.relevance.detach() * seed.view(-1, *[1] * (x.dim() - 1))


# --- what is compared -------------------------------------------------------------------------------------------------


class Layer(NamedTuple):
    make: Callable[[bool], nn.Module]
    shape: tuple[int, ...]


LAYERS = {
    "linear": Layer(lambda bias: nn.Linear(9, 7, bias=bias), (9,)),
    "conv1d": Layer(lambda bias: nn.Conv1d(3, 5, 3, bias=bias), (3, 11)),
    "conv2d": Layer(lambda bias: nn.Conv2d(3, 5, 3, padding=1, bias=bias), (3, 8, 7)),
    "conv3d": Layer(lambda bias: nn.Conv3d(2, 3, 2, padding=1, bias=bias), (2, 4, 5, 4)),
    "strided": Layer(lambda bias: nn.Conv2d(3, 5, 3, stride=2, padding=1, bias=bias), (3, 8, 7)),
    "dilated": Layer(lambda bias: nn.Conv2d(3, 5, 3, dilation=2, padding=2, bias=bias), (3, 8, 7)),
    "grouped": Layer(lambda bias: nn.Conv2d(4, 6, 3, groups=2, bias=bias), (4, 7, 7)),
    "transposed 1d": Layer(lambda bias: nn.ConvTranspose1d(3, 4, 3, stride=2, output_padding=1, bias=bias), (3, 7)),
    "transposed 2d": Layer(
        lambda bias: nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, groups=2, bias=bias), (4, 5, 4)
    ),
    "transposed 3d": Layer(lambda bias: nn.ConvTranspose3d(2, 3, 2, bias=bias), (2, 3, 3, 3)),
}


class Pair(NamedTuple):
    ours: Any
    zennit: Callable[[], Any]


RULES = {
    "epsilon": Pair(rules.Epsilon(1e-6), lambda: zennit_rules.Epsilon(1e-6)),
    "z+": Pair(rules.ZPlus(convention="zennit"), zennit_rules.ZPlus),
    "z+, paper": Pair(rules.ZPlus(), lambda: zennit_rules.ZPlus(zero_params="bias", stabilizer=NONE)),
    "alpha 2 beta 1": Pair(rules.AlphaBeta(2, 1, convention="zennit"), lambda: zennit_rules.AlphaBeta(2, 1)),
    "gamma": Pair(rules.GeneralizedGamma(0.25), lambda: zennit_rules.Gamma(0.25, stabilizer=NONE)),
    "z^B": Pair(rules.ZBox(LOW, HIGH), lambda: zennit_rules.ZBox(LOW, HIGH, stabilizer=NONE)),
    "w²": Pair(rules.WSquare(convention="zennit"), zennit_rules.WSquare),
    "w², paper": Pair(rules.WSquare(), lambda: zennit_rules.WSquare(zero_params="bias", stabilizer=NONE)),
    "flat": Pair(rules.Flat(), lambda: zennit_rules.Flat(stabilizer=NONE)),
}
AUTOLRP = {
    "epsilon": (rules.Epsilon(1e-6), "epsilon", 1e-6),
    "z+": (rules.ZPlus(convention="zennit"), "zplus", 1e-6),
    "alpha 2 beta 1": (rules.AlphaBeta(2, 1, convention="zennit"), ("alpha_beta", {"alpha": 2.0, "beta": 1.0}), 1e-6),
    "gamma": (rules.GeneralizedGamma(0.25), ("gamma", {"gamma": 0.25}), NONE),
}
CAPTUM = {
    "epsilon": (rules.Epsilon(1e-9), lambda: captum_rules.EpsilonRule(1e-9)),
    "z+": (rules.ZPlus(), lambda: captum_rules.Alpha1_Beta0_Rule(set_bias_to_zero=True)),
    "gamma": (rules.Gamma(0.25, bias="ignore"), lambda: captum_rules.GammaRule(0.25, set_bias_to_zero=True)),
}


def sample(shape: tuple[int, ...], *, positive: bool, dtype: torch.dtype, batch: int = 4) -> Tensor:
    x = torch.randn(batch, *shape, dtype=torch.float64).clamp(LOW, HIGH)
    return (x.abs() if positive else x).to(dtype)


def small_net(bias: bool) -> nn.Module:
    """conv-ReLU-conv-ReLU-maxpool-fc: what all three peers can run."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 6, 3, padding=1, bias=bias), nn.Conv2d(6, 8, 3, padding=1, bias=bias)
            self.act, self.act2, self.pool = nn.ReLU(), nn.ReLU(), nn.MaxPool2d(2)
            self.fc = nn.Linear(8 * 16, 5, bias=bias)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(torch.flatten(self.pool(self.act2(self.b(self.act(self.a(x))))), 1))

    return Net().eval().double()


def vgg_like() -> nn.Module:
    def stage(before: int, after: int) -> list[nn.Module]:
        return [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU()]

    features = [
        *stage(3, 8),
        nn.MaxPool2d(2),
        *stage(8, 12),
        *stage(12, 12),
        nn.MaxPool2d(2),
        *stage(12, 16),
        nn.AdaptiveAvgPool2d(2),
    ]
    return drawn(nn.Sequential(*features, nn.Flatten(), nn.Linear(64, 20), nn.ReLU(), nn.Dropout(), nn.Linear(20, 10)))


class Block(nn.Module):
    """A residual block that adds with `+`, or with zennit's `Sum`."""

    def __init__(self, before: int, after: int, stride: int, *, module_sum: bool) -> None:
        super().__init__()
        self.a, self.norm_a = nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after)
        self.act_a, self.act = nn.ReLU(), nn.ReLU()
        self.b, self.norm_b = nn.Conv2d(after, after, 3, 1, 1, bias=False), nn.BatchNorm2d(after)
        changes = stride > 1 or before != after
        self.skip = (
            nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))
            if changes
            else nn.Identity()
        )
        self.sum = Sum() if module_sum else None

    def forward(self, x: Tensor) -> Tensor:
        y, skip = self.norm_b(self.b(self.act_a(self.norm_a(self.a(x))))), self.skip(x)
        return self.act(y + skip if self.sum is None else self.sum(torch.stack([y, skip], dim=-1)))


def resnet_like(*, module_sum: bool) -> nn.Module:
    """The same weights whichever way it adds."""
    stem = [nn.Conv2d(3, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    blocks = [
        Block(before, after, stride, module_sum=module_sum)
        for before, after, stride in ((8, 8, 1), (8, 12, 2), (12, 12, 1), (12, 16, 2))
    ]
    return drawn(nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10)))


@torch.no_grad()
def drawn(model: nn.Module) -> nn.Module:
    """In eval mode and float64, with random biases and batch-norm statistics; the same for the same layers."""
    generator = torch.Generator().manual_seed(0)

    def normal(like: Tensor, scale: float) -> Tensor:
        return scale * torch.randn(like.shape, generator=generator)

    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.copy_(normal(module.running_mean, 0.2))
            module.running_var.copy_(0.5 + torch.rand(module.running_var.shape, generator=generator))
            module.weight.copy_(1 + normal(module.weight, 0.1))
            module.bias.copy_(normal(module.bias, 0.1))
        elif isinstance(module, nn.Conv2d | nn.Linear):
            module.weight.copy_(normal(module.weight, (2 / module.weight[0].numel()) ** 0.5))
            if module.bias is not None:
                module.bias.copy_(normal(module.bias, 0.1))
    return model.eval().double()


NETWORKS: Mapping[str, tuple[Callable[[], nn.Module], Callable[[], nn.Module]]] = {
    "VGG-like": (vgg_like, vgg_like),
    "ResNet-like": (lambda: resnet_like(module_sum=False), lambda: resnet_like(module_sum=True)),
}


def zennit_preset(name: str, *, matched: bool = True) -> Any:
    """zennit's preset of our name, with batch norm merged; `matched`: without the stabilizers that our rules lack."""
    options: dict[str, Any] = {"low": LOW, "high": HIGH} if "Box" in name else {}
    if matched and "Flat" in name:
        options["first_map"] = [(Linear, zennit_rules.Flat(stabilizer=NONE))]
    if matched and "Box" in name:
        options["first_map"] = [(Convolution, zennit_rules.ZBox(LOW, HIGH, stabilizer=NONE))]
        options["layer_map"] = [(Convolution, zennit_rules.Gamma(0.25, stabilizer=NONE))]
    return getattr(zennit_composites, name)(canonizers=[SequentialMergeBatchNorm()], **options)


PRESETS = {
    "epsilon-plus": "EpsilonPlus",
    "epsilon-plus-flat": "EpsilonPlusFlat",
    "epsilon-alpha2-beta1": "EpsilonAlpha2Beta1",
    "epsilon-alpha2-beta1-flat": "EpsilonAlpha2Beta1Flat",
    "epsilon-gamma-box": "EpsilonGammaBox",
}


# --- docs/peers.md ------------------------------------------------------------------------------------------------------


def agreement() -> list[str]:
    """Largest difference per rule and library, float64, over all layers, biases and signs that are compared."""
    torch.manual_seed(0)
    cases = []
    for layer in LAYERS.values():
        for bias in (True, False):
            model = layer.make(bias).eval().double()
            cases += [
                (model, sample(layer.shape, positive=positive, dtype=torch.float64)) for positive in (True, False)
            ]
    biased, free, x = small_net(True), small_net(False), sample((3, 8, 8), positive=True, dtype=torch.float64)
    lines = [
        "| rule | zennit, one layer | zennit, network with biases | autolrp, network without | captum, network without |",
        "|---|---|---|---|---|",
    ]
    for name, pair in RULES.items():
        found = []
        for model, inputs in cases:
            seed = torch.randn_like(model(inputs))
            theirs = zennit(model, inputs, seed, zennit_rule(pair.zennit()))
            found.append(difference(ours(model, inputs, seed, pair.ours), theirs))
        cells = [f"{max(found):.0e}", "–", "–", "–"]
        if name != "z^B":  # for the first layer only: inner activations have no box
            seed = seed_at(biased, x)
            theirs = zennit(biased, x, seed, zennit_rule(pair.zennit()))
            cells[1] = f"{difference(ours(biased, x, seed, pair.ours), theirs):.0e}"
        if name in AUTOLRP:
            rule, spec, epsilon = AUTOLRP[name]
            cells[2] = f"{difference(ours(free, x, seed_at(free, x), rule), autolrp_rule(free, x, spec, epsilon)):.0e}"
        if name in CAPTUM:
            rule, make = CAPTUM[name]
            cells[3] = f"{difference(ours(free, x, seed_at(free, x), rule), captum_lrp(free, x, make)):.0e}"
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def presets() -> list[str]:
    """Largest difference per preset and network, float64."""
    lines = ["| preset | " + " | ".join(f"{name} | as zennit ships" for name in NETWORKS) + " |"]
    lines.append("|---|" + "---|---|" * len(NETWORKS))
    networks = [(make_ours(), make_theirs()) for make_ours, make_theirs in NETWORKS.values()]
    torch.manual_seed(0)
    x = sample((3, 16, 16), positive=False, dtype=torch.float64)
    for name, theirs in PRESETS.items():
        cells = []
        for model, their_model in networks:
            seed = seed_at(model, x)
            relevance = ours(model, x, seed, name, **({"bounds": (LOW, HIGH)} if "box" in name else {}))
            for matched in (True, False):
                expected = zennit(their_model, x, seed, zennit_preset(theirs, matched=matched))
                cells.append(f"{difference(relevance, expected):.0e}")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def main() -> int:
    """Writes docs/peers.md."""
    import failures_captum  # noqa: F401  registers its cases
    import failures_zennit  # noqa: F401
    from failures import FAILURES

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    versions = ", ".join(
        f"{name} {importlib.metadata.version(name)}" for name in ("zennit", "captum", "autolrp", "torchvision")
    )
    lines = [
        "# Beside other libraries",
        "",
        f"Made by `python benchmarks/agree.py` with {versions}, torch {torch.__version__}, Python ",
    ]
    lines[-1] += f"{platform.python_version()}. `make peers` checks it."
    lines += [
        "",
        "## Where they agree",
        "",
        "Largest difference as a share of the largest relevance, in float64, from the same relevance at the output.",
        "",
    ]
    lines += [
        *agreement(),
        "",
        *presets(),
        "",
        "## Where they fail",
        "",
        "| library | case | there | here |",
        "|---|---|---|---|",
    ]
    wrong = []
    for failure in FAILURES:
        found = failure.observe()
        lines.append(f"| {failure.library} | {failure.case} | {found.there} | {found.here} |")
        wrong += [failure.case] * (not found.right)
    TABLE.write_text("\n".join(lines) + "\n")
    print("\n".join(lines))
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
