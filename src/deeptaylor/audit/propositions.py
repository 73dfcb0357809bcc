"""Propositions 1 and 2 of Sixt and Landgraf (2022) as demonstrations, and the softplus recursion's divergence."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor, nn

from .recursion import Layer, RecursiveTaylor, Walk, layers_of

Function = Callable[[Tensor], Tensor]
STEPS = 20


def same_gradient(function: Function, x: Tensor, other: Tensor, tolerance: float = 1e-9) -> bool:
    """Whether `other` lies in N_function(x): the Jacobian is that of x everywhere on the segment between them.

    Looked at in the open segment, at 20 places: at its end a root lies on a hinge, where a ReLU has two derivatives.
    """
    own = torch.autograd.functional.jacobian(function, x)
    size = tolerance * max(1.0, float(own.abs().max()))
    for t in [*(n / STEPS for n in range(1, STEPS)), 1 - 1e-9]:
        there = torch.autograd.functional.jacobian(function, x + t * (other - x))
        if float((there - own).abs().max()) > size:
            return False
    return True


@dataclass(frozen=True)
class Shrinking:
    """Proposition 1, counted: N of the relevance R^l is contained in N of the network above l."""

    points: int
    in_network: int
    """Points where the network above has the gradient that it has at the input, all the way."""
    in_relevance: int
    """Points where the relevance has."""
    violations: int
    """Points in the second set but not in the first: none, says the proposition."""

    def __str__(self) -> str:
        return (
            f"of {self.points} points, {self.in_network} lie in the region of the network and {self.in_relevance} in "
            f"that of its relevance; {self.violations} in the latter alone"
        )


def regions_shrink(recursion: RecursiveTaylor, x: Tensor, points: Sequence[Tensor], output: int) -> Shrinking:
    """Compares N of the input's relevance R⁰ with N of the explained output, at some points; roots must be exact."""

    def relevance(a: Tensor) -> Tensor:
        return recursion.relevance(0, a if a.requires_grad else a.requires_grad_(), x, output)

    def network(a: Tensor) -> Tensor:
        for layer in recursion.layers:
            a = layer(a)
        return a[output]

    inside = [(same_gradient(network, x, p), same_gradient(relevance, x, p)) for p in points]
    return Shrinking(
        len(points),
        sum(wide for wide, _ in inside),
        sum(narrow for _, narrow in inside),
        sum(narrow and not wide for wide, narrow in inside),
    )


def locally_constant(
    layers: nn.Sequential | Sequence[Layer], x: Tensor, first_roots: Sequence[Tensor], output: int
) -> Tensor:
    """Proposition 2's closed form: with locally constant roots, R⁰ = Σ_j ∂f/∂a_j ∇a_j · (x − x̃^(j)).

    With one root x̃ for all neurons this is ∇f·(x − x̃), and gradient × input for x̃ = 0. All roots must lie in the
    region of x.
    """
    walk = Walk(layers_of(layers), x)
    leaf = x.detach().clone().requires_grad_()
    a1 = walk.layer(0, leaf)
    top = a1
    for level in range(1, len(walk.layers)):
        top = walk.layer(level, top)
    (slopes,) = torch.autograd.grad(top[output], a1, retain_graph=True)
    total = torch.zeros_like(x)
    for j, slope in enumerate(slopes.flatten()):
        if float(slope) != 0:
            (gradient,) = torch.autograd.grad(a1.flatten()[j], leaf, retain_graph=True)
            total += slope * gradient * (x - first_roots[j])
    return total


def softplus_sums(z: float, beta: float, order: int) -> list[float]:
    """Partial sums of softplus_β(z) = ln(1 + e^{βz})/β expanded at 0, up to z^order; they converge for |z| < π/β only.

    ln 2/β + z/2 + Σ_k (2^{2k} − 1) B_{2k} β^{2k−1} z^{2k} / (2k (2k)!), with Bernoulli numbers B. A recursion through n
    layers of softplus needs n orders of this; the sharper the softplus, the nearer to ReLU, the earlier it diverges.

    Returns:
        order + 1 numbers.
    """
    numbers = _bernoulli(order)
    total, sums = math.log(2) / beta, []
    for power in range(order + 1):
        if power == 1:
            total += z / 2
        elif power and power % 2 == 0:
            coefficient = Fraction(2**power - 1) * numbers[power] / (power * math.factorial(power))
            total += float(coefficient) * beta ** (power - 1) * z**power
        sums.append(total)
    return sums


def _bernoulli(count: int) -> list[Fraction]:
    """B_0 … B_count."""
    numbers = [Fraction(1)]
    for n in range(1, count + 1):
        numbers.append(-sum((math.comb(n + 1, k) * numbers[k] for k in range(n)), Fraction(0)) / (n + 1))
    return numbers
