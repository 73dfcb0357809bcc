"""`Step`: one operation of the forward pass with the values it saw, and its local vector-Jacobian product."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge
from torch.nn.attention import SDPBackend, sdpa_kernel

from .adjoints import Back
from .affine import Affine
from .graph import Node
from .ops import Op

Function = Callable[..., Any]
HALF = (torch.float16, torch.bfloat16)


@dataclass
class Cache:
    """What a plan keeps between calls for one node: transformed weights and input-independent denominators."""

    held: dict[Any, Any] = field(default_factory=dict)
    last: bool = False
    """Whether nobody will ask again."""
    audited: bool = True
    """Whether a ledger may ask for what a rule absorbed."""

    def passing(self, key: Any, make: Callable[[], Any]) -> Any:
        """The value under `key`, kept only for those who will ask again."""
        return self.held.pop(key) if self.last and key in self.held else make() if self.last else self.get(key, make)

    def forget(self, value: Any) -> None:
        """Lets go of a value that has served, where nobody will ask for it again."""
        if self.last and not self.audited:
            for key in [key for key, held in self.held.items() if held is value]:
                del self.held[key]

    def get(self, key: Any, make: Callable[[], Any]) -> Any:
        """The value under `key`, made once."""
        if key not in self.held:
            self.held[key] = make()
        return self.held[key]


@dataclass(frozen=True)
class Recorded:
    """The autograd graph of one operation, without the values that only autograd's caller would want."""

    leaves: tuple[Any, ...]
    outputs: tuple[Any, ...]
    """Gradient edges; None where an output does not depend on the leaves."""


def record(function: Function, xs: Sequence[Tensor]) -> tuple[Recorded, Any]:
    """The graph of `function` at `xs`, and what it returns."""
    roots = [x.detach().requires_grad_() for x in xs]
    with torch.enable_grad():
        leaves = [root.view_as(root) for root in roots]
        result = function(*leaves)
    several = (result,) if isinstance(result, Tensor) else result
    edges = [get_gradient_edge(out) if out.requires_grad else None for out in several]
    for root in roots:  # it lives as long as the graph; its values need not
        root.data = root.new_empty(()).expand(root.shape)
    detached = tuple(out.detach() for out in several)
    recorded = Recorded(tuple(get_gradient_edge(leaf) for leaf in leaves), tuple(edges))
    return recorded, detached[0] if isinstance(result, Tensor) else detached


@dataclass(frozen=True)
class Later:
    """A value that is not kept: the output of a cheap linear operation, made again where somebody asks for it."""

    function: Function
    taken: tuple[Tensor | Later, ...]
    memo: Cache

    def now(self) -> Tensor:
        made: Tensor = self.memo.get("again", lambda: self.function(*map(now, self.taken)))
        return made


def now(value: Any) -> Any:
    """A value, whether it was kept or not."""
    return value.now() if isinstance(value, Later) else value


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


@dataclass(slots=True, eq=False)  # frozen ones take three times as long to make, one per operation and call
class Step:
    """One operation with the values it saw. Rules read steps and never write to them; they never see the graph."""

    node: Node
    op: Op
    function: Function
    """The operation as a function of the arguments that carry relevance, everything else fixed."""
    taken: tuple[Tensor | Later, ...]
    """The arguments that carry relevance, or how to make them again; `xs` reads them."""
    made: Any
    """The output, a tensor or a tuple of them, or how to make it again; `z` reads it."""
    linearized: Function | None = None
    """normalization: `function` with its statistics held constant."""
    affine: Affine | None = None
    adjoint: Back | None = None
    """The vector-Jacobian product towards the only x, where it is known without recording the operation."""
    nonnegative: bool = False
    """Whether every x is known, from the graph alone, to be ≥ 0."""
    rectified: bool = False
    """Whether every reader of z is 0 wherever z ≤ 0."""
    clipped: bool = False
    """Whether z is its own positive part."""
    batch_axis: int = 0
    """The axis of x that is the batch, where tracing could tell."""
    factors: Factors = NO_FACTORS
    """product: which of the xs are gates and statistics."""
    cache: Cache = field(default_factory=Cache)
    """Kept between calls, until a parameter changes."""
    memo: Cache = field(default_factory=Cache)
    """Kept for this forward pass: denominators shared by several targets."""

    @property
    def xs(self) -> tuple[Tensor, ...]:
        """The arguments that carry relevance."""
        return tuple(now(x) for x in self.taken)

    @property
    def z(self) -> Any:
        """The output: a tensor, or a tuple of them."""
        return now(self.made)

    @property
    def x(self) -> Tensor:
        """The only argument that carries relevance."""
        return self.xs[0]

    @property
    def is_complex(self) -> bool:
        """Whether a value here is complex; relevance of those is kept in product form."""
        return any([isinstance(value, Tensor) and value.is_complex() for value in (self.z, *self.xs)])

    def recorded(self, function: Function | None = None) -> Recorded:
        """A local autograd graph of this one operation, built once."""
        return self.memo.get(("recorded", function), lambda: record(function or self.function, self.xs)[0])

    def vjp(
        self,
        cotangent: Tensor | Sequence[Tensor | None],
        function: Function | None = None,
        only: Sequence[int] | None = None,
    ) -> tuple[Tensor, ...]:
        """Jᵀ·cotangent for every x (or those in `only`), J the Jacobian at x of the operation or of `function`."""
        if self.adjoint is not None and function is None and isinstance(cotangent, Tensor):
            return (self.adjoint(cotangent),)
        recorded = self.recorded(function)
        cotangents = (cotangent,) if isinstance(cotangent, Tensor) else cotangent
        given = zip(recorded.outputs, cotangents, strict=False)
        pairs = [(o, c) for o, c in given if o is not None and c is not None]
        chosen = range(len(self.taken)) if only is None else only
        grads: Sequence[Tensor | None] = [None] * len(chosen)
        if pairs:
            grads = torch.autograd.grad(
                [out for out, _ in pairs],
                [recorded.leaves[i] for i in chosen],
                [c for _, c in pairs],
                retain_graph=True,
                allow_unused=True,
            )
        return tuple(torch.zeros_like(self.xs[i]) if g is None else g for g, i in zip(grads, chosen, strict=True))

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


def lightened(step: Step, sources: Sequence[Step | None], passes: bool) -> Step:
    """The step without what can be made again and will hardly be asked for.

    Sums and rearrangements pass c on without a look at their values, and so do affine operations under LRP-0.
    What other operations take is kept: autograd holds it anyway.

    Args:
        step: the step as it ran.
        sources: the steps that made its `xs`, where steps did.
        passes: whether its rule hands on c without a look at values.
    """
    cheap = step.op.role in ("sum", "rearrange") and not step.op.kept and not step.op.first
    if not passes or not isinstance(step.made, Tensor) or not (cheap or step.affine is not None):
        return step
    if any(isinstance(value, Tensor) and value.dtype in HALF for value in (step.made, *step.taken)):
        return step
    taken = tuple(
        source.made if source is not None and isinstance(source.made, Later) else x
        for source, x in zip(sources, step.taken, strict=True)
    )
    affine = step.affine and step.affine.light()
    return replace(step, taken=taken, made=Later(step.function, taken, step.memo), affine=affine)
