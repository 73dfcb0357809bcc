"""Where the roots of the rules lie, on the network of "A Rigorous Study of the Deep Taylor Decomposition".

Sixt and Landgraf (TMLR 2022) take an MLP 10-10-10-2 with ReLU also at the output and negative biases, inputs |N(0, 1)|
with f > 0.1, and ask of the first layer's roots whether they lie in the linear region of the input. The network, the
seeds and the way inputs are drawn are those of the study's published notebook.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..exact_root import Region, exact_nearest_root, pieces_of
from ..least_distance import nearest
from ..pieces import Pieces
from ..ray import first_boundary, first_root
from .tables import Reproduction, Table, Tell, new_figure

EXPECTED_PRINT = {
    "LRP-0": (41.20, 14.62, 91.12),
    "z+": (41.10, 13.97, 91.18),
    "gamma 1": (38.70, 13.85, 91.52),
    "w2": (37.70, 13.99, 91.43),
}
"""Rows of the notebook's table, (different gradient, same output, roots with the same gradient), in percent."""
EXPECTED = {
    "z+": (25.5, 18.8, 0.0, 100.0),
    "w2": (32.1, 25.4, 0.0, 38.0),
    "gamma 0.25": (12.7, 8.1, 0.0, 97.4),
    "gamma 1": (19.3, 13.4, 0.0, 99.5),
    "gamma 100": (25.4, 18.8, 0.0, 100.0),
    "v = x": (8.3, 4.9, 0.0, 94.7),
    "flat": (14.0, 11.0, 0.0, 28.1),
    "z^B [0, 3]": (17.8, 14.2, 0.0, 91.1),
    "reference 0": (0.0, 0.0, 0.0, 100.0),
}
"""(in region, of active neurons, samples with all active in region, in R₊), in percent, by a separate computation."""
ROW_NAMES = tuple(EXPECTED_PRINT)
CLOSED = 1e-6
COMPARED = 300
"""Inputs on which the lazy solver is compared with all constraints at once."""
SCALE = 1.4


class Mlp(nn.Module):
    """The study's network, made with its seed."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(1)
            self.linears = nn.ModuleList([nn.Linear(10, 10), nn.Linear(10, 10), nn.Linear(10, 2)])
        with torch.no_grad():
            for linear in self.affine():
                # nn.Module.apply reaches every layer three times: as Linear, within its block, within the network
                for last in (False, True):
                    for parameter in linear.parameters():
                        parameter[parameter > 0] *= SCALE
                    if last:
                        linear.bias.copy_(-linear.bias.abs())
                linear.weight[linear.weight > 0] *= SCALE
        self.requires_grad_(False).eval()

    def affine(self) -> list[nn.Linear]:
        """The affine layers."""
        return [layer for layer in self.linears if isinstance(layer, nn.Linear)]

    def forward(self, x: Tensor) -> Tensor:
        for linear in self.linears:
            x = torch.relu(linear(x))
        return x


def drawn(network: Mlp, count: int) -> Iterator[Tensor]:
    """The notebook's inputs: |N(0, 1)| until output 0 exceeds 0.1, each from a seed drawn where the last one ended."""
    for _ in range(count):
        torch.manual_seed(int(torch.randint(0, 2**32, (1,)).item()))
        while True:
            x = torch.randn(1, 10).abs()
            if float(network(x)[0, 0]) > 0.1:
                yield x
                break


def directions(name: str, x: Tensor, weight: Tensor) -> Tensor:
    """Search directions of all neurons, (neurons, inputs), for one input (inputs,)."""
    positive = (weight >= 0).to(x)
    if name == "z+":
        return x * positive
    if name == "w2":
        return weight
    if name == "v = x":
        return x.expand_as(weight)
    if name == "flat":
        return 1 / weight
    if name == "z^B [0, 3]":
        return x - 3.0 * (weight < 0)
    return x * (1 + float(name.split()[1]) * positive)


