"""Composite `exact-root`: Taylor decomposition of the whole score at the exact nearest root in the input's region."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..attribution import Attribution
from ..errors import InputError
from ..inputs import Call
from ..ledger import Ledger
from .exact_root import exact_nearest_root

if TYPE_CHECKING:
    from ..explainer import Explainer


def at_exact_root(
    explainer: Explainer, call: Call, target: Any, result: Attribution, domain: Any, ledger: bool
) -> Attribution:
    """`result` with ∇f·(x − x̃) in place of gradient × input, one root for each sample and target.

    Raises:
        InputError: several inputs, a network that is not piecewise linear, or a sample without a root in its region.
    """
    if len(call.tensors) != 1 or explainer.record:
        raise InputError('composite "exact-root" takes models of one input, traced; see dt.nearest_root for others')
    ((name, x),) = call.tensors.items()
    classes = result.target if isinstance(result.target, Tensor) else target
    several = isinstance(classes, Tensor) and classes.dim() == 2
    roots = []
    for own in classes.unbind(1) if several else [classes]:
        found = exact_nearest_root(explainer.model, x, target=own, domain=domain, head=explainer.head)
        for sample, proof in enumerate(found.proof):
            if proof is not None:
                raise InputError(
                    f"sample {sample} has no root in its linear region: the score stays at least "
                    f'{abs(proof.bound):.4g} from 0 there; dt.nearest_root(model, x, region="any") looks beyond it'
                )
        roots.append(found)
    relevance = torch.stack([root.relevance for root in roots], 1) if several else roots[0].relevance
    explained = torch.stack([root.start_value for root in roots], 1) if several else roots[0].start_value
    inputs = relevance.flatten(explained.dim()).sum(-1)
    return replace(
        result,
        relevances={name: relevance.to(x)},
        # between the root, where f is 0, and x the network is linear: nothing is left over
        ledger=Ledger(explained, inputs, torch.zeros_like(inputs), ()) if ledger else None,
    )
