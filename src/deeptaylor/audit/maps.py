"""Certificates of a map: conservation, sign, gradient × input, classes, convergence, rank, randomised layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

import torch
from torch import Tensor

from ..composites import gradient_times_input
from ..graph import Graph
from ..ledger import CAUSES
from ..rules import Relevance
from .certificates import Depth, MapCertificate, Randomized
from .replica import Replica

STARTS = 5
"""Vectors of random origin; as Sixt et al. (2020) use."""
CLASSES = 4
"""Other classes that a map is compared with."""


def map_certificate(
    replica: Replica, sample: int, target: int | None, seed: Relevance, generator: torch.Generator
) -> tuple[MapCertificate, Tensor]:
    """What holds for the map of one sample, and the map.

    Args:
        replica: the sample.
        sample: its number.
        target: the class that is explained, or None for another target.
        seed: relevance of the output.
        generator: draws classes, vectors of random origin and weights.
    """
    output = replica.run.output
    books = replica.books(seed)
    relevance = _total(replica, replica.maps(seed))
    explained = float(seed.total(output).sum())
    size = max(abs(explained), 1e-300)
    rows = books.write()
    absorbed = {cause: sum(getattr(row, cause) for row in rows) / size for cause in CAUSES}
    missing = max(rows, key=lambda row: abs(row.gap), default=None)
    keeper = max(rows, key=lambda row: abs(row.absorbed), default=None)
    gradient = replica.ruled_by(gradient_times_input())
    starts = [
        Relevance(torch.randn(output.shape, generator=generator, dtype=output.dtype), product=True)
        for _ in range(STARTS)
    ]
    depths, maps = _convergence(replica, starts)
    certificate = MapCertificate(
        sample=sample,
        target=target,
        explained=explained,
        relevance=float(relevance.sum()),
        gap=abs(explained - float(relevance.sum()) - float(torch.as_tensor(books.absorbed).sum())) / size,
        gap_at="" if missing is None else _at(missing.op, missing.module, missing.source),
        absorbed=absorbed,
        absorbed_at="" if keeper is None else _at(keeper.op, keeper.module, keeper.source),
        negative=float(relevance.clamp(max=0).abs().sum() / relevance.abs().sum().clamp(min=1e-300)),
        gradient_input=_cosine(relevance, _total(gradient, gradient.maps(seed))),
        classes=_classes(replica, target, generator),
        convergence=depths,
        first_direction=_first_direction(maps),
        randomized=_randomized(replica, seed, relevance, generator),
    )
    return certificate, relevance


def _at(op: str, module: str, source: str) -> str:
    return f"{op} ({module})" if module else f"{op} ({source})" if source else op


def _total(replica: Replica, maps: Mapping[str, Tensor]) -> Tensor:
    """All explained inputs as one vector."""
    return torch.cat([maps[source.name].flatten() for source in replica.plan.sources]).double()


def _cosine(a: Tensor, b: Tensor) -> float:
    size = float(a.norm() * b.norm())
    return float(a @ b) / size if size > 0 else 0.0


def _classes(replica: Replica, target: int | None, generator: torch.Generator) -> dict[int, float]:
    """Cosine of the target's map with that of the next best class and of a few others; relevance 1 put at each."""
    output = replica.run.output
    if target is None or output.dim() != 2 or output.shape[1] < 2:
        return {}
    own = _total(replica, replica.maps(_one_hot(output, target)))
    order = [c for c in output[0].argsort(descending=True).tolist() if c != target]
    rest = torch.tensor(order[1:], dtype=torch.long)
    drawn = rest[torch.randperm(len(rest), generator=generator)[: CLASSES - 1]].tolist()
    others = [order[0], *drawn]
    return {c: _cosine(own, _total(replica, replica.maps(_one_hot(output, c)))) for c in others}


