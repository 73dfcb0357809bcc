"""`Segments`: a partition of the input into named groups, and f along them, g(a) = f(x₀ + Σ a_s δ_s).

A feature, a pixel, a patch, a superpixel, a word, a column, a hidden unit: each is a group of entries of the input. All
estimators are Taylor analysis of g, so that one kind of result serves every modality.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError, MissingExtra

OUTSIDE = -1
"""The label of entries that belong to no segment: they stay as they are in x."""


@dataclass(frozen=True)
class Segments:
    """A partition of one sample's entries: `labels` has the sample's shape without the batch axis.

    Segment s holds the entries with label s; entries labelled −1 stay as they are in x, also at the reference.
    """

    labels: Tensor
    names: tuple[str, ...]
    kind: str = "segments"

    def __post_init__(self) -> None:
        """Refuse labels that leave a segment empty."""
        if self.labels.dtype not in (torch.int32, torch.int64):
            raise InputError(f"labels of segments are whole numbers, not {self.labels.dtype}: labels.long()")
        found = torch.unique(self.labels)
        found = found[found >= 0]
        if found.numel() == 0:
            raise InputError("no entry belongs to a segment: labels count from 0, and -1 means outside")
        if found.numel() != int(found.max()) + 1:
            missing = sorted(set(range(int(found.max()) + 1)) - set(found.tolist()))
            raise InputError(f"segments {missing[:5]} have no entries: number them 0, 1, 2, … without gaps")
        if len(self.names) != found.numel():
            raise InputError(f"{len(self.names)} names for {found.numel()} segments")

    def __len__(self) -> int:
        return len(self.names)

    @property
    def inside(self) -> Tensor:
        """Whether an entry belongs to any segment."""
        return self.labels >= 0

    def fit(self, x: Tensor) -> None:
        """Refuses an input of another shape."""
        if tuple(x.shape[1:]) != tuple(self.labels.shape):
            raise InputError(
                f"segments are for samples of shape {tuple(self.labels.shape)}, the input has {tuple(x.shape[1:])} "
                "after its batch axis"
            )

    def sum(self, values: Tensor) -> Tensor:
        """Sums over each segment: (..., *sample) to (..., S)."""
        flat = values.reshape(*values.shape[: values.dim() - self.labels.dim()], -1)
        labels = self.labels.to(values.device).flatten()
        keep = labels >= 0
        out = torch.zeros((*flat.shape[:-1], len(self)), dtype=values.dtype, device=values.device)
        return out.index_add(-1, labels[keep], flat[..., keep])

    def spread(self, a: Tensor) -> Tensor:
        """Every entry gets its segment's number: (..., S) to (..., *sample); 1 outside all segments."""
        padded = torch.cat([a, torch.ones((*a.shape[:-1], 1), dtype=a.dtype, device=a.device)], -1)
        labels = torch.where(self.labels < 0, len(self), self.labels).to(a.device).flatten()
        return padded[..., labels].reshape(*a.shape[:-1], *self.labels.shape)

    def directions(self, delta: Tensor, chosen: Sequence[int] | Tensor) -> Tensor:
        """δ_s of the chosen segments: delta (1, *sample) to (chosen, 1, *sample)."""
        index = torch.as_tensor(chosen, device=delta.device)
        own = self.labels.to(delta.device) == index.view(-1, *[1] * self.labels.dim())
        return torch.where(own[:, None], delta, torch.zeros((), dtype=delta.dtype, device=delta.device))

    def reference(self, x: Tensor, x0: Tensor) -> Tensor:
        """The reference, with entries outside all segments as in x."""
        return torch.where(self.inside.to(x.device), x0.expand_as(x), x)

    def at(self, x: Tensor, x0: Tensor, a: Tensor) -> Tensor:
        """The inputs x₀ + Σ a_s δ_s for (N, S) numbers a: (N, *sample).

        Where a is 0 or 1 the entry is exactly x₀'s or x's; inputs that are no floating numbers (ids) know only those.
        """
        a = torch.as_tensor(a, device=x.device)
        if not x.is_floating_point():
            if not bool(((a == 0) | (a == 1)).all()):
                raise InputError(
                    "ids are present or absent: a must be 0 or 1; explain embeddings for what lies between"
                )
            return torch.where(self.spread(a) == 1, x, x0)
        share = self.spread(a.to(x.dtype))
        return torch.where(share == 1, x, torch.where(share == 0, x0, x0 + share * (x - x0)))


def each_feature(x: Tensor, names: Sequence[str] | None = None) -> Segments:
    """Every entry its own segment; for tables, names are the columns'."""
    sample = _sample(x)
    numbers = torch.arange(sample.numel()).reshape(sample.shape)
    default = [str(i) for i in range(sample.numel())]
    return Segments(numbers, tuple(str(n) for n in (default if names is None else names)), "features")


