"""What an absent segment looks like: the usual references, by name. A reference is a root only where f is 0 there."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InputError, MissingExtra

NAMES = ("zero", "mean", "blur", "inpaint")


def absent(x: Tensor, kind: str | float = "zero", *, keep: Tensor | None = None, sigma: float | None = None) -> Tensor:
    """A reference for x, (1, *sample).

    Args:
        x: one sample; a photo is (1, channels, height, width).
        kind: "zero"; "mean" (of a photo's channels; of all entries otherwise); "blur" (a photo, Gaussian, its
            brightness kept); "inpaint" (a photo, the entries outside `keep` filled from those inside, scikit-image);
            or a number, for ids the mask token's.
        keep: (height, width), true where "inpaint" keeps the photo.
        sigma: of the blur, in pixels; an eighth of the shorter side by default.
    """
    if isinstance(kind, int | float) and not isinstance(kind, bool):
        return torch.full_like(x, kind)
    if kind == "zero":
        return torch.zeros_like(x)
    if not x.is_floating_point():
        raise InputError(f"reference {kind!r} needs numbers, got {x.dtype}; for ids pass the mask token's number")
    photo = x.dim() == 4
    if kind == "mean":
        return x.mean((2, 3), keepdim=True).expand_as(x) if photo else x.mean().expand_as(x)
    if kind not in NAMES:
        raise InputError(f"reference {kind!r} is none of {', '.join(NAMES)}; pass a tensor for another one")
    if not photo:
        raise InputError(f"reference {kind!r} needs a photo (1, channels, height, width), got {tuple(x.shape)}")
    if kind == "blur":
        return _blur(x, min(x.shape[-2:]) / 8 if sigma is None else sigma)
    if keep is None or tuple(keep.shape) != tuple(x.shape[-2:]) or bool(keep.all()) or not bool(keep.any()):
        raise InputError(f'reference "inpaint" needs keep: {tuple(x.shape[-2:])}, true on the part that stays')
    return _inpaint(x, keep)


def _blur(x: Tensor, sigma: float) -> Tensor:
    """Separable Gaussian; at the edges only what is there counts."""
    radius = int(3 * sigma) + 1
    for dim in (2, 3):
        offsets = torch.arange(-radius, radius + 1, dtype=x.dtype, device=x.device)
        kernel = torch.exp(-(offsets**2) / (2 * sigma**2))
        shape = (1, 1, -1, 1) if dim == 2 else (1, 1, 1, -1)
        padding = (radius, 0) if dim == 2 else (0, radius)
        planes = x.reshape(-1, 1, *x.shape[-2:])
        mass = F.conv2d(torch.ones_like(planes[:1]), kernel.view(shape), padding=padding)
        x = (F.conv2d(planes, kernel.view(shape), padding=padding) / mass).reshape(x.shape)
    return x


def _inpaint(x: Tensor, keep: Tensor) -> Tensor:
    try:
        from skimage.restoration import inpaint_biharmonic
    except ImportError as error:
        raise MissingExtra("inpainting needs scikit-image", "demo") from error
    pixels: Any = x[0].permute(1, 2, 0).double().cpu().numpy()
    filled = inpaint_biharmonic(pixels, (~keep).cpu().numpy(), channel_axis=-1)
    return torch.as_tensor(filled).permute(2, 0, 1)[None].to(x)
