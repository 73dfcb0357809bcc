"""Who is measured: deeptaylor's rules, zennit, captum, autolrp and LXT, each where it serves rule and model.

A contender is a function without arguments that explains the inputs once. Models are copied and composites are made
outside of it; hooks are a part of the call. The peers are run, never copied.
"""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from bench_models import Inputs, Subject
from bench_protocol import COMPILED, GRADIENT, Run
from torch import Tensor, nn

import deeptaylor as dt
from deeptaylor.rules import AlphaBeta, Epsilon, GeneralizedGamma, ZPlus
from deeptaylor.unwrap import needed_arguments, opened

CLASSES = 10
"""So many classes of one input are explained together where K = 10."""
RULES: dict[str, Any] = {
    "epsilon": Epsilon(),
    "z+": ZPlus(),
    "gamma": GeneralizedGamma(),
    "alpha-beta": AlphaBeta(),
    "epsilon-plus-flat": "epsilon-plus-flat",
    "epsilon-gamma-box": "epsilon-gamma-box",
}
ATTENTION = ("attn-lrp", "cp-lrp", "res-lrp")
BOX = (-6.0, 6.0)


@dataclass(frozen=True)
class Choice:
    """Which contenders run."""

    rules: Collection[str] = ()
    """Those of these rules; of all where empty."""
    beside: bool = False
    """The other libraries' too."""
    many: bool = False
    """Ours with ten classes of each input, too."""
    compiled: bool = False
    """Ours compiled, too."""

    def takes(self, rule: str) -> bool:
        return not self.rules or rule in self.rules


def gradient_times_input(model: nn.Module, inputs: Inputs) -> Run:
    """The baseline: torch's own gradient, with the arguments that the explainer passes."""
    kwargs = needed_arguments(model)
    name = next(name for name, tensor in inputs.items() if tensor.is_floating_point())

    def run() -> Tensor:
        leaf = inputs[name].clone().requires_grad_()
        output = opened(model, model(**{**inputs, name: leaf}, **kwargs), inputs)
        score = output.gather(1, output.argmax(1, keepdim=True)).sum()
        return leaf.detach() * torch.autograd.grad(score, leaf)[0]

    return run


def ours(model: nn.Module, inputs: Inputs, subject: Subject, choice: Choice) -> dict[str, Run]:
    """deeptaylor's contenders."""
    runs: dict[str, Run] = {}
    rules = {name: name for name in ATTENTION} if subject.attends else RULES
    bounds = {"epsilon-gamma-box": BOX}
    for name, composite in rules.items():
        if not choice.takes(name):
            continue
        explainer = dt.Explainer(model, inputs, composite=composite, bounds=bounds.get(name))
        runs[name] = lambda explainer=explainer: explainer(inputs).relevance
        if choice.compiled:
            code = explainer.compile()
            runs[name + COMPILED] = lambda code=code: code(inputs).relevance
        if choice.many and name in ("z+", "attn-lrp"):
            samples = next(iter(inputs.values())).shape[0]
            targets = torch.arange(CLASSES).repeat(samples, 1)
            runs[f"{name}, K = {CLASSES}"] = lambda explainer=explainer, targets=targets: (
                explainer(inputs, target=targets).relevance
            )
    return runs


def peers(name: str, model: nn.Module, inputs: Inputs, subject: Subject) -> dict[str, Run]:
    """The other libraries' contenders, of those that are installed."""
    if not subject.attends:
        x = next(iter(inputs.values()))
        runs = dict(_zennit(name, model, x)) if _is_there("zennit") else {}
        runs |= _captum(name, model, x) if _is_there("captum") else {}
        return runs | (_autolrp(name, model, x) if _is_there("autolrp") else {})
    return _lxt(name, model, inputs) if _is_there("lxt") else {}


