"""Where relevance ends: at a floating input, or, for ids, at the embedding vectors that are looked up with them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from .errors import InputError
from .graph import Graph, Node, Ref
from .ops import OPS

aten = torch.ops.aten
_CASTS = (aten._to_copy.default, aten.to.dtype, aten.clamp.default, aten.clamp_min.default, aten.detach.default)


@dataclass(frozen=True)
class Lookup:
    """An embedding looked up with an input's ids, and the views and slices that lie between."""

    node: str
    path: tuple[Node, ...] = ()

    def to_ids(self, relevance: Tensor, ids: Tensor) -> Tensor:
        """Relevance of embedding vectors (…, channels) as one number per id: summed over channels, put in its place."""
        total = relevance.sum(-1)
        if not self.path:
            return total
        leaf = torch.zeros_like(ids, dtype=total.dtype, requires_grad=True)
        with torch.enable_grad():
            value = leaf
            for node in self.path:
                value = _replayed(node, value)
        return torch.autograd.grad(value, leaf, total)[0]


@dataclass(frozen=True)
class Source:
    """One explained input."""

    name: str
    lookups: tuple[Lookup, ...] = field(default=())
    """Where its ids are looked up; empty for a floating input."""

    @property
    def nodes(self) -> tuple[str, ...]:
        """Names of the values at which its relevance arrives."""
        return tuple(lookup.node for lookup in self.lookups) or (self.name,)

    def gather(self, arrived: Callable[[str], Tensor], value: Tensor) -> Tensor:
        """The input's relevance, shaped like it, from that of its nodes."""
        if not self.lookups:
            return arrived(self.name)
        return torch.stack([lookup.to_ids(arrived(lookup.node), value) for lookup in self.lookups]).sum(0)


def find_sources(graph: Graph, floating: Mapping[str, bool]) -> tuple[Source, ...]:
    """The sources of explained inputs; inputs of ids that are looked up nowhere are left out.

    Args:
        graph: where to look.
        floating: names of the inputs, and whether each is floating (or holds ids).

    Raises:
        InputError: none is left.
    """
    sources = [Source(name) if floating[name] else Source(name, tuple(_lookups(graph, name))) for name in floating]
    found = tuple(source for source in sources if source.lookups or floating[source.name])
    if not found:
        raise InputError(
            f"nothing to explain: {', '.join(floating)} hold integers, and none is looked up in an embedding as it is; "
            "convert images with x.float() / 255; pass a floating tensor such as inputs_embeds for anything else"
        )
    return found


def _lookups(graph: Graph, name: str) -> list[Lookup]:
    """The embeddings whose indices are the input's ids, moved at most."""
    paths: dict[str, tuple[Node, ...]] = {name: ()}
    found = []
    for node in graph:
        indices = _indices(node)
        if indices is not None and indices.name in paths:
            found.append(Lookup(node.name, paths[indices.name]))
        op, refs = OPS.get(node.op), node.refs()
        moves = op is not None and op.role == "rearrange" and not op.offset and not op.first
        if not node.floating and (moves or node.op in _CASTS) and len(refs) == 1 and refs[0] in paths:
            paths[node.name] = (*paths[refs[0]], node)
    return found


def _indices(node: Node) -> Ref | None:
    """The ids of a lookup in a table (ids, channels): `F.embedding(ids, table)`, or `table[ids]`, as traced."""
    if node.op is aten.embedding.default:
        found = node.args[1]
    elif node.op is aten.index.Tensor and len(node.args[1]) == 1:
        found = node.args[1][0]
    else:
        return None
    return found if isinstance(found, Ref) and node.floating else None


def _replayed(node: Node, value: Tensor) -> Any:
    if node.op in _CASTS:
        return value
    args, kwargs = pytree.tree_map(
        lambda leaf: value if isinstance(leaf, Ref) else leaf, (node.args, dict(node.kwargs))
    )
    return node.op(*args, **kwargs)
