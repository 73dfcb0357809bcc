"""A program with its weights: what depends on weights alone is computed once, and kept in buffers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from ..origin import plain_torch
from .program import Program, without_layouts


@dataclass(frozen=True)
class Packed:
    """A program split in two: `prepare` makes the buffers of `module` from the weights."""

    module: fx.GraphModule
    """Takes inputs and target by name, gives a dict of outputs."""
    prepare: fx.GraphModule
    """Weights in, the buffers' values out, in the order of `buffers`."""
    buffers: tuple[str, ...]

    def load(self, weights: list[Tensor]) -> None:
        """Fills the buffers with copies: the weights may change afterwards."""
        for name, value in zip(self.buffers, self._made(weights), strict=True):
            self.module.register_buffer(name, value.detach().clone())

    def refresh(self, weights: list[Tensor]) -> None:
        """Makes the buffers look at the weights themselves, and fills those that are made from them, where they are."""
        owned = {weight.untyped_storage().data_ptr() for weight in weights}
        for name, value in zip(self.buffers, self._made(weights), strict=True):
            held: Tensor = getattr(self.module, name)
            if held.shape != value.shape or held.dtype != value.dtype or held.device != value.device:
                self.module.register_buffer(name, value.detach())
            elif value.untyped_storage().data_ptr() in owned:
                held.set_(value.detach())  # the tensor stays the same, so that no code is made anew
            else:
                held.copy_(value)

    def _made(self, weights: list[Tensor]) -> Any:
        with torch.no_grad(), plain_torch():
            return self.prepare(*weights)


def pack(program: Program, decompositions: Mapping[Any, Callable[..., Any]] | None = None) -> Packed:
    """Splits a program.

    Args:
        program: as it was recorded.
        decompositions: operations to be opened, and how.
    """
    functional = torch.func.functionalize(program.graph, remove="mutations")
    with plain_torch():
        graph = make_fx(
            functional, decomposition_table=dict(decompositions or {}), tracing_mode="fake", _allow_non_fake_inputs=True
        )(*program.examples)
    without_layouts(graph).graph.eliminate_dead_code()
    places = [node for node in graph.graph.nodes if node.op == "placeholder"]
    count = len(program.weights)
    kept = _kept(graph.graph, places[:count])
    prepare = _preparing(graph, places, count, kept)
    names = {node: f"weight_{i}" for i, node in enumerate(kept)}
    module = _running(graph, program, places[count:], names)
    return Packed(module, prepare, tuple(names.values()))


def _kept(graph: fx.Graph, weights: list[fx.Node]) -> list[fx.Node]:
    """The values that the rest needs of what depends on weights alone; views of them are made again."""
    steady = set(weights)
    for node in graph.nodes:
        sources = node.all_input_nodes
        if node.op == "call_function" and sources and all(s in steady or s.op == "get_attr" for s in sources):
            if any(s in steady for s in sources):
                steady.add(node)
    kept: dict[fx.Node, None] = {}
    waiting = [s for node in graph.nodes if node not in steady for s in node.all_input_nodes if s in steady]
    while waiting:
        node = waiting.pop(0)
        if _is_view(node):
            waiting += [s for s in node.all_input_nodes if s in steady]
        else:
            kept[node] = None
    return list(kept)


def _is_view(node: fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and any(value.alias_info is not None for value in schema.returns)


def _preparing(graph: fx.GraphModule, places: list[fx.Node], count: int, kept: list[fx.Node]) -> fx.GraphModule:
    made = fx.Graph()
    known: dict[fx.Node, fx.Node] = {}
    for node in graph.graph.nodes:
        if node.op == "output":
            break
        if node.op != "placeholder" or node in places[:count]:
            if all(source in known for source in node.all_input_nodes):
                known[node] = made.node_copy(node, lambda n: known[n])
    made.output(tuple(known[node] for node in kept))
    made.eliminate_dead_code()
    return fx.GraphModule(graph, made)


def _running(
    graph: fx.GraphModule, program: Program, places: list[fx.Node], names: Mapping[fx.Node, str]
) -> fx.GraphModule:
    made = fx.Graph()
    asked = (*program.inputs, *(("target",) if program.ask.given else ()))
    known = {place: made.placeholder(name) for place, name in zip(places, _free(asked, program.outputs), strict=False)}
    for place, new in known.items():
        new.meta = {"val": place.meta["val"]}
    for node, name in names.items():
        graph.register_buffer(name, torch.empty(0))
        known[node] = made.get_attr(name)
    for node in graph.graph.nodes:
        if node.op == "output":
            values = [known[value] for value in fx.node.map_arg(node.args[0], lambda n: n)]
            made.output(dict(zip(program.outputs, values, strict=True)))
        elif node not in known and all(source in known for source in node.all_input_nodes):
            if node.op != "placeholder":
                known[node] = made.node_copy(node, lambda n: known[n])
    made.eliminate_dead_code()
    for node in made.nodes:  # the developer's paths are nobody else's business
        node.meta = {"val": node.meta["val"]} if "val" in node.meta else {}
    return fx.GraphModule(graph, made)


def _free(names: tuple[str, ...], taken: tuple[str, ...]) -> list[str]:
    """Names for arguments, all different, and different from those of the outputs."""
    free: list[str] = []
    for name in names:
        free.append(f"{name}_" if name in (*free, *taken) else name)
    return free
