"""Root points: where a rule is a first-order Taylor expansion.

With q_ij = R_{i←j}/R_j the point x̃_i = x_i − z_j q_ij / w_ij satisfies w_j·x̃ + b_j = z_j (1 − Σ_i q_ij): a rule that hands
everything on expands at an exact root. So root points come from a rule's own messages, for every rule.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .composites import Composite, role
from .errors import InputError
from .explainer import Explainer
from .rules import Gradient, Rule


def root_points(rule: Rule, layer: nn.Module, x: Tensor, neurons: Sequence[int] | None = None) -> Tensor:
    """The point of expansion for each neuron of an affine layer.

    Args:
        rule: a rule for affine layers.
        layer: an affine module: linear or convolutional.
        x: one sample, without batch axis.
        neurons: flat indices into the layer's output; all by default.

    Returns:
        (neurons, *x.shape): x̃ of every neuron; coordinates with w_ij = 0 stay where they are.

    Raises:
        InputError: the layer is not one affine operation.
    """
    batch = x[None]
    ours = Explainer(layer, batch, composite=Composite([(role("affine"), rule)]))
    if [row.role for row in ours.plan.rows].count("affine") != 1:
        raise InputError("root points need a module that is one affine operation, such as nn.Linear or nn.Conv2d")
    gradient = Explainer(layer, batch, composite=Composite([(role("affine"), Gradient())]))
    with torch.no_grad():
        z = layer(batch)[0].flatten()
    wanted = range(z.numel()) if neurons is None else neurons
    roots = [_root(ours, gradient, x, z, int(neuron)) for neuron in wanted]
    return torch.stack(roots)


def _root(ours: Explainer, gradient: Explainer, x: Tensor, z: Tensor, neuron: int) -> Tensor:
    seed: Any = torch.zeros_like(z)
    seed[neuron] = 1
    ones = torch.ones_like(x)[None]
    shape = ours(x[None], target=None if z.dim() == 0 else seed.view(_shape(ours, x))).relevance[0]
    weight = gradient(ones, target=seed.view(_shape(ours, x))).relevance[0]
    return torch.where(weight == 0, x, x - z[neuron] * shape / torch.where(weight == 0, 1, weight))


def _shape(explainer: Explainer, x: Tensor) -> tuple[int, ...]:
    return (1, *explainer.plan.graph[explainer.plan.graph.output.name].shape[1:])  # type: ignore[arg-type]
