"""Networks of the LRP Toolbox (Lapuschkin et al. 2016) as PyTorch modules: plain text, and pickles without code.

Plain text: a line names a layer and its sizes, lines of numbers follow. `Linear m n`: m·n weights, row-major (m, n),
then n biases; an older form writes the weights in m lines. `Convolution h w d n s0 s1`: h·w·d·n weights, row-major
(h, w, d, n), then n biases. `SumPool h w s0 s1` and `MaxPool h w s0 s1`. `Rect`, `Tanh`, `SoftMax`, `Flatten`: alone.
"""

from __future__ import annotations

import io
import math
import pickle
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ModelLoadError

LAYERS = ("Linear", "Convolution", "Rect", "Tanh", "SoftMax", "Flatten", "SumPool", "MaxPool")
PICKLES = (".npy", ".nn", ".pickle", ".pickled")
Numbers = npt.NDArray[np.float64]


class SumPool(nn.Module):
    """The toolbox's sum-pooling: the sum of each patch, divided by the root of its size."""

    def __init__(self, size: tuple[int, int], stride: tuple[int, int]) -> None:
        super().__init__()
        self.size, self.stride = size, stride

    def forward(self, x: Tensor) -> Tensor:
        """(N, D, H, W) to (N, D, H', W')."""
        return math.sqrt(math.prod(self.size)) * F.avg_pool2d(x, self.size, self.stride)

    def extra_repr(self) -> str:
        return f"{self.size}, stride={self.stride}"


class Flatten(nn.Module):
    """The toolbox's flattening: channels last, as its arrays are (N, H, W, D)."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, D, H, W) to (N, H·W·D)."""
        return (x.permute(0, 2, 3, 1) if x.dim() == 4 else x).flatten(1)


class ToolboxNetwork(nn.Sequential):
    """A network of the LRP Toolbox; takes (N, features), or (N, D, H, W) where the toolbox has (N, H, W, D)."""

    notes: tuple[str, ...] = ()


def from_lrp_toolbox(
    path: str | Path, *, keep_ending: bool = False, dtype: torch.dtype = torch.float32
) -> ToolboxNetwork:
    """A network that the LRP Toolbox wrote, as a PyTorch module in evaluation mode.

    A closing SoftMax is left off, so that class scores are explained, which is said in `notes`.

    Args:
        path: plain text (.txt), or what the toolbox pickled (.nn, .pickle) or `numpy.save` wrote of it (.npy). From
            pickles only arrays and the toolbox's own layers are read; nothing in them is run.
        keep_ending: keep a closing SoftMax.
        dtype: of the module's parameters; its inputs must have it too.

    Raises:
        ModelLoadError: no file, a layer that is not the toolbox's, or numbers that are missing; names the line.
    """
    path = Path(path)
    if not path.is_file():
        raise ModelLoadError(f"no network at {path}: check the path")
    described = _unpickled(path) if path.suffix.lower() in PICKLES else _read_text(path)
    layers: list[nn.Module] = []
    for where, kind, sizes, weights, biases in described:
        try:
            layers.append(_layer(kind, sizes, weights, biases))
        except (ValueError, IndexError) as error:
            raise ModelLoadError(f"{path}, {where}: this {kind} does not fit together ({error})") from error
    if not layers:
        raise ModelLoadError(f"{path} holds no layers")
    notes: tuple[str, ...] = ()
    if isinstance(layers[-1], nn.Softmax) and not keep_ending and len(layers) > 1:
        layers.pop()
        notes = ("the closing softmax is left off: what is explained are the scores that enter it",)
    network = ToolboxNetwork(*layers).to(dtype).eval().requires_grad_(False)
    network.notes = notes
    return network


Description = tuple[str, str, list[int], Numbers | None, Numbers | None]
"""Where it stands, kind, sizes, weights, biases."""


def _layer(kind: str, sizes: Sequence[int], weights: Numbers | None, biases: Numbers | None) -> nn.Module:
    if kind == "Linear":
        assert weights is not None
        assert biases is not None
        inputs, outputs = sizes
        linear = nn.Linear(inputs, outputs)
        linear.weight = _parameter(weights.reshape(inputs, outputs).T)
        linear.bias = _parameter(biases.reshape(outputs))
        return linear
    if kind == "Convolution":
        assert weights is not None
        assert biases is not None
        height, width, depth, filters, *stride = sizes
        convolution = nn.Conv2d(depth, filters, (height, width), (stride[0], stride[1]))
        convolution.weight = _parameter(weights.reshape(height, width, depth, filters).transpose(3, 2, 0, 1))
        convolution.bias = _parameter(biases.reshape(filters))
        return convolution
    if kind in ("SumPool", "MaxPool"):
        height, width, down, across = sizes
        pool = SumPool if kind == "SumPool" else nn.MaxPool2d
        return pool((height, width), (down, across))
    plain: dict[str, Callable[[], nn.Module]] = {
        "Rect": nn.ReLU, "Tanh": nn.Tanh, "Flatten": Flatten, "SoftMax": lambda: nn.Softmax(1),
    }  # fmt: skip
    return plain[kind]()


def _parameter(values: Numbers) -> nn.Parameter:
    return nn.Parameter(torch.from_numpy(np.ascontiguousarray(values)), requires_grad=False)


_SIZES = {"Linear": 2, "Convolution": 6, "SumPool": 4, "MaxPool": 4}


