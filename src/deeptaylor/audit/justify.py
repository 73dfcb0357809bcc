"""Any explanation, justified: in-region, input-dependent roots whose recursive Taylor decomposition returns it.

Proposition 3 of Sixt and Landgraf (2022), by construction. Let h be the first layer, f = g∘h, x₀ a root of f in the
region of x, a₀ = h(x₀), γ = ∇g and H = ∂h/∂x. All layers but the first take locally constant roots at x₀'s activations;
the roots of the second layer's input move with a,

    ã(a) = a₀ + K u (w·(a − a₀)),   γ·u = 0,   w·(h(x) − a₀) = 0,

so they stay roots of g, and R¹_k(a) = γ_k (a_k − ã_k(a)) has the gradient n_k = γ_k (H_k − K u_k Hᵀw) by x. At x₀ every
R¹_k is 0, so x₀ is a root for all first-layer neurons, and gives ∇f·(x − x₀). One neuron takes x₀ + η instead, with
n_k·η = ∇f·(x − x₀) − E, coordinate by coordinate: still a root, since that sums to 0, and as close to x₀ as one likes,
since n_k grows with K.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import InputError
from .exact_root import pieces_of
from .least_distance import scipy_optimize
from .pieces import Pieces
from .recursion import Layer, Root, Walk, constant_roots, layers_of, recursive_taylor

CLOSED = 1e-9
"""How far outside its layer's largest margin a point may be and count as in the closed region."""
CHOICES = 200
GROWTH = tuple(10.0 * 2**i for i in range(24))


@dataclass(frozen=True)
class Justification:
    """Roots that give the wanted explanation, and the recursion's own answer with them."""

    roots: tuple[Root, ...]
    """For `recursive_taylor`."""
    relevance: Tensor
    """What the recursion returns at x."""
    common_root: Tensor
    """x₀: the first-layer root of all neurons but one."""
    moved_root: Tensor
    """x₀ + η: that of the neuron `neuron`."""
    neuron: int
    strength: float
    """K: how strongly the second layer's roots follow the input."""
    margin: float
    """Smallest margin of any root as a share of its layer's largest; ≥ −1e-9: all lie in the closed region."""


def justify(
    model: nn.Sequential | Sequence[Layer], x: Tensor, explanation: Tensor, *, output: int | None = None
) -> Justification:
    """Roots, all in the linear region of x, whose recursive Taylor decomposition returns the given explanation.

    A demonstration of what deep Taylor decomposition with input-dependent roots proves: nothing in particular.

    Args:
        model: ReLU layers, as for `recursive_taylor`: two at least.
        x: one sample, without a batch axis, float64.
        explanation: shaped like x; any numbers that sum to f(x).
        output: which output is explained; by default the largest.

    Raises:
        InputError: the numbers do not sum to f(x); one layer only, or fewer than two active neurons in the first, for
            which roots are not free; the region holds no root of f.
    """
    layers = layers_of(model)
    x, wanted = x.detach().double(), explanation.detach().double()
    if len(layers) < 2 or wanted.shape != x.shape or x.dim() != 1:
        raise InputError(
            f"{len(layers)} layers, x {tuple(x.shape)}, explanation {tuple(wanted.shape)}: this needs two layers at "
            "least, a vector x, and an explanation of its shape"
        )
    layers = tuple(_double(layer) for layer in layers)
    walk = Walk(layers, x)
    own = int(walk.activations[-1].argmax()) if output is None else output
    value = float(walk.activations[-1][own])
    if abs(float(wanted.sum()) - value) > 1e-9 * max(1.0, float(wanted.abs().max())):
        raise InputError(f"the explanation sums to {float(wanted.sum()):.6g} and f(x) is {value:.6g}; they must agree")
    (whole,) = pieces_of(_Chain(layers), x[None], target=own)
    (upper,) = pieces_of(_Chain(layers[1:]), walk.activations[1][None], target=own)
    common = _interior_root(whole)
    missing = whole.gradient[0] * (x - common) - wanted
    start = Walk(layers, common).activations
    jacobian = torch.func.jacrev(layers[0])(x)
    slopes = upper.gradient[0]
    w = _follower(jacobian, slopes, walk.activations[1] - start[1], missing)
    pair = slopes.abs().topk(2).indices.tolist()
    for size in GROWTH:
        for strength in (size, -size):  # one of the two moves the root to the side of the boundary f = 0 where f > 0
            found = _candidate(layers, x, own, common, start, missing, jacobian, slopes, w, pair, strength)
            margin = min(_margin(whole, found.moved_root), _upper_margin(upper, layers[0], found))
            off = float((found.relevance - wanted).abs().max())
            if margin >= -CLOSED and off <= 1e-10 * max(1.0, float(wanted.abs().max())):
                return replace(found, margin=margin)
    raise InputError("rounding hides the roots: the explanation lies too far from what this region's size allows")


