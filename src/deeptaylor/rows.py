"""Rows: part of a value along one axis, and which rows of its arguments an operation reads to make rows of its output.

One `moves` line per operation, as in `ops`; an operation without one is computed whole.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

import torch
from torch import Tensor

from .forms import Arguments, arguments_of
from .graph import Node, Ref

aten = torch.ops.aten
Shape = tuple[int | str, ...]


@dataclass(frozen=True)
class Rows:
    """Some of a value's places along `axis`: `length` of them from `start` on, or one for each sample."""

    axis: int
    start: int = 0
    length: int = 1
    index: str = ""
    """The value that holds each sample's place; axis 0 of whatever has such rows is the batch."""

    def at(self, axis: int) -> Rows:
        """The same places along another axis."""
        return replace(self, axis=axis)


@dataclass(frozen=True)
class Reads:
    """What an operation reads to make only some rows of its output."""

    rows: Mapping[str, Rows] = field(default_factory=dict)
    """By the argument's name; all of those that are not named."""
    changed: Mapping[str, Any] = field(default_factory=dict)
    """Arguments that are not tensors, as they are then."""


@dataclass(frozen=True)
class Request:
    """A node of which some rows are wanted."""

    node: Node
    rows: Rows
    shapes: Mapping[str, Shape]

    @property
    def arguments(self) -> Arguments:
        """By their names."""
        if not isinstance(self.node.op, torch._ops.OpOverload):
            return dict(zip(argument_names(self.node), self.node.args, strict=True))
        return arguments_of(self.node.op, self.node.args, self.node.kwargs)

    @property
    def axis(self) -> int:
        return self.rows.axis

    @property
    def rank(self) -> int:
        return len(self.node.shape)

    def shape(self, argument: str) -> Shape:
        """The shape of an argument that is a tensor."""
        return self.shapes[self.arguments[argument].name]

    def broadcast(self, argument: str) -> dict[str, Rows]:
        """The rows of an argument that is repeated to the output's shape: none in particular where they are equal."""
        shape = self.shape(argument)
        axis = self.axis - (self.rank - len(shape))
        return {argument: self.rows.at(axis)} if axis >= 0 and shape[axis] == self.node.shape[self.axis] else {}


def argument_names(node: Node) -> list[str]:
    """Names of a node's positional arguments: those of the operation's schema, or numbers."""
    schema = node.op._schema.arguments if isinstance(node.op, torch._ops.OpOverload) else ()
    return [argument.name for argument in schema[: len(node.args)]] or [str(n) for n in range(len(node.args))]


Move = Callable[[Request], Reads | None]
MOVES: dict[Any, Move] = {}


def moves(*ops: Any) -> Callable[[Move], Move]:
    """Declares what operations read to make rows of their output; None where all of it must be computed."""

    def declared(move: Move) -> Move:
        MOVES.update(dict.fromkeys(ops, move))
        return move

    return declared


def reads_for(node: Node, rows: Rows, shapes: Mapping[str, Shape]) -> Reads | None:
    """What a node reads to make `rows` of its output; None where it can't but make all."""
    move = MOVES.get(node.op) or (_pointwise if repeats(node.op) else None)
    if move is None or not all(name in shapes for name in node.refs()):
        return None
    request = Request(node, rows, shapes)
    reads = move(request)
    if reads is None or not rows.index:
        return reads
    for argument, own in reads.rows.items():
        value = request.arguments[argument]
        for shape in (shapes[ref.name] for ref in (value if isinstance(value, list) else [value])):
            repeated = repeats(node.op) and (len(shape) < len(node.shape) or shape[0] == 1)
            if shape and node.shape and not repeated and not (own.axis and _one_batch(shape[0], node.shape[0])):
                return None
    return reads


def repeats(op: Any) -> bool:
    """Whether arguments are repeated along axes that they lack."""
    pointwise = isinstance(op, torch._ops.OpOverload) and torch.Tag.pointwise in op.tags
    return pointwise or op is aten.scaled_dot_product_attention.default


def rows_given(node: Node, graph: Mapping[str, Node], shapes: Mapping[str, Shape]) -> tuple[str, Rows] | None:
    """The value of which an operation gives some rows, as they are, and which rows; None for other operations."""
    if node.op not in GIVERS or not all(name in shapes for name in node.refs()):
        return None
    arguments = arguments_of(node.op, node.args, node.kwargs)
    value = arguments["self"].name
    shape = shapes[value]
    if not shape:
        return None
    if node.op is aten.index.Tensor:
        index = _place_of_each(arguments["indices"], graph, shape)
        return (value, Rows(1, index=index)) if index else None
    axis = arguments["dim"] % len(shape)
    size = shape[axis]
    if node.op is aten.gather.default:
        index = _repeated_place(graph.get(arguments["index"].name), shapes, shape, axis)
        return (value, Rows(axis, index=index)) if index else None
    if not isinstance(size, int):
        return None
    if node.op is aten.select.int:
        place = arguments["index"]
        return (value, Rows(axis, place % size)) if isinstance(place, int) and size > 1 else None
    ends = arguments["start"], arguments["end"]
    if arguments["step"] != 1 or not all(end is None or isinstance(end, int) for end in ends):
        return None
    start, end, _ = slice(*ends).indices(size)
    return (value, Rows(axis, start, end - start)) if 0 < end - start < size else None


