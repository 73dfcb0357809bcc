"""One function for all rules of affine layers z_j = Σ_i w_ij x_i + b_j: `redistribute`.

    R_{i←j} = Σ_k a_k(x_i) b_k(w_ij) / Σ_{i',k} a_k(x_i') b_k(w_i'j) · R_j         (Montavon et al. 2017, section 3)

A `Part` is one pair of input map a_k and weight map b_k. Bias policies:

* "ignore": the bias is not in the denominator and takes nothing (deep Taylor decomposition)
* "absorb": it is in the denominator, as a neuron of activation 1, and keeps its share
* "distribute": its share is handed to the neuron's inputs, in equal parts
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from torch import Tensor

from ..affine import Affine
from ..errors import CompositeError
from ..step import Step
from .base import Bias, Redistribution, Relevance, divided, is_zero, kept_share, product_into, sum_into
from .maps import ONE, ONES, SAME, InputMap, WeightMap


@dataclass(frozen=True)
class Part:
    """One linear piece a(x)·b(w) of a rule, with a sign or a factor per output."""

    inputs: InputMap
    weights: WeightMap
    scale: Tensor | float = 1.0

    @property
    def key(self) -> tuple[str, str]:
        return self.inputs.name, self.weights.name


def redistribute(
    step: Step,
    relevance: Relevance,
    parts: Sequence[Part],
    *,
    bias: Bias = "ignore",
    epsilon: Tensor | float = 0.0,
    denominator: Callable[[], Tensor] | None = None,
    biased: bool = False,
    nonnegative: bool = False,
    weight: Tensor | float = 1.0,
) -> Redistribution:
    """Messages proportional to Σ_k a_k(x_i) b_k(w_ij), and the shares of bias and stabilizer.

    Args:
        step: an affine step.
        relevance: of `step.z`.
        parts: the pairs (a_k, b_k) with their factors.
        bias: what becomes of the bias's share.
        epsilon: stabilizer of the denominator, ≥ 0; 0 drops (and books) what meets a denominator of exactly 0.
        denominator: a cheaper way to Σ_i,k a_k b_k, without the bias.
        biased: says that `denominator` holds the bias's part already, where the policy asks for it.
        nonnegative: says that the denominator is ≥ 0 where relevance arrives.
        weight: multiplies the relevance: so much of it these parts hand on.
    """
    affine = affine_of(step)
    native = [part.key for part in parts] == [("x", "w")] and bias != "ignore"

    def divisor() -> Tensor:
        return cast(Tensor, step.z) if native else denominator_of(step, parts, bias, denominator, biased)

    passes = native and relevance.product and not _positive(epsilon)
    whole = isinstance(weight, float) and weight == 1
    if passes and whole:
        s = relevance.tensor
    elif relevance.product and not step.is_complex:
        s = relevance.times(_share(step, parts, bias, epsilon, divisor, nonnegative, weight))
    else:
        s = _scaled(weight, relevance.over(divisor(), step.z, epsilon))

    product = all(part.inputs.per is not None for part in parts)
    spread = any(part.weights is ONES for part in parts)
    message = Relevance(_message(step, parts, s, product), product, own=not spread)
    if bias == "distribute" and affine.bias is not None:
        count = affine.count()
        dealt = s * _bias(step, parts, bias) * (count > 0) / count.clamp(min=1)
        message = message.plus(Relevance(affine.spread(dealt).expand_as(step.x)), lambda: step.x)
    if not step.memo.audited:  # what follows would hold on to s
        return Redistribution((message,))
    # without a stabilizer, only a unit with an empty denominator keeps relevance: its bias alone made it active
    keeper = "stabilizer" if _positive(epsilon) else "rule" if affine.bias is None else "bias"
    absorbed: dict[Any, Callable[[], Tensor]] = {
        keeper: lambda: _scaled(weight, relevance.total(step.z)) - s * divisor()
    }
    if bias == "distribute" and affine.bias is not None:  # a unit without inputs keeps its share
        absorbed["bias"] = added(absorbed.get("bias"), lambda: s * _bias(step, parts, bias) * (affine.count() == 0))
    if bias == "absorb" and affine.bias is not None:
        absorbed["bias"] = added(absorbed.get("bias"), lambda: s * _bias(step, parts, bias))
    return Redistribution((message,), absorbed)


def _share(
    step: Step,
    parts: Sequence[Part],
    bias: Bias,
    epsilon: Tensor | float,
    divisor: Callable[[], Tensor],
    nonnegative: bool,
    weight: Tensor | float,
) -> Tensor:
    """s / c = z / denominator: one factor for all targets of this forward pass."""

    def made() -> Tensor:
        z, d = step.z, divisor()
        if d is z and not is_zero(epsilon):
            share = kept_share(z, epsilon, step.clipped)
        else:
            share = divided(z, d, epsilon, nonnegative)
        step.memo.forget(d)
        return product_into(share, weight)

    return step.memo.passing(("share", *(part.key for part in parts), bias, epsilon), made)


def denominator_of(
    step: Step,
    parts: Sequence[Part],
    bias: Bias,
    shares: Callable[[], Tensor] | None = None,
    biased: bool = False,
) -> Tensor:
    """Σ_i,k a_k b_k, with the bias where the policy says so; once per forward pass, whatever the number of targets."""
    shares = shares or (lambda: total_of([_scaled(part.scale, forward_of(step, part)) for part in parts]))
    key = ("denominator", *(part.key for part in parts), bias)

    def made() -> Tensor:
        own = 0.0 if biased else _bias(step, parts, bias)
        return shares() + own if isinstance(own, Tensor) else shares()

    return cast(Tensor, step.memo.get(key, made))


def affine_of(step: Step) -> Affine:
    """The step as an affine map; refuses others."""
    if step.affine is None:
        raise CompositeError(f"{step.node.kind} is not an affine operation, so a rule for affine layers can't serve it")
    return step.affine


def forward_of(step: Step, part: Part) -> Tensor:
    """Σ_i a(x_i) b(w_ij): the layer's own z where it is that, cached where it does not depend on x."""
    affine = affine_of(step)
    if part.key == ("x", "w"):
        return step.z if affine.bias is None else step.z - affine.bias
    if part.weights is ONES:
        return affine.count()
    if part.inputs is ONE:
        one = affine.one()
        return step.cache.get(
            ("of ones", part.weights.name, str(one.shape)), lambda: affine.forward(one, weight_of(step, part.weights))
        )
    return affine.forward(part.inputs.of(step.x), weight_of(step, part.weights))


