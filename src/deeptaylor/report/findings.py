"""Explaining photos under several composites: the loop that the command line, the demo and the report share."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..adapters.labels import Labels, name_of
from ..adapters.photos import Preprocessing, read_photo
from ..adapters.targets import Aim, resolve
from ..adapters.zoo import LoadedModel
from ..errors import DeepTaylorError, InputError, RelevanceWarning

if TYPE_CHECKING:
    from PIL.Image import Image

    from ..attribution import Attribution
    from ..explainer import Explainer


@dataclass(frozen=True)
class Photo:
    """One photo on its way to the network."""

    name: str
    original: tuple[int, int]
    """Width and height before anything was done to it."""
    pixels: npt.NDArray[np.uint8]
    """As the network sees it, `(height, width, channels)`."""
    inputs: Tensor
    """Normalised, `(1, channels, height, width)`."""
    credit: str = ""


@dataclass(frozen=True)
class Map:
    """Relevance of one photo for one aim under one composite."""

    aim: Aim
    composite: str
    relevance: Tensor
    """`(channels, height, width)`."""
    explained: float
    attribution: Attribution
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Findings:
    """All that was found out about one photo."""

    photo: Photo
    scores: Tensor
    """The network's output, `(classes,)`."""
    aims: tuple[Aim, ...]
    maps: Mapping[tuple[str, Aim], Map]
    problems: tuple[str, ...] = ()
    """What could not be explained, and why; the other maps are there."""


def prepare(image: Image, name: str, preprocessing: Preprocessing, credit: str = "") -> Photo:
    """A Pillow image as a photo ready for the network."""
    pixels = preprocessing.crop(image)
    return Photo(name, image.size, pixels, preprocessing.normalise(pixels), credit)


def read(path: Path, preprocessing: Preprocessing) -> Photo:
    """A photo file ready for the network, named after the file."""
    return prepare(read_photo(path), path.stem, preprocessing)


def scores_of(loaded: LoadedModel, photo: Photo) -> Tensor:
    """The network's output for one photo, `(classes,)`; refuses an output of another form."""
    output = loaded(photo.inputs)
    if not isinstance(output, Tensor) or output.ndim != 2 or output.shape[0] != 1:
        shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise InputError(
            f"the model's output is {shape}, not (1, classes): wrap it in a module that returns the class scores, and "
            "pass that as --model package.module:factory"
        )
    return output[0].detach()


def probabilities(scores: Tensor) -> tuple[Tensor, bool]:
    """Probabilities of all classes, and whether the network gave them itself (else: softmax of its scores)."""
    own = bool((scores >= 0).all()) and abs(float(scores.sum()) - 1) < 1e-3
    return (scores if own else scores.double().softmax(-1)), own


def top(scores: Tensor, labels: Labels | None, k: int = 5) -> list[tuple[str, float, float]]:
    """Name, probability and score of the k best classes."""
    chances, _ = probabilities(scores)
    best = chances.argsort(descending=True)[:k].tolist()
    return [(name_of(index, labels), float(chances[index]), float(scores[index])) for index in best]


def explain_photos(
    explainers: Mapping[str, Explainer],
    photos: Sequence[Photo],
    scores: Sequence[Tensor],
    asks: Sequence[str],
    labels: Labels | None,
) -> Iterator[Findings | None]:
    """Findings of every photo as soon as they are complete, and None after every composite, for a progress bar.

    A composite that fails on a photo is reported among its `problems`; nothing found so far is lost.
    """
    for photo, row in zip(photos, scores, strict=True):
        aims = tuple(dict.fromkeys(resolve(asks, row, labels)))
        maps: dict[tuple[str, Aim], Map] = {}
        problems: list[str] = []
        for composite, explainer in explainers.items():
            try:
                maps |= {(composite, one.aim): one for one in _maps(explainer, composite, photo, aims)}
            except Exception as error:  # whatever it is, the maps found so far are worth more than a clean exit
                what = str(error) if isinstance(error, DeepTaylorError) else f"{type(error).__name__}: {error}"
                problems.append(f"{photo.name}, {composite}: {what}")
            yield None
        yield Findings(photo, row, aims, maps, tuple(problems))


def _maps(explainer: Explainer, composite: str, photo: Photo, aims: Sequence[Aim]) -> Iterator[Map]:
    """One map per aim; every aim has its own ledger."""
    for aim in aims:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", RelevanceWarning)
            attribution = explainer(photo.inputs, target=engine_target(aim), ledger=True)
        said = tuple(str(one.message) for one in caught if issubclass(one.category, RelevanceWarning))
        relevance: Any = attribution.relevance
        yield Map(aim, composite, relevance[0], float(attribution.explained.reshape(-1)[0]), attribution, said)


def engine_target(aim: Aim) -> Any:
    """An aim as the engine takes it."""
    import deeptaylor

    return [aim.index] if aim.against is None else deeptaylor.contrast(aim.index, aim.against)


def stack(findings: Sequence[Findings], composites: Sequence[str]) -> dict[str, npt.NDArray[Any]]:
    """All maps as arrays; where a map is missing, NaN.

    `relevance` is (photos, composites, targets, channels, height, width), `explained` (photos, composites, targets),
    `scores` (photos, classes), `pixels` (photos, height, width, channels); `photos`, `composites` and `targets` hold
    the names.
    """
    n_aims = max(len(found.aims) for found in findings)
    shape = (len(findings), len(composites), n_aims)
    relevance = np.full((*shape, *findings[0].photo.inputs.shape[1:]), np.nan, dtype=np.float32)
    explained = np.full(shape, np.nan)
    titles = np.full((len(findings), n_aims), "", dtype=object)
    for i, found in enumerate(findings):
        titles[i, : len(found.aims)] = [aim.title for aim in found.aims]
        for j, composite in enumerate(composites):
            for k, aim in enumerate(found.aims):
                if (composite, aim) in found.maps:
                    relevance[i, j, k] = found.maps[composite, aim].relevance.cpu().float().numpy()
                    explained[i, j, k] = found.maps[composite, aim].explained
    return {
        "relevance": relevance,
        "explained": explained,
        "scores": torch.stack([found.scores for found in findings]).cpu().numpy(),
        "pixels": np.stack([found.photo.pixels for found in findings]),
        "photos": np.array([found.photo.name for found in findings]),
        "composites": np.array(list(composites)),
        "targets": titles.astype(str),
    }