GIVERS = (aten.select.int, aten.slice.Tensor, aten.gather.default, aten.index.Tensor)


def as_given(node: Node) -> Node:
    """The operation that gives some rows, where its argument is those rows already."""
    arguments = arguments_of(node.op, node.args, node.kwargs)
    if node.op is aten.select.int:
        return replace(node, args=(arguments["self"], arguments["dim"], 0), kwargs={})
    if node.op is aten.index.Tensor:
        return replace(node, op=aten.select.int, args=(arguments["self"], 1, 0), kwargs={})
    return replace(node, op=aten.alias.default, args=(arguments["self"],), kwargs={})


def _repeated_place(index: Node | None, shapes: Mapping[str, Shape], shape: Shape, axis: int) -> str:
    """The value with one place per sample that a gather's index repeats along all other axes, or nothing."""
    if index is None or index.op is not aten.expand.default or axis == 0:
        return ""
    base = shapes.get(index.args[0].name)
    whole = index.shape[1:] == (*shape[1:axis], 1, *shape[axis + 1 :]) and _one_batch(index.shape[0], shape[0])
    return index.args[0].name if whole and base == (index.shape[0], *[1] * (len(shape) - 1)) else ""


def _place_of_each(indices: list[Any], graph: Mapping[str, Node], shape: Shape) -> str:
    """The second index, where the first counts the samples: value[arange(N), place]."""
    if len(indices) != 2 or None in indices:
        return ""
    every, place = (graph.get(index.name) for index in indices)
    if every is None or place is None or every.op is not aten.arange.default:
        return ""
    lengths = every.shape, place.shape
    whole = all(len(length) == 1 and _one_batch(length[0], shape[0]) for length in lengths)
    return place.name if whole and place.op is aten.argmax.default else ""


def _one_batch(size: int | str, other: int | str) -> bool:
    """Whether two sizes are the batch's: inputs that are only broadcast to each other have symbols of their own."""
    symbols = isinstance(size, str) and isinstance(other, str) and size.isidentifier() and other.isidentifier()
    return size == other or symbols


def take_rows(value: Tensor, places: Tensor, axis: int, rank: int) -> Tensor:
    """One row of each sample: of `value`, seen as a tensor of that rank and repeated along the batch where needed.

    Args:
        value: (N or 1, …), or without its first axes.
        places: N integers, of any shape.
        axis: the axis of the rows in `value`.
        rank: number of axes of the result, (N, …, 1, …).
    """
    axis += rank - value.dim()
    places = places.reshape(-1, *[1] * (rank - 1))
    value = value[(None,) * (rank - value.dim())].expand(places.shape[0], *[-1] * (rank - 1))
    return value.gather(axis, places.expand(-1, *[1 if i == axis else n for i, n in enumerate(value.shape)][1:]))


def _pointwise(asked: Request) -> Reads:
    tensors = [name for name, value in asked.arguments.items() if isinstance(value, Ref)]
    return Reads({name: rows for tensor in tensors for name, rows in asked.broadcast(tensor).items()})


@moves(aten.contiguous.default, aten._to_copy.default)
def _same(asked: Request) -> Reads:
    return Reads({"self": asked.rows})


@moves(aten.type_as.default)
def _type_as(asked: Request) -> Reads:
    return Reads({"self": asked.rows} | asked.broadcast("other"))


@moves(aten.linear.default)
def _linear(asked: Request) -> Reads | None:
    return Reads({"input": asked.rows}) if asked.axis < asked.rank - 1 else None


@moves(aten.matmul.default, aten.bmm.default)
def _matmul(asked: Request) -> Reads | None:
    shared = len(asked.shape("other" if "other" in asked.arguments else "mat2")) == 2
    rows = asked.axis == asked.rank - 2 or (shared and asked.axis < asked.rank - 1)
    return Reads({"self": asked.rows}) if rows and len(asked.shape("self")) == asked.rank else None


@moves(aten.layer_norm.default, aten.rms_norm.default)
def _norm(asked: Request) -> Reads | None:
    outside = asked.axis < asked.rank - len(asked.arguments["normalized_shape"])
    return Reads({"input": asked.rows}) if outside else None


@moves(aten.softmax.int, aten.log_softmax.int)
def _softmax(asked: Request) -> Reads | None:
    return Reads({"self": asked.rows}) if asked.axis != asked.arguments["dim"] % asked.rank else None