def _read_text(path: Path) -> Iterator[Description]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ModelLoadError(
            f"{path} can't be read as plain text, so as no network of the toolbox ({error})"
        ) from error
    at = 0
    while at < len(lines):
        words = lines[at].split()
        where = f"line {at + 1}"
        at += 1
        if not words:
            continue
        kind = words[0]
        if kind not in LAYERS:
            raise ModelLoadError(
                f"{path}, {where}: {kind[:40]!r} is no layer of the LRP Toolbox; it has {', '.join(LAYERS)}"
            )
        try:
            sizes = [int(word) for word in words[1:]]
        except ValueError as error:
            raise ModelLoadError(f"{path}, {where}: the sizes of {kind} are no whole numbers ({error})") from error
        if len(sizes) != _SIZES.get(kind, len(sizes)) or any(size < 1 for size in sizes):
            raise ModelLoadError(f"{path}, {where}: {kind} needs {_SIZES.get(kind, 0)} positive sizes, got {words[1:]}")
        weights = biases = None
        if kind in ("Linear", "Convolution"):
            n_weights, n_biases = (
                math.prod(sizes[:2] if kind == "Linear" else sizes[:4]),
                sizes[1 if kind == "Linear" else 3],
            )
            weights, at = _numbers(path, lines, at, n_weights, f"weights of {kind} of {where}")
            biases, at = _numbers(path, lines, at, n_biases, f"biases of {kind} of {where}")
        yield where, kind, sizes, weights, biases


def _numbers(path: Path, lines: Sequence[str], at: int, wanted: int, what: str) -> tuple[Numbers, int]:
    """So many numbers, from one line or from several."""
    found: list[float] = []
    while len(found) < wanted and at < len(lines):
        try:
            found += [float(word) for word in lines[at].split()]
        except ValueError as error:
            raise ModelLoadError(
                f"{path}, line {at + 1}: {what} expected, {len(found)} of {wanted} read ({error})"
            ) from error
        at += 1
    if len(found) != wanted:
        end = " and the file ends: it is truncated" if len(found) < wanted else ""
        raise ModelLoadError(f"{path}, up to line {at}: {len(found)} numbers for the {wanted} {what}{end}")
    values = np.array(found)
    if not np.isfinite(values).all():
        raise ModelLoadError(f"{path}, up to line {at}: NaN or Inf among the {what}")
    return values, at


class _Record:
    """Attributes of a pickled layer; the toolbox's code is not needed."""

    def __init__(self, *_: Any) -> None: ...


class _Reader(pickle.Unpickler):
    """Reads arrays and the toolbox's layers; anything else is refused before it is made."""

    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] in ("modules", "module") and name in (*LAYERS, "Sequential", "Module"):
            return type(name, (_Record,), {})
        if (module, name) in _HARMLESS:
            import numpy._core.multiarray as multiarray

            return {"ndarray": np.ndarray, "dtype": np.dtype, "scalar": multiarray.scalar}.get(
                name, multiarray._reconstruct
            )
        if (module, name) == ("_codecs", "encode"):
            return lambda text, _encoding="latin1": text.encode("latin1")
        raise ModelLoadError(f"{module}.{name}")


_HARMLESS = {("numpy", "ndarray"), ("numpy", "dtype")} | {
    (f"numpy.{core}.multiarray", name) for core in ("core", "_core") for name in ("_reconstruct", "scalar")
}


def _unpickled(path: Path) -> Iterator[Description]:
    """The layers of a pickled network, or of an object array that `numpy.save` wrote."""
    try:
        content = path.read_bytes()
        if content[:6] == b"\x93NUMPY":
            file = io.BytesIO(content)
            header = {1: np.lib.format.read_array_header_1_0, 2: np.lib.format.read_array_header_2_0}
            _, _, dtype = header[np.lib.format.read_magic(file)[0]](file)
            if not dtype.hasobject:
                raise ModelLoadError(f"{path} is an array of {dtype}: data, not a network")
            content = content[file.tell() :]
        held = _Reader(io.BytesIO(content), encoding="latin1").load()
    except ModelLoadError as error:
        if str(path) in str(error):
            raise
        raise ModelLoadError(
            f"{path} holds {error}, which is no layer of the LRP Toolbox; nothing was run from it. Write the network "
            "as plain text with the toolbox: model_io.write(model, 'network.txt')"
        ) from error
    except Exception as error:  # pickle raises whatever it meets in a damaged file
        raise ModelLoadError(f"{path} is no network of the LRP Toolbox, or truncated ({error})") from error
    layers = held.reshape(-1).tolist() if isinstance(held, np.ndarray) else held
    layers = layers[0] if isinstance(layers, list) and len(layers) == 1 else layers
    layers = getattr(layers, "modules", layers)
    for i, layer in enumerate(layers if isinstance(layers, list | tuple) else [layers]):
        yield _described(path, f"layer {i}", layer)


def _described(path: Path, where: str, layer: Any) -> Description:
    kind, held = type(layer).__name__, vars(layer) if isinstance(layer, _Record) else {}
    if kind not in LAYERS:
        raise ModelLoadError(f"{path}, {where}: {kind!r} is no layer of the LRP Toolbox; it has {', '.join(LAYERS)}")
    try:
        if kind in ("Linear", "Convolution"):
            weights, biases = np.asarray(held["W"], float), np.asarray(held["B"], float)
            return where, kind, [*weights.shape, *held.get("stride", ())], weights, biases
        return where, kind, [*held.get("pool", ()), *held.get("stride", ())], None, None
    except (KeyError, TypeError, ValueError) as error:
        raise ModelLoadError(f"{path}, {where}: this {kind} lacks {error}") from error
