"""Rules for affine layers: each is a choice of search direction. w⁺ = max(w, 0), w⁻ = min(w, 0)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from ..errors import CompositeError
from ..ops import Role
from ..step import Function, Step
from ..symbolic import is_symbolic
from .base import Bias, Convention, Habits, Redistribution, Relevance, Rule, product_into, sample_mean, sum_into
from .maps import (
    ABSOLUTE,
    BOOST,
    IDENTITY,
    MINUS,
    NEGATIVE,
    ONE,
    ONES,
    PLUS,
    POSITIVE,
    SAME,
    SIZE,
    SQUARE,
    InputMap,
)
from .redistribute import Part, added, affine_of, denominator_of, forward_of, redistribute, total_of

ZENNIT_STABILIZER = 1e-6


def _sides(step: Step) -> tuple[list[Part], list[Part]]:
    """Parts of the positive and of the negative contributions w_ij x_i."""
    if step.nonnegative:
        return [Part(IDENTITY, PLUS)], [Part(IDENTITY, MINUS)]
    return [Part(POSITIVE, PLUS), Part(NEGATIVE, MINUS)], [Part(POSITIVE, MINUS), Part(NEGATIVE, PLUS)]


def _size_of(step: Step) -> InputMap:
    """|x|."""
    return IDENTITY if step.nonnegative else ABSOLUTE


class AffineRule(Rule):
    """A rule for affine operations."""

    roles: ClassVar[tuple[Role, ...]] = ("affine",)


class SignRule(AffineRule):
    """A rule for affine operations that tells contributions by their signs or sizes."""

    signs: ClassVar[bool] = True


@dataclass(frozen=True)
class LRPZero(AffineRule):
    """Share by contribution: R_{i←j} = w_ij x_i / z_j · R_j. Root: 0, which is none where b ≠ 0. Bach et al. 2015."""

    bias: Bias = "absorb"

    def as_function(self, step: Step) -> Function | None:
        return step.function if self.bias == "absorb" else None

    def habits(self) -> Habits:
        return Habits(local=True, weighs=self.bias == "ignore", once=True)

    def __call__(self, step: Step, relevance: Relevance) -> Redistribution:
        return redistribute(step, relevance, [Part(IDENTITY, SAME)], bias=self.bias)


@dataclass(frozen=True)
class Epsilon(AffineRule):
    """LRP-0 with a stabilizer that absorbs: R_{i←j} = w_ij x_i / (z_j + ε sign z_j) · R_j. Bach et al. 2015.

    ε = `epsilon` + `rms` · sqrt(mean z²), the mean over the sample's layer (Montavon et al. 2019 use rms = 0.25).
    """

    epsilon: float = 1e-6
    rms: float = 0.0
    bias: Bias = "absorb"

    def habits(self) -> Habits:
        return Habits(local=not self.rms, weighs=self.epsilon > 0 or self.bias == "ignore", once=True)

    def __call__(self, step: Step, relevance: Relevance) -> Redistribution:
        epsilon: Tensor | float = self.epsilon
        if self.rms:
            epsilon = (
                step.memo.get("rms", lambda: sample_mean(step.z.square(), step.node.batch_dim or 0).sqrt()) * self.rms
                + self.epsilon
            )
        return redistribute(step, relevance, [Part(IDENTITY, SAME)], bias=self.bias, epsilon=epsilon)


@dataclass(frozen=True)
class Gamma(SignRule):
    """Favours positive weights: R_{i←j} ∝ x_i (w_ij + γ w_ij⁺). Direction x(1 + γ·1[w>0]). Montavon et al. 2019.

    Meant for x ≥ 0 and z > 0; `GeneralizedGamma` serves every sign.
    """

    gamma: float = 0.25
    bias: Bias = "absorb"

    def habits(self) -> Habits:
        return Habits(local=True, weighs=True, once=True)

    def __call__(self, step: Step, relevance: Relevance) -> Redistribution:
        return redistribute(step, relevance, [Part(IDENTITY, BOOST(self.gamma))], bias=self.bias)


@dataclass(frozen=True)
class GeneralizedGamma(SignRule):
    """Favours contributions of z's own sign: w_ij x_i + γ (w_ij x_i)^{sign z_j}. Andéol et al. 2021; zennit's Gamma.

    By w^± = (w ± |w|)/2 this is (1 + γ/2) w x + (γ/2) sign(z) |w| |x|, or in the same proportions
    w x + γ/(2 + γ) sign(z) |w| |x|: two parts, no cancellation in the denominator.
    """

    gamma: float = 0.25
    bias: Bias = "absorb"

    def habits(self) -> Habits:
        return Habits(local=True, weighs=True, once=True)

    def __call__(self, step: Step, relevance: Relevance) -> Redistribution:
        if step.nonnegative and step.rectified:  # only z > 0 carries relevance; the bias is boosted too
            boosted, positive = [Part(IDENTITY, BOOST(self.gamma))], self.bias != "ignore"
            return redistribute(step, relevance, boosted, bias=self.bias, nonnegative=positive)
        sign = step.memo.get("sign", lambda: _with_sign_of(step.z, self.gamma / (2 + self.gamma)))
        own, size = Part(IDENTITY, SAME), Part(_size_of(step), SIZE, sign)

        def denominator() -> Tensor:
            z, bias = forward_of(step, size), affine_of(step).bias
            if bias is None:
                return sum_into(product_into(z, sign), step.z)
            if self.bias == "ignore":
                return sum_into(sum_into(product_into(z, sign), step.z), bias, -1.0)
            return sum_into(product_into(sum_into(z, bias.abs()), sign), step.z)

        return redistribute(step, relevance, [own, size], bias=self.bias, denominator=denominator, biased=True)


def _with_sign_of(z: Tensor, size: float) -> Tensor:
    """`size` with the signs of z; 0 counts as positive."""
    if is_symbolic(z):  # a program's formats know `where`
        return torch.where(z < 0, z.new_full((), -size), z.new_full((), size))
    return torch.copysign(z.new_full((), size), z)


@dataclass(frozen=True)
class _ByConvention(SignRule):
    """A rule whose bias policy and stabilizer differ between the papers and zennit."""

    convention: Convention = "paper"
    bias: Bias | None = None

    def policy(self) -> Bias:
        return self.bias or ("absorb" if self.convention == "zennit" else "ignore")

    def stabilizer(self) -> float:
        return ZENNIT_STABILIZER if self.convention == "zennit" else 0.0


@dataclass(frozen=True)
class ZPlus(_ByConvention):
    """Share by positive contributions: R_{i←j} ∝ (w_ij x_i)⁺. Direction x·1[w>0], roots in R₊. Montavon et al. 2017.

    Where no contribution is positive, the relevance has nowhere to go and is booked. `convention="zennit"` puts b⁺ in
    the denominator, with a stabilizer of 1e-6.
    """

    def habits(self) -> Habits:
        return Habits(local=True, weighs=True, once=True)

    def __call__(self, step: Step, relevance: Relevance) -> Redistribution:
        plus, _ = _sides(step)
        return redistribute(
            step,
            relevance,
            plus,
            bias=self.policy(),
            epsilon=self.stabilizer(),
            denominator=lambda: _positive_sum(step),
            nonnegative=True,
        )

    def __str__(self) -> str:
        return Rule.__str__(self)


CANCELS = 1 / 32
"""Contributions of one sign below this share of all lose more than a digit in the difference: summed one by one."""
MANY = 1000
"""From so many products per unit, what a program saves by adding up z itself is worth the memory of one more map."""
ONE_BY_ONE = 8
"""Up to so many products per unit of the layer are made one by one; beyond it, two operations for all are cheaper."""


def _positive_sum(step: Step) -> Tensor:
    """Σ_i (w_ij x_i)⁺, at one linear operation; once per forward pass.

    Signed inputs: (Σ_i |w_ij||x_i| + Σ_i w_ij x_i) / 2. Where little is positive that cancels: there the positive
    contributions are added up themselves. A program, which can't ask where, adds them up everywhere, at two linear
    operations.
    """

    def made() -> Tensor:
        if _SMALLER in step.memo.held:
            return step.memo.held[_SMALLER] + _without_bias(step).clamp(min=0)
        if step.nonnegative or is_symbolic(step.x):
            return _summed(step, 0)
        size, bias = forward_of(step, Part(ABSOLUTE, SIZE)), affine_of(step).bias
        z = cast(Tensor, size + step.z)
        z = product_into(z if bias is None else sum_into(z, bias, -1.0), 0.5)
        return _one_by_one(step, z, product_into(size, CANCELS) - z, positive=True)

    return cast(Tensor, step.memo.get("z⁺", made))


def _negative_sum(step: Step) -> Tensor:
    """Σ_i (w_ij x_i)⁻ as the layer's own sum without the positive contributions; one by one where that cancels."""

    def made() -> Tensor:
        if _SMALLER in step.memo.held:
            return _without_bias(step).clamp(max=0) - step.memo.held[_SMALLER]
        if is_symbolic(step.x):
            return _summed(step, 1)
        positive, bias = _positive_sum(step), affine_of(step).bias
        z = cast(Tensor, step.z - positive)
        z = z if bias is None else sum_into(z, bias, -1.0)
        return _one_by_one(step, z, torch.add(z, positive, alpha=CANCELS), positive=False)

    return cast(Tensor, step.memo.get("z⁻", made))


