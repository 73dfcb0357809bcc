"""`Attribution`: the frozen result of one explanation, and its file."""

from __future__ import annotations

import json
import platform
import struct
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ._version import __version__
from .errors import FileFormatError, InputError
from .ledger import Ledger, LedgerRow
from .plan import PlanTable, Row

FORMAT = "deeptaylor-attribution-1"


@dataclass(frozen=True)
class Attribution:
    """Relevance of the inputs, and everything needed to know what it is."""

    relevances: Mapping[str, Tensor]
    """By input name; each shaped like its input, K targets on an axis after the batch."""
    output: Tensor
    """The model's output, after the head."""
    target: Any
    """Class indices (N,) or (N, K), or a description of the target."""
    explained: Tensor
    """The explained value: (N,), or (N, K)."""
    plan: PlanTable
    ledger: Ledger | None = None
    inner: Mapping[str, Tensor] = field(default_factory=dict)
    """Relevance of inner nodes, by the names asked for."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def relevance(self) -> Any:
        """The relevance of the explained input, or a dict by input name where there are several."""
        values = list(self.relevances.values())
        return values[0] if len(values) == 1 else dict(self.relevances)

    def per_patch(self, size: int) -> Tensor:
        """Relevance of images summed over channels and patches of `size` pixels: (N, rows, columns), or (N, K, …).

        Raises:
            InputError: the explained input is no image, or its sides are no multiples of `size`.
        """
        relevance = self.relevance
        if not isinstance(relevance, Tensor) or relevance.dim() < 4 or size < 1:
            raise InputError("patches need one explained input of images, shape (N, channels, height, width)")
        height, width = relevance.shape[-2:]
        if height % size or width % size:
            raise InputError(f"images of {height} x {width} pixels do not divide into patches of {size}")
        return relevance.sum(-3).unflatten(-2, (-1, size)).unflatten(-1, (-1, size)).sum((-3, -1))

    def plot(self, **options: Any) -> Any:
        """A matplotlib figure of the relevance of images, summed over channels; see `deeptaylor.plots.heatmap`."""
        from .plots import heatmap

        return heatmap(self.relevance, **options)

    def save(self, path: str | Path) -> None:
        """Writes everything to one safetensors file: tensors, and the rest as JSON in its header. No pickle.

        Raises:
            InputError: the folder is not there.
        """
        from safetensors.torch import save_file

        if not Path(path).absolute().parent.is_dir():
            raise InputError(f"can't save to {path}: there is no folder {Path(path).absolute().parent}; make it first")
        tensors, described = self.packed()
        save_file(tensors, str(path), metadata={"format": FORMAT, "deeptaylor": json.dumps(described)})

    @staticmethod
    def load(path: str | Path) -> Attribution:
        """Reads what `save` wrote.

        Raises:
            FileFormatError: the file is missing, damaged, or something else.
        """
        tensors, metadata = read_safetensors(path)
        if metadata.get("format") != FORMAT:
            raise FileFormatError(f"{path} is a safetensors file, but not an attribution saved by deeptaylor")
        return Attribution.unpacked(tensors, json.loads(metadata["deeptaylor"]))

    def packed(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors on the CPU, and all else as what JSON can hold."""
        tensors = {f"relevance.{name}": value for name, value in self.relevances.items()}
        tensors |= {f"inner.{name}": value for name, value in self.inner.items()}
        tensors |= {"output": self.output, "explained": self.explained}
        if isinstance(self.target, Tensor):
            tensors["target"] = self.target
        ledger = None
        if self.ledger is not None:
            tensors |= {f"ledger.{name}": getattr(self.ledger, name) for name in ("explained", "inputs", "absorbed")}
            ledger = [asdict(row) for row in self.ledger.rows]
        described = {
            "target": None if isinstance(self.target, Tensor) else self.target,
            "plan": asdict(self.plan),
            "ledger": ledger,
            "settings": dict(self.settings),
            "versions": dict(self.versions),
        }
        return {name: t.detach().cpu().clone().contiguous() for name, t in tensors.items()}, described

    @staticmethod
    def unpacked(tensors: Mapping[str, Tensor], described: Mapping[str, Any]) -> Attribution:
        """What `packed` took apart."""
        plan = described["plan"]
        ledger = None
        if described["ledger"] is not None:
            rows = tuple(LedgerRow(**row) for row in described["ledger"])
            ledger = Ledger(tensors["ledger.explained"], tensors["ledger.inputs"], tensors["ledger.absorbed"], rows)
        return Attribution(
            relevances=_named(tensors, "relevance."),
            output=tensors["output"],
            target=tensors.get("target", described["target"]),
            explained=tensors["explained"],
            plan=PlanTable(tuple(Row(**row) for row in plan["rows"]), plan["composite"], tuple(plan["notes"])),
            ledger=ledger,
            inner=_named(tensors, "inner."),
            settings=described["settings"],
            versions=described["versions"],
        )


def versions() -> dict[str, str]:
    """What made a result."""
    return {"deeptaylor": __version__, "torch": torch.__version__, "python": platform.python_version()}


def read_safetensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file.

    Raises:
        FileFormatError: the file is missing, or no safetensors file.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}
    except (OSError, SafetensorError, struct.error) as error:
        raise FileFormatError(f"{path} can't be read as a saved attribution: {error}") from error


def _named(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