def grid(x: Tensor, rows: int = 7, columns: int | None = None) -> Segments:
    """Rectangular patches of images (channels, height, width), rows × columns of them, all channels together."""
    sample, columns = _sample(x), columns or rows
    if sample.dim() < 2 or not (1 <= rows <= sample.shape[-2] and 1 <= columns <= sample.shape[-1]):
        raise InputError(f"a grid of {rows} x {columns} patches does not fit a sample of shape {tuple(sample.shape)}")
    height, width = sample.shape[-2:]
    row = torch.arange(height) * rows // height
    column = torch.arange(width) * columns // width
    plane = row[:, None] * columns + column[None]
    names = tuple(f"row {r + 1}, column {c + 1}" for r in range(rows) for c in range(columns))
    return Segments(plane.expand(sample.shape).contiguous(), names, "grid")


def slic(x: Tensor, count: int = 49, compactness: float = 0.1) -> Segments:
    """Superpixels of one image (1, channels, height, width) by SLIC (Achanta et al. 2012), through scikit-image.

    The image is scaled to 0..1 first. SLIC may find fewer superpixels than asked for.
    """
    try:
        from skimage.segmentation import slic as superpixels
    except ImportError as error:
        raise MissingExtra("superpixels need scikit-image", "demo") from error
    sample = _sample(x)
    if sample.dim() != 3:
        raise InputError(f"superpixels need one image of shape (1, channels, height, width), got {tuple(x.shape)}")
    low, high = sample.min(), sample.max()
    pixels = ((sample - low) / (high - low).clamp(min=1e-12)).permute(1, 2, 0).double().cpu().numpy()
    found = torch.as_tensor(superpixels(pixels, n_segments=count, compactness=compactness, start_label=0)).long()
    _, plane = torch.unique(found, return_inverse=True)
    names = tuple(f"superpixel {s}" for s in range(int(plane.max()) + 1))
    return Segments(plane.expand(sample.shape).contiguous(), names, "slic")


def words(of_token: Sequence[int | None], names: Sequence[str], width: int | None = None) -> Segments:
    """Words of a text: `of_token[i]` is the word that token i belongs to, None for special tokens, which stay.

    Sub-tokens of one word are one segment, else their ties would be the strongest "interactions".

    Args:
        of_token: as the `word_ids()` of Hugging Face's tokenizers gives it.
        names: the words.
        width: length of the embedding, where the input is (1, tokens, width) and not ids (1, tokens).
    """
    labels = torch.tensor([OUTSIDE if word is None else word for word in of_token])
    if width is not None:
        labels = labels[:, None].expand(-1, width).contiguous()
    return Segments(labels, tuple(names), "words")


def phrases(segments: Segments, groups: Sequence[Sequence[int]]) -> Segments:
    """Segments merged into larger ones: `groups` lists which of them form each; those not listed go outside."""
    new = torch.full((len(segments) + 1,), OUTSIDE)
    for number, group in enumerate(groups):
        new[torch.as_tensor(list(group), dtype=torch.long)] = number
    names = tuple(" ".join(segments.names[s] for s in group) for group in groups)
    return Segments(new[segments.labels], names, segments.kind)


def as_segments(groups: Any, x: Tensor) -> Segments:
    """What the user gave as `groups`: None (every feature), `Segments`, (rows, columns) of a grid, or labels."""
    if groups is None:
        groups = each_feature(x)
    elif isinstance(groups, tuple) and len(groups) == 2 and all(isinstance(n, int) for n in groups):
        groups = grid(x, *groups)
    elif isinstance(groups, Tensor) or (isinstance(groups, Sequence) and not isinstance(groups, str)):
        labels = torch.as_tensor(groups)
        while labels.dim() < x.dim() - 1:
            labels = labels[None]
        try:
            labels = labels.expand(x.shape[1:]).contiguous()
        except RuntimeError as error:
            raise InputError(f"labels {tuple(labels.shape)} do not fit a sample {tuple(x.shape[1:])}") from error
        groups = Segments(labels, tuple(str(s) for s in range(int(labels.max()) + 1)))
    if not isinstance(groups, Segments):
        raise InputError(
            f"groups can't be a {type(groups).__name__}; pass None (every feature its own), (7, 7) for a grid, a "
            "tensor of labels, or what deeptaylor.taylor.segments makes: grid, slic, words, each_feature"
        )
    groups.fit(x)
    return groups


def _sample(x: Tensor) -> Tensor:
    if x.dim() < 2:
        raise InputError(f"the input has shape {tuple(x.shape)}; give it a batch axis: x[None]")
    return x[0]