_SMALLER = "the smaller of z⁺ and −z⁻"


def _summed(step: Step, side: int) -> Tensor:
    """The contributions of one sign, added up themselves."""
    return total_of([forward_of(step, part) for part in _sides(step)[side]])


def _without_bias(step: Step) -> Tensor:
    bias = affine_of(step).bias
    return cast(Tensor, step.z if bias is None else step.z - bias)


def _value_of_sums(step: Step) -> Tensor:
    """z = z⁺ + z⁻ + b, of which only the smaller of z⁺ and −z⁻ is kept: the larger is |z − b| more, which is exact."""
    plus, minus, bias = _summed(step, 0), _summed(step, 1), affine_of(step).bias
    step.memo.held[_SMALLER] = torch.minimum(plus, -minus)
    return plus + minus if bias is None else plus + minus + bias


def _one_by_one(step: Step, z: Tensor, doubt: Tensor, positive: bool) -> Tensor:
    """z, but at units with doubt > 0 the sum of the contributions of one sign themselves."""
    if step.rectified:  # elsewhere no relevance arrives
        doubt = torch.minimum(doubt, step.z)
    places = _places(doubt > 0)
    affine, few = affine_of(step), places.numel()
    if not few:
        return z
    if few * max(128, int(affine.count().max())) > ONE_BY_ONE * z.numel():
        return _summed(step, 0 if positive else 1)
    units = torch.unravel_index(places, z.shape)
    terms = affine.terms(step.x, units)
    return z.index_put(units, (terms.clamp(min=0) if positive else terms.clamp(max=0)).sum(-1))


