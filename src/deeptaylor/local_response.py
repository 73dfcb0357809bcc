"""Local response normalization as one operation: tracing leaves it in pieces, and its Taylor rule needs it whole.

y_k = x_k / (b + a Σ x_i²)^c over the channels i next to k, a = alpha/size, b = k (Krizhevsky et al. 2012).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from .graph import Graph, Node, Ref

aten = torch.ops.aten
_LIBRARY = torch.library.Library("deeptaylor", "FRAGMENT")
_LIBRARY.define("local_response_norm(Tensor self, int size, float alpha, float beta, float k) -> Tensor")
_LIBRARY.impl("local_response_norm", functional.local_response_norm, "CompositeImplicitAutograd")
LOCAL_RESPONSE = torch.ops.deeptaylor.local_response_norm.default


def neighbours(values: Tensor, size: int, *, readers: bool = False) -> Tensor:
    """Σ of `values` over the `size` channels next to each; or over those that have it next to them."""
    sides = (size // 2, (size - 1) // 2)
    padded = functional.pad(values.movedim(1, -1), sides[::-1] if readers else sides)
    return padded.unfold(-1, size, 1).sum(-1).movedim(-1, 1)


def statistic(x: Tensor, size: int, alpha: float, k: float) -> Tensor:
    """b + a Σ x_i²."""
    return k + alpha / size * neighbours(x.square(), size)


def held(x: Tensor, size: int, alpha: float, beta: float, k: float) -> Tensor:
    """The normalization, its statistic a constant."""
    return x * statistic(x.detach(), size, alpha, k) ** -beta


def join_local_response(graph: Graph) -> Graph:
    """x / (k + alpha·mean of x² over neighbouring channels)^beta as one node, as `F.local_response_norm` wrote it."""
    joined = {node.name: found for node in graph if (found := _joined(graph, node)) is not None}
    if not joined:
        return graph
    return replace(graph, nodes=tuple(joined.get(node.name, node) for node in graph)).without_dead_nodes()


def _joined(graph: Graph, node: Node) -> Node | None:
    if node.op is not aten.div.Tensor or not all(isinstance(arg, Ref) for arg in node.args):
        return None
    x, power = node.args
    outside: list[Any] = []
    here = graph.index.get(power.name)
    for op in (aten.pow.Tensor_Scalar, aten.add.Tensor, aten.mul.Tensor):
        if here is None or here.op is not op or isinstance(here.args[1], Ref | Tensor):
            return None
        outside.append(float(here.args[1]))
        here = graph.index.get(here.args[0].name)
    pool = _past_views(graph, here)
    if pool is None or pool.op not in (aten.avg_pool2d.default, aten.avg_pool3d.default) or len(pool.args) != 3:
        return None
    size, pad = pool.args[1][0], graph.index.get(pool.args[0].name)
    alone = [1] * (len(pool.args[1]) - 1)
    if pad is None or list(pool.args[1][1:]) != alone or list(pool.args[2]) != [1, *alone]:
        return None
    if pad.op is not aten.pad.default or list(pad.args[1]) != [0, 0] * len(alone) + [size // 2, (size - 1) // 2]:
        return None
    stacked = graph.index.get(pad.args[0].name)
    square = _past_views(graph, stacked)
    if stacked is None or square is None or square.op is not aten.mul.Tensor or square.args != (x, x):
        return None
    if tuple(stacked.shape[1:3]) != (1, *node.shape[1:2]):
        return None
    beta, k, alpha = outside
    return replace(node, op=LOCAL_RESPONSE, args=(x, size, alpha, beta, k), kwargs={})


def _past_views(graph: Graph, node: Node | None) -> Node | None:
    views = (aten.reshape.default, aten.view.default, aten.squeeze.dim, aten.unsqueeze.default)
    while node is not None and node.op in views:
        node = graph.index.get(node.args[0].name)
    return node
