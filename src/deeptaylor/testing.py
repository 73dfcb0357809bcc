"""Checkers for authors of operations, rules and canonizers; deeptaylor's own tests use them too.

Each compares with something independent and raises AssertionError with the figures.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .explainer import Explainer
from .graph import Graph, execute
from .inputs import batch_size, bind, explained_names
from .ops import known
from .origin import live_state
from .rules import Rule
from .trace import trace

Formula = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(x (in,), W (out, in), b (out,)) -> shares (out, in): R_{i←j} / R_j."""


def check_op(function: Callable[..., Tensor], *inputs: Tensor, tolerance: float = 1e-9) -> None:
    """Checks operations on a model that uses them: float64 inputs, first axis the batch, output (batch, classes).

    Gradient × input must equal autograd's; the default composite's ledger must close; a batch must equal its samples
    one by one; the traced output must be the function's own.
    """
    gradient = Explainer(function, inputs, composite="gradient-times-input")(inputs, target=0)
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    function(*leaves)[:, 0].sum().backward()
    for (name, ours), leaf in zip(gradient.relevances.items(), leaves, strict=True):
        expected = leaf.detach() * (torch.zeros_like(leaf) if leaf.grad is None else leaf.grad)
        _close(f"gradient × input of {name!r}", ours, expected, tolerance)
    explainer = Explainer(function, inputs)
    result = explainer(inputs, target=0, ledger=True)
    _close("output", result.output, function(*inputs).detach(), tolerance)
    assert result.ledger is not None
    _close(
        "ledger: inputs + absorbed", result.ledger.inputs + result.ledger.absorbed, result.ledger.explained, tolerance
    )
    for n in range(inputs[0].shape[0]):
        single = explainer(tuple(x[n : n + 1] for x in inputs), target=0)
        for name, ours in single.relevances.items():
            _close(f"sample {n} alone, {name!r}", ours, result.relevances[name][n : n + 1], tolerance)


def check_rule(rule: Rule, layer: nn.Module, x: Tensor, formula: Formula, tolerance: float = 1e-10) -> None:
    """Checks an affine rule against its formula in matrix form.

    Args:
        rule: the rule.
        layer: an affine module in float64, in eval mode.
        x: (batch, …) inputs.
        formula: the shares of one sample, from the matrix of the layer: written as in the paper, however slow.
        tolerance: of the largest relevance.
    """
    with torch.no_grad():
        z = layer(x)
        b = layer(torch.zeros_like(x[:1]))[0].flatten()
    generator = torch.Generator().manual_seed(0)
    seed = torch.randn(z.shape, generator=generator, dtype=z.dtype)
    result = Explainer(layer, x, composite=rule)(x, target=seed, ledger=True)
    expected = []
    for sample, put in zip(x, seed, strict=True):
        weight = torch.func.jacrev(lambda v: layer(v[None])[0].flatten())(sample).reshape(put.numel(), -1)
        shares = formula(sample.flatten(), weight.detach(), b)
        expected.append((put.flatten() @ shares).view_as(sample))
    _close(str(rule), result.relevance, torch.stack(expected), tolerance)
    assert result.ledger is not None
    _close(f"{rule}: ledger", result.ledger.inputs + result.ledger.absorbed, result.ledger.explained, tolerance)


def check_canonizer(
    canonizer: Callable[[Graph], Graph], model: nn.Module, inputs: Any, tolerance: float = 1e-9
) -> Graph:
    """Checks that a canonizer leaves the output unchanged, and returns the graph it makes.

    Args:
        canonizer: from graph to graph.
        model: in eval mode; float64 for the default tolerance.
        inputs: as for `Explainer`.
        tolerance: of the largest output.
    """
    call = bind(model, inputs, None)
    graph = trace(model, call, None, batch_size(call, explained_names(call, None)), known)
    changed = canonizer(graph)
    before = execute(graph, call.tensors, live_state(model))
    after = execute(changed, call.tensors, live_state(model))
    _close(getattr(canonizer, "__name__", "canonizer"), after, before, tolerance)
    return changed


def _close(what: str, ours: Tensor, expected: Tensor, tolerance: float) -> None:
    assert ours.shape == expected.shape, f"{what}: shape {tuple(ours.shape)}, expected {tuple(expected.shape)}"
    scale = max(float(expected.abs().max()), 1e-300) if expected.numel() else 1.0
    off = float((ours - expected).abs().max()) if expected.numel() else 0.0
    assert off <= tolerance * max(scale, 1.0), f"{what}: off by {off:.3g}, largest value {scale:.3g}"
