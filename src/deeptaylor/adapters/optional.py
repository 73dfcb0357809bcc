"""Importing torchvision and timm where they are wanted, with errors that say what to do."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

import torch

from ..errors import ModelLoadError

_schemas: list[torch.library.Library] = []
"""Keeps the operators defined below alive."""


def import_zoo(name: str) -> ModuleType:
    """`torchvision` or `timm`.

    torchvision's published wheels are linked against CUDA: next to a CPU build of torch they fail on import, because
    the operator nms was not registered. Classifiers never call it, so its two schemas are defined here, once, and the
    import is tried again.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = (error.name or name).split(".")[0]
        raise ModelLoadError(f"--model {name}:… needs {missing}: pip install {missing}") from error
    except RuntimeError as error:
        if "torchvision::nms does not exist" not in str(error) or _schemas:
            raise ModelLoadError(f"importing {name} failed: {error}") from error
    print(
        "note: this torchvision was built for another torch and lacks its own operators; defining nms by name only, "
        "which classifiers do not call",
        file=sys.stderr,
    )
    library = torch.library.Library("torchvision", "DEF")
    for operator in ("nms", "qnms"):
        library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _schemas.append(library)
    # What the failed import left behind would be taken for the real thing.
    for module in [loaded for loaded in sys.modules if loaded.split(".")[0] in ("torchvision", "timm")]:
        del sys.modules[module]
    return import_zoo(name)
