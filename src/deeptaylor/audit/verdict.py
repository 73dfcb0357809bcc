"""From figures to sentences: what holds, what does not, against which threshold, and what to use instead."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from .certificates import LayerCertificate, MapCertificate

Status = Literal["holds", "fails", "note"]

CONSERVED = 1e-6
"""Largest gap of the ledger, as a share of the explained value."""
IN_DOMAIN = 0.999
"""Smallest share of roots in their domain."""
IN_REGION = 0.95
"""Smallest share of roots in the region of the input."""
NEGATIVE = 1e-6
"""Largest share of negative relevance that counts as none."""
SAME = 0.95
"""Smallest |cos| at which two maps count as the same."""
FORGOTTEN = 0.99
"""Smallest |cos| between relevance of random origin at which it counts as forgotten."""
REMAINDER = 0.1
"""Largest first-order remainder, as a share of the explained value."""


@dataclass(frozen=True)
class Finding:
    """One line of the verdict."""

    check: str
    status: Status
    sentence: str
    figures: Mapping[str, float] = field(default_factory=dict)
    threshold: float | None = None
    layers: tuple[str, ...] = ()
    """Where, worst first."""
    instead: str = ""
    """What to use instead."""


def findings(
    layers: Sequence[LayerCertificate],
    maps: Sequence[MapCertificate],
    smooth: Sequence[str],
    names: Callable[[int], str],
) -> tuple[Finding, ...]:
    """The verdict on some samples.

    Args:
        layers: certificates of layers, all samples.
        maps: certificates of maps.
        smooth: operations that have no linear pieces.
        names: what a class is called.
    """
    found = [conservation(maps), *roots(layers), domain(layers), *region(layers, smooth), positivity(maps)]
    found += [classes(maps, names), convergence(maps), randomized(maps), gradient_input(maps)]
    return tuple(finding for finding in found if finding is not None)


def place(layer: LayerCertificate) -> str:
    """A layer as one would look for it."""
    return f"{layer.op} {layer.module or layer.source or layer.name}"


def conservation(maps: Sequence[MapCertificate]) -> Finding:
    """Whether every unit of relevance is accounted for, and who kept what."""
    worst = max(maps, key=lambda m: m.gap)
    kept = {cause: max((m.absorbed[cause] for m in maps), key=abs) for cause in maps[0].absorbed}
    total = max((sum(m.absorbed.values()) for m in maps), key=abs)
    figures = {"gap": worst.gap, "absorbed": total, **{f"absorbed by {c}": a for c, a in kept.items()}}
    if worst.gap > CONSERVED:
        return Finding(
            "conservation",
            "fails",
            f"Relevance is not conserved: {worst.gap:.3g} of the explained value is missing from the account, most of "
            f"it at {worst.gap_at}. A rule there hands on more or less than it says.",
            figures,
            CONSERVED,
            (worst.gap_at,),
            "check the denominator of that rule with deeptaylor.testing.check_rule",
        )
    keeper = max(maps, key=lambda m: abs(sum(m.absorbed.values()))).absorbed_at
    causes = ", ".join(f"{cause} {amount:+.1%}" for cause, amount in kept.items() if abs(amount) > 5e-4)
    told = (
        f"{total:+.1%} of the explained value was kept on the way ({causes}; most at {keeper})"
        if causes
        else "all of the explained value arrived at the input"
    )
    return Finding("conservation", "holds", f"Every unit of relevance is accounted for: {told}.", figures, CONSERVED)


def roots(layers: Sequence[LayerCertificate]) -> list[Finding]:
    """Whether the rules expand at roots at all."""
    if not layers:
        return []
    figures = {"exact": _mean(layers, lambda c: c.exact), "kept back": max(c.kept_back for c in layers)}
    rootless = sorted((c for c in layers if c.identity > 1e-6), key=lambda c: -c.identity)
    inexact = sorted((c for c in layers if c.exact < 1), key=lambda c: -c.kept_back)
    found = []
    if rootless:
        found.append(
            Finding(
                "roots",
                "fails",
                f"{place(rootless[0])} ({rootless[0].rule}) sends relevance to inputs that do not matter to the "
                "neuron (weight 0), so no root point stands behind it.",
                figures,
                1e-6,
                _places(rootless),
                "ZPlus, WSquare or ZBox there",
            )
        )
    if not inexact:
        found.append(Finding("roots", "holds", "Every root point is a root: w·x̃ + b = 0.", figures, 1.0))
        return found
    worst = inexact[0]
    found.append(
        Finding(
            "roots",
            "fails",
            f"{1 - figures['exact']:.0%} of the points of expansion are not roots: neurons keep back up to "
            f"{worst.kept_back:.3g} of their relevance, most at {place(worst)} ({worst.rule}), so the expansion there "
            "has a zero-order term.",
            figures,
            1.0,
            _places(inexact),
            'rules with bias="ignore" and without a stabilizer expand at exact roots',
        )
    )
    return found


def domain(layers: Sequence[LayerCertificate]) -> Finding | None:
    """Whether roots are points that the layer could ever see."""
    known = [c for c in layers if c.in_domain is not None]
    if not known:
        return None
    figures = {
        "in domain": _mean(known, lambda c: c.in_domain or 0.0),
        "furthest outside": max(c.outside for c in known),
    }
    out = sorted((c for c in known if (c.in_domain or 0.0) < 1), key=lambda c: c.in_domain or 0.0)
    if figures["in domain"] >= IN_DOMAIN:
        return Finding(
            "domain", "holds", f"{figures['in domain']:.1%} of the roots lie in their domain.", figures, IN_DOMAIN
        )
    worst = out[0]
    biases = sum(c.positive_biases for c in out)
    why = f" {biases} of these neurons have a positive bias, which pushes the root out." if biases else ""
    return Finding(
        "domain",
        "fails",
        f"{1 - figures['in domain']:.1%} of the roots lie outside their domain, most at {place(worst)} ({worst.rule}, "
        f"domain {worst.domain}): {1 - (worst.in_domain or 0.0):.0%} of its roots, by up to {worst.outside:.2g} of the "
        f"largest input.{why}",
        figures | {"positive biases": float(biases)},
        IN_DOMAIN,
        _places(out),
        'bias="absorb" at that layer, so that a positive bias keeps its share'
        if biases
        else "ZPlus where inputs are ≥ 0, ZBox where they have bounds",
    )


def region(layers: Sequence[LayerCertificate], smooth: Sequence[str]) -> list[Finding]:
    """Whether roots lie where the network is the same linear function as at the input."""
    found = []
    known = [c for c in layers if c.in_region is not None]
    if known:
        ways = sorted(c.boundary for c in known if c.boundary is not None)
        figures = {
            "in region": _mean(known, lambda c: c.in_region or 0.0),
            "first boundary": ways[len(ways) // 2],
        }
        share, way = figures["in region"], figures["first boundary"]
        held = share >= IN_REGION
        worst = sorted(known, key=lambda c: c.in_region or 0.0)
        sentence = f"{share:.0%} of the roots lie in the linear region of the input"
        if not held:
            sentence += (
                f"; the way to a root meets the first boundary after {way:.2g} of its length (median). Outside it the "
                "network has another gradient, so the expansion says nothing about the network at the input"
            )
        instead = "dt.exact_nearest_root(f, x) finds a root in the region, or proves that there is none"
        found.append(
            Finding(
                "region",
                "holds" if held else "fails",
                sentence + ".",
                figures,
                IN_REGION,
                () if held else _places(worst),
                "" if held else instead,
            )
        )
    rest = [c for c in layers if c.remainder is not None]
    if rest:
        figures = {
            "remainder": sorted(c.remainder or 0.0 for c in rest)[len(rest) // 2],
            "gradient change": sorted(c.gradient_change or 0.0 for c in rest)[len(rest) // 2],
        }
        held = figures["remainder"] <= REMAINDER
        shown = ", ".join(dict.fromkeys(smooth))
        found.append(
            Finding(
                "remainder",
                "holds" if held else "fails",
                f"Linear regions do not apply below {shown}. Instead: to first order, the network misses "
                f"{figures['remainder']:.2g} of the explained value at a root (median), and its gradient changes by "
                f"{figures['gradient change']:.2g} of its size on the way.",
                figures,
                REMAINDER,
                () if held else _places(sorted(rest, key=lambda c: -(c.remainder or 0.0))),
                "" if held else "a higher order of expansion, or integrated gradients",
            )
        )
    return found


def positivity(maps: Sequence[MapCertificate]) -> Finding:
    """Whether relevance is ≥ 0: with conservation, consistency in the sense of Montavon et al. (2017)."""
    negative = max(m.negative for m in maps)
    told = "No relevance is negative" if negative <= NEGATIVE else f"{negative:.0%} of all relevance is negative"
    return Finding("positivity", "note", f"{told}.", {"negative": negative}, NEGATIVE)


def classes(maps: Sequence[MapCertificate], names: Callable[[int], str]) -> Finding | None:
    """Whether the map depends on the class."""
    pairs = [(abs(cos), m.target, other) for m in maps for other, cos in m.classes.items()]
    if not pairs:
        return None
    cos, own, other = sorted(pairs, key=lambda pair: pair[0])[len(pairs) // 2]
    figures = {"median |cos|": cos, "largest |cos|": max(pairs)[0]}
    between = f"cos {cos:.3g} between {names(own or 0)!r} and {names(other)!r}"
    if cos > SAME:
        return Finding(
            "class-sensitivity",
            "fails",
            f"This explanation barely depends on the class: {between} (median of {len(pairs)} pairs).",
            figures,
            SAME,
            (),
            "a rule at the upper layers that keeps negative weights (LRPZero, Epsilon), or target=dt.contrast(a, b)",
        )
    return Finding("class-sensitivity", "holds", f"The map depends on the class: {between}.", figures, SAME)


def convergence(maps: Sequence[MapCertificate]) -> Finding | None:
    """Whether relevance forgets where it started: the direction of its channels, and where it lies."""
    at_input = _median([m.first_direction for m in maps])
    depths = [m.convergence for m in maps if m.convergence]
    lowest = _median([depth[-1].cosine for depth in depths]) if depths else at_input
    figures = {"first direction": at_input, "lowest layer |cos|": lowest}
    if max(at_input, lowest) <= FORGOTTEN:
        return Finding(
            "convergence",
            "holds",
            f"Relevance of random origin stays apart: |cos| {lowest:.3g} between its channels at the lowest layer, "
            f"{at_input:.0%} of the maps' energy in one direction (1 is rank one).",
            figures,
            FORGOTTEN,
        )
    first = next((depth for depth in depths[0] if depth.cosine > FORGOTTEN), None) if depths else None
    layer = "" if first is None else first.module or first.name
    what = (
        f"the whole map has rank one ({at_input:.1%} of the energy of such maps lies in one direction)"
        if at_input > FORGOTTEN
        else f"only where it lies still differs ({at_input:.0%} of the energy of such maps lies in one direction)"
    )
    return Finding(
        "convergence",
        "fails",
        f"Relevance of random origin becomes the same mixture of channels (|cos| {lowest:.4g} at the lowest layer"
        + (f", above {FORGOTTEN} from {layer} down" if layer else "")
        + f"): {what}, so little is left of what the layers above say.",
        figures,
        FORGOTTEN,
        (layer,) if layer else (),
        "negative contributions keep it: LRPZero, Epsilon or GeneralizedGamma instead of ZPlus",
    )


def _median(values: Sequence[float]) -> float:
    return sorted(values)[len(values) // 2]


def randomized(maps: Sequence[MapCertificate]) -> Finding | None:
    """Whether the map changes when the upper half of the network is drawn anew."""
    halves = [m.randomized[len(m.randomized) // 2] for m in maps if m.randomized]
    if not halves:
        return None
    middle = sorted(halves, key=lambda r: abs(r.cosine))[len(halves) // 2]
    figures = {"cos": middle.cosine, "rank correlation": middle.rank_correlation}
    told = f"with the upper {middle.layers} of {middle.of} weights drawn anew the map keeps cos {middle.cosine:.3g}"
    if abs(middle.cosine) > SAME:
        return Finding(
            "randomization",
            "fails",
            f"The map hardly depends on what the network has learned above: {told}.",
            figures,
            SAME,
            (),
            "rules that keep negative contributions at the upper layers",
        )
    return Finding("randomization", "holds", f"The map depends on what was learned: {told}.", figures, SAME)


def gradient_input(maps: Sequence[MapCertificate]) -> Finding:
    """Whether the roots are, in effect, the same for all inputs: the map is then gradient × input."""
    cos = sorted(m.gradient_input for m in maps)[len(maps) // 2]
    figures = {"cos": cos}
    if cos > 1 - 1e-6:
        told = "The map is gradient × input: the roots are locally constant in effect"
    elif cos > SAME:
        told = f"The map is nearly gradient × input (cos {cos:.3g}): the roots hardly depend on the input"
    else:
        told = f"The map is not gradient × input (cos {cos:.2g}): its roots depend on the input"
    return Finding("gradient-times-input", "note", f"{told}.", figures, SAME)


def _mean(layers: Sequence[LayerCertificate], of: Callable[[LayerCertificate], float]) -> float:
    """Mean over neurons looked at."""
    count = sum(c.sampled for c in layers)
    return sum(of(c) * c.sampled for c in layers) / count


def _places(layers: Sequence[LayerCertificate]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(place(layer) for layer in layers))[:5]
