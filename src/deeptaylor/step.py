"""`Step`: one operation of the forward pass with the values it saw, and its local vector-Jacobian product."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from .affine import Affine
from .graph import Node
from .ops import Op

Function = Callable[..., Any]


@dataclass
class Cache:
    """What a plan keeps between calls for one node: transformed weights and input-independent denominators."""

    held: dict[Any, Any] = field(default_factory=dict)

    def get(self, key: Any, make: Callable[[], Any]) -> Any:
        """The value under `key`, made once."""
        if key not in self.held:
            self.held[key] = make()
        return self.held[key]


@dataclass(frozen=True)
class Factors:
    """What the graph says of a product's factors; see `facts.Gates`."""

    positions: tuple[int, ...] = ()
    """The arguments that they are, by position in the operation's schema."""
    gates: tuple[int, ...] = ()
    """Numbers of the factors that are gates, and …"""
    statistics: tuple[int, ...] = ()
    """… of those that only scale: divisors, 1/sqrt."""
    kind: int = 0
    """How the gates were told from signals, 1 to 4; 0 where they were not."""


NO_FACTORS = Factors()


@dataclass(frozen=True)
class Step:
    """One operation with the values it saw. Rules read steps; they never see the graph."""

    node: Node
    op: Op
    function: Function
    """The operation as a function of the arguments that carry relevance, everything else fixed."""
    xs: tuple[Tensor, ...]
    """The arguments that carry relevance."""
    z: Any
    """The output: a tensor, or a tuple of them."""
    linearized: Function | None = None
    """normalization: `function` with its statistics held constant."""
    affine: Affine | None = None
    nonnegative: bool = False
    """Whether every x is known, from the graph alone, to be ≥ 0."""
    rectified: bool = False
    """Whether every reader of z is 0 wherever z ≤ 0."""
    batch_axis: int = 0
    """The axis of x that is the batch, where tracing could tell."""
    factors: Factors = NO_FACTORS
    """product: which of the xs are gates and statistics."""
    cache: Cache = field(default_factory=Cache)
    """Kept between calls, until a parameter changes."""
    memo: Cache = field(default_factory=Cache)
    """Kept for this forward pass: denominators shared by several targets."""

    @property
    def x(self) -> Tensor:
        """The only argument that carries relevance."""
        return self.xs[0]

    @property
    def is_complex(self) -> bool:
        """Whether a value here is complex; relevance of those is kept in product form."""
        return any(isinstance(value, Tensor) and value.is_complex() for value in (self.z, *self.xs))

    def recorded(self, function: Function | None = None) -> tuple[tuple[Tensor, ...], Any]:
        """(leaves, outputs) of a local autograd graph of this one operation, built once."""

        def record() -> tuple[tuple[Tensor, ...], Any]:
            leaves = tuple(x.detach().requires_grad_() for x in self.xs)
            with torch.enable_grad():
                return leaves, (function or self.function)(*leaves)

        return self.memo.get(("recorded", function), record)

    def vjp(
        self,
        cotangent: Tensor | Sequence[Tensor | None],
        function: Function | None = None,
        only: Sequence[int] | None = None,
    ) -> tuple[Tensor, ...]:
        """Jᵀ·cotangent for every x (or those in `only`), J the Jacobian at x of the operation or of `function`."""
        every, outputs = self.recorded(function)
        outputs = (outputs,) if isinstance(outputs, Tensor) else outputs
        cotangents = (cotangent,) if isinstance(cotangent, Tensor) else cotangent
        pairs = [(out, c) for out, c in zip(outputs, cotangents, strict=False) if c is not None and out.requires_grad]
        xs = [self.xs[i] for i in only] if only is not None else list(self.xs)
        leaves = [every[i] for i in only] if only is not None else list(every)
        if not pairs:
            return tuple(torch.zeros_like(x) for x in xs)
        grads = torch.autograd.grad(
            [out for out, _ in pairs], leaves, [c for _, c in pairs], retain_graph=True, allow_unused=True
        )
        return tuple(torch.zeros_like(x) if g is None else g for g, x in zip(grads, xs, strict=True))

    def linear_part(self, function: Function | None = None, weights: Mapping[int, float] | None = None) -> Tensor:
        """J·x: what of z is linear in the xs, for operations with one output; or Σ weight_i J_i·x_i over some of them.

        The derivative along x, as the derivative of the vector-Jacobian product by its vector.
        """
        weights = dict.fromkeys(range(len(self.xs)), 1.0) if weights is None else weights
        leaves = tuple(x.detach().requires_grad_() for x in self.xs)
        # fused attention has no second derivative
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
            output = (function or self.function)(*leaves)
        if not output.requires_grad:
            return torch.zeros_like(output)
        cotangent = torch.zeros_like(output, requires_grad=True)
        with torch.enable_grad():
            grads = torch.autograd.grad(output, leaves, cotangent, create_graph=True, allow_unused=True)
            xs = [torch.where(x.isinf(), 0.0, x) for x in self.xs]  # a mask of -inf has no share
            parts = [w * (grads[i].conj() * xs[i]).sum() for i, w in weights.items() if grads[i] is not None]
            total = torch.stack([torch.real(part) for part in parts]).sum()
        (along,) = torch.autograd.grad(total, cotangent, allow_unused=True)
        return torch.zeros_like(output) if along is None else along

    def offset(self) -> Tensor:
        """The operation's output where all data are 0: what its constants add."""
        return self.memo.get("offset", lambda: self.function(*(torch.zeros_like(x) for x in self.xs)))