@moves(aten.scaled_dot_product_attention.default)
def _attention(asked: Request) -> Reads | None:
    """Rows are queries; all keys and values are read, so of a causal mask only the last row can go."""
    causal, length = asked.arguments["is_causal"], asked.node.shape[-2]
    last = isinstance(length, int) and asked.rows == Rows(asked.axis, length - 1)
    if asked.axis != asked.rank - 2 or (causal and not (last and asked.shape("key")[-2] == length)):
        return None
    mask = {} if asked.arguments["attn_mask"] is None else asked.broadcast("attn_mask")
    return Reads({"query": asked.rows} | mask, {"is_causal": False})


@moves(aten.mean.dim, aten.sum.dim_IntList)
def _reduce(asked: Request) -> Reads | None:
    dims, rank = asked.arguments["dim"], len(asked.shape("self"))
    gone = sorted(dim % rank for dim in dims or range(rank))
    axis = asked.axis
    if not asked.arguments["keepdim"]:
        axis = [i for i in range(rank) if i not in gone][axis]
    return Reads({"self": asked.rows.at(axis)}) if axis not in gone and not (asked.rows.index and 0 in gone) else None


@moves(aten.transpose.int)
def _transpose(asked: Request) -> Reads | None:
    pair = [asked.arguments[name] % asked.rank for name in ("dim0", "dim1")]
    if asked.rows.index and 0 in pair and pair[0] != pair[1]:
        return None
    return Reads({"self": asked.rows.at({pair[0]: pair[1], pair[1]: pair[0]}.get(asked.axis, asked.axis))})


@moves(aten.permute.default)
def _permute(asked: Request) -> Reads | None:
    order = [dim % asked.rank for dim in asked.arguments["dims"]]
    return None if asked.rows.index and order[0] else Reads({"self": asked.rows.at(order[asked.axis])})


@moves(aten.reshape.default, aten._unsafe_view.default)
def _reshape(asked: Request) -> Reads | None:
    """Where the axis is one of the argument's, too, with as much before and after it."""
    before, after = asked.shape("self"), asked.node.shape
    if asked.rows.index and before[0] != after[0]:
        return None
    name = "shape" if "shape" in asked.arguments else "size"
    sizes = list(asked.arguments[name])
    for axis, size in enumerate(before):
        same = size == after[asked.axis] and _volume(before[:axis]) == _volume(after[: asked.axis])
        if same and _volume(before[axis + 1 :]) == _volume(after[asked.axis + 1 :]):
            sizes[asked.axis] = asked.rows.length
            return Reads({"self": asked.rows.at(axis)}, {name: sizes})
    return None


def _volume(shape: Shape) -> tuple[int, list[str]]:
    return prod(size for size in shape if isinstance(size, int)), sorted(s for s in shape if isinstance(s, str))


@moves(aten.unsqueeze.default)
def _unsqueeze(asked: Request) -> Reads | None:
    new = asked.arguments["dim"] % asked.rank
    if new == asked.axis or (asked.rows.index and new == 0):
        return None
    return Reads({"self": asked.rows.at(asked.axis - (new < asked.axis))})


@moves(aten.squeeze.dim, aten.select.int)
def _drop(asked: Request) -> Reads | None:
    gone = asked.arguments["dim"] % len(asked.shape("self"))
    if len(asked.shape("self")) == asked.rank or (asked.rows.index and gone == 0):
        return None
    return Reads({"self": asked.rows.at(asked.axis + (gone <= asked.axis))})


@moves(operator.getitem)
def _item(asked: Request) -> Reads:
    return Reads({"0": asked.rows})


@moves(aten.split.Tensor, aten.split_with_sizes.default, aten.unbind.int)
def _split(asked: Request) -> Reads | None:
    """Every part has those rows."""
    cut, drops = asked.arguments["dim"] % len(asked.shape("self")), asked.node.op is aten.unbind.int
    axis = asked.axis + (drops and cut <= asked.axis)
    return None if cut == axis or (asked.rows.index and cut == 0) else Reads({"self": asked.rows.at(axis)})


@moves(aten.slice.Tensor)
def _slice(asked: Request) -> Reads | None:
    cut = asked.arguments["dim"] % asked.rank
    return None if cut == asked.axis or (asked.rows.index and cut == 0) else Reads({"self": asked.rows})


@moves(aten.expand.default)
def _expand(asked: Request) -> Reads | None:
    if asked.rows.index and (len(asked.shape("self")) != asked.rank or asked.shape("self")[0] != asked.node.shape[0]):
        return None
    sizes = list(asked.arguments["size"])
    sizes[asked.axis] = asked.rows.length
    return Reads(asked.broadcast("self"), {"size": sizes})


@moves(aten.cat.default)
def _cat(asked: Request) -> Reads | None:
    along = asked.arguments["dim"] % asked.rank
    return None if along == asked.axis or (asked.rows.index and along == 0) else Reads({"tensors": asked.rows})
