"""Composites: ordered lines (match, rule). The first line that matches a place, with a rule for its role, serves it."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor

from .errors import CompositeError
from .graph import Node
from .ops import Op, Role
from .rules import (
    AlphaBeta,
    Epsilon,
    Flat,
    GeneralizedGamma,
    Gradient,
    HeldConstant,
    LRPZero,
    Move,
    PositiveProportional,
    Proportional,
    ResidualGamma,
    Rule,
    Secant,
    SignalTakesAll,
    StatisticConstant,
    Uniform,
    WinnerTakesAll,
    WSquare,
    ZBox,
    ZPlus,
)
from .rules.affine import ZENNIT_STABILIZER
from .rules.base import Convention

Bound = Tensor | float


@dataclass(frozen=True)
class Place:
    """One operation as composites see it."""

    node: Node
    op: Op
    first: bool = False
    """affine: no affine operation lies between it and the explained inputs."""
    last: bool = False
    """affine: no affine operation lies between it and the output."""
    index: int | None = None
    """affine: its number, in the order in which the operations run."""
    has_convolution: bool = False
    """Whether it is a convolution."""
    residual: bool = False
    """sum: whether it adds to a value something computed from it."""
    gate_kind: int = 0
    """product: how its gates were told, 1 to 4, or 0; see `facts.Gates`."""

    @property
    def role(self) -> Role:
        return self.op.role


Match = Callable[[Place], bool]


def role(name: Role) -> Match:
    """Operations of one role."""
    return lambda place: place.role == name


def op(*names: str) -> Match:
    """Operations by bare name or pattern: 'conv2d', 'max_pool*'."""
    return lambda place: any(fnmatch.fnmatch(place.node.short, name) for name in names)


def module(pattern: str) -> Match:
    """Operations written in a module whose path fits the pattern: 'features.*'."""
    return lambda place: fnmatch.fnmatch(place.node.module, pattern)


def first(name: Role = "affine") -> Match:
    """The first affine operations after the explained inputs, by the flow of data."""
    return lambda place: place.role == name and place.first


def last(name: Role = "affine") -> Match:
    """The last affine operations before the output."""
    return lambda place: place.role == name and place.last


def index(*numbers: int) -> Match:
    """Affine operations by number, in the order in which they run."""
    return lambda place: place.index in numbers


DEFAULTS: tuple[tuple[Match, Rule], ...] = (
    (op("*max_pool*"), WinnerTakesAll()),
    (role("rearrange"), Move()),
    (role("sum"), Proportional()),
    (role("activation"), Secant()),
    (role("product"), SignalTakesAll()),
    (role("normalization"), StatisticConstant()),
    (role("softmax"), Gradient()),
    (role("affine"), Epsilon()),
)


@dataclass(frozen=True)
class Composite:
    """Ordered lines (match, rule); roles that no line serves take `DEFAULTS`.

    Three lines make one of your own::

        composite = dt.Composite([
            (dt.composites.first("affine"), dt.rules.WSquare()),
            (dt.composites.role("affine"), dt.rules.ZPlus()),
        ])
    """

    lines: Sequence[tuple[Match, Rule]]
    name: str = "custom"
    why: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    instead: Callable[..., Any] | None = None
    """What gives the relevance in place of the rules: called with explainer, call, target, the rules' own attribution,
    bounds, and whether a ledger is wanted."""

    def __post_init__(self) -> None:
        for number, line in enumerate(self.lines, 1):
            pair = line if isinstance(line, tuple | list) else ()
            if len(pair) != 2 or not callable(pair[0]) or not isinstance(pair[1], Rule):
                raise CompositeError(
                    f"line {number} of composite {self.name!r} is {line!r}; write a list of (match, rule), for example "
                    "dt.Composite([(dt.composites.role('affine'), dt.rules.ZPlus())])"
                )

    def rule_for(self, place: Place) -> Rule:
        """The rule of the first line that matches.

        Raises:
            CompositeError: a line matches whose rule can't serve the place's role.
        """
        for match, rule in [*self.lines, *DEFAULTS]:
            if match(place):
                if place.role in rule.roles:
                    return rule
                raise CompositeError(
                    f"composite {self.name!r} gives {place.node.kind} at {place.node.file}:{place.node.line} the rule "
                    f"{rule}, which serves {', '.join(rule.roles) or 'no role'}; its role is {place.role}. "
                    "Narrow the match, for example with dt.composites.role(...)"
                )
        raise CompositeError(f"no rule for {place.node.kind}, role {place.role!r}")


Chooser = Callable[[Sequence[Place], bool], Composite]
"""Makes a composite for the operations of a graph, told whether ids are explained rather than numbers."""


def deep_taylor(
    low: Bound | None = None, high: Bound | None = None, logits: Rule | None = None, boxed: bool | None = None
) -> Composite:
    """Deep Taylor decomposition: z⁺ inside, z^B at bounded input or w² at unbounded. Montavon et al. 2017.

    Sums take z⁺ too. The last affine layer takes `logits`, by default epsilon: with z⁺ there, a class's relevance
    hardly differs from another's (negative weights, which tell the classes apart, would be ignored).

    Args:
        low: lower bounds of the input; with `high` they choose z^B.
        high: upper bounds of the input.
        logits: rule of the last affine layer; `ZPlus()` for the paper to the letter.
        boxed: z^B even without bounds, within each sample's own range.
    """
    box = boxed if boxed is not None else low is not None or high is not None
    at_input: Rule = ZBox(low, high) if box else WSquare()
    lines = [
        (first(), at_input),
        (last(), logits if logits is not None else Epsilon()),
        (role("affine"), ZPlus()),
        (role("sum"), PositiveProportional()),
    ]
    return Composite(lines, "deep-taylor", settings={"input": str(at_input), "logits": str(lines[1][1])})


def epsilon(epsilon: float = 1e-6, rms: float = 0.0) -> Composite:
    """Epsilon everywhere; with a tiny epsilon and ReLU, gradient × input."""
    return Composite([(role("affine"), Epsilon(epsilon, rms)), (role("sum"), Proportional(epsilon))], "epsilon")


def _is_dense(place: Place) -> bool:
    return place.role == "affine" and not place.has_convolution


def _layered(
    name: str, convolutions: Rule, epsilon: float, first_rule: Rule | None = None, **settings: Any
) -> Composite:
    """A rule for convolutions, epsilon for dense layers, perhaps another rule at the first layer."""
    # zennit's stabilizer at sums; where the papers' convention is asked for, none
    sums = Proportional(0.0 if settings.get("convention") == "paper" else ZENNIT_STABILIZER)
    lines: list[tuple[Match, Rule]] = [] if first_rule is None else [(first(), first_rule)]
    lines += [(_is_dense, Epsilon(epsilon)), (role("affine"), convolutions), (role("sum"), sums)]
    return Composite(lines, name, settings=settings)


def epsilon_plus(epsilon: float = 1e-6, convention: Convention = "zennit") -> Composite:
    """z⁺ at convolutions, epsilon at dense layers."""
    return _layered("epsilon-plus", ZPlus(convention), epsilon, convention=convention)


def epsilon_plus_flat(epsilon: float = 1e-6, convention: Convention = "zennit") -> Composite:
    """`epsilon_plus` with equal shares at the first layer."""
    return _layered("epsilon-plus-flat", ZPlus(convention), epsilon, Flat(), convention=convention)


def epsilon_alpha2_beta1(epsilon: float = 1e-6, convention: Convention = "zennit") -> Composite:
    """alpha-beta (2, 1) at convolutions, epsilon at dense layers."""
    return _layered("epsilon-alpha2-beta1", AlphaBeta(2.0, 1.0, convention), epsilon, convention=convention)


def epsilon_alpha2_beta1_flat(epsilon: float = 1e-6, convention: Convention = "zennit") -> Composite:
    """`epsilon_alpha2_beta1` with equal shares at the first layer."""
    rule = AlphaBeta(2.0, 1.0, convention)
    return _layered("epsilon-alpha2-beta1-flat", rule, epsilon, Flat(), convention=convention)


def epsilon_gamma_box(
    low: Bound | None = None, high: Bound | None = None, gamma: float = 0.25, epsilon: float = 1e-6
) -> Composite:
    """z^B at the first layer, gamma at convolutions, epsilon at dense layers.

    Without bounds the box is each sample's own range.
    """
    return _layered("epsilon-gamma-box", GeneralizedGamma(gamma), epsilon, ZBox(low, high), gamma=gamma)


def _attention(name: str, products: Rule, *first_lines: tuple[Match, Rule], **settings: Any) -> Composite:
    """Rules in product form for everything but gates and attention, which take `products`."""
    lines = [*first_lines, (role("product"), products), (role("affine"), LRPZero()), (role("sum"), Proportional())]
    return Composite(lines, name, settings=settings)


def attn_lrp() -> Composite:
    """AttnLRP (Achtibat et al. 2024): softmax expanded at x, equal shares in products, statistics held constant.

    Every rule keeps the product form R = x·c, so this costs what a gradient costs, and divides by nothing small.
    """
    return _attention("attn-lrp", Uniform())


def cp_lrp() -> Composite:
    """CP-LRP (Ali et al. 2022): attention weights, gates and statistics held constant; the signal takes all."""
    return _attention("cp-lrp", SignalTakesAll())


def res_lrp(gamma: float = 1.0) -> Composite:
    """ResLRP (Berend et al. 2026): `attn_lrp` with gamma at residual additions, where branches cancel."""
    residual = (lambda place: place.residual, ResidualGamma(gamma))
    return _attention("res-lrp", Uniform(), residual, gamma=gamma)


def mamba_lrp() -> Composite:
    """MambaLRP (Rezaei Jafari et al. 2024): what selects the state is held constant; its output gate takes half."""
    halves = (lambda place: place.role == "product" and place.gate_kind == 2, Uniform())
    return _attention("mamba-lrp", SignalTakesAll(readouts=True), halves)


def gradient_times_input() -> Composite:
    """Every operation expanded at x: equals x · autograd's gradient."""
    return Composite([(op("detach"), HeldConstant()), (lambda place: True, Gradient())], "gradient-times-input")