class _Chain(nn.Module):
    """Layers on a batch of vectors."""

    def __init__(self, layers: Sequence[Layer]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(layer for layer in layers if isinstance(layer, nn.Module))
        if len(self.parts) != len(layers):
            raise InputError("every layer must be a module, such as nn.Sequential(nn.Linear(2, 3), nn.ReLU())")
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        for part in self.parts:
            x = part(x)
        return x


def _double(layer: Layer) -> Layer:
    """A copy in float64: the user's layer is only read."""
    import copy

    return copy.deepcopy(layer).double().eval().requires_grad_(False) if isinstance(layer, nn.Module) else layer


def _interior_root(pieces: Pieces) -> Tensor:
    """A root of f in the region with the largest distance from all its other boundaries, at most that of x."""
    gradient = pieces.gradient.flatten().numpy()
    margins = pieces.margins(pieces.x)[0]
    rows = pieces.rows(torch.arange(len(margins))).numpy()
    size = max(float(np.linalg.norm(gradient)), 1e-300)
    unit = gradient / size
    lengths = np.linalg.norm(rows, axis=1)
    kept = lengths > 1e-12
    rows, offsets = rows[kept] / lengths[kept, None], margins.numpy()[kept] / lengths[kept]
    free = np.linalg.norm(rows - np.outer(rows @ unit, unit), axis=1) > 1e-9
    n = rows.shape[1]
    limit = abs(pieces.value) / size + 1.0
    found = scipy_optimize().linprog(
        np.r_[np.zeros(n), -1.0],
        np.c_[-rows, free.astype(float)],
        offsets,
        np.r_[unit, 0.0][None],
        [-pieces.value / size],
        bounds=[(None, None)] * n + [(0, limit)],
        method="highs",
    )
    if found.status != 0 or found.x[-1] <= 1e-9 * limit:
        raise InputError("the linear region of x holds no root of f in the interior of its side f = 0")
    return pieces.x[0] + torch.from_numpy(found.x[:-1])


def _follower(jacobian: Tensor, slopes: Tensor, way: Tensor, missing: Tensor) -> Tensor:
    """w: orthogonal to the way from a₀, on neurons that matter, with every coordinate of Hᵀw that is needed not 0."""
    active = (slopes != 0) & (jacobian.abs().sum(1) > 0)
    if int(active.sum()) < 2:
        raise InputError("fewer than two active neurons in the first layer matter to f; its roots are then not free")
    generator = torch.Generator().manual_seed(0)
    needed = missing.abs() > 1e-14 * max(1.0, float(missing.abs().max()))
    direction = way * active
    best, quality = torch.zeros_like(way), 0.0
    for _ in range(CHOICES):
        w = torch.randn(len(way), generator=generator, dtype=way.dtype) * active
        if bool(direction.any()):
            w = w - (w @ direction) / (direction @ direction) * direction
        q = jacobian.T @ w
        size = float(q.norm())
        if size > 0 and float(q[needed].abs().min() if bool(needed.any()) else size) / size > quality:
            best, quality = w / size, float(q[needed].abs().min() if bool(needed.any()) else size) / size
    if quality < 1e-6:
        raise InputError("the first layer does not tell apart the inputs that the explanation tells apart")
    return best


def _candidate(
    layers: tuple[Layer, ...],
    x: Tensor,
    output: int,
    common: Tensor,
    start: Sequence[Tensor],
    missing: Tensor,
    jacobian: Tensor,
    slopes: Tensor,
    w: Tensor,
    pair: Sequence[int],
    strength: float,
) -> Justification:
    """The construction for one K and one neuron, run through the recursion."""
    first, second = pair
    u = torch.zeros_like(slopes)
    u[first], u[second] = 1 / slopes[first], -1 / slopes[second]
    slope = slopes[first] * (jacobian[first] - strength * u[first] * (jacobian.T @ w))
    moved = common + torch.where(missing == 0, 0.0, missing / torch.where(slope == 0, 1.0, slope))
    points = [moved if k == first else common for k in range(len(slopes))]
    follow: Root = lambda a, j: start[1] + strength * u * (w @ (a - start[1]))  # noqa: E731
    roots = (constant_roots(points), follow, *(constant_roots(a) for a in start[2:-1]))
    relevance = recursive_taylor(layers, roots)(x, output)[0]
    return Justification(roots, relevance, common, moved, first, strength, 0.0)


def _margin(pieces: Pieces, point: Tensor) -> float:
    """Smallest margin of a point as a share of its layer's largest."""
    worst: list[float] = []
    with torch.no_grad():
        pieces.run(point[None], lambda name, m: worst.append(float(m.min()) / pieces.scales[name]))
    return min(worst, default=0.0)


def _upper_margin(upper: Pieces, first: Layer, found: Justification) -> float:
    """The same of the second layer's roots, wherever the recursion asks for them; they must not be negative either."""
    with torch.no_grad():
        roots = [found.roots[1](first(point), 0) for point in (found.moved_root, found.common_root)]
    size = float(upper.x.abs().max())
    return min(min(_margin(upper, root), float(root.min()) / size) for root in roots)
