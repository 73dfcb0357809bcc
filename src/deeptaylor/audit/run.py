"""`audit`: what the theory promises, checked on the user's model and inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ..errors import DomainError, InputError
from ..explainer import Explainer
from ..inputs import batch_size
from ..plan import Assignment
from ..rules import Redistribution, Relevance
from ..step import Step
from ..targets import Seeds, Target, resolve
from .certificates import LayerCertificate, MapCertificate
from .layer_roots import Box, carriers, certificate
from .maps import map_certificate
from .replica import Replica
from .report import AuditReport
from .verdict import Finding, findings

Tell = Callable[[float, str], None]
"""Told the share that is done, and what comes next."""


def audit(
    explainer: Explainer,
    inputs: Any,
    *,
    target: Target = None,
    kwargs: Mapping[str, Any] | None = None,
    neurons: int = 6,
    labels: Sequence[str] | None = None,
    seed: int = 0,
    tell: Tell | None = None,
) -> AuditReport:
    """Checks an explanation against what the theory of Taylor decomposition promises.

    Per rule, layer and sample: are the root points roots, do they lie in their domain, and in the linear region of the
    input? Per sample: is relevance conserved, positive, different for another class, more than gradient × input; does
    it remember where it started, does it depend on what the upper layers learned? All in float64; the model is only
    read.

    Args:
        explainer: a model with its rules.
        inputs: as for the explainer; sample by sample, so a few are enough.
        target: as for the explainer; one target per sample.
        kwargs: keyword arguments of the model.
        neurons: how many neurons of a layer are looked at, drawn at random among those that carry relevance.
        labels: names of the classes, for the sentences.
        seed: of everything that is drawn.
        tell: is told how far the audit is.

    Raises:
        InputError: the target is several per sample, or what the explainer refuses.
    """
    if neurons < 1:
        raise InputError(f"neurons={neurons}: look at one neuron per layer at least")
    call = explainer._call(inputs, kwargs)
    batch = batch_size(call, explainer._names(call))
    tell = tell or (lambda share, what: None)
    generator = torch.Generator().manual_seed(seed)
    layers: list[LayerCertificate] = []
    maps: list[MapCertificate] = []
    smooth: dict[str, None] = {}
    for sample in range(batch):
        tell(sample / batch, f"sample {sample + 1} of {batch}: its map")
        replica = Replica.of(explainer, call, sample, batch)
        seeds = _seeds(target, replica.run.output, sample, batch)
        own = int(seeds.target[0]) if isinstance(seeds.target, Tensor) else None
        try:
            found, _ = map_certificate(replica, sample, own, seeds.seeds[0], generator)
        except DomainError as error:
            return _boxed_out(explainer, error)
        maps.append(found)
        weights = _weights(seeds.seeds[0], replica.run.output)
        layers += _layers(
            replica, sample, seeds.seeds[0], weights, _box(explainer), neurons, generator, smooth,
            lambda share, what, sample=sample: tell((sample + 0.25 + 0.75 * share) / batch, what),  # type: ignore[misc]
        )  # fmt: skip
    tell(1.0, "done")

    def name(index: int) -> str:
        return labels[index] if labels is not None and index < len(labels) else f"class {index}"

    return AuditReport(
        findings(layers, maps, tuple(smooth), name),
        tuple(layers),
        tuple(maps),
        tuple(smooth),
        explainer.plan.composite.name,
        {"neurons": neurons, "seed": seed, "samples": batch},
    )


def _seeds(target: Target, output: Tensor, sample: int, batch: int) -> Seeds:
    if isinstance(target, Tensor) and target.dim() and len(target) == batch:
        target = target[sample : sample + 1]
    elif isinstance(target, Sequence) and len(target) == batch:
        target = [target[sample]]
    seeds = resolve(target, output)
    if len(seeds.seeds) != 1:
        raise InputError(f"an audit looks at one target per sample, got {len(seeds.seeds)}; call it once for each")
    return seeds


def _weights(seed: Relevance, output: Tensor) -> Tensor:
    """Weights of the outputs whose sum is explained: c of the product form R = output · c."""
    return seed.tensor if seed.product else seed.over(output, output, 0.0)


def _box(explainer: Explainer) -> Box | None:
    return explainer._bounds


def _boxed_out(explainer: Explainer, error: DomainError) -> AuditReport:
    finding = Finding(
        "box",
        "fails",
        f"The bounds of z^B do not fit the input, so no root of the first layer can lie in them: {error}",
        instead="the bounds of the normalised input, per channel",
    )
    return AuditReport((finding,), composite=explainer.plan.composite.name)


def _layers(
    replica: Replica,
    sample: int,
    seed: Relevance,
    weights: Tensor,
    box: Box | None,
    neurons: int,
    generator: torch.Generator,
    smooth: dict[str, None],
    tell: Tell,
) -> list[LayerCertificate]:
    """Certificates of all affine layers, from the input up."""
    affine = [a for a in replica.plan.assignments.values() if a.place.role == "affine"]
    found: list[LayerCertificate] = []

    def observe(step: Step, arrived: Any, result: Redistribution) -> None:
        assignment: Assignment = replica.plan.assignments[step.node.name]
        if assignment.place.role != "affine" or not isinstance(arrived, Relevance) or not result.messages:
            return
        chosen = carriers(arrived.total(step.z), neurons, generator)
        if chosen[1] == 0 or result.messages[0] is None:
            return
        tell(len(found) / len(affine), f"roots of {step.node.module or step.node.name}")
        above = replica.above(_data(assignment), weights)
        smooth.update(dict.fromkeys(node.short for node in above.smooth))
        found.append(certificate(sample, assignment, step, chosen, above, box))

    replica.maps(seed, observe)
    return found[::-1]


def _data(assignment: Assignment) -> str:
    """The name of the value that a layer reads."""
    leaves = pytree.tree_leaves((assignment.place.node.args, dict(assignment.place.node.kwargs)))
    return leaves[assignment.leaves[0]].name
