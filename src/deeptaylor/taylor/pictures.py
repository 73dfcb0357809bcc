"""Figures of an expansion: what each order says where, terms and interactions, the account with its remainder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import InputError, MissingExtra
from .result import Expansion, part_of_the_way, percent
from .similarity import Similarity

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NAMES = 40
"""More segments than this are drawn without their names."""


def draw(expansion: Expansion, **options: Any) -> Figure:
    """Order maps of images, the interaction matrix where there are pairs, else the account."""
    if expansion.maps is not None and expansion.maps.dim() in (3, 4):
        return orders(expansion, **options)
    if len(expansion.coefficients) > 1:
        return matrix(expansion, **options)
    return waterfall(expansion, **options)


def orders(expansion: Expansion, *, photo: Any = None, **options: Any) -> Figure:
    """One heatmap per order (for images), titled with its share and its trust radius; beside the photo, where given.

    Raises:
        InputError: there are no order maps, or they are no images.
    """
    from ..plots import grid

    maps = expansion.maps
    if maps is None or maps.dim() not in (3, 4):
        raise InputError("this draws order maps of images, shape (orders, channels, height, width)")
    reach = expansion.trust_radius
    titles = []
    for k, share in enumerate(expansion.shares, 1):
        trust = "" if reach is None else f"\nholds for {part_of_the_way(float(reach[k - 1]))} of the way"
        titles.append(f"order {k}: {float(share):.3g}{trust}")
    if photo is not None:
        options["photos"] = [photo]
    return grid([[m.double().cpu().numpy() for m in maps]], titles=[titles], **options)


def panels(expansion: Expansion, *, photo: Any = None) -> Figure:
    """Network, matrix and account of one expansion side by side."""
    figure = _figure(18, 6.4)
    axes = figure.subplots(1, 3, width_ratios=[1.1, 1.1, 1])
    network(expansion, photo=photo, axes=axes[0])
    matrix(expansion, axes=axes[1])
    waterfall(expansion, axes=axes[2])
    for one in axes:
        one.set_title("")
    figure.suptitle(_headline(expansion), fontsize=11)
    return figure


def matrix(expansion: Expansion, *, axes: Axes | None = None) -> Figure:
    """Terms on the diagonal, half of each pair's share beside it: the entries add up to the explained part."""
    axes = _figure(7.5, 6.5).add_subplot() if axes is None else axes
    figure: Any = axes.figure
    values = expansion.matrix().numpy()
    from matplotlib.colors import ListedColormap

    from ..plots import palette

    off = np.abs(values[~np.eye(len(values), dtype=bool)])
    limit = float(max(np.percentile(off, 99.5) if off.size else 0.0, 1e-30))
    shown = axes.imshow(values, cmap=ListedColormap(palette() / 255.0), vmin=-limit, vmax=limit)
    figure.colorbar(shown, ax=axes, shrink=0.8, extend="both")
    _label(axes, expansion)
    axes.set_title(_headline(expansion), fontsize=9)
    return figure


def waterfall(expansion: Expansion, *, k: int = 12, axes: Axes | None = None) -> Figure:
    """From f(x₀) to f(x): the k strongest terms and pairs, the rest together, and the remainder as its own bar.

    Of order maps, the orders.
    """
    if expansion.coefficients:
        parts = {key: value for key, value in expansion.to_dict().items() if key}
        names = expansion.names
        best = sorted(parts, key=lambda key: -abs(parts[key]))[:k]
        rows = [(" × ".join(names[s] for s in key), parts[key]) for key in best]
        if len(parts) > k:
            rows.append((f"{len(parts) - k} others", sum(parts.values()) - sum(value for _, value in rows)))
    else:
        rows = [(f"order {n}", share) for n, share in enumerate(expansion.shares.tolist(), 1)]
    rows.append(("remainder", expansion.residual))
    axes = _figure(7.5, 1.6 + 0.3 * len(rows)).add_subplot() if axes is None else axes
    figure: Any = axes.figure
    at = expansion.constant
    for row, (name, value) in enumerate(rows):
        colour = "0.6" if name == "remainder" else "#af2923" if value > 0 else "#184692"
        axes.barh(row, value, left=at, color=colour, height=0.7)
        axes.annotate(f" {value:+.3g}", (max(at, at + value), row), va="center", fontsize=8)
        at += value
    axes.axvline(expansion.constant, color="0.7", lw=0.8)
    axes.axvline(expansion.value, color="0.2", lw=0.8)
    axes.set_yticks(range(len(rows)), [name for name, _ in rows], fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.25)
    axes.set_xlabel(f"from f(x₀) = {expansion.constant:.4g} to f(x) = {expansion.value:.4g}", fontsize=8)
    axes.set_title(_headline(expansion), fontsize=9)
    return figure


