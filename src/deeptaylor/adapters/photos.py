"""Photos as tensors: reading, cropping, normalising, and the box that normalised pixels live in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..errors import InputError, MissingExtra, PhotoError

if TYPE_CHECKING:
    from PIL.Image import Image

INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos")


@dataclass(frozen=True)
class Preprocessing:
    """How a photo becomes what a network saw in training: resized, cropped in the middle, normalised per channel."""

    size: tuple[int, int]
    """Height and width that the network sees."""
    resize: int
    """Length of the shorter side before the crop."""
    mean: tuple[float, ...]
    """Per channel, for pixels in 0..1; one number for grey photos, three for colour."""
    std: tuple[float, ...]
    interpolation: str = "bilinear"
    squash: bool = False
    """Whether the whole photo is squeezed into a square before the crop, without regard to its proportions."""
    source: str = "stated by the caller"
    """Where these figures come from."""

    def __post_init__(self) -> None:
        """Refuse figures that can't be meant."""
        if len(self.mean) != len(self.std) or len(self.mean) not in (1, 3):
            raise InputError(f"mean has {len(self.mean)} numbers and std {len(self.std)}: pass one each, or three each")
        if min(self.std) <= 0:
            raise InputError(f"std must be positive, got {self.std}")
        if min(self.size) < 1 or self.resize < max(self.size):
            raise InputError(f"a photo resized to {self.resize} can't be cropped to {self.size[0]}x{self.size[1]}")
        if self.interpolation not in INTERPOLATIONS:
            raise InputError(f"unknown interpolation {self.interpolation!r}; one of {', '.join(INTERPOLATIONS)}")

    def crop(self, photo: Image) -> npt.NDArray[np.uint8]:
        """The photo as the network sees it, `(height, width, channels)` in bytes."""
        from PIL import Image as pillow

        photo = photo.convert("L" if len(self.mean) == 1 else "RGB")
        width, height = photo.size
        short = min(width, height)
        # Whole numbers, rounded down as torchvision does: one row more or less would shift every pixel.
        wanted = (self.resize,) * 2 if self.squash else (self.resize * width // short, self.resize * height // short)
        photo = photo.resize(wanted, pillow.Resampling[self.interpolation.upper()])
        left, top = round((photo.width - self.size[1]) / 2), round((photo.height - self.size[0]) / 2)
        pixels = np.asarray(photo.crop((left, top, left + self.size[1], top + self.size[0])))
        return pixels[..., None] if pixels.ndim == 2 else pixels

    def normalise(self, pixels: npt.NDArray[np.uint8]) -> Tensor:
        """Bytes `(height, width, channels)` as the network's input, `(1, channels, height, width)` in float32."""
        values = torch.from_numpy(np.array(pixels)).permute(2, 0, 1).float() / 255
        return ((values - _per_channel(self.mean)) / _per_channel(self.std)).unsqueeze(0)

    def bounds(self) -> tuple[Tensor, Tensor]:
        """What black and white become, each `(channels, 1, 1)`: the box of every possible photo."""
        mean, std = _per_channel(self.mean), _per_channel(self.std)
        return (0 - mean) / std, (1 - mean) / std

    def __str__(self) -> str:
        """One line for a report."""
        numbers = "; ".join(
            f"{name} {', '.join(f'{n:.4g}' for n in values)}"
            for name, values in (("mean", self.mean), ("std", self.std))
        )
        how = "squashed to" if self.squash else "shorter side"
        crop = f"centre crop {self.size[0]}×{self.size[1]}"
        return f"{how} {self.resize} px ({self.interpolation}), {crop}, {numbers} ({self.source})"


def read_photo(path: str | Path) -> Image:
    """A photo in colour, upright as its camera says, transparency over white."""
    check_photo(path)
    from PIL import ImageOps

    pillow = _pillow()
    try:
        with pillow.open(path) as opened:
            return to_rgb(ImageOps.exif_transpose(opened))
    except (OSError, SyntaxError, ValueError, EOFError, pillow.DecompressionBombError) as error:
        raise PhotoError(f"{path} can't be read as a photo ({error}): save it as PNG or JPEG") from error


def check_photo(path: str | Path) -> None:
    """Refuse what is no photo, by its first bytes."""
    pillow, path = _pillow(), Path(path)
    if not path.is_file():
        raise PhotoError(f"no photo at {path}: {'that is a folder' if path.is_dir() else 'check the path'}")
    try:
        pillow.open(path).close()
    except (OSError, SyntaxError, ValueError, EOFError, pillow.DecompressionBombError) as error:
        raise PhotoError(f"{path} can't be read as a photo ({error}): save it as PNG or JPEG") from error


def check_photos(paths: Sequence[Path]) -> None:
    """Refuse missing and unreadable photos, all of them in one message."""
    problems = []
    for path in paths:
        try:
            check_photo(path)
        except PhotoError as error:
            problems.append(str(error))
    if problems:
        raise PhotoError("\n".join(problems))


def _pillow() -> Any:
    try:
        from PIL import Image as pillow
    except ImportError as error:
        raise MissingExtra("reading photos needs Pillow", "report") from error
    return pillow


def to_rgb(photo: Image) -> Image:
    """A Pillow image of any mode as RGB: 16-bit grey is scaled, transparency is laid over white."""
    from PIL import Image as pillow

    if photo.mode.startswith("I"):
        # Pillow's own conversion clips 16 bits at 255: nearly every pixel would be white.
        return pillow.fromarray((np.asarray(photo).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)).convert("RGB")
    if "A" in photo.getbands() or "transparency" in photo.info:
        with_alpha = photo.convert("RGBA")
        white = pillow.new("RGBA", photo.size, "white")
        return pillow.alpha_composite(white, with_alpha).convert("RGB")
    return photo.convert("RGB")


def from_timm(config: Mapping[str, Any], source: str) -> Preprocessing:
    """The preprocessing that a timm configuration states: `model.pretrained_cfg`."""
    missing = [key for key in ("input_size", "mean", "std") if not config.get(key)]
    if missing or config.get("crop_mode", "center") not in ("center", "squash"):
        why = f"lacks {', '.join(missing)}" if missing else f"crops by {config['crop_mode']!r}"
        raise InputError(f"the configuration of {source} {why}: pass --size, --mean and --std yourself")
    _, height, width = config["input_size"]
    return Preprocessing(
        size=(height, width),
        resize=max(int(max(height, width) / (config.get("crop_pct") or 1.0)), height, width),
        mean=tuple(float(number) for number in config["mean"]),
        std=tuple(float(number) for number in config["std"]),
        interpolation=config["interpolation"] if config.get("interpolation") in INTERPOLATIONS else "bicubic",
        squash=config.get("crop_mode") == "squash",
        source=source,
    )


def from_torchvision(transforms: Any, source: str) -> Preprocessing:
    """The preprocessing that torchvision weights state: `weights.transforms()`."""
    size = transforms.crop_size[0]
    return Preprocessing(
        size=(size, size),
        resize=max(transforms.resize_size[0], size),
        mean=tuple(transforms.mean),
        std=tuple(transforms.std),
        interpolation=transforms.interpolation.value,
        source=source,
    )


def overridden(
    known: Preprocessing | None,
    size: int | None,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    channels: int = 3,
) -> Preprocessing | None:
    """What is known, with the figures that a person typed in its place; None where neither says enough.

    Args:
        known: as the model's makers state.
        size: in pixels; with it the shorter side is resized to exactly that, and the crop takes the middle.
        mean: one number for all channels, or one each.
        std: likewise.
        channels: of the network's input; where `known` says, that counts.
    """
    if known is None and (size is None or mean is None or std is None):
        return None
    n = len(known.mean) if known else channels
    spread = [tuple(map(float, values)) * (n if len(values) == 1 else 1) if values else None for values in (mean, std)]
    if known is None:
        assert size is not None
        assert spread[0] is not None
        assert spread[1] is not None
        return Preprocessing((size, size), size, spread[0], spread[1], source="as typed")
    if size is None and mean is None and std is None:
        return known
    return replace(
        known,
        size=(size, size) if size else known.size,
        resize=size or known.resize,
        mean=spread[0] or known.mean,
        std=spread[1] or known.std,
        source=f"{known.source}; as typed where it differs",
    )


def _per_channel(numbers: Sequence[float]) -> Tensor:
    return torch.tensor(list(numbers), dtype=torch.float32).view(-1, 1, 1)
