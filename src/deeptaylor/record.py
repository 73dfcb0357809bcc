"""Model -> Graph by running it once: the second front end, for models that branch on data."""

from __future__ import annotations

import operator
import sys
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from .errors import InputError, TraceError
from .graph import Graph, Node, Ref, is_continuous
from .inputs import Call, Model
from .trace import Caller, Head, user_frame

aten = torch.ops.aten


def record(model: Model, call: Call, head: Head | None, known: Callable[[Any], bool]) -> Graph:
    """The operations that `model` runs on this very input, as a graph of that path; `known` tells those with a role.

    Raises:
        TraceError: the model writes into a tensor that others share memory with, which a graph can't tell.
    """
    caller = Caller(model, call, head)
    tape = _Tape(model, known)
    with torch.inference_mode(), torch.random.fork_rng(), _without_fused(model):
        inputs = {name: tensor.clone() for name, tensor in call.tensors.items()}
        for name, tensor in inputs.items():
            tape.names[id(tensor)] = name
            tape.moving.add(name)
            tape.keep.append(tensor)
        with tape:
            output = caller(*inputs.values())
    if id(output) not in tape.names:
        raise InputError("the model's output does not depend on its inputs")
    constants = {name: tensor.clone() for name, tensor in tape.constants.items()}  # no longer inference tensors
    return Graph(
        nodes=tuple(tape.nodes),
        inputs=tuple(call.tensors),
        parameters=tape.parameters,
        constants=constants,
        output=Ref(tape.names[id(output)]),
        shapes={name: tuple(tensor.shape) for name, tensor in call.tensors.items()},
        frontend="record",
        notes=("recorded: this graph holds for inputs that take the same path through the model",),
    ).without_dead_nodes()


class _without_fused:
    """Switches off fused encoder layers and oneDNN's LSTM layers, which would be one operation without a role."""

    def __init__(self, model: Model) -> None:
        self.recurrent = isinstance(model, nn.Module) and any(isinstance(m, nn.RNNBase) for m in model.modules())

    def __enter__(self) -> None:
        self.was = torch.backends.mha.get_fastpath_enabled(), torch._C._get_mkldnn_enabled()
        torch.backends.mha.set_fastpath_enabled(False)
        if self.recurrent:
            torch._C._set_mkldnn_enabled(False)

    def __exit__(self, *_: Any) -> None:
        torch.backends.mha.set_fastpath_enabled(self.was[0])
        torch._C._set_mkldnn_enabled(self.was[1])


class _Tape(TorchDispatchMode):
    """Writes down every operation that runs, with its arguments by name."""

    def __init__(self, model: Model, known: Callable[[Any], bool]) -> None:
        super().__init__()
        self.known = known
        self.nodes: list[Node] = []
        self.names: dict[int, str] = {}
        self.keep: list[Any] = []  # ids stay unique only while their objects live
        self.moving: set[str] = set()
        """Names of values that depend on the inputs."""
        self.parameters: dict[str, str] = {}
        self.constants: dict[str, Tensor] = {}
        self.shared: dict[int, str] = {}
        self.modules = _paths(model)
        self.own = _tensors(model)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        kwargs = dict(kwargs or {})
        tensors = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        moving = any(self.names.get(id(tensor)) in self.moving for tensor in tensors)
        if moving and not self.known(_functional(func)[0]):
            opened = self._open(func, args, kwargs)
            if opened is not NotImplemented:
                return opened
        refs = pytree.tree_map(self._ref, (tuple(args), kwargs))
        result = func(*args, **kwargs)
        op, into = _functional(func)
        if into is not None:
            self._refuse_shared(args[0])
        if func is aten.detach.default and isinstance(args[0], nn.Parameter):
            op = aten.alias.default
        name = f"{func._schema.name.split('::')[-1].rstrip('_')}_{len(self.nodes)}"
        before = len(self.nodes)
        self._write(name, op, refs[0], refs[1], result)
        if moving:
            self.moving.update(node.name for node in self.nodes[before:])
        return result

    def _open(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Runs an operation without a role as the operations that it is made of, where torch knows them."""
        with self:
            opened = func.decompose(*args, **kwargs)
            if opened is NotImplemented and func in torch._decomp.decomposition_table:
                opened = torch._decomp.decomposition_table[func](*args, **kwargs)
        return opened

    def _write(self, name: str, op: Any, args: Any, kwargs: Any, result: Any) -> None:
        file, line, source, module = self._place()
        where: dict[str, Any] = {"file": file, "line": line, "source": source, "module": module}
        outputs = result if isinstance(result, list | tuple) else [result]
        floating = any(isinstance(value, Tensor) and is_continuous(value) for value in outputs)
        shape = tuple(result.shape) if isinstance(result, Tensor) else ()
        self.nodes.append(Node(name, op, args, kwargs, shape, floating, **where))
        if isinstance(result, Tensor):
            self._name(result, name)
            return
        for i, value in enumerate(outputs):
            if isinstance(value, Tensor):
                self.nodes.append(
                    Node(
                        f"{name}_{i}",
                        operator.getitem,
                        (Ref(name), i),
                        {},
                        tuple(value.shape),
                        is_continuous(value),
                        **where,
                    )
                )
                self._name(value, f"{name}_{i}")

    def _name(self, value: Tensor, name: str) -> None:
        self.names[id(value)] = name
        self.keep.append(value)

    def _ref(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        if id(value) not in self.names:
            name = f"c_{len(self.names)}"
            qualified = self.own.get(id(value))
            if qualified is not None:
                self.parameters[name] = qualified
            else:
                self.constants[name] = value.detach().clone()
            self._name(value, name)
        return Ref(self.names[id(value)])

    def _refuse_shared(self, written: Tensor) -> None:
        storage = written.untyped_storage().data_ptr()
        others = [t for t in self.keep if t is not written and t.untyped_storage().data_ptr() == storage]
        if others:
            file, line, source, _ = self._place()
            raise TraceError(
                f"the model writes into a tensor that another one is a view of, at {file}:{line}: {source}\n"
                "A recorded graph can't tell what that changes; write the result into a new tensor instead."
            )

    def _place(self) -> tuple[str, int, str, str]:
        """File, line, text and module path of the user's frame that is running."""
        frame: Any = sys._getframe(2)
        place = user_frame(frame)
        while frame is not None:
            owner = frame.f_locals.get("self")
            if id(owner) in self.modules:
                return (*place, self.modules[id(owner)])
            frame = frame.f_back
        return (*place, "")


def _functional(func: Any) -> tuple[Any, int | None]:
    """The operation without writing in place, and the argument that it would have written into."""
    name = func._schema.name.split("::")[-1]
    if not (name.endswith("_") and not name.endswith("__")):
        return func, None
    packet = getattr(aten, name.rstrip("_"), None)
    overload = func._overloadname
    if packet is None or overload not in packet.overloads():
        raise TraceError(f"the model runs {func}, which writes in place and has no counterpart that does not")
    return getattr(packet, overload), 0


def _paths(model: Model) -> dict[int, str]:
    return {id(module): name for name, module in model.named_modules()} if isinstance(model, nn.Module) else {}


def _tensors(model: Model) -> dict[int, str]:
    if not isinstance(model, nn.Module):
        return {}
    named = dict(model.named_parameters()) | dict(model.named_buffers())
    return {id(tensor): name for name, tensor in named.items()}
