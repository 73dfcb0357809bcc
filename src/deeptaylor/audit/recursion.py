"""The recursion of deep Taylor decomposition itself, with root points given as functions. Sixt and Landgraf 2022.

    R^n(a_n)   = the explained output
    R^l(a_l)   = Σ_j ∂R^{l+1}_j(f_l(a)) / ∂a |_{a = ã_l^(j)(a_l)} · (a_l − ã_l^(j)(a_l))

Root points depend on a_l, so the derivative of one layer's relevance passes through those of all layers above: exact,
by nested differentiation, and for small networks only. At a hinge (z = 0, where exact roots lie) a ReLU's derivative is
that of the closed linear region of the input.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..errors import InputError

Layer = Callable[[Tensor], Tensor]
"""From the activations of one sample, without a batch axis, to the next."""
Root = Callable[[Tensor, int], Tensor]
"""From activations a_l and a neuron j of the next layer to ã_l^(j)(a_l)."""
HINGE = 1e-9
"""|z| below this, as a share of the layer's largest at the input, is taken for the hinge."""
_RELUS = (F.relu, torch.relu, torch.relu_, torch.Tensor.relu, torch.Tensor.relu_)


class _ClosedReLU(TorchFunctionMode):
    """ReLU with the derivative of a chosen side at its hinge; records the sides where none are given."""

    def __init__(self, sides: Sequence[tuple[Tensor, float]] | None) -> None:
        super().__init__()
        self.sides, self.seen = sides, list[tuple[Tensor, float]]()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func not in _RELUS:
            return func(*args, **(kwargs or {}))
        z = args[0]
        self.seen.append((z.detach() > 0, HINGE * float(z.detach().abs().max())))
        on = z > 0
        if self.sides is not None:
            side, near = self.sides[len(self.seen) - 1]
            on = torch.where(z.abs() <= near, side, on)
        return z * on


@dataclass(frozen=True)
class RecursiveTaylor:
    """The recursion, for some layers and root functions."""

    layers: tuple[Layer, ...]
    roots: tuple[Root, ...]

    def __call__(self, x: Tensor, output: int | None = None) -> tuple[Tensor, ...]:
        """Relevance of the input and of every layer's activations, R^0 to R^n.

        Args:
            x: one sample, without a batch axis; float64 for exact answers.
            output: which output is explained; by default the largest.
        """
        walk = Walk(self.layers, x)
        own = int(walk.activations[-1].argmax()) if output is None else output
        return tuple(
            self._relevance(level, a.requires_grad_(), own, walk).detach()
            for level, a in enumerate(a.detach().clone() for a in walk.activations)
        )

    def relevance(self, level: int, a: Tensor, x: Tensor, output: int) -> Tensor:
        """R^level as a differentiable function of activations a near those of x."""
        return self._relevance(level, a, output, Walk(self.layers, x))

    def _relevance(self, level: int, a: Tensor, output: int, walk: Walk) -> Tensor:
        if level == len(self.layers):
            return a * F.one_hot(torch.tensor(output), a.numel()).to(a.dtype).view_as(a)
        total = torch.zeros_like(a)
        for j in range(walk.activations[level + 1].numel()):
            root = self.roots[level](a, j)
            if not root.requires_grad:
                root = root.detach().clone().requires_grad_()
            above = self._relevance(level + 1, walk.layer(level, root), output, walk).flatten()[j]
            total = total + _gradient(above, root) * (a - root)
        return total


def _gradient(value: Tensor, at: Tensor) -> Tensor:
    """∂value/∂at, differentiable itself; 0 where value does not depend on it."""
    if not value.requires_grad:
        return torch.zeros_like(at)
    (found,) = torch.autograd.grad(value, at, create_graph=True, allow_unused=True)
    return torch.zeros_like(at) if found is None else found


class Walk:
    """The activations of x, and the layers with the hinges of its closed region."""

    def __init__(self, layers: Sequence[Layer], x: Tensor) -> None:
        self.layers = tuple(layers)
        self.activations, self._sides = [x.detach()], []
        with torch.no_grad():
            for layer in self.layers:
                with _ClosedReLU(None) as mode:
                    self.activations.append(layer(self.activations[-1]))
                self._sides.append(mode.seen)

    def layer(self, level: int, a: Tensor) -> Tensor:
        """f_level(a)."""
        with _ClosedReLU(self._sides[level]):
            return self.layers[level](a)