def auto(places: Sequence[Place] = (), ids: bool = False, bounds: tuple[Bound, Bound] | None = None) -> Composite:
    """Chooses by what the graph holds; the plan says what was chosen, and why.

    Convolutions: on eight photos and EfficientNet-Lite0, `epsilon-gamma-box` had the highest symmetric relevance gain
    of all presets, under two ways of filling in (`benchmarks/auto_choice.py`). Over words they take `epsilon`: z^B
    within the range of a text's own word vectors shares out less well (`benchmarks/sentiment.py`).
    """
    convolutions = sum(place.has_convolution for place in places)
    dense = sum(place.role == "affine" for place in places) - convolutions
    attends = any(place.role == "softmax" or place.op.attends for place in places)
    scans = any(place.gate_kind == 4 for place in places)
    if attends and dense >= convolutions:
        chosen, why = attn_lrp(), "the graph has attention: softmax expanded at x, equal shares in products"
    elif scans and dense >= convolutions:
        chosen, why = mamba_lrp(), "the graph has selective states: what selects them is held constant"
    elif convolutions and ids:
        chosen, why = epsilon(), "the graph has convolutions over words: epsilon everywhere"
    elif convolutions:
        chosen = epsilon_gamma_box(*(bounds or ()))
        why = "the graph has convolutions: gamma there, z^B at the first layer, epsilon at dense layers"
    else:
        chosen = epsilon()
        why = "the graph has neither convolutions nor attention: epsilon at dense layers, the signal takes all at gates"
    return Composite(chosen.lines, chosen.name, f"auto chose {chosen.name}: {why}", chosen.settings)