def _is_there(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def _zennit(name: str, model: nn.Module, x: Tensor) -> dict[str, Run]:
    """Not for EfficientNet: zennit has no canonizer for its products, which it would miss without a word."""
    if name.startswith("EfficientNet"):
        return {}
    from zennit import composites, rules
    from zennit.attribution import Gradient
    from zennit.composites import LayerMapComposite, layer_map_base
    from zennit.torchvision import ResNetCanonizer, VGGCanonizer
    from zennit.types import Convolution, Linear

    canonizer = ResNetCanonizer if name.startswith("ResNet") else VGGCanonizer

    def everywhere(rule: Any) -> Any:
        return lambda: LayerMapComposite(
            [*layer_map_base(), (Convolution, rule), (Linear, rule)], canonizers=[canonizer()]
        )

    made = {
        "epsilon": everywhere(rules.Epsilon(1e-6)),
        "z+": everywhere(rules.ZPlus()),
        "gamma": everywhere(rules.Gamma(0.25)),
        "alpha-beta": everywhere(rules.AlphaBeta(2, 1)),
        "epsilon-plus-flat": lambda: composites.EpsilonPlusFlat(canonizers=[canonizer()]),
        "epsilon-gamma-box": lambda: composites.EpsilonGammaBox(*BOX, canonizers=[canonizer()]),
    }
    theirs = copy.deepcopy(model)

    def explained(composite: Any) -> Run:
        def run() -> Tensor:
            with Gradient(theirs, composite) as attributor:
                relevance: Tensor = attributor(x.clone(), _seed)[1].detach()
            return relevance

        return run

    return {f"{rule}, zennit": explained(make()) for rule, make in made.items()}


def _seed(output: Tensor) -> Tensor:
    return output * nn.functional.one_hot(output.argmax(1), output.shape[1])


def _captum(name: str, model: nn.Module, x: Tensor) -> dict[str, Run]:
    """Only for chains of modules that are used once: captum misses functional additions."""
    if name.startswith(("ResNet", "EfficientNet")):
        return {}
    import captum.attr
    from captum.attr._utils import lrp_rules

    rules = {
        "epsilon": lambda: lrp_rules.EpsilonRule(1e-9),
        "z+": lambda: lrp_rules.Alpha1_Beta0_Rule(set_bias_to_zero=True),
        "gamma": lambda: lrp_rules.GammaRule(0.25, set_bias_to_zero=True),
    }

    def explained(make: Any) -> Run:
        theirs = copy.deepcopy(model)
        for module in theirs.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                module.rule = make()
        with torch.no_grad():
            target = theirs(x).argmax(1)
        return lambda: captum.attr.LRP(theirs).attribute(x.clone().requires_grad_(), target=target).detach()

    return {f"{rule}, captum": explained(make) for rule, make in rules.items()}


def _autolrp(name: str, model: nn.Module, x: Tensor) -> dict[str, Run]:
    if name.startswith("EfficientNet"):  # no entry for its activations and products in BASE
        return {}
    import autolrp

    rules: dict[str, Any] = {
        "epsilon": "epsilon",
        "z+": "zplus",
        "gamma": ("gamma", {"gamma": 0.25}),
        "alpha-beta": ("alpha_beta", {"alpha": 2.0, "beta": 1.0}),
    }

    def explained(rule: Any) -> Run:
        entries = dict.fromkeys(("ConvolutionBackward", "AddmmBackward", "MmBackward"), rule)
        config = autolrp.LRPConfig(rule={**autolrp.BASE, **entries}, eps=1e-6)

        def run() -> Tensor:
            wrapped = autolrp.tensor(x.clone())
            output = model(wrapped)
            output.gather(1, torch.as_tensor(output).argmax(1, keepdim=True))[:, 0].lrp(config=config)
            relevance: Tensor = wrapped.relevance.detach()
            return relevance

        return run

    return {f"{rule}, autolrp": explained(spec) for rule, spec in rules.items()}


class Patched:
    """LXT's changes to classes and modules, in effect inside a `with` block."""

    def __init__(self, patches: dict[Any, Any]) -> None:
        before = {target: dict(vars(target)) for target in patches}
        for target, patch in patches.items():
            if not patch(target):
                raise RuntimeError(f"LXT did not patch {target}")
        self.changes = [
            (target, name, own.get(name), value)
            for target, own in before.items()
            for name, value in list(vars(target).items())
            if not name.startswith("__") and own.get(name) is not value
        ]
        if not self.changes:
            raise RuntimeError("LXT changed nothing")
        self.__exit__()

    def __enter__(self) -> None:
        for target, name, _, value in self.changes:
            setattr(target, name, value)

    def __exit__(self, *_: Any) -> None:
        for target, name, own, _ in self.changes:
            delattr(target, name) if own is None else setattr(target, name, own)


def _lxt(name: str, model: nn.Module, inputs: Inputs) -> dict[str, Run]:
    """LXT 2.1 with transformers 4.52, whose functions it replaces; its BERT takes the same weights."""
    label = "attn-lrp, LXT"
    if name.startswith("LLaMA"):
        from lxt.efficient.models import llama as patches

        changes, theirs = patches.attnLRP, model
    elif name.startswith("BERT"):
        from lxt.efficient.models import bert as patches

        theirs = patches.BertForSequenceClassification(model.config)
        theirs.load_state_dict(model.state_dict())
        theirs.eval()
        changes = {target: patch for target, patch in patches.attnLRP.items() if isinstance(target, type)}
    else:
        from lxt.efficient.models import vit_torch as patches

        changes, theirs, label = patches.cp_LRP, model, "cp-lrp, LXT"
    patched, run = Patched(changes), gradient_times_input(theirs, inputs)

    def explained() -> Tensor:
        with patched:
            relevance: Tensor = run()
        return relevance

    return {label: explained}


def contenders(name: str, subject: Subject, batch: int, pixels: int, choice: Choice) -> dict[str, Run]:
    """The chosen contenders for one model and batch size; the baseline first."""
    torch.manual_seed(0)
    model, inputs = subject.make().eval(), subject.inputs(batch, pixels)
    runs = {GRADIENT: gradient_times_input(model, inputs)} | ours(model, inputs, subject, choice)
    others = peers(name, model, inputs, subject) if choice.beside else {}
    return runs | {key: run for key, run in others.items() if choice.takes(key.partition(",")[0])}
