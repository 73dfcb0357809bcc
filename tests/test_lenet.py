"""A trained network that meets every assumption of deep Taylor decomposition: the LRP Toolbox's LeNet-5.

All its biases are ≤ 0, and it is convolutions, ReLU and sum-pooling. The figures are those of an earlier, separate
computation over 500 images. The files' licence is academic, so they are not part of the repository.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import deeptaylor as dt
from deeptaylor.rules import AlphaBeta, Flat, Gamma, LRPZero, Proportional, WSquare, ZBox, ZPlus

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "lrp_toolbox"
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason=f"the LRP Toolbox's LeNet-5 and its digits are not at {DATA}")

ZERO = LRPZero(bias="ignore")
PIXELS = ZBox(-1.0, 1.0)

# hidden rule, first rule, smallest relevance, fraction of negative relevance; both as printed
TABLE = {
    "LRP-0 without bias": (ZERO, ZERO, "-1.13", "0.432"),
    "z+ / zB (deep Taylor)": (ZPlus(), PIXELS, "4.5e-11", "0"),
    "z+ / z+": (ZPlus(), ZPlus(), "4.5e-11", "0"),
    "z+ / w2": (ZPlus(), WSquare(), "2.1e-07", "0"),
    "z+ / flat": (ZPlus(), Flat(), "4.4e-07", "0"),
    "gamma / zB": (Gamma(0.25, bias="ignore"), PIXELS, "-0.0477", "0.160"),
    "alpha-beta": (AlphaBeta(2.0, 1.0), AlphaBeta(2.0, 1.0), "-1.59", "0.404"),
    "LRP-0 / zB": (ZERO, PIXELS, "-0.318", "0.333"),
}


@cache
def lenet() -> nn.Module:
    return dt.importers.from_lrp_toolbox(DATA / "LeNet-5.txt", dtype=torch.float64)


@cache
def digits(n: int) -> tuple[Tensor, np.ndarray]:
    stored = np.load(DATA / "mnist_test_2000.npz")
    images = torch.from_numpy(stored["images"][:n]).double() / 127.5 - 1
    return F.pad(images, (2, 2, 2, 2), value=-1.0).unsqueeze(1), stored["labels"][:n]


def composite(hidden: object, first: object) -> dt.Composite:
    return dt.Composite(
        [
            (dt.composites.first("affine"), first),
            (dt.composites.role("affine"), hidden),
            (dt.composites.role("sum"), Proportional(epsilon=0.0)),
        ]
    )


def relevance_per_image(images: Tensor, hidden: object, first: object, target: object = None) -> dt.Attribution:
    return dt.explain(lenet(), images, target=target, composite=composite(hidden, first))


def conservation(result: dt.Attribution) -> Tensor:
    return (result.relevance.sum((1, 2, 3)) / result.explained - 1).abs()


def rounded_like(number: float, printed: str) -> str:
    """The number with as many digits as the printed one has."""
    if "e" in printed:
        return f"{number:.{len(printed.split('e')[0]) - 2}e}"
    return f"{number:.{len(printed.partition('.')[2])}f}"


def test_the_imported_network_has_the_published_accuracy() -> None:
    images, labels = digits(2000)
    with torch.no_grad():
        predicted = lenet()(images).argmax(1).numpy()
    assert (predicted == labels).mean() == 0.9875


def test_the_network_meets_the_assumptions_of_deep_taylor() -> None:
    assert all((layer.bias <= 0).all() for layer in lenet() if isinstance(layer, nn.Conv2d))


@pytest.mark.parametrize("row", TABLE)
def test_every_row_conserves_the_logit_on_a_hundred_digits(row: str) -> None:
    hidden, first, _, negative = TABLE[row]
    result = relevance_per_image(digits(100)[0], hidden, first)
    assert conservation(result).median() < 2e-12
    assert conservation(result).max() < 1e-11
    assert bool((result.relevance >= 0).all()) == (negative == "0")


@pytest.mark.slow
@pytest.mark.parametrize("row", TABLE)
def test_the_table_comes_out_to_its_digits_on_five_hundred_digits(row: str) -> None:
    hidden, first, smallest, negative = TABLE[row]
    result = relevance_per_image(digits(500)[0], hidden, first)
    assert f"{result.explained.mean():.2f}" == "20.96"
    assert conservation(result).median() < 2e-12
    assert rounded_like(float(result.relevance.min()), smallest) == smallest
    assert rounded_like(float((result.relevance < 0).double().mean()), negative) == negative


@pytest.mark.slow
def test_gradient_times_input_leaks_a_tenth_through_the_biases() -> None:
    result = dt.explain(lenet(), digits(500)[0], composite="gradient-times-input")
    ratio = result.relevance.sum((1, 2, 3)) / result.explained
    assert f"{ratio.median():.3f}" == "1.103"


def test_the_deep_taylor_preset_is_the_table_s_row_with_z_plus_at_the_logits() -> None:
    images = digits(20)[0]
    preset = dt.composites.deep_taylor(low=-1.0, high=1.0, logits=ZPlus())
    expected = relevance_per_image(images, ZPlus(), PIXELS).relevance
    assert torch.allclose(dt.explain(lenet(), images, composite=preset).relevance, expected, rtol=1e-6, atol=1e-9)


def similarity_across_classes(hidden: object, first: object) -> float:
    """Median cosine between the maps of the predicted and of another class, relevance 1 put at each."""
    images = digits(50)[0]
    with torch.no_grad():
        predicted = lenet()(images).argmax(1)
    maps = []
    for target in (predicted, (predicted + 1 + torch.arange(50) % 9) % 10):
        seed = F.one_hot(target, 10).double()
        maps.append(relevance_per_image(images, hidden, first, target=seed).relevance.flatten(1))
    return float(F.cosine_similarity(*maps).median())


def test_z_plus_everywhere_hardly_tells_classes_apart_and_lrp_zero_does() -> None:
    assert similarity_across_classes(ZPlus(), PIXELS) > 0.99
    assert similarity_across_classes(ZERO, ZERO) < 0.5
