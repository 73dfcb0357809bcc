"""The transpose of a convolution as a matrix product is torch's own, and so are its derivatives."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_memory import peak
from torch import Tensor

from deeptaylor import columns

aten = torch.ops.aten


def own(
    s: Tensor, x: Tensor, weight: Tensor, stride: tuple[int, ...], padding: tuple[int, ...], dilation: tuple[int, ...]
) -> Tensor:
    settings = stride, padding, dilation, False, [0] * len(stride), 1
    made: Tensor = aten.convolution_backward.default(s, x, weight, None, *settings, [True, False, False])[0]
    return made


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[Tensor, Tensor, list[int], list[int], list[int]]:
    """(x, weight, stride, padding, dilation) of a convolution whose transpose can be a matrix product."""
    axes = draw(st.sampled_from([1, 2, 2, 2, 3]))
    pointwise = axes != 2 or draw(st.booleans())
    kernel = [1 if pointwise else draw(st.integers(1, 5)) for _ in range(axes)]
    stride = [draw(st.integers(1, 4)) for _ in kernel]
    dilation = [draw(st.integers(1, 2)) for _ in kernel]
    padding = [0 if max(kernel) == 1 else draw(st.integers(0, 2)) for _ in kernel]
    size = [d * (k - 1) + draw(st.integers(1, 9)) for k, d in zip(kernel, dilation, strict=True)]
    generator = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    channels = draw(st.integers(1, 3))
    x = torch.randn(draw(st.integers(1, 3)), channels, *size, dtype=torch.float64, generator=generator)
    outputs = draw(st.integers(25, 40)) * channels
    weight = torch.randn(outputs, channels, *kernel, dtype=torch.float64, generator=generator)
    return x, weight, stride, padding, dilation


@given(convolutions())
@settings(max_examples=150, deadline=None)
def test_the_transpose_is_that_of_torch(case: tuple[Tensor, Tensor, list[int], list[int], list[int]]) -> None:
    x, weight, stride, padding, dilation = case
    z = aten.convolution.default(x, weight, None, stride, padding, dilation, False, [0] * len(stride), 1)
    s = torch.randn(z.shape, dtype=z.dtype)
    made = columns.transpose(s, weight, x.shape[2:], stride, padding, dilation)
    torch.testing.assert_close(made, own(s, x, weight, stride, padding, dilation))


@pytest.mark.parametrize(("kernel", "stride"), [(1, 1), (1, 2), (3, 2)])
def test_it_has_derivatives_by_both_factors(kernel: int, stride: int) -> None:
    weight = torch.randn(18, 2, kernel, kernel, dtype=torch.float64, requires_grad=True)
    size = (5, 6)
    s = torch.randn(2, 18, *((n - kernel) // stride + 1 for n in size), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda s, w: columns.transpose(s, w, size, (stride, stride), (0, 0), (1, 1)), (s, weight)
    )


def test_the_columns_of_one_sample_alone_are_held() -> None:
    s, weight = torch.randn(16, 32, 20, 20), torch.randn(32, 3, 3, 3)
    made, one = 4 * 16 * 3 * 41 * 41, 4 * 27 * 20 * 20
    assert peak(lambda: columns.transpose(s, weight, (41, 41), (2, 2), (0, 0), (1, 1))) <= made + 3 * one


def test_a_product_is_taken_where_it_was_measured_to_be_faster() -> None:
    """`benchmarks/convolutions.py`: pointwise kernels, unless many samples are small; the channels of a picture."""

    def taken(batch: int, inputs: int, outputs: int, pixels: int, kernel: int, stride: int) -> bool:
        s = torch.empty(batch, outputs, pixels // stride, pixels // stride)
        return columns.pays(s, torch.empty(outputs, inputs, kernel, kernel), [stride] * 2, [0] * 2, 1)

    assert taken(1, 2048, 512, 7, 1, 1)
    assert not taken(8, 2048, 512, 7, 1, 1)
    assert taken(8, 256, 512, 56, 1, 2)
    assert taken(8, 3, 64, 224, 7, 2)
    assert not taken(1, 64, 64, 56, 3, 1)