def true_roots(name: str, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """x̃ = x − z_j/(w_j·v) v of all neurons, (neurons, inputs)."""
    if name == "reference 0":
        return torch.zeros_like(weight)
    v = directions(name, x, weight)
    return x - ((weight @ x + bias) / (weight * v).sum(1))[:, None] * v


def z_plus_relevance(network: Mlp, x: Tensor) -> Tensor:
    """Relevance of the first layer's outputs under the training-free z⁺ rule for output 0."""
    first, second, third = network.affine()
    a1 = torch.relu(first(x[None]))
    a2 = torch.relu(second(a1))
    relevance = torch.relu(third(a2))[:, :1]
    for weight, a in ((third.weight[:1], a2), (second.weight, a1)):
        share = a[0] * weight.clamp(min=0)
        total = share.sum(1, keepdim=True)
        relevance = (relevance / total.T.where(total.T > 1e-5, float("inf"))) @ share
    return relevance[0]


def notebook_roots(network: Mlp, x: Tensor) -> Tensor:
    """What the notebook takes for roots: the step is R_j/(w_j·v) instead of z_j/(w_j·v), whatever the row says."""
    first = network.affine()[0]
    v = x * (first.weight >= 0)
    along = (v * first.weight).sum(1)
    kept = along.abs() > 1e-5
    return (x - (z_plus_relevance(network, x) / along)[:, None] * v)[kept]


def gradient_of(network: Mlp, x: Tensor) -> Tensor:
    """Gradient of output 0 at some points."""
    leaf = x.detach().requires_grad_()
    with torch.enable_grad():
        (found,) = torch.autograd.grad(network(leaf)[:, 0].sum(), leaf)
    return found


def as_printed(network: Mlp, count: int = 1000, tell: Tell | None = None) -> Table:
    """The notebook's own table: its loop variable is not used, so that every row is z⁺ on further inputs."""
    rows: list[tuple[Any, ...]] = []
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for number, name in enumerate(ROW_NAMES):
            if tell is not None:
                tell(number / 4, f"the notebook's row {name}")
            different, same_output, same_gradient = [], [], []
            for x in drawn(network, count):
                roots = notebook_roots(network, x[0])
                changed = (gradient_of(network, roots) - gradient_of(network, x)).abs() > 1e-5
                different.append(changed.any())
                same_gradient.append(~changed.any(1))
                same_output.append((network(roots)[:, 0] - network(x)[0, 0]).abs() < 1e-6)
            shares = [
                _percent(torch.stack(different)),
                _percent(torch.cat(same_output)),
                _percent(torch.cat(same_gradient)),
            ]
            rows.append((name, *(v for pair in zip(shares, EXPECTED_PRINT[name], strict=True) for v in pair)))
    return Table(
        "The published script's table, as it would print",
        _columns("row", "any root of another gradient %", "root of the same output %", "roots of the same gradient %"),
        tuple(rows),
        ".2f",
        "The rows differ by chance alone: the script builds the root finder once, with z⁺. Its column “in local linear "
        "region” prints the first figure, which is the share of samples *not* all in the region, and its points are no "
        "roots: they step by R_j where z_j is needed.",
    )


@dataclass(frozen=True)
class Sample:
    """One input with its region."""

    x: Tensor
    pieces: Pieces


def samples(network: Mlp, inputs: Tensor) -> list[Sample]:
    """The inputs, (N, 10) in float64, each with its region for output 0."""
    return [Sample(x, p) for x, p in zip(inputs, pieces_of(network, inputs, target=0), strict=True)]


def inside(sample: Sample, points: Tensor) -> Tensor:
    """(points,): whether points lie in the closed region of the sample."""
    with torch.no_grad():
        return sample.pieces.margins(points).amin(1) >= -CLOSED


def true_root_table(network: Mlp, found: list[Sample]) -> Table:
    """Where true first-layer roots lie."""
    first = network.affine()[0]
    weight, bias = first.weight, first.bias
    rows: list[tuple[Any, ...]] = []
    for name, expected in EXPECTED.items():
        held, active, domain = [], [], []
        for sample in found:
            roots = true_roots(name, sample.x, weight, bias)
            held.append(inside(sample, roots))
            active.append(weight @ sample.x + bias > 0)
            domain.append((roots >= -CLOSED).all(1))
        held_all, on = torch.stack(held), torch.stack(active)
        shares = (
            _percent(held_all),
            _percent(held_all[on]),
            _percent((held_all | ~on).all(1)),
            _percent(torch.stack(domain)),
        )
        rows.append((name, *(v for pair in zip(shares, expected, strict=True) for v in pair)))
    return Table(
        "True first-layer roots, closed region",
        _columns("rule", "in region %", "of active neurons %", "samples all in %", "in R₊ %"),
        tuple(rows),
        ".1f",
    )


def existing_roots_table(network: Mlp, found: list[Sample]) -> Table:
    """Exact roots in the region and R₊, against the plain projection and the roots met by walking."""
    inputs = torch.stack([sample.x for sample in found])
    exact = exact_nearest_root(network, inputs, target=0, domain="positive")
    plain, projected, gap, leak, boundary, regions, first = [], [], [], [], [], [], []
    for number, sample in enumerate(found):
        gradient, value = sample.pieces.gradient[0], sample.pieces.value
        step = value / gradient.norm()
        plain.append(step)
        point = sample.x - value / (gradient @ gradient) * gradient
        projected.append(inside(sample, point[None])[0] & (point >= 0).all())
        gap.append((exact.relevance[number].sum() - value).abs())
        leak.append((gradient * sample.x).sum() / value)
        down = first_boundary(sample.pieces, -gradient[None] / gradient.norm())
        boundary.append(torch.tensor(down))
        if number < 100:
            walk = first_root(network, sample.x[None], target=0)
            regions.append(torch.tensor(float(walk.regions)))
            first.append(torch.tensor(walk.regions == 1))

    lazy = [
        float((_of_all(sample.pieces) - point).abs().max())
        for sample, point in zip(found[:COMPARED], exact.point, strict=False)
    ]

    def median(values: list[Tensor]) -> float:
        return float(torch.stack(values).median())

    rows = (
        ("inputs with a root in the region and R₊ %", _percent(exact.found), 100.0),
        ("its distance, median", float(exact.distance.nanmedian()), 0.336),
        ("f / |∇f|, median", median(plain), 0.302),
        ("plain projection already in the region %", _percent(torch.stack(projected)), 41.0),
        ("largest |ΣR − f| at the exact root", float(torch.stack(gap).nan_to_num().max()), 1e-15),
        (f"largest difference to the optimum of all constraints, {len(lazy)} inputs", max(lazy), 5e-10),
        ("rows that the lazy solver needs, mean", sum(exact.constraints) / len(found), 1.2),
        ("Σ gradient × input / f, median", median(leak), 2.86),
        ("first boundary along −∇f, median", median(boundary), 0.174),
        ("regions crossed to a zero along −∇f, median of 100", median(regions), 2.0),
        ("zero along −∇f in the first region %, of 100", _percent(torch.stack(first)), 47.0),
    )
    note = "Expected: a separate computation, partly on other inputs of the same kind."
    return Table("In-region roots exist", ("measured on every input", "here", "expected"), rows, ".4g", note)


def _of_all(pieces: Pieces) -> Tensor:
    """The nearest root in the region and R₊ with every constraint from the start."""
    region = Region(pieces, torch.zeros_like(pieces.x), torch.full_like(pieces.x, float("inf")))
    every = torch.isfinite(region.at_x).nonzero()[:, 0].tolist()
    step = nearest(pieces.gradient.flatten().numpy(), pieces.value, region.rows(every), region.at_x[every].numpy())
    return torch.full_like(pieces.x, float("nan"))[0] if step is None else pieces.x[0] + torch.from_numpy(step)


def reproduce(tell: Tell, count: int = 1000, fewer: int = 300) -> Reproduction:
    """All tables; `count` inputs for the notebook's table and for existence, `fewer` for true roots."""
    network = Mlp()
    printed = as_printed(network, count, lambda share, what: tell(0.5 * share, what))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        inputs = torch.cat(list(drawn(network, count))).double()
    wide = Mlp().double()
    tell(0.5, "regions")
    found = samples(wide, inputs)
    tell(0.65, "true roots")
    roots = true_root_table(wide, found[:fewer])
    tell(0.7, "exact roots")
    exist = existing_roots_table(wide, found)
    return Reproduction(
        "rigorous-study",
        "Roots and linear regions (Sixt and Landgraf 2022)",
        "The study says that root points must lie in the linear region of the input, and that rules do not look. "
        "Reproduced: with true roots and the closed region, no rule places more than a third of its roots there, and "
        "no sample has all of them there. Beyond it: exact roots in the region exist for every input.",
        (printed, roots, exist),
        lambda: _figure(roots),
        {"inputs": count, "inputs for true roots": fewer},
    )


def _columns(first: str, *names: str) -> tuple[str, ...]:
    """Every name with a column of what is expected beside it."""
    return (first, *(column for i, name in enumerate(names) for column in (name, "expected" + " " * i)))


def _percent(values: Tensor) -> float:
    return 100 * float(values.double().mean())


def _figure(table: Table) -> Any:
    figure, (axis,) = new_figure(7, 3.6, ["Roots in the linear region of the input"])
    names = [str(name) for name in table.column("rule")][::-1]
    for column, label, color in (("in region %", "in the region", "#1b6ca8"), ("in R₊ %", "in R₊", "#d9d9d9")):
        values = [float(v or 0) for v in table.column(column)][::-1]
        axis.barh(names, values, height=0.7 if color == "#d9d9d9" else 0.4, color=color, label=label,
                  zorder=1 if color == "#d9d9d9" else 2)  # fmt: skip
    axis.set_xlim(0, 100)
    axis.set_xlabel("% of first-layer roots")
    axis.legend(frameon=False, loc="lower right", bbox_to_anchor=(1, 1.0), ncols=2, fontsize=8)
    return figure
