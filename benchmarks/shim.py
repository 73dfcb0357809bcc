"""Makes `import torchvision` work next to a CPU build of torch.

The torchvision wheel on the package index is linked against CUDA. Beside a CPU torch its compiled operations do not load, and the
import then fails while registering shape functions for `nms` and `qnms`, which nothing here uses. Declaring those two operations
first is enough for `torchvision.models`, timm and zennit. Where the compiled operations do load, nothing is declared.

    import shim    # before the first import of torchvision
"""

import importlib.util
from pathlib import Path

import torch

OPERATIONS = ("nms", "qnms")
SCHEMA = "{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"

_library = None  # torch forgets the declarations with the object that made them


def install() -> bool:
    """Whether operations had to be declared. Safe to call twice."""
    global _library
    if _library is not None or _compiled_operations_load():
        return False
    missing = [name for name in OPERATIONS if not _is_declared(name)]
    if not missing:
        return False
    _library = torch.library.Library("torchvision", "FRAGMENT")
    for name in missing:
        _library.define(SCHEMA.format(name=name))
    return True


def _is_declared(name: str) -> bool:
    return torch._C._dispatch_has_kernel(f"torchvision::{name}") or bool(
        torch._C._jit_get_schemas_for_operator(f"torchvision::{name}")
    )


def _compiled_operations_load() -> bool:
    """Loads torchvision's own library, as its import would; a library linked against an absent CUDA raises OSError."""
    found = importlib.util.find_spec("torchvision")  # finds the package without running it
    if found is None or not found.submodule_search_locations:
        return False
    for library in Path(found.submodule_search_locations[0]).glob("_C*.so"):
        try:
            torch.ops.load_library(library)
        except OSError:
            return False
        return all(map(_is_declared, OPERATIONS))
    return False


install()
