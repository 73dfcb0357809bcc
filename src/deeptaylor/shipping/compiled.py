"""`CompiledExplainer`: explanations by one graph that torch.compile has made code of."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..attribution import Attribution
from ..errors import CompilerError, InputError
from ..fingerprints import Fingerprint
from ..finite import warn_of_nothing
from ..inputs import Call
from ..origin import live_state, plain_torch
from ..plan import Plan
from ..targets import Target
from .ask import Ask, asked, output_like
from .packed import Packed, pack
from .program import Program, record_program
from .refuse import refuse_one_input
from .result import attribution, is_suspect

if TYPE_CHECKING:
    from ..explainer import Explainer


PROCESSOR = {"layout_optimization": False}
"""On a processor channels stay before places, as in the model: convolutions towards their input copy channels last."""


@dataclass
class _Code:
    """One compiled program, and what its buffers were made from."""

    program: Program
    packed: Packed
    run: Callable[..., dict[str, Tensor]]
    prints: Fingerprint | None = None


class CompiledExplainer:
    """An explainer whose forward and backward pass are one compiled graph; made by `Explainer.compile`.

    Batches of two and more take one graph, a lone sample another. Every kind of target (one class per sample, K
    classes, a contrast, log-odds, a seed) is compiled when first asked for. Weights that change are noticed.
    """

    def __init__(self, explainer: Explainer, mode: str | None, options: Mapping[str, Any]) -> None:
        refuse_one_input(explainer)
        self.explainer = explainer
        device = next(iter(explainer._example.tensors.values())).device.type
        self._compile = _compiler(mode, (PROCESSOR if device == "cpu" and mode is None else {}) | dict(options))
        self._replays = mode == "reduce-overhead" or bool(options.get("triton.cudagraphs"))
        self._codes: dict[Any, _Code] = {}
        self._explain(explainer._example, None)

    def __repr__(self) -> str:
        return f"Compiled{self.explainer!r}"

    def __call__(self, inputs: Any, *, target: Target = None, kwargs: Mapping[str, Any] | None = None) -> Attribution:
        """Explains a batch, as `Explainer` does, without ledger and inner relevance.

        Raises:
            InputError, TargetError: before any work.
            CompilerError: torch.compile failed.
            NonFiniteRelevance: NaN or Inf on the way back.

        Warns:
            RelevanceWarning: relevance explodes; names the operations where.
        """
        return self._explain(self.explainer._call(inputs, kwargs), target)

    def _explain(self, call: Call, target: Target) -> Attribution:
        plan = self.explainer._plan(call)
        ask, values = asked(target, output_like(plan, call.tensors))
        code = self._code(plan, call, ask)
        tensors = [call.tensors[name] for name in code.program.inputs]
        with plain_torch(), torch.no_grad():
            found = _run(code.run, _marked(plan, tensors if values is None else [*tensors, values]))
            if self._replays:  # the next replay writes over what this one gave
                found = {name: value.clone() for name, value in found.items()}
        result = attribution(code.program, found, compiled=True)
        if is_suspect(result):
            self.explainer._by_rules(call, plan, target, False, ())  # which raises or warns, and says where
        put = float(result.explained.detach().double().abs().sum())
        if put > 0 and not any(relevance.any() for relevance in result.relevances.values()):
            warn_of_nothing(put)
        return result

    def _code(self, plan: Plan, call: Call, ask: Ask) -> _Code:
        """The code for that plan and kind of target, its buffers as the weights are now."""
        state = live_state(self.explainer.model)
        code = self._codes.get((id(plan), ask))
        if code is None:
            program = record_program(plan, call.tensors, state, ask, portable=False)
            packed = pack(program)
            code = self._codes[id(plan), ask] = _Code(program, packed, self._compile(packed.module))
        weights = code.program.values(state)
        named = dict(zip(code.program.weights, weights, strict=True))
        if code.prints is None or not code.prints.holds(named, code.program.weights):
            code.packed.refresh(weights)
            code.prints = Fingerprint(named)
        return code


def _compiler(mode: str | None, options: dict[str, Any]) -> Callable[[Any], Any]:
    """`torch.compile`, one whole graph, with its settings checked."""
    if mode is not None and options:
        raise InputError("torch.compile takes a mode or options of TorchInductor, not both; leave one out")
    try:
        torch.compile(torch.nn.Identity(), fullgraph=True, mode=mode, options=options or None)
    except RuntimeError as error:
        raise InputError(f"torch.compile does not take these settings: {str(error)[:200]}") from None
    return lambda module: torch.compile(module, fullgraph=True, mode=mode, options=options or None)


def _run(run: Callable[..., dict[str, Tensor]], arguments: Sequence[Tensor]) -> dict[str, Tensor]:
    try:
        with warnings.catch_warnings():  # torch's own, of a part of it that the compiler imports
            warnings.filterwarnings("ignore", message=".*torch.jit.script_method", category=DeprecationWarning)
            return run(*arguments)
    except (torch._dynamo.exc.TorchDynamoException, torch._inductor.exc.InductorError) as error:
        first = " ".join(line for line in str(error).splitlines()[:2] if line.strip()) or type(error).__name__
        wanted = "a C++ compiler (g++ or clang)" if arguments[0].device.type == "cpu" else "Triton"
        raise CompilerError(
            f"torch.compile could not make code of the explanation: {first}\n"
            f"It needs {wanted} on this machine; without one, call the explainer itself, which gives the same"
        ) from error


def _marked(plan: Plan, tensors: Sequence[Tensor]) -> list[Tensor]:
    """The arguments, with a batch size that may vary from call to call; one sample alone has a graph of its own."""
    arguments = [tensor.detach().contiguous() for tensor in tensors]
    batch = arguments[0].shape[0] if arguments[0].dim() else 1
    for tensor in arguments:
        if plan.graph.dynamic_batch and batch > 1 and tensor.dim() and tensor.shape[0] == batch:
            torch._dynamo.mark_dynamic(tensor, 0)
    return arguments