def network(expansion: Expansion, *, k: int = 12, photo: Any = None, axes: Axes | None = None) -> Figure:
    """The k strongest pairs as lines: arcs above the words of a sentence, or lines between patches of a photo."""
    if expansion.segments is None:
        raise InputError("a network needs segments")
    from ..plots import backdrop

    names, labels = expansion.names, expansion.segments.labels
    image = labels.dim() == 3
    if axes is None:
        axes = (_figure(6.5, 6.5) if image else _figure(max(6.0, 0.9 * len(names)), 3.4)).add_subplot()
    figure: Any = axes.figure
    if image:
        plane = labels[0].numpy()
        places = {s: (xs.mean(), ys.mean()) for s in range(len(names)) for ys, xs in [np.nonzero(plane == s)]}
        shape = (plane.shape[0], plane.shape[1])
        axes.imshow(np.full((*shape, 3), 255) if photo is None else backdrop(photo, shape).astype(np.uint8))
    else:
        places = {s: (float(s), 0.0) for s in range(len(names))}
        slanted = sum(map(len, names)) > 50
        style: dict[str, Any] = {"ha": "right", "rotation": 35, "fontsize": 8} if slanted else {"ha": "center"}
        for s, name in enumerate(names):
            axes.annotate(name, (s, -0.05), va="top", **style)
        axes.set_xlim(-0.6, len(names) - 0.4)
    effects = expansion.interactions
    pairs = sorted(((i, j) for i in range(len(names)) for j in range(i)), key=lambda p: -abs(float(effects[p])))[:k]
    top = max((abs(float(effects[p])) for p in pairs), default=1.0) or 1.0
    highest = 0.0
    for i, j in pairs:
        value = float(effects[i, j])
        colour = "#af2923" if value > 0 else "#184692"
        (x1, y1), (x2, y2) = places[i], places[j]
        if image:
            axes.plot([x1, x2], [y1, y2], color=colour, lw=0.4 + 4 * abs(value) / top, alpha=0.8)
        else:
            t = np.linspace(0, np.pi, 60)
            height = 0.45 * abs(x1 - x2)
            highest = max(highest, height)
            axes.plot((x1 + x2) / 2 + abs(x1 - x2) / 2 * np.cos(t), height * np.sin(t),
                      color=colour, lw=0.4 + 3.5 * abs(value) / top, alpha=0.8)  # fmt: skip
            axes.annotate(f"{value:+.2g}", ((x1 + x2) / 2, height), ha="center", va="bottom", fontsize=7, color=colour)
    if not image:
        axes.set_ylim(-0.25 * max(highest, 1), 1.25 * max(highest, 0.5))
    axes.set_axis_off()
    axes.set_title(_headline(expansion), fontsize=9)
    return figure


def between(found: Similarity, *, k: int = 12, axes: Axes | None = None) -> Figure:
    """The k strongest pairs as lines from the words (segments) of one input, above, to those of the other, below."""
    one, other = found.segments_x.names, found.segments_y.names
    widest = max(len(one), len(other))
    axes = _figure(max(6.0, 0.95 * widest), 3.6).add_subplot() if axes is None else axes
    figure: Any = axes.figure
    places = [[(n + 0.5) * widest / len(names) for n in range(len(names))] for names in (one, other)]
    for names, xs, y in ((one, places[0], 1.0), (other, places[1], 0.0)):
        for name, x in zip(names, xs, strict=True):
            axes.annotate(name, (x, y + (0.04 if y else -0.04)), ha="center", va="bottom" if y else "top", fontsize=9)
    pairs = found.matrix()
    best = pairs.abs().flatten().argsort(descending=True)[:k].tolist()
    top = float(pairs.abs().max()) or 1.0
    for p in best:
        i, j = divmod(p, len(other))
        value = float(pairs[i, j])
        axes.plot([places[0][i], places[1][j]], [1, 0], color="#af2923" if value > 0 else "#184692",
                  lw=0.4 + 4.5 * abs(value) / top, alpha=0.75, solid_capstyle="round")  # fmt: skip
    for p in best[:3]:
        i, j = divmod(p, len(other))
        place = ((2 * places[0][i] + places[1][j]) / 3, 2 / 3)
        patch = {"boxstyle": "round,pad=0.15", "fc": "white", "ec": "none", "alpha": 0.8}
        axes.annotate(f"{float(pairs[i, j]):+.2f}", place, fontsize=8, ha="center", bbox=patch)
    axes.set_xlim(0, widest)
    axes.set_ylim(-0.25, 1.25)
    axes.set_axis_off()
    axes.set_title(
        f"similarity {found.value:.3g}; pairs {found.explained:.3g}, residual {found.residual:.1g}", fontsize=9
    )
    return figure


def _headline(expansion: Expansion) -> str:
    fidelity = "".join(f", held-out R² of order {k} {v:.2f}" for k, v in expansion.fidelity.items())
    return (
        f"{expansion.method}: f(x) − f(x₀) = {expansion.total:.4g}, "
        f"residual {percent(expansion.relative_residual)}{fidelity}"
    )


def _label(axes: Any, expansion: Expansion) -> None:
    names = expansion.names
    if len(names) > NAMES:
        axes.set_xlabel("segment")
        axes.set_ylabel("segment")
        return
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
    axes.set_yticks(range(len(names)), names, fontsize=7)


def _figure(width: float, height: float) -> Figure:
    try:
        from matplotlib.figure import Figure as New
    except ImportError as error:
        raise MissingExtra("plots need matplotlib", "plots") from error
    return New(figsize=(width, height), layout="constrained")
