"""References x₀: the point that a Taylor expansion starts from, or ends at.

`reference(x, kind)` makes one of the names below, takes a tensor or a number, or calls a function of x:

    "zero"     0 everywhere
    "mean"     the mean over `data`; of images without `data`, every channel's own mean
    "blur"     a Gaussian blur, with a standard deviation of a twentieth of the shorter side
    "inpaint"  every segment filled in from what surrounds it; needs `groups`

Token ids can't be moved by small steps: `replace_tokens` puts one id (mask or pad) everywhere, `delete_tokens` takes
tokens out.
A root of the explained score as reference: `deeptaylor.nearest_root`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import InputError, MissingExtra
from .segments import as_segments

Kind = str | float | Tensor | Callable[[Tensor], Tensor]
NAMES = ("zero", "mean", "blur", "inpaint")


def reference(x: Tensor, kind: Kind, *, data: Tensor | None = None, groups: Any = None) -> Tensor:
    """A reference for a batch.

    Args:
        x: (N, ...), floating.
        kind: a name from the top of this file, a number, a tensor that broadcasts to x, or a function of x.
        data: (rows, ...) for "mean": samples like those of x.
        groups: for "inpaint": segments, or what makes them, such as (7, 7) for a grid.

    Returns:
        x₀ of the shape, dtype and device of x.

    Raises:
        InputError: no such name, something is missing for it, or the shapes do not fit.
    """
    if not isinstance(x, Tensor) or not x.is_floating_point():
        what = f"{x.dtype} tensor" if isinstance(x, Tensor) else type(x).__name__
        raise InputError(f"a reference needs a floating tensor, not a {what}; for token ids see replace_tokens")
    if isinstance(kind, str):
        if kind not in NAMES:
            raise InputError(f"no reference is called {kind!r}; there are {', '.join(NAMES)}, or pass a tensor")
        made = _named(x, kind, data, groups)
    elif callable(kind) and not isinstance(kind, Tensor):
        made = kind(x)
        if not isinstance(made, Tensor):
            raise InputError(f"the reference function returned a {type(made).__name__}; it must return a tensor like x")
    else:
        made = torch.as_tensor(kind)
    try:
        made = made.detach().to(x).expand(x.shape).clone()
    except RuntimeError as error:
        raise InputError(f"the reference has shape {tuple(made.shape)}, the input {tuple(x.shape)}") from error
    if not bool(torch.isfinite(made).all()):
        raise InputError("the reference holds NaN or Inf")
    return made


def _named(x: Tensor, kind: str, data: Tensor | None, groups: Any) -> Tensor:
    if kind == "zero":
        return torch.zeros_like(x)
    if kind == "mean":
        return mean(x, data)
    if kind == "blur":
        return blur(x)
    if groups is None:
        raise InputError('reference "inpaint" fills in segments from their surroundings: pass groups, such as (7, 7)')
    return inpaint(x, groups)


def mean(x: Tensor, data: Tensor | None = None) -> Tensor:
    """The mean of `data` over its rows, or of every image's channels over its pixels; shape like x."""
    if data is not None:
        if data.shape[1:] != x.shape[1:] or not len(data):
            raise InputError(
                f"data has shape {tuple(data.shape)}; it must be (rows, {', '.join(map(str, x.shape[1:]))})"
            )
        return data.to(x).mean(0, keepdim=True).expand(x.shape)
    if x.dim() < 3:
        raise InputError('reference "mean" of a table is the mean over its rows: pass data (rows, features)')
    return x.mean(tuple(range(2, x.dim())), keepdim=True).expand(x.shape)


