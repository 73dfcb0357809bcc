"""Pictures of relevance: red speaks for the target, blue against it, white not at all.

`rgba` and `robust_limit` need numpy only; `heatmap` and `grid` draw matplotlib figures without pyplot's global state.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from deeptaylor.errors import InputError, MissingExtra

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Floats = npt.NDArray[np.float64]
Bytes = npt.NDArray[np.uint8]

PERCENTILE = 99.5
"""Of |relevance|: colours saturate there, so that one hot pixel does not bleach the rest of the picture."""

# From Oklab hues 260 and 28, lightness falling evenly from white on both arms, neighbours one CIEDE2000 step apart:
# what looks twice as strong is twice as strong, and minus looks as strong as plus. matplotlib's light-centred maps are
# less even.
COLOURS = tuple(
    "184692 174fab 1c5abf 2565ce 3170d9 3e7ce2 4d88e9 5e95ef 71a3f4 86b1f7 9bbffa afcdfc c3d9fd d5e4fe e4efff f3f7ff "
    "ffffff fff5f4 feeae7 fdddd9 fbcfc8 f9bfb6 f6ada3 f19c90 ec897d e6786b de665a d5554a cc463c bf362e af2923 9a211c "
    "84221c".split()
)


def robust_limit(relevance: Any, percentile: float = PERCENTILE) -> float:
    """The |relevance| at which colours saturate: a percentile over all pixels; 0 only where all is 0."""
    flat = np.abs(np.asarray(_numbers(relevance)))
    # A map that is zero nearly everywhere has percentile 0; its maximum still has to show.
    return float(np.percentile(flat, percentile)) or float(flat.max(initial=0.0))


def palette(steps: int = 255) -> Bytes:
    """The colour map as `(steps, 3)` bytes, most negative first; odd `steps` have a pure white middle."""
    anchors = np.array([[int(colour[i : i + 2], 16) for i in (0, 2, 4)] for colour in COLOURS], dtype=np.float64)
    position = np.linspace(0, len(anchors) - 1, steps)
    channels = [np.interp(position, np.arange(len(anchors)), anchors[:, channel]) for channel in range(3)]
    return np.rint(np.stack(channels, axis=-1)).astype(np.uint8)


def see_through(colours: Bytes) -> Bytes:
    """The same colours with as much transparency as keeps them unchanged over white: `(..., 3)` to `(..., 4)`.

    Over white the picture is the opaque one; over a photo, white lets it through and strong colours cover it.
    """
    opaque = colours.astype(np.float64) / 255
    alpha = 1 - opaque.min(axis=-1, keepdims=True)
    under = np.divide(opaque - (1 - alpha), alpha, out=np.zeros_like(opaque), where=alpha > 0)
    return np.rint(np.concatenate([under, alpha], axis=-1) * 255).astype(np.uint8)


def steps(relevance: Any, *, limit: float | None = None, n: int = 255) -> Bytes:
    """The palette index of every pixel, `(height, width)`; index `(n - 1) / 2` is exactly zero relevance."""
    values = image(relevance)
    limit = robust_limit(values) if limit is None else limit
    scaled = values / limit if limit > 0 else np.zeros_like(values)
    return np.rint((np.clip(scaled, -1, 1) + 1) / 2 * (n - 1)).astype(np.uint8)


def rgba(relevance: Any, *, limit: float | None = None) -> Bytes:
    """Relevance as `(height, width, 4)` bytes: the colour map over white, transparent where relevance is 0.

    Args:
        relevance: one map: `(height, width)`, or `(channels, height, width)`, which is summed over channels.
        limit: the |relevance| of full colour; default `robust_limit(relevance)`.
    """
    return see_through(palette())[steps(relevance, limit=limit)]


def image(relevance: Any) -> Floats:
    """One map as `(height, width)`: channels summed, axes of length 1 in front dropped."""
    values = _numbers(relevance)
    while values.ndim > 3 and values.shape[0] == 1:
        values = values[0]
    if values.ndim == 3:
        values = values.sum(axis=0)
    if values.ndim != 2 or 0 in values.shape:
        raise InputError(
            f"relevance has shape {tuple(values.shape)}; a picture needs (height, width) or (channels, height, width): "
            "choose one sample and one target, for example result.relevance[0], or draw several with plots.grid"
        )
    if not np.isfinite(values).all():
        raise InputError("relevance holds NaN or Inf, which have no colour")
    return values


def overlay(relevance: Any, photo: Any, *, limit: float | None = None, strength: float = 0.35) -> Bytes:
    """The map over a greyscale photo washed out to `strength`, as `(height, width, 3)` bytes."""
    colours = rgba(relevance, limit=limit).astype(np.float64)
    alpha = colours[..., 3:] / 255
    return np.rint(colours[..., :3] * alpha + backdrop(photo, colours.shape[:2], strength) * (1 - alpha)).astype(
        np.uint8
    )


def backdrop(photo: Any, size: tuple[int, int], strength: float = 0.35) -> Floats:
    """A photo as washed-out grey, `(height, width, 3)` in 0..255."""
    pixels = _photo(photo)
    if pixels.shape[:2] != tuple(size):
        raise InputError(
            f"photo is {pixels.shape[:2]} and relevance {tuple(size)}: pass the photo as the network saw it"
        )
    grey = pixels @ np.array([0.2126, 0.7152, 0.0722])
    return np.repeat((255 - strength * (255 - grey))[..., None], 3, axis=-1)


def heatmap(
    relevance: Any,
    *,
    photo: Any = None,
    title: str = "",
    limit: float | None = None,
    percentile: float = PERCENTILE,
    colourbar: bool = True,
    ax: Axes | None = None,
) -> Figure:
    """A figure with one map, its scale and what saturates it written beside it.

    Args:
        relevance: `(height, width)`, `(channels, height, width)` (summed over channels), or a batch of one such.
        photo: the photo as the network saw it, to draw under the map: `(height, width, 3)` or `(3, height, width)`,
            bytes or 0..1.
        title: above the map.
        limit: the |relevance| of full colour; default: the `percentile` of this map.
        percentile: of |relevance|, where `limit` is not given.
        colourbar: whether the scale is drawn.
        ax: axes to draw into; default: a new figure.
    """
    figure: Any = _figure(4.6 if colourbar else 4.0, 4.0) if ax is None else ax.figure
    ax = figure.subplots() if ax is None else ax
    values = image(relevance)
    chosen = robust_limit(values, percentile) if limit is None else limit
    _draw(ax, values, photo, chosen)
    ax.set_title(title, fontsize=10)
    if colourbar:
        _scale(figure, ax, chosen, f"{percentile:g}th percentile" if limit is None else "chosen limit", values)
    return figure


def grid(
    relevance: Sequence[Sequence[Any]],
    *,
    photos: Sequence[Any] | None = None,
    rows: Sequence[str] = (),
    columns: Sequence[str] = (),
    titles: Sequence[Sequence[str]] = (),
    limit: float | None = None,
    under: bool = False,
) -> Figure:
    """A figure with maps side by side, each with its own range written under it.

    Args:
        relevance: rows of maps, each as for `heatmap`; all rows as long as the first.
        photos: one per row, shown in a first column.
        rows: names, written left of the rows.
        columns: names, written above the columns of maps (not above the photos).
        titles: a name above every map, instead of `columns`.
        limit: one |relevance| of full colour for all maps; default: each map's own 99.5th percentile.
        under: whether the row's photo is also drawn under its maps.
    """
    n_rows, n_columns = len(relevance), len(relevance[0]) if len(relevance) else 0
    if n_columns == 0 or any(len(row) != n_columns for row in relevance):
        raise InputError("grid needs rows of maps, every row as long as the first")
    if photos is not None and len(photos) != n_rows:
        raise InputError(f"grid has {n_rows} rows and {len(photos)} photos: pass one photo per row")
    shift = 0 if photos is None else 1
    figure = _figure(2.3 * (n_columns + shift) + 0.3, (2.72 if titles else 2.5) * n_rows + 0.5)
    axes = figure.subplots(n_rows, n_columns + shift, squeeze=False)
    for index, row in enumerate(relevance):
        if photos is not None:
            axes[index, 0].imshow(_photo(photos[index]) / 255)
            _bare(axes[index, 0])
        if index < len(rows):
            axes[index, 0].set_ylabel(rows[index], fontsize=9)
        names = titles[index] if titles else columns if index == 0 else ()
        for column, one in enumerate(row):
            ax, values = axes[index, column + shift], image(one)
            chosen = robust_limit(values) if limit is None else limit
            _draw(ax, values, photos[index] if photos is not None and under else None, chosen)
            ax.set_xlabel(f"colour ±{chosen:.2g} · sum {values.sum():.3g}", fontsize=7.5)
            if column < len(names):
                ax.set_title(names[column], fontsize=9)
    saturation = f"; colours are full at the {PERCENTILE:g}th percentile of |relevance|" if limit is None else ""
    figure.text(
        0.5, 0.06 / figure.get_figheight(), f"red: for the target, blue: against{saturation}", ha="center", fontsize=7.5
    )
    foot = 0.25 / figure.get_figheight()
    layout: Any = figure.get_layout_engine()
    layout.set(rect=(0, foot, 1, 1 - foot))
    return figure


def _draw(ax: Axes, values: Floats, photo: Any, limit: float) -> None:
    """A map, over a photo or over white."""
    pixels = palette()[steps(values, limit=limit)] if photo is None else overlay(values, photo, limit=limit)
    ax.imshow(pixels, interpolation="nearest")
    _bare(ax)


def _scale(figure: Any, ax: Axes, limit: float, why: str, values: Floats) -> None:
    """A colour bar from -limit to +limit that says what saturates it."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap, Normalize

    span = limit or 1.0
    mappable = ScalarMappable(Normalize(-span, span), ListedColormap(palette() / 255))
    bar = figure.colorbar(mappable, ax=ax, extend="both", ticks=[-span, -span / 2, 0, span / 2, span], shrink=0.9)
    bar.ax.set_yticklabels([f"{tick * limit:.2g}" for tick in (-1, -0.5, 0, 0.5, 1)])
    bar.ax.tick_params(labelsize=7.5)
    bar.outline.set_linewidth(0.5)
    bar.set_label(f"relevance per pixel, full colour at the {why}", fontsize=7.5)
    ax.set_xlabel(f"from {values.min():.2g} to {values.max():.2g}, sum {values.sum():.4g}", fontsize=7.5)


