"""`check_derivatives`: proves on the user's own model that second (third) derivatives are right, or names the module.

Derivatives along two random directions are compared with central differences of derivatives one order lower, in float64
where the model can be copied to it. Where they part, every module is tried alone at the input it saw.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import grad, jvp

from ..errors import DeepTaylorError
from ..inputs import Model
from ..origin import plain_torch
from .safe import safe_mode
from .score import Score

RIGHT = 1e-4
"""Relative error up to which a derivative counts as right in float64; differences err by less than 1e-6."""
STEPS = {2: (1e-3, 1e-2, 1e-5, 1e-6), 3: (1e-2, 5e-2, 1e-3)}
"""Of the differences, by order, tried until one agrees: casts to float32 inside a model (RMS norms) want large ones,
kinks small ones. A wrong derivative agrees with none."""
FLOOR = 1e-3
"""Errors are relative to the derivative's size, or to this part of the gradient's."""


Function = Callable[[Tensor], Tensor]


class WrongDerivative(DeepTaylorError, ArithmeticError):
    """A second or third derivative is wrong; `.rows` holds what was compared, `.module` the path of the culprit."""

    def __init__(self, message: str, rows: tuple[DerivativeRow, ...], module: str | None) -> None:
        super().__init__(message)
        self.rows, self.module = rows, module


@dataclass(frozen=True)
class DerivativeRow:
    """One comparison."""

    order: int
    computed: float
    """Along the direction: v′∇²f v, or D³f[v, v, v]."""
    difference: float
    """The same by central differences."""
    error: float
    """Relative error of the whole vector ∇²f v (D³f[v, v, ·])."""
    tolerance: float
    precision: str
    """What it was compared in: "float64", or the model's own where that can't run in float64."""

    @property
    def right(self) -> bool:
        return self.error <= self.tolerance


def check_derivatives(
    model: Model, inputs: Tensor, *, order: int = 2, target: Any = None, head: Any = None
) -> tuple[DerivativeRow, ...]:
    """Compares derivatives up to `order` (2 or 3) with differences, along two random directions; about 7 g per order.

    Args:
        model: a module, a scripted or exported one, or a function of a batch.
        inputs: one sample, (1, *sample).
        order: the highest order that is checked.
        target: as for `taylor_terms`.
        head: picks (batch, classes) from the model's output.

    Returns:
        What was compared, when all of it is right.

    Raises:
        WrongDerivative: names the first module whose derivatives are wrong by themselves.
    """
    score = Score(model, inputs, target=target, head=head)
    rows: tuple[DerivativeRow, ...] = ()
    for k in range(2, order + 1):
        rows += check_score(score, inputs, k)
    wrong = [row for row in rows if not row.right]
    if not wrong:
        return rows
    culprit = _culprit(score, inputs, wrong[0].order)
    where = f"module {culprit[0]!r} ({culprit[1]})" if culprit else "of the modules that run alone, none is wrong"
    raise WrongDerivative(
        f"the derivative of order {wrong[0].order} is wrong, relative error {wrong[0].error:.2g}: along a random "
        f"direction {wrong[0].computed:.6g} instead of {wrong[0].difference:.6g}; {where}. Orders 1 and below are not "
        "affected: use taylor_orders, gradient_secant or fit_taylor, or write that operation with elementary ones",
        rows,
        culprit[0] if culprit else None,
    )


def check_score(score: Score, x: Tensor, order: int) -> tuple[DerivativeRow, ...]:
    """The comparisons for one order (2 or 3)."""
    generator = torch.Generator().manual_seed(0)
    double, point = _in_float64(score, x)
    rows = []
    for _ in range(2):
        v = torch.randn(x.shape, generator=generator, dtype=torch.float64).to(point)
        v = v / v.norm() * max(float(point.norm()), 1.0)
        rows.append(_compare(double, point, v, order))
    return tuple(rows)


def _compare(f: Function, point: Tensor, v: Tensor, order: int) -> DerivativeRow:
    gradient: Callable[..., Any] = grad(f)

    with plain_torch(), torch.random.fork_rng(devices=[]), torch.enable_grad():
        with safe_mode():
            try:
                if order == 2:
                    computed = jvp(gradient, (point,), (v,))[1]
                else:
                    computed = jvp(lambda z: jvp(gradient, (z,), (v,))[1], (point,), (v,))[1]
            except (RuntimeError, NotImplementedError):
                computed = _reverse_product(f, point, v) if order == 2 else _reverse_third(f, point, v)
        computed = computed.detach()
        double = point.dtype == torch.float64
        here = _plain(f, point)
        floor = FLOOR * float(here.norm())
        tolerance = RIGHT if double and order == 2 else 1e-3 if double else 5e-2
        best = (float("inf"), 0.0)
        for h in STEPS[order] if double else (1e-2, 3e-2):
            difference = _difference(f, here, point, v, h, order)
            size = max(float(difference.norm()), float(computed.norm()), floor, 1e-30)
            best = min(best, (float((computed - difference).norm()) / size, float((difference * v).sum())))
            if best[0] <= tolerance:
                break
    return DerivativeRow(order, float((computed * v).sum()), best[1], best[0], tolerance, str(point.dtype)[6:])


def _difference(f: Function, here: Tensor, point: Tensor, v: Tensor, h: float, order: int) -> Tensor:
    """∇²f v, or D³f[v, v, ·], from gradients at four places, exact to h⁴; no second derivative enters."""
    far, near, back, away = (_plain(f, point + s * h * v) for s in (2, 1, -1, -2))
    if order == 2:
        return (8 * (near - back) - (far - away)) / (12 * h)
    return (16 * (near + back) - (far + away) - 30 * here) / (12 * h**2)


def _plain(f: Function, z: Tensor) -> Tensor:
    """The gradient by one stock backward pass, outside the safe mode and torch.func."""
    with torch.enable_grad():
        leaf = z.detach().requires_grad_()
        value = f(leaf)
        if not value.requires_grad:
            return torch.zeros_like(leaf)
        (gradient,) = torch.autograd.grad(value, leaf, allow_unused=True)
        return torch.zeros_like(leaf) if gradient is None else gradient.detach()


def _reverse_product(f: Function, z: Tensor, v: Tensor, create_graph: bool = False) -> Tensor:
    leaf = z if create_graph else z.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(f(leaf), leaf, create_graph=True)
    if not gradient.requires_grad:
        return torch.zeros_like(leaf)
    (product,) = torch.autograd.grad(gradient, leaf, v, create_graph=create_graph, allow_unused=True)
    return torch.zeros_like(leaf) if product is None else product


def _reverse_third(f: Function, z: Tensor, v: Tensor) -> Tensor:
    leaf = z.detach().requires_grad_()
    product = _reverse_product(f, leaf, v, create_graph=True)
    if not product.requires_grad:
        return torch.zeros_like(leaf)
    (third,) = torch.autograd.grad(product, leaf, v, allow_unused=True)
    return torch.zeros_like(leaf) if third is None else third.detach()


def _in_float64(score: Score, x: Tensor) -> tuple[Function, Tensor]:
    """The score on a float64 copy of the model where that works, else as it is."""
    if x.dtype == torch.float64:
        return score, x
    if isinstance(score.model, nn.Module):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch about gradients of a scripted copy's parameters
                twin = score.on(copy.deepcopy(score.model).double())
            value = twin(x.double()).detach()
            close = math.isclose(float(value), score.value, rel_tol=1e-2, abs_tol=1e-3)
            if value.dtype == torch.float64 and close:
                return twin, x.double()
        except Exception:
            # Casts or constants of another precision inside: the model's own precision has to do.
            return score, x
    return score, x


def _culprit(score: Score, x: Tensor, order: int) -> tuple[str, str] | None:
    """The first module without children (then any) whose derivatives are wrong at the input that it saw."""
    if not isinstance(score.model, nn.Module):
        return None
    model = score.model
    named = [(name, m) for name, m in model.named_modules() if name]
    seen: dict[str, Tensor] = {}
    handles = []
    try:
        for name, module in named:

            def note(_module: nn.Module, args: Any, name: str = name) -> None:
                if args and isinstance(args[0], Tensor) and args[0].is_floating_point():
                    seen.setdefault(name, args[0].detach().clone())

            try:
                handles.append(module.register_forward_pre_hook(note))
            except RuntimeError:
                return None  # scripted submodules take no hooks
        with torch.no_grad():
            score(x)
    finally:
        for handle in handles:
            handle.remove()
    generator = torch.Generator().manual_seed(1)
    leaves_first = sorted(named, key=lambda pair: len(list(pair[1].children())) > 0)
    for name, module in leaves_first:
        if name not in seen:
            continue
        twin, point = copy.deepcopy(module).double(), seen[name].double()

        def alone(z: Tensor, module: nn.Module = twin) -> Tensor:
            out = module(z)
            weights = torch.cos(torch.arange(out.numel(), dtype=out.dtype)).view(out.shape)
            return (out * weights).sum()

        v = torch.randn(point.shape, generator=generator, dtype=torch.float64)
        try:
            if not _compare(alone, point, v, order).right:
                return name, type(module).__name__
        except Exception:
            continue  # modules of several arguments can't be tried alone
    return None
