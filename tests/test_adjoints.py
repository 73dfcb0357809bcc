"""What is written down of frequent operations is what autograd gives."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from deeptaylor.adjoints import ADJOINTS
from deeptaylor.ops import OPS

aten = torch.ops.aten
CALLS: list[tuple[Any, tuple[int, ...], tuple[Any, ...], dict[str, Any]]] = [
    (aten.view.default, (2, 3, 4), ([2, 12],), {}),
    (aten._unsafe_view.default, (2, 3, 4), ([6, 4],), {}),
    (aten.reshape.default, (2, 3, 4), ([-1, 4],), {}),
    (aten.flatten.using_ints, (2, 3, 4), (1,), {}),
    (aten.flatten.using_ints, (2, 3, 4), (), {"start_dim": 0, "end_dim": 1}),
    (aten.unsqueeze.default, (2, 3), (-1,), {}),
    (aten.squeeze.dim, (2, 1, 3), (1,), {}),
    (aten.squeeze.dim, (2, 1, 3), (2,), {}),
    (aten.clone.default, (2, 3), (), {}),
    (aten.clone.default, (2, 3, 4, 4), (), {"memory_format": torch.channels_last}),
    (aten.alias.default, (2, 3), (), {}),
    (aten.contiguous.default, (2, 3), (), {}),
    (aten.contiguous.default, (2, 3, 4, 4), (), {"memory_format": torch.channels_last}),
    (aten.permute.default, (2, 3, 4), ([2, 0, 1],), {}),
    (aten.permute.default, (2, 3, 4), (), {"dims": [-2, 0, -1]}),
    (aten.transpose.int, (2, 3, 4), (1, -1), {}),
    (aten.transpose.int, (2, 3, 4), (), {"dim0": 0, "dim1": 2}),
    (aten.max_pool2d.default, (2, 3, 7, 6), ([2, 2],), {}),
    (aten.max_pool2d.default, (2, 3, 8, 6), ([2, 2],), {}),
    (aten.max_pool2d.default, (3, 8, 6), ([2], [2]), {}),
    (aten.max_pool2d.default, (2, 3, 8, 6), ([2, 2], [2, 2], [0, 0], [1, 1], True), {}),
    (aten.max_pool2d.default, (2, 3, 8, 6), ([2, 2], [1, 2]), {}),
    (aten.max_pool2d.default, (2, 3, 7, 6), ([3, 2], [2, 1], [1, 1], [1, 2], True), {}),
    (aten.max_pool2d.default, (3, 7, 6), ([2], [3]), {"padding": [1], "ceil_mode": True}),
    (aten.adaptive_avg_pool2d.default, (2, 3, 7, 6), ([1, 1],), {}),
    (aten.adaptive_avg_pool2d.default, (2, 3, 7, 6), ([3, 4],), {}),
    (aten.adaptive_avg_pool2d.default, (3, 7, 6), (), {"output_size": [2, 6]}),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.cfloat], ids=str)
@pytest.mark.parametrize(("operation", "shape", "args", "kwargs"), CALLS, ids=lambda value: str(value))
def test_value_and_adjoint_are_autograds(
    operation: Any, shape: tuple[int, ...], args: tuple[Any, ...], kwargs: dict[str, Any], dtype: torch.dtype
) -> None:
    if dtype.is_complex and "pool" in str(operation):
        dtype = torch.float64  # no such pools
    torch.manual_seed(0)
    x = torch.randn(shape, dtype=dtype)
    x = x.relu() if "max_pool" in str(operation) else x  # with equal values in many windows
    leaf = x.clone().requires_grad_()
    expected = operation(leaf.view_as(leaf), *args, **kwargs)
    z, back = ADJOINTS[operation](x, *args, **kwargs)
    assert torch.equal(z, expected)
    assert z.stride() == expected.stride()
    for c in (
        torch.randn(z.shape, dtype=dtype),
        torch.randn(z.shape[::-1], dtype=dtype).permute(*range(z.dim())[::-1]),
    ):
        (grad,) = torch.autograd.grad(expected, leaf, c, retain_graph=True)
        torch.testing.assert_close(back(c), grad)


def test_every_adjoint_is_tried_and_belongs_to_an_operation_with_a_role() -> None:
    left = set(ADJOINTS) - {operation for operation, *_ in CALLS}
    assert left == {aten.detach.default}  # a derivative of which autograd denies
    assert {OPS[operation].role for operation in ADJOINTS} == {"rearrange", "sum"}
