"""Deep Taylor on a trained network that meets all its assumptions: consistent to rounding, and blind to the class.

The LRP Toolbox's LeNet-5 (convolutions, ReLU, sum-pooling, every bias ≤ 0) on MNIST where its files are at hand, and a
network of our own, trained here with b ≤ 0 on real MNIST.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...composites import Composite, first, role
from ...explainer import Explainer
from ...rules import AlphaBeta, Flat, Gamma, LRPZero, Proportional, Relevance, Rule, WSquare, ZBox, ZPlus
from ..maps import weights_in_order
from ..replica import Replica
from .digits import mnist, own_lenet, toolbox_digits, toolbox_lenet, train
from .tables import Reproduction, Table, Tell, new_figure

ZERO = LRPZero(bias="ignore")
GAMMA = Gamma(0.25, bias="ignore")
BATCH = 25

EXPECTED = {
    "LRP-0 without bias": (1e-12, -1.13, 0.432, 0.198),
    "z⁺ / z^B": (1.5e-12, 4.5e-11, 0.0, 0.9966),
    "z⁺ / z⁺": (1.6e-12, 4.5e-11, 0.0, 0.9966),
    "z⁺ / w²": (1.9e-12, 2.1e-7, 0.0, 0.9966),
    "z⁺ / flat": (1.4e-12, 4.4e-7, 0.0, 0.9967),
    "gamma ¼ / z^B": (1.0e-12, -0.0477, 0.160, 0.630),
    "α2β1": (1.3e-12, -1.59, 0.404, 0.727),
    "LRP-0 / z^B": (8.5e-13, -0.318, 0.333, 0.275),
}
"""(median |ΣR/f − 1|, smallest R, share of negative R, median cosine with another class's map), computed separately."""
EXPECTED_RANDOM = {
    "z⁺ / z^B": ((0.998, 0.996), (0.997, 0.995), (0.989, 0.989), (0.904, 0.965)),
    "LRP-0 without bias": ((0.465, 0.719), (0.281, 0.698), (0.164, 0.648), (0.056, 0.530)),
    "gamma ¼ / z^B": ((0.762, 0.833), (0.799, 0.833), (0.823, 0.799), (0.661, 0.700)),
    "gradient × input": ((-0.292, 0.680), (-0.180, 0.653), (-0.036, 0.586), (0.003, 0.523)),
}
"""(cosine, rank correlation of |R|) after 1 to 4 layers were drawn anew, from the top; other random numbers."""


def rules(name: str, low: float) -> tuple[Rule, Rule]:
    """(hidden rule, first rule) of a row."""
    box = ZBox(low, 1.0)
    return {
        "LRP-0 without bias": (ZERO, ZERO),
        "z⁺ / z^B": (ZPlus(), box),
        "z⁺ / z⁺": (ZPlus(), ZPlus()),
        "z⁺ / w²": (ZPlus(), WSquare()),
        "z⁺ / flat": (ZPlus(), Flat()),
        "gamma ¼ / z^B": (GAMMA, box),
        "α2β1": (AlphaBeta(2.0, 1.0), AlphaBeta(2.0, 1.0)),
        "LRP-0 / z^B": (ZERO, box),
    }[name]


def composite(name: str, low: float) -> Composite | str:
    """The row's rules as a composite."""
    if name == "gradient × input":
        return "gradient-times-input"
    hidden, at_input = rules(name, low)
    return Composite([(first(), at_input), (role("affine"), hidden), (role("sum"), Proportional())], name)


def _maps(explainer: Explainer, images: Tensor, target: Any) -> tuple[Tensor, Tensor]:
    """(relevance, explained value) batch by batch; one target per image."""
    found, values = [], []
    for start in range(0, len(images), BATCH):
        part = slice(start, start + BATCH)
        result = explainer(images[part], target=None if target is None else target[part])
        found.append(result.relevance)
        values.append(result.explained)
    return torch.cat(found), torch.cat(values)


def consistency_table(title: str, network: nn.Module, images: Tensor, low: float, tell: Tell, expected: bool) -> Table:
    """Conservation, sign and class sensitivity of every row."""
    with torch.no_grad():
        predicted = torch.cat([network(part) for part in images.split(BATCH)]).argmax(1)
    generator = torch.Generator().manual_seed(0)
    other = (predicted + torch.randint(1, 10, predicted.shape, generator=generator)) % 10
    rows: list[tuple[Any, ...]] = []
    for number, name in enumerate(EXPECTED):
        tell(number / len(EXPECTED), f"{title}: {name}")
        explainer = Explainer(network, images[:BATCH], composite=composite(name, low))
        relevance, value = _maps(explainer, images, None)
        own, others = (_maps(explainer, images, F.one_hot(c, 10).to(images))[0].flatten(1) for c in (predicted, other))
        measured = (
            float((relevance.flatten(1).sum(1) / value - 1).abs().median()),
            float(relevance.min()),
            float((relevance < 0).double().mean()),
            float(F.cosine_similarity(own, others).median()),
        )
        if expected:
            rows.append((name, *(v for both in zip(measured, EXPECTED[name], strict=True) for v in both)))
        else:
            rows.append((name, *measured))
    names = ("median |ΣR/f − 1|", "smallest R", "negative share", "cos between classes")
    columns = [c for i, n in enumerate(names) for c in ((n, "expected" + " " * i) if expected else (n,))]
    return Table(title, ("hidden / first rule", *columns), tuple(rows), ".4g")


def randomization_table(
    title: str, network: nn.Module, images: Tensor, low: float, tell: Tell, expected: bool
) -> Table:
    """Similarity of maps after the upper layers' weights and biases were drawn anew, from the top down."""
    rows: list[tuple[Any, ...]] = []
    for number, name in enumerate(EXPECTED_RANDOM):
        tell(number / len(EXPECTED_RANDOM), f"{title}: {name}")
        explainer = Explainer(network, images[:1], composite=composite(name, low))
        similar = _randomized(explainer, images)
        for kind in (0, 1):
            label = f"{name}, {('cosine', 'rank correlation of |R|')[kind]}"
            rows.append((label, *(pair[kind] for pair in similar)))
            if expected:
                rows.append(("  expected", *(pair[kind] for pair in EXPECTED_RANDOM[name])))
    count = len(rows[0]) - 1
    note = (
        "Weights of a layer are drawn from the Gaussian of its own mean and spread, biases from theirs and made ≤ 0. "
        "Expected: a separate computation with other random numbers."
    )
    return Table(title, ("rule", *(f"{n + 1} drawn anew" for n in range(count))), tuple(rows), ".3f", note)


def _randomized(explainer: Explainer, images: Tensor) -> list[tuple[float, float]]:
    """(median cosine, median rank correlation) after 1, 2, … of the layers, all images in one batch each."""
    call = explainer._call(images, None)
    replica = Replica.of(explainer, call, 0, 0)  # the whole batch
    weights = weights_in_order(replica.graph, replica.state)
    seed = _predicted(replica, product=explainer.plan.composite.name == "gradient-times-input")
    own = replica.maps(seed)[replica.explained].flatten(1)
    generator = torch.Generator().manual_seed(1)
    state = dict(replica.state)
    found = []
    for name in reversed(weights[-4:]):
        for part in (name, name.removesuffix("weight") + "bias"):
            value = state[part]
            fresh = torch.randn(value.shape, generator=generator, dtype=value.dtype) * value.std() + value.mean()
            state[part] = fresh.clamp(max=0) if part.endswith("bias") else fresh
        changed = replica.with_state(dict(state)).maps(seed)[replica.explained].flatten(1)
        before, after = (m.abs().argsort(1).argsort(1).double() for m in (own, changed))
        spearman = F.cosine_similarity(before - before.mean(1, keepdim=True), after - after.mean(1, keepdim=True))
        found.append((float(F.cosine_similarity(own, changed).median()), float(spearman.median())))
    return found


def _predicted(replica: Replica, product: bool) -> Relevance:
    """Relevance 1 (or gradient 1) at the predicted class: a logit that changes its sign must not turn the map."""
    output = replica.run.output
    return Relevance(F.one_hot(output.argmax(1), output.shape[1]).to(output), product)


def gradient_leak(network: nn.Module, images: Tensor) -> float:
    """Median Σ gradient × input / f."""
    relevance, value = _maps(Explainer(network, images[:BATCH], composite="gradient-times-input"), images, None)
    return float((relevance.flatten(1).sum(1) / value).median())


def trained(tell: Tell) -> tuple[nn.Module, Tensor, float]:
    """(our network with b ≤ 0, in float64; 1,000 digits it was not trained on; its accuracy there)."""
    images, labels = mnist()
    images = images.unsqueeze(1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = own_lenet()
        train(model, images[:4000], labels[:4000], F.cross_entropy, epochs=6, rate=2e-3,
              tell=lambda share: tell(share, "training on 4,000 MNIST digits"))  # fmt: skip
    test = images[4000:].double()
    model = model.double()
    with torch.no_grad():
        accuracy = float((model(test).argmax(1) == labels[4000:]).double().mean())
    return model, test, accuracy


def reproduce(tell: Tell, data: Path | None = None, count: int = 500, fewer: int = 100) -> Reproduction:
    """All tables; `count` digits for the first, `fewer` for randomised layers."""
    model, test, accuracy = trained(lambda share, what: tell(0.15 * share, what))
    tables = [
        consistency_table(
            f"A network trained here with b ≤ 0 ({accuracy:.1%} of 1,000 digits right)", model, test[:count], 0.0,
            lambda share, what: tell(0.15 + 0.2 * share, what), False,
        ),
        randomization_table(
            "The same, upper layers drawn anew", model, test[:fewer], 0.0,
            lambda share, what: tell(0.35 + 0.1 * share, what), False,
        ),
    ]  # fmt: skip
    missing = data is None or not (data / "LeNet-5.txt").is_file()
    if not missing and data is not None:
        network, (images, labels) = toolbox_lenet(data), toolbox_digits(data, 2000)
        with torch.no_grad():
            right = float((network(images).argmax(1) == labels).double().mean())
        leak = gradient_leak(network, images[:count])
        tables += [
            consistency_table(
                "The LRP Toolbox's LeNet-5", network, images[:count], -1.0,
                lambda share, what: tell(0.45 + 0.4 * share, what), True,
            ),
            randomization_table(
                "LeNet-5, upper layers drawn anew", network, images[:fewer], -1.0,
                lambda share, what: tell(0.85 + 0.15 * share, what), True,
            ),
            Table(
                "LeNet-5, further figures", ("", "here", "expected"),
                (("accuracy on 2,000 digits", right, 0.9875), ("Σ gradient × input / f, median", leak, 1.103)), ".4f",
            ),
        ]  # fmt: skip
    says = (
        "Deep Taylor decomposition is consistent in the sense of Montavon et al. (2017), to rounding, and at the same "
        "time nearly blind to the class and to the layers above (Sixt et al. 2020): both in one table. LRP-0 tells "
        "classes apart, with relevance of both signs; the gamma rule lies between."
    )
    if missing:
        says += " The LRP Toolbox's LeNet-5 was skipped: its files (--data FOLDER) are not part of this project."
    return Reproduction(
        "lenet", "Deep Taylor where all its assumptions hold", says, tuple(tables), lambda: _figure(tables[0]),
        {"digits": count, "digits for randomised layers": fewer, "accuracy": accuracy},
    )  # fmt: skip


def _figure(table: Table) -> Any:
    figure, (axis,) = new_figure(7, 3.4, ["Conserving, and blind to the class"])
    names = [str(name) for name in table.column("hidden / first rule")][::-1]
    values = [float(v or 0) for v in table.column("cos between classes")][::-1]
    axis.barh(names, values, color=["#b5482a" if v > 0.95 else "#1b6ca8" for v in values])
    axis.axvline(0.95, color="#888888", linewidth=0.8)
    axis.set_xlabel("cosine between the maps of two classes (median)")
    axis.set_xlim(min(0.0, *values), 1)
    return figure