def _bare(ax: Axes) -> None:
    ax.set_xticks([])
    ax.set_yticks([])
    for spine in ax.spines.values():
        spine.set_linewidth(0.4)


def _figure(width: float, height: float) -> Figure:
    """A figure of our own, drawn by Agg: no window, no global state."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtra("plots need matplotlib", "plots") from error
    figure = Figure(figsize=(width, height), layout="constrained", dpi=150)
    FigureCanvasAgg(figure)
    return figure


def _numbers(values: Any) -> Floats:
    """A tensor or array as float64 numbers."""
    if hasattr(values, "detach"):
        values = values.detach().to("cpu").double().numpy()
    return np.asarray(values, dtype=np.float64)


def _photo(photo: Any) -> Floats:
    """A photo as `(height, width, 3)` numbers in 0..255."""
    is_bytes = getattr(photo, "dtype", None) == np.uint8 or str(getattr(photo, "dtype", "")) == "torch.uint8"
    pixels = _numbers(photo)
    if pixels.ndim == 3 and pixels.shape[-1] not in (1, 3) and pixels.shape[0] in (1, 3):
        pixels = np.moveaxis(pixels, 0, -1)
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.ndim != 3 or pixels.shape[-1] not in (1, 3):
        raise InputError(f"photo has shape {tuple(pixels.shape)}; expected (height, width, 3) or (3, height, width)")
    if not is_bytes and (pixels.min() < 0 or pixels.max() > 1):
        raise InputError(
            f"photo holds numbers from {pixels.min():.3g} to {pixels.max():.3g}: pass bytes, or floats in 0..1, as "
            "they were before normalisation"
        )
    return np.broadcast_to(pixels if is_bytes else pixels * 255, (*pixels.shape[:2], 3))
