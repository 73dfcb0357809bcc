"""Pictures inside a page: data URIs, and words for those who can't see them."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import plots


def heat_png(relevance: Any, limit: float) -> str:
    """A map as a data URI: 255 colours with transparency, so that it lies over white or over a photo unchanged."""
    from PIL import Image

    image = Image.fromarray(plots.steps(relevance, limit=limit)).convert("P")
    colours = plots.see_through(plots.palette())
    image.putpalette(colours[:, :3].tobytes())
    return _uri(image, "PNG", transparency=colours[:, 3].tobytes(), optimize=True)


def photo_jpeg(pixels: npt.NDArray[np.uint8]) -> str:
    """A photo as a data URI."""
    from PIL import Image

    return _uri(Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels), "JPEG", quality=88)


def legend_css(stops: int = 17) -> str:
    """The colour map as a CSS gradient, negative to positive."""
    return f"linear-gradient(90deg, {', '.join('#' + plots.COLOURS[i] for i in range(0, 33, 32 // (stops - 1)))})"


PLACES = (
    ("upper left", "upper middle", "upper right"),
    ("left", "centre", "right"),
    ("lower left", "lower middle", "lower right"),
)


def where(relevance: Any) -> str:
    """The ninth of the picture that holds most positive relevance: 'upper left (41 % of the positive relevance)'."""
    positive = plots.image(relevance).clip(min=0)
    if not positive.any():
        return "nowhere: no positive relevance"
    rows = np.array_split(np.arange(positive.shape[0]), 3)
    columns = np.array_split(np.arange(positive.shape[1]), 3)
    ninths = np.array([[positive[np.ix_(row, column)].sum() for column in columns] for row in rows])
    row, column = np.unravel_index(ninths.argmax(), ninths.shape)
    return f"{PLACES[row][column]} ({ninths.max() / ninths.sum():.0%} of the positive relevance)"


def _uri(image: Any, kind: str, **options: Any) -> str:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"