def weight_of(step: Step, weights: WeightMap) -> Tensor:
    """b(w), computed once until a parameter changes."""
    weight = affine_of(step).weight
    return weight if weights is SAME else step.cache.get(("weight", weights.name), lambda: weights.of(weight))


def _message(step: Step, parts: Sequence[Part], s: Tensor, product: bool) -> Tensor:
    """Σ_k a_k(x_i) Σ_j b_k(w_ij) s_j with the parts' factors; without the factor x_i in product form."""
    messages = []
    for part in parts:
        sent = _sent(step, part, s)
        per = part.inputs.per if product else None
        if per is not None:
            sent = per(sent, step.x)
        elif part.inputs is not ONE or sent.shape != step.x.shape:
            sent = part.inputs.of(step.x) * sent
        messages.append(sent)
    if any(part.weights is ONES for part in parts):  # one number, expanded: nothing to write into
        return total_of(messages)
    total = messages[0]
    for message in messages[1:]:
        total = sum_into(total, message)
    return total


def _sent(step: Step, part: Part, s: Tensor) -> Tensor:
    """Σ_j b(w_ij) s_j with the part's factor."""
    affine = affine_of(step)
    if isinstance(part.scale, Tensor):
        return _sent(step, replace(part, scale=1.0), part.scale * s)
    if part.weights is ONES:
        return _scaled(part.scale, affine.spread(s))
    return product_into(affine.transpose(s, weight_of(step, part.weights)), part.scale)


def _bias(step: Step, parts: Sequence[Part], bias: Bias) -> Tensor | float:
    """The bias as a neuron of activation 1: Σ_k a_k(1) b_k(b)."""
    own = affine_of(step).bias
    if own is None or bias == "ignore":
        return 0.0
    return total_of([_scaled(part.scale, part.inputs.of_one * part.weights.of(own)) for part in parts])


def _scaled(scale: Tensor | float, tensor: Tensor) -> Tensor:
    return tensor if isinstance(scale, float) and scale == 1 else scale * tensor


def total_of(tensors: Sequence[Tensor]) -> Tensor:
    """The sum of tensors."""
    total = tensors[0]
    for tensor in tensors[1:]:
        total = total + tensor
    return total


def _positive(epsilon: Tensor | float) -> bool:
    return isinstance(epsilon, Tensor) or epsilon > 0


def added(first: Callable[[], Tensor] | None, second: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """Both amounts together; either may be the only one."""
    return second if first is None else (lambda: first() + second())
