"""Explains with ONNX Runtime alone: neither torch nor deeptaylor is needed.

python serve_onnx.py explain.onnx photos.npy relevance.npy
"""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np
import onnxruntime


def load(path: str) -> tuple[Any, dict[str, Any]]:
    """A session and the program's description."""
    session = onnxruntime.InferenceSession(path, providers=onnxruntime.get_available_providers())
    return session, json.loads(session.get_modelmeta().custom_metadata_map["deeptaylor"])


def explain(session: Any, inputs: dict[str, np.ndarray], target: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """Relevance, output, class and explained value by name; without a target, of the predicted classes."""
    samples = len(next(iter(inputs.values())))
    asked = np.full(samples, -1, dtype=np.int64) if target is None else target
    taken = {place.name for place in session.get_inputs()}
    given = {name: values for name, values in {**inputs, "target": asked}.items() if name in taken}
    found = dict(zip([place.name for place in session.get_outputs()], session.run(None, given), strict=True))
    if not all(np.isfinite(values).all() for values in found.values()):
        raise ValueError("no relevance for these inputs: a sample lies outside the program's bounds")
    return found


if __name__ == "__main__":
    session, described = load(sys.argv[1])
    (name,) = described["inputs"]
    found = explain(session, {name: np.load(sys.argv[2])})
    np.save(sys.argv[3], found["relevance"])
    print(f"{described['composite']}: classes {found['class'].tolist()}")