def _one_hot(output: Tensor, index: int) -> Relevance:
    # c = 1 at the class, so that no logit near 0 is divided by; the map's direction is that of relevance 1
    return Relevance(torch.zeros_like(output).index_fill(1, torch.tensor([index]), 1.0), product=True)


def _convergence(replica: Replica, starts: Sequence[Relevance]) -> tuple[tuple[Depth, ...], Tensor]:
    """Median |cos| between channel vectors of relevance of random origin, layer by layer; and the maps it ends in."""
    places = [node for node in replica.graph if node.name in replica.plan.assignments]
    affine = [node for node in places if replica.plan.assignments[node.name].place.role == "affine"]
    kept: dict[str, list[Tensor]] = {node.name: [] for node in affine}
    maps = []
    for start in starts:
        found = replica.maps(start, keep=tuple(kept))
        for name, values in kept.items():
            if name in found:
                values.append(found[name].float())
        maps.append(_total(replica, found))
    depths = []
    for node in reversed(affine):
        if node.name == replica.graph.output.name or len(kept[node.name]) != len(starts):
            continue
        axis = min((node.batch_dim or 0) + 1, kept[node.name][0].dim() - 1)
        if kept[node.name][0].shape[axis] > 1:
            depths.append(Depth(node.name, node.module, channel_cosine(kept[node.name], axis)))
    return tuple(depths), torch.stack(maps)


def channel_cosine(relevances: Sequence[Tensor], axis: int) -> float:
    """Median over positions and pairs of |cos| between channel vectors; positions without relevance are left out."""
    vectors = [r.movedim(axis, -1).flatten(0, -2) for r in relevances]
    units = [v / v.norm(dim=-1, keepdim=True) for v in vectors]
    cosines = torch.cat([(a * b).sum(-1).abs() for a, b in combinations(units, 2)])
    cosines = cosines[torch.isfinite(cosines)]
    return float(cosines.median()) if len(cosines) else 0.0


def _first_direction(maps: Tensor) -> float:
    """Share of the energy of the maps, each scaled to length 1, along their first singular direction."""
    units = maps / maps.norm(dim=1, keepdim=True).clamp(min=1e-300)
    energy = torch.linalg.svdvals(units).square()
    return float(energy[0] / energy.sum().clamp(min=1e-300))


def _randomized(
    replica: Replica, seed: Relevance, relevance: Tensor, generator: torch.Generator
) -> tuple[Randomized, ...]:
    """The map after the uppermost layer, the upper half and all but the first have weights drawn anew."""
    weights = weights_in_order(replica.graph, replica.state)
    counts = sorted({1, _half(len(weights)), len(weights) - 1} - {0})
    found = []
    for count in counts:
        state = dict(replica.state)
        for name in weights[-count:]:
            own = state[name]
            state[name] = torch.randn(own.shape, generator=generator, dtype=own.dtype) * own.std() + own.mean()
        changed = replica.with_state(state)
        now = _total(changed, changed.maps(seed))
        found.append(Randomized(count, len(weights), _cosine(relevance, now), _rank_correlation(relevance, now)))
    return tuple(found)


def _half(count: int) -> int:
    """Half, rounded up."""
    return (count + 1) // 2


def weights_in_order(graph: Graph, state: Mapping[str, Tensor]) -> list[str]:
    """Names of the model's weights (not biases), in the order in which the network reads them."""
    found: dict[str, None] = {}
    for node in graph:
        for name in node.refs():
            qualified = graph.parameters.get(name)
            if qualified is not None and state[qualified].is_floating_point() and state[qualified].dim() > 1:
                found[qualified] = None
    return list(found)


def _rank_correlation(a: Tensor, b: Tensor) -> float:
    """Spearman's, of |R|: the measure that the sanity checks of Adebayo et al. (2018) use."""
    ranks = [v.abs().argsort().argsort().double() for v in (a, b)]
    first, second = (r - r.mean() for r in ranks)
    return _cosine(first, second)
