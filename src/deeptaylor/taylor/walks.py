"""Relevance of walks through a transformer or graph network: which tokens act together, and logical queries.

Between blocks every token (node) has its own hidden state, so that relevance flows along walks, one token per block.
The relevance of all walks that stay inside a set A of tokens,

    R_A = Σ of gradient × input over A, with h ← m h + (1 − m) h.detach() at every block, m = 1 on A,

takes one gradient (Schnake et al. 2022; of a linear graph network it is 1_A' (A_AA)^L X_A W r). The multi-order terms

    μ_A = Σ_{B ⊆ A} (−1)^{|A − B|} R_B,     Σ_{B ⊆ A} μ_B = R_A

are what all of A do together and no part of it does. A logical query asks for Σ μ_L over the sets L on which it holds
(Schnake et al. 2024): "good & !not" is what involves "good" and does not involve "not". Over k names it takes 2^k
gradients, whatever the length: Σ of μ_L with L ∩ V = P is Σ_{Q ⊆ P} (−1)^{|P − Q|} R of Q and all tokens outside V.

Unlike the estimators along segments this explains the network's way of computing, not f as a function of its input:
for what a pair does to the output use `differences`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..inputs import check_model
from ..origin import live_state, plain_torch
from ..targets import Target, contrast, log_odds, resolve
from ..unwrap import needed_arguments, no_tensor, opened
from .frozen import frozen_mode
from .queries import assignments, parse
from .result import Cost
from .safe import safe_mode

RULES = ("gradient", "frozen")


@dataclass
class Walks:
    """Relevances of sets of tokens, computed when asked for, each once."""

    names: tuple[str, ...]
    value: float
    """The explained score."""
    target: str
    _relevance: Callable[[Tensor], Tensor]
    _layer_pairs: Callable[[int], Tensor]
    _known: dict[frozenset[int], float] = field(default_factory=dict)

    @property
    def cost(self) -> Cost:
        """Gradients so far: one per set."""
        return Cost(forwards=1, gradients=len(self._known))

    @property
    def total(self) -> float:
        """R of all tokens: gradient × input at the first block."""
        return self.subset(range(len(self.names)))

    @property
    def residual(self) -> float:
        """f(x) − R of all tokens: what biases and norms keep; 0 for networks without biases that are homogeneous."""
        return self.value - self.total

    @property
    def warnings(self) -> tuple[str, ...]:
        """What has to be known before believing the walks."""
        if abs(self.residual) <= 0.05 * abs(self.value):
            return ()
        return (
            f"the walks add up to {self.total:.4g}, the score is {self.value:.4g}: the rest stays in biases, norms and "
            "the softmax; rule='frozen' holds attention and norm statistics constant",
        )

    def subset(self, tokens: Sequence[int] | range | str) -> float:
        """R_A of one set: numbers or names of tokens."""
        return self.subsets([tokens])[0]

    def subsets(self, sets: Sequence[Sequence[int] | range | str]) -> list[float]:
        """R_A of several sets, batched: one gradient for each that is new."""
        wanted = [frozenset(self._index(token) for token in ([s] if isinstance(s, str) else s)) for s in sets]
        missing = [s for s in dict.fromkeys(wanted) if s and s not in self._known]
        if missing:
            masks = torch.zeros(len(missing), len(self.names))
            for row, tokens in enumerate(missing):
                masks[row, list(tokens)] = 1
            self._known.update(zip(missing, self._relevance(masks).tolist(), strict=True))
        return [self._known[s] if s else 0.0 for s in wanted]

    def pairs(self) -> Tensor:
        """(S, S), symmetric: μ of single tokens on the diagonal, of pairs beside it; S (S + 1)/2 gradients."""
        terms = self.terms(2)
        mu = torch.zeros(len(self.names), len(self.names), dtype=torch.float64)
        for tokens, value in terms.items():
            mu[tokens[0], tokens[-1]] = mu[tokens[-1], tokens[0]] = value
        return mu

    def terms(self, order: int, budget: int = 5_000) -> dict[tuple[int, ...], float]:
        """μ of every set of up to `order` tokens."""
        count = len(self.names)
        if not 1 <= order <= count:
            raise InputError(f"order {order} must lie between 1 and the number of tokens, {count}")
        sets = [tokens for k in range(1, order + 1) for tokens in combinations(range(count), k)]
        if len(sets) > budget:
            raise InputError(
                f"{len(sets):,} sets of up to {order} of {count} tokens take a gradient each, the budget is "
                f"{budget:,}; lower the order, or raise it: budget={len(sets)}"
            )
        found = dict(zip(sets, self.subsets(sets), strict=True))
        mu: dict[tuple[int, ...], float] = {}
        for tokens in sets:  # smaller sets come first
            inside = (part for k in range(1, len(tokens)) for part in combinations(tokens, k))
            mu[tokens] = found[tokens] - sum(mu[part] for part in inside)
        return mu

    def query(self, expression: str) -> float:
        """Σ μ_L over the sets L on which a logical expression of names holds: `"good & !not"`.

        Operators: `!` not, `&` and, `|` or, parentheses; names as in `names`, in quotes where they hold other signs
        than letters and digits, or `#3` for the token with number 3 (needed where a word occurs twice).
        """
        tree, atoms = parse(expression, self._index)
        outside = [token for token in range(len(self.names)) if token not in atoms]
        kept = [[*part, *outside] for part in assignments(atoms)]
        found = dict(zip((frozenset(part) for part in assignments(atoms)), self.subsets(kept), strict=True))
        total = 0.0
        for present in assignments(atoms):
            if tree(frozenset(present)):
                for part in assignments(present):
                    total += (-1) ** (len(present) - len(part)) * found[frozenset(part)]
        return total

    def layer_pairs(self, layer: int) -> Tensor:
        """(T, S): relevance of hidden token t after block `layer` that stems from input token s.

        Column sums are gradient × input, row sums what each hidden token passes on of it; S tangents.
        """
        return self._layer_pairs(layer)

    def _index(self, token: int | str) -> int:
        if isinstance(token, str):
            places = [i for i, name in enumerate(self.names) if name == token]
            if len(places) != 1:
                what = f"stands at {', '.join(f'#{i}' for i in places)}: say which" if places else "is no token"
                raise InputError(f"{token!r} {what}; the tokens are {', '.join(self.names)}")
            return places[0]
        if not 0 <= token < len(self.names):
            raise InputError(f"token {token} is out of range: there are {len(self.names)}, from 0")
        return int(token)


def walk_relevance(
    model: nn.Module,
    inputs: Any,
    blocks: Sequence[str | nn.Module],
    *,
    names: Sequence[str] | None = None,
    target: Target = None,
    rule: str = "gradient",
    kwargs: Mapping[str, Any] | None = None,
    head: Callable[[Any], Tensor] | None = None,
    chunk: int = 16,
) -> Walks:
    """Relevance of walks of one sample, between the blocks of a stock model.

    Args:
        model: in evaluation mode; its blocks are listened to while it runs here, and not longer.
        inputs: one sample: a tensor, or a dict of keyword arguments, with batch axis; ids are welcome, since walks
            begin at the first block's input.
        blocks: the modules (or their paths, "encoder.layer.0") that the walks step through, in order. Each takes and
            returns hidden states (N, tokens, ...), the latter perhaps first in a tuple.
        names: of the tokens; by default their numbers.
        target: as in `deeptaylor.explain`; one.
        rule: "gradient": gradient × input; "frozen": statistics of norms and attention weights held constant,
            activations as secants φ(x)/x, so that what passes is linear and only biases keep relevance (Ali et al.
            2022); products of two signals (gates) still count twice, which `residual` shows.
        kwargs: further arguments of the model.
        head: picks (N, classes) from the model's output.
        chunk: sets at once.

    Raises:
        InputError: no such block, hidden states of another form, more than one sample, names that do not fit.
    """
    check_model(model)
    if rule not in RULES:
        raise InputError(f"rule {rule!r} is none of {', '.join(RULES)}")
    run = _Run(model, inputs, blocks, target, rule, kwargs, head, chunk)
    tokens = run.start.shape[1]
    named = tuple(str(i) for i in range(tokens)) if names is None else tuple(str(name) for name in names)
    if len(named) != tokens:
        raise InputError(f"{len(named)} names for {tokens} tokens")
    return Walks(named, run.value, run.target, run.relevance, run.layer_pairs)


class _Run:
    """Calls of the model with its blocks listened to."""

    def __init__(
        self, model: nn.Module, inputs: Any, blocks: Any, target: Any, rule: str, kwargs: Any, head: Any, chunk: int
    ) -> None:
        self.model, self.head, self.rule, self.chunk = model, head, rule, chunk
        self.kwargs = {**needed_arguments(model), **(kwargs or {})}
        self.inputs = inputs if isinstance(inputs, Mapping) else {None: inputs}
        self.blocks = [_block(model, block) for block in blocks]
        if not self.blocks:
            raise InputError("no blocks: pass the modules that the walks step through, such as model.encoder.layer")
        seen: list[Tensor] = []

        def look(h: Tensor, place: int) -> Tensor:
            seen.append(h)
            return h

        with self._listening(look), torch.no_grad():
            output = self._call(1)
        if len(seen) != len(self.blocks) + 1:
            raise InputError(f"{len(self.blocks)} blocks ran {len(seen) - 1} times: name each block that runs once")
        for h in seen:
            if h.dim() < 3 or h.shape[0] != 1 or h.shape[:2] != seen[0].shape[:2]:
                shape = tuple(h.shape)
                raise InputError(f"hidden states have shape {shape}; walks need (1, tokens, ...), the same everywhere")
        self.start = seen[0]
        seeds = resolve(target, _columns(output))
        if len(seeds.seeds) != 1 or seeds.explained.numel() != 1:
            raise InputError("walks are of one target: a class index, contrast(a, b) or log_odds(c)")
        self.value = float(seeds.explained.flatten()[0])
        # The class is fixed here; with parts detached the prediction is the same.
        fixed = target if isinstance(target, contrast | log_odds) else int(seeds.target[0])
        self.pick = lambda out: resolve(fixed, _columns(out)).explained
        self.target = str(fixed) if not isinstance(fixed, int) else f"class {fixed}"

    def relevance(self, masks: Tensor) -> Tensor:
        """R_A for (K, tokens) masks: (K,), float64."""
        found = []
        for part in masks.to(self.start).split(self.chunk):
            mask = part.view(*part.shape, *[1] * (self.start.dim() - 2))
            leaf = self.start.expand(len(part), *self.start.shape[1:]).clone().requires_grad_()

            def gated(h: Tensor, place: int, leaf: Tensor = leaf, mask: Tensor = mask) -> Tensor:
                h = leaf if place == 0 else h
                return mask * h + (1 - mask) * h.detach()

            with self._listening(gated), torch.enable_grad():
                score = self.pick(self._call(len(part))).sum()
                (gradient,) = torch.autograd.grad(score, leaf)
            found.append((gradient * leaf.detach()).double().flatten(1).sum(1).cpu())
        return torch.cat(found)

    def layer_pairs(self, layer: int) -> Tensor:
        if not 0 <= layer < len(self.blocks):
            raise InputError(f"layer {layer} is out of range: there are {len(self.blocks)} blocks, from 0")
        hidden: list[Tensor] = []

        def opened_at(h: Tensor, place: int) -> Tensor:
            if place == layer + 1:
                hidden.append(h.detach().requires_grad_())
                return hidden[0]
            return h

        with self._listening(opened_at), torch.enable_grad():
            (gradient,) = torch.autograd.grad(self.pick(self._call(1)).sum(), hidden[0])
        columns = []
        with safe_mode():
            for s in torch.arange(self.start.shape[1]).split(self.chunk):
                columns.append(self._pushed(s, layer, gradient))
        return torch.cat(columns).T

    def _pushed(self, tokens: Tensor, layer: int, gradient: Tensor) -> Tensor:
        """⟨gradient, J x_s⟩ per hidden token: (chosen tokens, hidden tokens)."""
        from torch.autograd import forward_ad

        caught: list[Tensor] = []
        many = self.start.expand(len(tokens), *self.start.shape[1:]).clone()
        own = torch.zeros_like(many)
        own[torch.arange(len(tokens)), tokens] = self.start[0, tokens]
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(many, own)

            def catch(h: Tensor, place: int) -> Tensor:
                if place == layer + 1:
                    tangent = forward_ad.unpack_dual(h).tangent
                    caught.append(torch.zeros_like(h) if tangent is None else tangent)
                return dual if place == 0 else h

            with self._listening(catch), torch.no_grad():
                self._call(len(tokens))
        return (
            (caught[0] * gradient).double().flatten(2).sum(2) if gradient.dim() > 2 else (caught[0] * gradient).double()
        )

    def _call(self, copies: int) -> Tensor:
        """The output for so many copies of the sample."""

        def copied(value: Any) -> Any:
            if not isinstance(value, Tensor) or value.dim() == 0 or value.shape[0] != 1:
                return value
            return value.expand(copies, *value.shape[1:]).clone()

        arguments = {name: copied(value) for name, value in {**self.inputs, **self.kwargs}.items()}
        positional = arguments.pop(None, None)
        args = () if positional is None else positional if isinstance(positional, tuple) else (positional,)
        # Parameters take part in no gradient: otherwise every backward pass would cost half as much again.
        state = {name: tensor.detach() for name, tensor in live_state(self.model).items()}
        output = torch.func.functional_call(
            self.model, state, tuple(copied(a) for a in args), arguments, tie_weights=False
        )
        output = self.head(output) if self.head is not None else opened(self.model, output, {})
        if not isinstance(output, Tensor):
            raise no_tensor(output)
        return output

    @contextmanager
    def _listening(self, listener: Callable[[Tensor, int], Tensor]) -> Iterator[None]:
        """While inside: hidden state 0 enters the first block, state k + 1 leaves block k, as `listener` says."""

        def entering(module: nn.Module, args: Any, kwargs: Any) -> Any:
            if args:
                return (listener(args[0], 0), *args[1:]), kwargs
            return args, {**kwargs, "hidden_states": listener(kwargs["hidden_states"], 0)}

        def leaving(place: int) -> Callable[..., Any]:
            def hook(module: nn.Module, args: Any, output: Any) -> Any:
                if isinstance(output, Tensor):
                    return listener(output, place)
                if isinstance(output, tuple) and output and isinstance(output[0], Tensor):
                    return (listener(output[0], place), *output[1:])
                raise InputError(f"a block returns a {type(output).__name__}; walks need hidden states, a tensor")

            return hook

        with ExitStack() as stack:
            stack.enter_context(plain_torch())
            stack.enter_context(torch.random.fork_rng(devices=[]))
            handles = [self.blocks[0].register_forward_pre_hook(entering, with_kwargs=True)]
            handles += [block.register_forward_hook(leaving(k + 1)) for k, block in enumerate(self.blocks)]
            for handle in handles:
                stack.callback(handle.remove)
            if self.rule == "frozen":
                stack.enter_context(frozen_mode())
            yield


def _columns(output: Tensor) -> Tensor:
    return output[:, None] if output.dim() == 1 else output


def _block(model: nn.Module, block: str | nn.Module) -> nn.Module:
    if isinstance(block, nn.Module):
        if not any(block is own for own in model.modules()):
            raise InputError("a block is not part of the model")
        return block
    try:
        return model.get_submodule(block)
    except AttributeError as error:
        raise InputError(f"the model has no module {block!r}; see dict(model.named_modules())") from error
