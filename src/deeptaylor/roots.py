"""Root points: where a rule is a first-order Taylor expansion.

With q_ij = R_{i←j}/R_j the point x̃_i = x_i − z_j q_ij / w_ij satisfies w_j·x̃ + b_j = z_j (1 − Σ_i q_ij): a rule that
hands everything on expands at an exact root. So root points come from a rule's own messages, for every rule.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .composites import Composite, role
from .errors import InputError
from .explainer import Explainer
from .finite import unwarned
from .rules import Rule


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
    explainer = Explainer(layer, batch, composite=Composite([(role("affine"), rule)]))
    if [row.role for row in explainer.plan.rows].count("affine") != 1:
        raise InputError("root points need a module that is one affine operation, such as nn.Linear or nn.Conv2d")
    with torch.enable_grad():
        leaf = batch.detach().requires_grad_()
        output = layer(leaf)
        z = output.flatten()
    roots = []
    for neuron in range(z.numel()) if neurons is None else neurons:
        (weight,) = torch.autograd.grad(z[neuron], leaf, retain_graph=True)
        seed = torch.zeros_like(z).index_fill(0, torch.tensor([int(neuron)]), 1.0).detach()
        with unwarned():
            shares = explainer(batch, target=seed.view_as(output)).relevance
        step = z[neuron].detach() * shares / torch.where(weight == 0, 1, weight)
        roots.append(torch.where(weight == 0, batch, batch - step)[0])
    return torch.stack(roots)