def recursive_taylor(layers: nn.Sequential | Sequence[Layer], roots: Sequence[Root]) -> RecursiveTaylor:
    """The recursion of deep Taylor decomposition as the papers define it, with root points of your choice.

    Args:
        layers: f_1 … f_n, each from activations without a batch axis to the next; of an `nn.Sequential`, every affine
            module with what follows it.
        roots: one function (a_{l-1}, j) -> ã^(j) per layer; see `constant_roots`, `rule_roots`.

    Raises:
        InputError: another number of root functions than of layers.
    """
    found = layers_of(layers)
    if len(roots) != len(found):
        raise InputError(f"{len(roots)} root functions for {len(found)} layers; pass one for each layer's input")
    return RecursiveTaylor(found, tuple(roots))


def layers_of(model: nn.Sequential | Sequence[Layer]) -> tuple[Layer, ...]:
    """The layers of a sequential model: every affine module with what follows it.

    Raises:
        InputError: the model is neither sequential nor a list of functions.
    """
    if isinstance(model, nn.Module) and not isinstance(model, nn.Sequential):
        raise InputError(f"pass an nn.Sequential or a list of layers; {type(model).__name__} does not say what its are")
    groups: list[list[Any]] = []
    for module in model:
        if not groups or not isinstance(model, nn.Sequential) or hasattr(module, "weight"):
            groups.append([])
        groups[-1].append(module)
    return tuple(group[0] if len(group) == 1 else nn.Sequential(*group) for group in groups)


def constant_roots(points: Tensor | Sequence[Tensor]) -> Root:
    """Locally constant roots: one for all neurons, or one for each."""
    return lambda a, j: points if isinstance(points, Tensor) else points[j]


def scaled_roots(factor: float) -> Root:
    """Roots on the ray to the origin: factor · a, for every neuron; near 0, roots of networks without biases."""
    return lambda a, j: factor * a


def rule_roots(layer: nn.Linear, direction: Callable[[Tensor, Tensor], Tensor]) -> Root:
    """The roots of a search direction: x̃ = a − z_j / (w_j·v) v, with v = direction(a, w_j). Montavon et al. 2017.

    Args:
        layer: the affine map.
        direction: for example `z_plus`, `w_square`.
    """

    def root(a: Tensor, j: int) -> Tensor:
        weight = layer.weight[j].detach()
        z = weight @ a + (0 if layer.bias is None else layer.bias[j].detach())
        v = direction(a, weight)
        along = weight @ v
        return a - torch.where(along == 0, 0.0, z / torch.where(along == 0, 1.0, along)) * v

    return root


def z_plus(a: Tensor, weight: Tensor) -> Tensor:
    """v = a·1[w > 0]."""
    return a * (weight > 0)


def w_square(a: Tensor, weight: Tensor) -> Tensor:
    """v = w."""
    return weight


def train_free(layers: nn.Sequential | Sequence[Layer], roots: Sequence[Root], x: Tensor, output: int) -> Tensor:
    """The training-free simplification: R_j = c_j a_j with c_j held constant; what rule-based implementations compute.

        R_i = Σ_j c_j ∂z_j/∂a_i (a_i − ã_i^(j)),   c_j = R_j / a_j

    Args:
        layers: as for `recursive_taylor`.
        roots: as for `recursive_taylor`.
        x: one sample, without a batch axis.
        output: which output is explained.
    """
    walk = Walk(layers_of(layers), x)
    last = walk.activations[-1]
    relevance = torch.zeros_like(last)
    relevance.view(-1)[output] = last.flatten()[output]
    for level in reversed(range(len(walk.layers))):
        a, above = walk.activations[level], walk.activations[level + 1].flatten()
        leaf = a.clone().requires_grad_()
        with torch.enable_grad():
            z = walk.layer(level, leaf).flatten()
        given = torch.zeros_like(a)
        for j in above.nonzero()[:, 0].tolist():
            (gradient,) = torch.autograd.grad(z[j], leaf, retain_graph=True)
            with torch.no_grad():
                given += relevance.flatten()[j] / above[j] * gradient * (a - roots[level](a, j))
        relevance = given
    return relevance