def blur(x: Tensor, sigma: float | None = None) -> Tensor:
    """Images (N, C, H, W) after a Gaussian blur.

    Args:
        x: images.
        sigma: standard deviation in pixels; by default a twentieth of the shorter side.
    """
    if x.dim() != 4:
        raise InputError(f"a blur needs images (N, C, H, W), not shape {tuple(x.shape)}")
    sigma = min(x.shape[-2:]) / 20 if sigma is None else float(sigma)
    if not sigma > 0:
        raise InputError(f"sigma {sigma} is not a positive number of pixels")
    for axis in (2, 3):
        # A reflected border can't be wider than the image.
        reach = min(int(3 * sigma) + 1, x.shape[axis] - 1)
        offsets = torch.arange(-reach, reach + 1, dtype=x.dtype, device=x.device)
        weights = torch.exp(-((offsets / sigma) ** 2) / 2)
        shape = [x.shape[1], 1, 1, 1]
        shape[axis] = len(weights)
        kernel = (weights / weights.sum()).expand(x.shape[1], 1, -1).reshape(shape)
        padding = (0, 0, reach, reach) if axis == 2 else (reach, reach, 0, 0)
        x = F.conv2d(F.pad(x, padding, mode="reflect"), kernel, groups=x.shape[1])
    return x


def inpaint(x: Tensor, groups: Any) -> Tensor:
    """Images in which every segment is filled in from the pixels around it (biharmonic, by scikit-image).

    Each segment is filled in while all others are seen; what belongs to no segment stays.

    Args:
        x: (N, C, H, W).
        groups: segments, or what makes them, such as (7, 7) for a grid; a pixel's channels belong together.
    """
    try:
        from skimage.restoration import inpaint_biharmonic
    except ImportError as error:
        raise MissingExtra("inpainting needs scikit-image", "demo") from error
    if x.dim() != 4:
        raise InputError(f"inpainting needs images (N, C, H, W), not shape {tuple(x.shape)}")
    segments = as_segments(groups, x)
    plane = segments.labels[0]
    if not bool((segments.labels == plane).all()):
        raise InputError("inpainting needs segments that hold all channels of their pixels")
    if len(segments) == 1 and bool((plane == 0).all()):
        raise InputError("one segment covers the whole image, so nothing is left to fill it in from")
    filled = x.detach().clone()
    for n, image in enumerate(x.detach().double().cpu().movedim(1, -1).numpy()):
        for s in range(len(segments)):
            hole = plane == s
            made = inpaint_biharmonic(image, hole.cpu().numpy(), channel_axis=-1)
            # Far from its border a biharmonic surface can leave the range of colours.
            surface = torch.from_numpy(made).clamp(image.min(), image.max()).movedim(-1, 0).to(x)
            filled[n] = torch.where(hole.to(x.device), surface, filled[n])
    return filled


def replace_tokens(ids: Tensor, token: int, keep: Sequence[int] = ()) -> Tensor:
    """Token ids with `token` (the mask's or the padding's id) in every place, except where an id of `keep` stands.

    Args:
        ids: (N, T), integers.
        token: the id put there.
        keep: ids that stay, such as those of [CLS] and [SEP].
    """
    _check_ids(ids)
    stays = torch.isin(ids, torch.tensor(list(keep), dtype=ids.dtype, device=ids.device))
    return torch.where(stays, ids, torch.full_like(ids, int(token)))


def delete_tokens(ids: Tensor, kept: Tensor, pad: int) -> tuple[Tensor, Tensor]:
    """One sentence without some of its tokens, many times over.

    Args:
        ids: (1, T), integers.
        kept: (K, T), booleans: which tokens stay in each of the K variants.
        pad: the id of padding.

    Returns:
        ids (K, T') and attention mask (K, T'): what is left, moved to the left; T' is the length of the longest.
    """
    _check_ids(ids)
    if ids.shape[0] != 1 or kept.dim() != 2 or kept.shape[1] != ids.shape[1]:
        raise InputError(f"deletion needs ids (1, T) and kept (K, T), not {tuple(ids.shape)} and {tuple(kept.shape)}")
    kept = kept.bool()
    if not bool(kept.any(1).all()):
        raise InputError("a variant has no token left; keep at least the special ones")
    order = torch.argsort(~kept, dim=1, stable=True)
    longest = int(kept.sum(1).max())
    mask = kept.gather(1, order)[:, :longest]
    left = ids.expand(len(kept), -1).gather(1, order)[:, :longest]
    return torch.where(mask, left, torch.full_like(left, int(pad))), mask.to(ids.dtype)


def _check_ids(ids: Tensor) -> None:
    if ids.is_floating_point() or ids.dim() != 2:
        raise InputError(f"token ids are integers (N, T), not {ids.dtype} of shape {tuple(ids.shape)}")
