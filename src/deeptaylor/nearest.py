"""`nearest_root`: one door to both searches, anywhere in the domain or exactly in the input's own linear region."""

from __future__ import annotations

from typing import Any, Literal, overload

from torch import Tensor

from .audit.exact_root import ExactRoot, exact_nearest_root
from .errors import InputError
from .inputs import Model
from .taylor.nearest_root import Domain, Root
from .taylor.nearest_root import nearest_root as search


@overload
def nearest_root(
    f: Model, x: Tensor, *, target: Any = ..., region: Literal["any"] = ..., domain: Domain = ..., **options: Any
) -> Root: ...
@overload
def nearest_root(
    f: Model, x: Tensor, *, target: Any = ..., region: Literal["exact"], domain: Domain = ..., **options: Any
) -> ExactRoot: ...
def nearest_root(
    f: Model, x: Tensor, *, target: Any = None, region: str = "any", domain: Domain = None, **options: Any
) -> Root | ExactRoot:
    """The point closest to x at which the target's score is zero, and the Taylor decomposition there.

    Args:
        f: the model, in evaluation mode: (N, ...) to (N, classes), (N, 1) or (N,).
        x: (N, ...), floating.
        target: a class index or one per sample; by default the class predicted at x.
        region: "any" searches the whole domain, and finds a local optimum of any differentiable network; "exact" stays
            in the closed linear region of x, and gives the optimum of a piecewise linear network, or proof that no
            root lies there.
        domain: None (all reals), "positive" (ξ ≥ 0), or (low, high), which broadcast to x.
        options: for "any", `margin=True` (root of the score less the best other) and `steps`; for "exact", `head`.

    Raises:
        InputError: no such region, input that can't be used, a network that is not piecewise linear ("exact").
        DomainError: x lies outside the domain.
    """
    if region not in ("any", "exact"):
        raise InputError(f'region {region!r} is not known; pass "any" or "exact"')
    known = {"any": {"margin", "steps"}, "exact": {"head"}}[region]
    if not set(options) <= known:
        raise InputError(
            f"region={region!r} takes {', '.join(sorted(known))}, not {', '.join(sorted(set(options) - known))}"
        )
    if region == "exact":
        return exact_nearest_root(f, x, target=target, domain=domain, **options)
    return search(f, x, target=target, domain=domain, **options)
