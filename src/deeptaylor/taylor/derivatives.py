"""Second and third derivatives of a score along segments: S tangents for S segments, never one per entry.

The reverse pass is innermost (forward over reverse), in safe mode. Where tangents can't be batched, the gradient is
differentiated once more by reverse passes that share its graph.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.func import grad, jvp, vmap

from ..errors import InputError
from ..origin import plain_torch
from .convolutions import ConstantWeights
from .result import Cost
from .safe import safe_mode
from .score import Score
from .segments import Segments

MEMORY = 1 << 17
"""Entries of tangents differentiated at once, over all of them; bounds the chunk where the caller sets none."""


def segment_hessian(score: Score, point: Tensor, delta: Tensor, segments: Segments, chunk: int | None = None) -> Tensor:
    """H_st = δ_s′ ∇²f(point) δ_t: (S, S), float64, symmetric."""

    def along(chosen: Sequence[int]) -> Tensor:
        products = hessian_products(score, point, segments.directions(delta, chosen))
        return segments.sum(products[:, 0] * delta[0]).double().cpu()

    rows = torch.cat([along(part) for part in _chunks(range(len(segments)), _size(point, chunk))])
    return (rows + rows.T) / 2


def segment_third(score: Score, point: Tensor, delta: Tensor, segments: Segments, chunk: int | None = None) -> Tensor:
    """T_stu = D³f(point)[δ_s, δ_t, δ_u]: (S, S, S), float64, symmetric; one tangent of third order per pair s ≤ t."""
    count = len(segments)
    pairs = [(s, t) for s in range(count) for t in range(s, count)]
    out = torch.zeros(count, count, count, dtype=torch.float64)
    for part in _chunks(pairs, max(1, _size(point, chunk) // 2)):
        first, second = zip(*part, strict=True)
        vectors = (segments.directions(delta, first), segments.directions(delta, second))
        products = _second_products(score, point, *vectors)
        rows = segments.sum(products[:, 0] * delta[0]).double().cpu()
        for (s, t), row in zip(part, rows, strict=True):
            out[s, t] = out[t, s] = row
    return (out + out.permute(0, 2, 1) + out.permute(2, 1, 0)) / 3


def hessian_products(score: Score, point: Tensor, directions: Tensor) -> Tensor:
    """∇²f(point) v for (K, 1, *sample) directions v."""
    if not trusted(score):
        raise _unreachable()
    score.spend(Cost(tangents=len(directions)))
    gradient = grad(score)
    return _batched(
        lambda v: jvp(gradient, (point,), (v,))[1],
        (directions,),
        lambda: _reverse_products(score, point, directions),
    )


def _second_products(score: Score, point: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """D³f(point)[v, w, ·] for (K, 1, *sample) directions v and w."""
    if not trusted(score, 3):
        raise _unreachable()
    score.spend(Cost(tangents=len(first)))
    gradient = grad(score)

    def along(v: Tensor, w: Tensor) -> Any:
        return jvp(lambda z: jvp(gradient, (z,), (w,))[1], (point,), (v,))[1]

    return _batched(along, (first, second), lambda: _reverse_second_products(score, point, first, second))


def _batched(one: Callable[..., Any], vectors: tuple[Tensor, ...], otherwise: Callable[[], Tensor]) -> Tensor:
    with plain_torch(), torch.random.fork_rng(devices=[]), torch.enable_grad(), safe_mode():
        try:
            return vmap(one)(*vectors).detach()
        except (RuntimeError, NotImplementedError):
            # Data-dependent operations, in-place writes, saved-tensor hooks: no batching of tangents.
            return otherwise().detach()


def _reverse_products(score: Score, point: Tensor, directions: Tensor) -> Tensor:
    leaf = point.detach().clone().requires_grad_()
    gradient = _gradient(score, leaf)
    return torch.stack([_pull(gradient, leaf, v) for v in directions])


def _reverse_second_products(score: Score, point: Tensor, first: Tensor, second: Tensor) -> Tensor:
    leaf = point.detach().clone().requires_grad_()
    gradient = _gradient(score, leaf)
    out = []
    for v, w in zip(first, second, strict=True):
        product = _pull(gradient, leaf, v, create_graph=True)
        out.append(_pull(product, leaf, w))
    return torch.stack(out)


def _gradient(score: Score, leaf: Tensor) -> Tensor:
    with ConstantWeights():
        value = score.rows(leaf).sum()
    if not value.requires_grad:
        return torch.zeros_like(leaf)
    (gradient,) = torch.autograd.grad(value, leaf, create_graph=True, allow_unused=True)
    return torch.zeros_like(leaf) if gradient is None else gradient


def _pull(gradient: Tensor, leaf: Tensor, v: Tensor, create_graph: bool = False) -> Tensor:
    if not gradient.requires_grad:
        return torch.zeros_like(leaf)
    (product,) = torch.autograd.grad(gradient, leaf, v, retain_graph=True, create_graph=create_graph, allow_unused=True)
    return torch.zeros_like(leaf) if product is None else product


def trusted(score: Score, order: int = 2) -> bool:
    """Whether the safe mode reaches into the model, or the check on the model itself passes."""
    opaque = isinstance(score.model, torch.jit.ScriptModule | torch.export.ExportedProgram | torch.fx.GraphModule)
    if not opaque:
        return True
    passed: dict[int, bool] = score.checked
    if order not in passed:
        from .check import check_score

        passed[order] = all(row.right for row in check_score(score, score.x, order))
    return passed[order]


def _unreachable() -> InputError:
    return InputError(
        "the model is scripted or exported, and its second derivatives fail the check (torch computes them wrongly "
        "through layer norms, and the safe mode can't reach into a compiled graph); pass the module it was made from, "
        "or use taylor_orders, gradient_secant or fit_taylor, which need first derivatives at most"
    )


def _size(point: Tensor, chunk: int | None) -> int:
    if chunk is not None:
        return max(1, chunk)
    # Activations of a network outgrow its input; eight tangents of a photo stay near 1 GB on common networks.
    return max(8, min(256, MEMORY // max(1, point.numel())))


def _chunks(items: Sequence[Any], size: int) -> list[Sequence[Any]]:
    return [items[i : i + size] for i in range(0, len(items), size)]