def _places(mask: Tensor) -> Tensor:
    """Where, counted in order, a mask that is mostly False holds, eight of its elements looked at together."""
    flat = mask.flatten()
    if flat.numel() % 8:
        return flat.nonzero()[:, 0]
    words = flat.view(torch.int64).nonzero()[:, 0]
    if not words.numel():
        return words
    word, byte = flat.view(-1, 8)[words].nonzero(as_tuple=True)
    return words[word] * 8 + byte


@dataclass(frozen=True)
class AlphaBeta(SignRule):
    """α times the positive contributions' shares minus β times the negative ones', α − β = 1. Bach et al. 2015.

    `convention="paper"` ignores the bias; a unit without negative contributions uses α = 1, β = 0, and one without
    positive ones hands nothing on (booked). "zennit" puts b⁺ and b⁻ in the denominators and has no such fallback.
    """

    alpha: float = 2.0
    beta: float = 1.0
    convention: Convention = "paper"
    bias: Bias | None = None

    def __post_init__(self) -> None:
        if abs(self.alpha - self.beta - 1) > 1e-6 or self.beta < 0:
            raise CompositeError(
                f"AlphaBeta needs alpha - beta = 1 and beta >= 0, got alpha={self.alpha}, beta={self.beta}"
            )

    def habits(self) -> Habits:
        return Habits(local=True, weighs=True, once=True)

    def __call__(self, step: Step, relevance: Relevance) -> Redistribution:
        bias: Bias = self.bias or ("absorb" if self.convention == "zennit" else "ignore")
        epsilon = ZENNIT_STABILIZER if self.convention == "zennit" else 0.0
        plus, minus = _sides(step)
        alpha, beta = step.memo.get("alpha, beta", lambda: self._factors(step, bias))
        given = redistribute(
            step,
            relevance.shared(),
            plus,
            bias=bias,
            epsilon=epsilon,
            denominator=lambda: _positive_sum(step),
            nonnegative=True,
            weight=alpha,
        )
        if self.beta == 0:
            return given
        taken = redistribute(
            step, relevance, minus, bias=bias, epsilon=epsilon, denominator=lambda: _negative_sum(step), weight=-beta
        )
        message = cast(Relevance, given.messages[0]).plus(cast(Relevance, taken.messages[0]), lambda: step.x)
        absorbed: dict[Any, Callable[[], Tensor]] = {}
        for part in (given, taken):
            for cause, amount in part.absorbed.items():
                absorbed[cause] = added(absorbed.get(cause), amount)
        return Redistribution((message,), absorbed)

    def added_up(self, step: Step) -> Tensor | None:
        many = affine_of(step).weight.shape[1:].numel() >= MANY
        return _value_of_sums(step) if self.beta and many else None

    def _factors(self, step: Step, bias: Bias) -> tuple[Any, Any]:
        """α and β per unit: 1 and 0 where one side is empty."""
        if self.convention == "zennit" or self.beta == 0:
            return self.alpha, self.beta
        plus, minus = _sides(step)
        taken = denominator_of(step, minus, bias, lambda: _negative_sum(step))
        given = denominator_of(step, plus, bias, lambda: _positive_sum(step))
        if not is_symbolic(taken) and taken.numel() and float(taken.amax()) < 0 < float(given.amin()):
            return self.alpha, self.beta
        empty = (taken == 0) | (given == 0)
        z = cast(Tensor, step.z)  # a choice between two numbers would be float32
        alpha, beta = (
            torch.where(empty, z.new_full((), n), z.new_full((), m)) for n, m in ((1.0, self.alpha), (0.0, self.beta))
        )
        return alpha, beta


@dataclass(frozen=True)
class WSquare(_ByConvention):
    """Share by squared weights: R_{i←j} = w_ij² / Σ_i' w_i'j² · R_j. Montavon et al. 2017.

    Direction w: the nearest root, with x unbounded.
    `convention="zennit"` puts b² in the denominator.
    """

    def habits(self) -> Habits:
        return Habits(local=True, blind=True, weighs=True, once=True)

    def __call__(self, step: Step, relevance: Relevance) -> Redistribution:
        return redistribute(step, relevance, [Part(ONE, SQUARE)], bias=self.policy(), epsilon=self.stabilizer())


@dataclass(frozen=True)
class Flat(SignRule):
    """Equal shares to all inputs of a unit: R_{i←j} = R_j / n. Direction 1/w. Lapuschkin et al. 2019."""

    def habits(self) -> Habits:
        return Habits(local=True, blind=True, weighs=True, once=True)

    def __call__(self, step: Step, relevance: Relevance) -> Redistribution:
        return redistribute(step, relevance, [Part(ONE, ONES)])
