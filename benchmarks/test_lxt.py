"""LXT 2.1's explicit functions, where they are right, against the same operation under our rules (`make peers`).

LXT stabilises denominators by +ε whatever their sign, so values are kept away from 0.
"""

from __future__ import annotations

from collections.abc import Callable

import lxt.explicit.functional as lxt
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import deeptaylor as dt


def values(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.5


WEIGHT, BIAS, GAIN = values(5, 4, seed=1), values(5, seed=2), values(4, seed=3)

PAIRS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "linear": (
        lambda x: F.linear(x, WEIGHT, BIAS),
        lambda x: lxt.linear_epsilon(x, WEIGHT, BIAS, 1e-12),
    ),
    "softmax": (lambda x: x.softmax(-1), lambda x: lxt.softmax(x, -1)),
    "matrix product": (
        lambda x: x.unflatten(1, (2, 2)) @ x.unflatten(1, (2, 2)).mT,
        lambda x: lxt.matmul(x.unflatten(1, (2, 2)), x.unflatten(1, (2, 2)).mT, False, 1e-12),
    ),
    "gate": (lambda x: x[:, :2] * x[:, 2:], lambda x: lxt.mul2(x[:, :2], x[:, 2:])),
    "sum": (lambda x: x[:, :2] + x[:, 2:], lambda x: lxt.add2(x[:, :2], x[:, 2:], False, 1e-12)),
    "rms norm": (
        lambda x: F.rms_norm(x, (4,), GAIN, 1e-6),
        lambda x: lxt.rms_norm_identity(x, GAIN, 1e-6),
    ),
}


@pytest.mark.parametrize("operation", PAIRS)
def test_an_explicit_function_hands_on_what_attn_lrp_does(operation: str) -> None:
    ours, theirs = PAIRS[operation]
    x, seed = values(3, 4), None
    seed = values(*ours(x).shape, seed=4)
    leaf = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(theirs(leaf), leaf, seed)
    found = dt.explain(ours, x, target=seed, composite="attn-lrp").relevance
    assert (found - expected).abs().max() < 1e-8 * expected.abs().max()