PRESETS: dict[str, Callable[..., Composite]] = {
    "deep-taylor": deep_taylor,
    "epsilon": epsilon,
    "epsilon-plus": epsilon_plus,
    "epsilon-plus-flat": epsilon_plus_flat,
    "epsilon-alpha2-beta1": epsilon_alpha2_beta1,
    "epsilon-alpha2-beta1-flat": epsilon_alpha2_beta1_flat,
    "epsilon-gamma-box": epsilon_gamma_box,
    "attn-lrp": attn_lrp,
    "cp-lrp": cp_lrp,
    "res-lrp": res_lrp,
    "mamba-lrp": mamba_lrp,
    "gradient-times-input": gradient_times_input,
    "auto": auto,
}


EXACT_ROOT, MINMAX = "exact-root", "deep-taylor-minmax"


def exact_root() -> Composite:
    """Taylor decomposition of the whole score at the exact nearest root in the input's own region; see `audit`.

    For piecewise linear networks; `bounds` are the domain that the root lies in.
    """
    lines = gradient_times_input().lines
    return Composite(lines, EXACT_ROOT, "the gradient is that of the input's region", instead=_at_exact_root)


def _at_exact_root(*given: Any) -> Any:
    from .audit.at_root import at_exact_root

    return at_exact_root(*given)


def by_name(name: str, bounds: tuple[Bound, Bound] | None = None) -> Composite | Chooser:
    """The preset of that name, with the input's bounds where it takes them; 'auto' needs the graph to choose.

    Raises:
        CompositeError: no preset has that name; the nearest is named.
    """
    if name == EXACT_ROOT:
        return exact_root()
    if name == MINMAX:
        raise CompositeError(
            f"{MINMAX} needs relevance models trained on your data: composite = dt.fit_minmax(model, data, "
            f"bounds=(low, high), target=...), then composite=composite"
        )
    if name not in PRESETS:
        near = difflib.get_close_matches(name.lower().replace("_", "-"), (*PRESETS, EXACT_ROOT), n=1, cutoff=0.3)
        hint = f"did you mean {near[0]!r}? " if near else ""
        presets = ", ".join((*PRESETS, EXACT_ROOT))
        raise CompositeError(f"no composite is called {name!r}; {hint}The presets are {presets}")
    if name == "auto":
        return partial(auto, bounds=bounds)
    if bounds is not None and name in ("deep-taylor", "epsilon-gamma-box"):
        return PRESETS[name](low=bounds[0], high=bounds[1])
    return PRESETS[name]()


def single_rule(rule: Rule) -> Composite:
    """One rule wherever it can serve, among the roles that it names; defaults elsewhere."""
    return Composite([(lambda place: place.role in rule.roles and _fits(rule, place), rule)], str(rule))


def _fits(rule: Rule, place: Place) -> bool:
    # a rule for max-pooling says "rearrange", but does not serve views
    return place.role != "rearrange" or isinstance(rule, Gradient) or "max_pool" in place.node.short
