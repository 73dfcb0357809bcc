"""Graph -> Graph, the same function in a form that rules can handle better."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from .forms import arguments_of
from .graph import Graph, Node, Ref, is_getitem
from .local_response import join_local_response

aten = torch.ops.aten
_BATCH_NORM = aten._native_batch_norm_legit_no_training.default
_FOLDABLE = (
    aten.linear.default, aten.conv1d.default, aten.conv2d.default, aten.conv3d.default, aten.conv1d.padding,
    aten.conv2d.padding, aten.conv3d.padding, aten.conv_transpose1d.default, aten.conv_transpose2d.input,
    aten.conv_transpose3d.input, aten.convolution.default,
)  # fmt: skip


def canonize(graph: Graph) -> Graph:
    """All passes, in order."""
    return fold_batch_norm(join_local_response(join_softmax(open_writes(split_moments(skip_copies(graph))))))


def skip_copies(graph: Graph) -> Graph:
    """Without slices that take everything; `contiguous` copies only what is not, as it does in the model."""
    index = graph.index
    renamed: dict[str, str] = {}
    nodes = []
    for node in graph:
        node = _renamed(node, renamed)
        if _takes_all(node) and isinstance(node.args[0], Ref) and node.args[0].name in index:
            renamed[node.name] = node.args[0].name
        elif node.op is aten.clone.default and node.kwargs.get("memory_format") is torch.contiguous_format:
            nodes.append(replace(node, op=aten.contiguous.default))
        else:
            nodes.append(node)
    return replace(graph, nodes=tuple(nodes), output=Ref(renamed.get(graph.output.name, graph.output.name)))


def _takes_all(node: Node) -> bool:
    if node.op is not aten.slice.Tensor:
        return False
    arguments = arguments_of(node.op, node.args, node.kwargs)
    start, end, step = (arguments[name] for name in ("start", "end", "step"))
    return start in (None, 0) and end in (None, sys.maxsize) and step == 1


_MOMENTS: dict[Any, Any] = {
    aten.var_mean.correction: aten.var.correction,
    aten.var_mean.dim: aten.var.dim,
    aten.std_mean.correction: aten.std.correction,
    aten.std_mean.dim: aten.std.dim,
}


def split_moments(graph: Graph) -> Graph:
    """`var_mean` and `std_mean` as two operations of one output each."""
    moments = {node.name: node for node in graph if node.op in _MOMENTS}
    if not moments:
        return graph
    nodes = []
    for node in graph:
        source = moments.get(node.args[0].name) if is_getitem(node) else None
        if source is not None and node.args[1] == 0:
            node = replace(node, op=_MOMENTS[source.op], args=source.args, kwargs=source.kwargs)
        elif source is not None:
            arguments = arguments_of(source.op, source.args, source.kwargs)
            node = replace(
                node, op=aten.mean.dim, args=(arguments["self"], arguments["dim"], arguments["keepdim"]), kwargs={}
            )
        if node.name not in moments:
            nodes.append(node)
    return replace(graph, nodes=tuple(nodes))


def join_softmax(graph: Graph) -> Graph:
    """exp(y) / Σ exp(y), written out, as the softmax that it is."""
    joined = {}
    for node in graph:
        parts = [graph.index.get(arg.name) if isinstance(arg, Ref) else None for arg in node.args]
        if node.op is not aten.div.Tensor or None in parts:
            continue
        above, below = parts
        if above is None or below is None or above.op is not aten.exp.default:
            continue
        if below.op is aten.sum.dim_IntList and below.args[0] == node.args[0]:
            arguments = arguments_of(below.op, below.args, below.kwargs)
            dims = list(arguments["dim"] or ())
            if len(dims) == 1 and arguments["keepdim"] and arguments["dtype"] is None:
                joined[node.name] = replace(node, op=aten.softmax.int, args=(above.args[0], *dims), kwargs={})
    if not joined:
        return graph
    return replace(graph, nodes=tuple(joined.get(node.name, node) for node in graph)).without_dead_nodes()


def open_writes(graph: Graph) -> Graph:
    """`copy` and `fill`, which slice assignments leave behind, as what they are: the source, broadcast."""
    if not any(node.op in _WRITES for node in graph):
        return graph
    nodes = []
    for node in graph:
        if node.op in _WRITES:
            onto, value = node.args[:2]
            broadcast = replace(node, name=f"{node.name}_broadcast", op=aten.expand_as.default, args=(value, onto))
            nodes += [broadcast, replace(node, op=aten.type_as.default, args=(Ref(broadcast.name), onto), kwargs={})]
        else:
            nodes.append(node)
    return replace(graph, nodes=tuple(nodes))


_WRITES = (aten.copy.default, aten.fill.Tensor)


def fold_batch_norm(graph: Graph) -> Graph:
    """Folds a batch norm into the affine operation before it, where nothing else reads that operation's output.

    W' = W γ/σ, b' = (b − μ) γ/σ + β. A batch norm after anything else, or before a convolution, stays an operation of
    its own: padding would break the fold (DenseNet, pre-activation ResNet). The weights of the new graph are
    expressions of the model's parameters, so the model is not touched.
    """
    users, index = graph.users(), graph.index
    folded: dict[str, list[Node]] = {}
    renamed: dict[str, str] = {}
    for norm in graph:
        if norm.op is not _BATCH_NORM:
            continue
        source = index.get(norm.args[0].name) if isinstance(norm.args[0], Ref) else None
        readers = users.get(norm.name, [])
        if source is None or not _can_fold(source, users) or not all(is_getitem(n) and n.args[1] == 0 for n in readers):
            continue
        folded[norm.name] = _folded(source, norm)
        renamed |= {reader.name: source.name for reader in readers}
    if not folded:
        return graph
    sources = {nodes[-1].name for nodes in folded.values()}
    nodes: list[Node] = []
    for node in graph:
        if node.name in folded:
            nodes += folded[node.name]
        elif node.name not in sources and node.name not in renamed:
            nodes.append(_renamed(node, renamed))
    output = Ref(renamed.get(graph.output.name, graph.output.name))
    return replace(graph, nodes=tuple(_renamed(node, renamed) for node in nodes), output=output).without_dead_nodes()


def _can_fold(source: Node, users: Mapping[str, list[Node]]) -> bool:
    if source.op not in _FOLDABLE or len(users[source.name]) != 1:
        return False
    # batch norm scales axis 1; a linear layer's channels are there only without further axes
    return source.op is not aten.linear.default or len(source.shape) == 2


def _folded(source: Node, norm: Node) -> list[Node]:
    """The nodes that replace affine + batch norm: folded weight, folded bias, and the affine operation on them."""
    arguments = arguments_of(source.op, source.args, source.kwargs)
    _, gamma, beta, mean, var, _, eps = norm.args
    transposed = "transpose" in source.kind or bool(arguments.get("transposed"))
    layout: dict[str, Any] = {"transposed": transposed, "groups": arguments.get("groups", 1)}
    weight, bias = f"{norm.name}_weight", f"{norm.name}_bias"
    where: dict[str, Any] = {
        "file": norm.file,
        "line": norm.line,
        "source": norm.source,
        "module": norm.module,
        "floating": True,
    }
    own_weight, own_bias = arguments["weight"], arguments["bias"]
    arguments |= {"weight": Ref(weight), "bias": Ref(bias)}
    return [
        Node(weight, fold_weight, (own_weight, gamma, var, eps), layout, **where),
        Node(bias, fold_bias, (own_bias, gamma, beta, mean, var, eps), **where),
        replace(source, args=(arguments.pop("input"),), kwargs=arguments),
    ]


def fold_weight(
    weight: Tensor, gamma: Tensor | None, var: Tensor, eps: float, *, transposed: bool, groups: int
) -> Tensor:
    """W γ/σ along the output channels."""
    scale = torch.rsqrt(var + eps) if gamma is None else gamma * torch.rsqrt(var + eps)
    if not transposed:
        return weight * scale.view(-1, *[1] * (weight.dim() - 1))
    grouped = weight.unflatten(0, (groups, -1)) * scale.view(groups, 1, -1, *[1] * (weight.dim() - 2))
    return grouped.flatten(0, 1)


def fold_bias(
    bias: Tensor | None, gamma: Tensor | None, beta: Tensor | None, mean: Tensor, var: Tensor, eps: float
) -> Tensor:
    """(b − μ) γ/σ + β."""
    scale = torch.rsqrt(var + eps) if gamma is None else gamma * torch.rsqrt(var + eps)
    shifted = (-mean if bias is None else bias - mean) * scale
    return shifted if beta is None else shifted + beta


def _renamed(node: Node, renamed: Mapping[str, str]) -> Node:
    def rename(leaf: Any) -> Any:
        return Ref(renamed[leaf.name]) if isinstance(leaf, Ref) and leaf.name in renamed else leaf

    if not any(name in renamed for name in node.refs()):
        return node
    return replace(node, args=pytree.tree_map(rename, node.args), kwargs=pytree.tree_map(rename, dict(node.kwargs)))
