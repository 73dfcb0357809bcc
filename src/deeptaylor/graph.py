"""A traced model: `Graph` of frozen `Node`s, and `execute`, which runs it.

A graph holds no tensor values of the model: parameters are named, and looked up in the live model at every call.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

_NO_KWARGS: Mapping[str, Any] = {}


@dataclass(frozen=True)
class Ref:
    """Stands for another node's value among a node's arguments."""

    name: str


@dataclass(frozen=True)
class Node:
    """One operation of the forward pass, and where the user wrote it."""

    name: str
    op: Callable[..., Any]
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    shape: tuple[int | str, ...] = ()
    """Shape when traced; a dynamic batch size is the string 'N'. Empty where the output is not one tensor."""
    floating: bool = False
    """Whether the output is a floating (or complex) tensor, or a tuple that holds one."""
    batch_dim: int | None = None
    """The axis that is the batch, where tracing could tell."""
    file: str = ""
    line: int = 0
    source: str = ""
    module: str = ""

    @cached_property
    def kind(self) -> str:
        """The operation as one would type it after `torch.ops.`: 'aten.conv2d.default'."""
        return (
            str(self.op) if isinstance(self.op, torch._ops.OpOverload) else getattr(self.op, "__name__", str(self.op))
        )

    @cached_property
    def short(self) -> str:
        """The operation's bare name: 'conv2d'."""
        parts = self.kind.split(".")
        return parts[1].removeprefix("_") if len(parts) > 1 else parts[0]

    def refs(self) -> list[str]:
        """Names of the nodes this one reads, in the order of its arguments, repeats included."""
        return [leaf.name for leaf in self.leaves if isinstance(leaf, Ref)]

    @cached_property
    def casts(self) -> bool:
        """Whether a dtype stands among the arguments."""
        return any(isinstance(leaf, torch.dtype) for leaf in self.leaves)

    @cached_property
    def leaves(self) -> tuple[Any, ...]:
        """All that stands in `args` and `kwargs`, containers taken apart."""
        return tuple(self._flat[0])

    @cached_property
    def _flat(self) -> tuple[list[Any], Any]:
        return pytree.tree_flatten((self.args, dict(self.kwargs)))

    @cached_property
    def _places(self) -> tuple[int | tuple[int, ...], ...] | None:
        """Where in `leaves` each argument stands, a list of plain values as a tuple; None where it is deeper."""
        places: list[int | tuple[int, ...]] = []
        count = 0
        for value in (*self.args, *self.kwargs.values()):
            if isinstance(value, list) and not any(isinstance(item, list | tuple | Mapping) for item in value):
                places.append(tuple(range(count, count + len(value))))
                count += len(value)
            elif isinstance(value, list | tuple | Mapping):
                return None
            else:
                places.append(count)
                count += 1
        return tuple(places) if count == len(self.leaves) else None

    @cached_property
    def _straight(self) -> bool:
        """Whether the leaves are the arguments, one by one."""
        return not self.kwargs and self._places == tuple(range(len(self.leaves)))

    def filled(self, leaves: Sequence[Any]) -> tuple[Sequence[Any], Mapping[str, Any]]:
        """(args, kwargs) with these leaves."""
        if self._straight:
            return leaves, _NO_KWARGS
        if self._places is None:
            args, kwargs = pytree.tree_unflatten(leaves, self._flat[1])
            return args, kwargs
        values = [leaves[at] if isinstance(at, int) else [leaves[i] for i in at] for at in self._places]
        own = len(self.args)
        return values[:own], dict(zip(self.kwargs, values[own:], strict=True)) if self.kwargs else _NO_KWARGS

    def values(self, env: Mapping[str, Any]) -> list[Any]:
        """The leaves, what they stand for in place of names."""
        return [env[leaf.name] if isinstance(leaf, Ref) else leaf for leaf in self.leaves]


@dataclass(frozen=True)
class Graph:
    """A model as a list of operations in the order in which they run."""

    nodes: tuple[Node, ...]
    inputs: tuple[str, ...]
    """Names of the nodes that stand for the tensors passed in, in order."""
    parameters: Mapping[str, str]
    """Node name -> qualified name of the parameter or buffer in the model."""
    constants: Mapping[str, Tensor]
    """Node name -> tensor that the model made while it was traced."""
    output: Ref
    shapes: Mapping[str, tuple[int | str, ...]] = field(default_factory=dict)
    """Shapes of the inputs when traced, as in `Node.shape`, of those that are known."""
    frontend: str = "trace"
    dynamic_batch: bool = False
    notes: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[Node]:
        return iter(self.nodes)

    def __getitem__(self, name: str) -> Node:
        return self.index[name]

    @cached_property
    def index(self) -> dict[str, Node]:
        """Nodes by name."""
        return {node.name: node for node in self.nodes}

    def users(self) -> dict[str, list[Node]]:
        """For every name, the nodes that read it (once per reading)."""
        users: dict[str, list[Node]] = {}
        for node in self.nodes:
            for name in node.refs():
                users.setdefault(name, []).append(node)
        return users

    @property
    def output_shape(self) -> tuple[int | str, ...]:
        """The output's shape when traced; a dynamic batch size is the string 'N'."""
        return self[self.output.name].shape

    def without_dead_nodes(self) -> Graph:
        """The same graph without operations that nothing reads."""
        live, kept = {self.output.name}, []
        for node in reversed(self.nodes):
            if node.name in live:
                live.update(node.refs())
                kept.append(node)
        return replace(self, nodes=tuple(reversed(kept)))


def lookup(value: Any, env: Mapping[str, Any]) -> Any:
    """`value` with every `Ref` in it replaced by what it stands for."""
    if isinstance(value, Ref):
        return env[value.name]
    if isinstance(value, list | tuple):
        return type(value)(lookup(item, env) for item in value)
    if isinstance(value, Mapping):
        return {key: lookup(item, env) for key, item in value.items()}
    return value


def execute(graph: Graph, inputs: Mapping[str, Any], state: Mapping[str, Tensor]) -> Any:
    """The graph's output, computed operation by operation, without gradients; lets go of what nothing reads anymore.

    Args:
        graph: what to run.
        inputs: tensors by the names in `graph.inputs`.
        state: parameters and buffers by their qualified names.
    """
    env: dict[str, Any] = dict(inputs) | dict(graph.constants)
    env |= {name: state[qualified] for name, qualified in graph.parameters.items()}
    last = {name: i for i, node in enumerate(graph) for name in node.refs()} | {graph.output.name: len(graph.nodes)}
    with torch.no_grad():
        for i, node in enumerate(graph):
            env[node.name] = node.op(*lookup(node.args, env), **lookup(dict(node.kwargs), env))
            for name in node.refs():
                if last[name] == i:
                    env.pop(name, None)
    return env[graph.output.name]


def is_getitem(node: Node) -> bool:
    """Whether a node picks one output of an operation that has several."""
    return node.op is operator.getitem


def is_plain_sum(node: Node) -> bool:
    """Whether a node adds two tensors, neither of them scaled."""
    return node.op is torch.ops.aten.add.Tensor and not node.kwargs


def is_continuous(tensor: Tensor) -> bool:
    """Whether a tensor's values can carry relevance: integers and booleans can't."""
    return tensor.is_floating_point() or tensor.is_complex()
