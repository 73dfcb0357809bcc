"""Random networks, as data: a `Recipe` of moves, the `Net` that replays it, and the hypothesis strategy that grows recipes.

A recipe prints as the expression that makes it, so that one that failed can be kept.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, dataclass, fields, replace
from random import Random
from typing import Any

import torch
from hypothesis import strategies as st
from moves import MOVES, Parts
from torch import Tensor, nn

CLASSES = 3
EXAMPLES = 3
"""Batch size with which a network is made and first tried."""


class Printed:
    """Prints as the call that makes it, without what is at its default."""

    def __repr__(self) -> str:
        told = [(f, getattr(self, f.name)) for f in fields(self)]
        shown = ", ".join(f"{f.name}={v!r}" if f.default is not MISSING else repr(v) for f, v in told if v != f.default)
        return f"{type(self).__name__}({shown})"


@dataclass(frozen=True, repr=False)
class Step(Printed):
    """One new value. Values are numbered: inputs first, then the results of the steps before it."""

    move: str
    """A name in `MOVES`, or a way to join a `body` to its input: residual, gated, dense, again (the body three times)."""
    sources: tuple[int, ...]
    like: int = -1
    """The number of a step whose parameters this one shares: a layer that is used twice."""
    body: tuple[Step, ...] = ()
    """A network of its own, whose only input is the source."""


@dataclass(frozen=True, repr=False)
class Recipe(Printed):
    """A network: the shapes of its inputs (without the batch), and steps."""

    inputs: tuple[tuple[int, ...], ...]
    steps: tuple[Step, ...]
    held: tuple[int, ...] = ()
    """Inputs that are not explained."""
    ids: bool = False
    """Whether a last input of integers is looked up in a table."""
    seed: int = 0


JOINS = {
    "residual": lambda x, y: x + y,
    "gated": lambda x, y: x * torch.sigmoid(y),
    "dense": lambda x, y: torch.cat([x, y], 1),
    "again": lambda x, y: x + 0.5 * y,
}


class Unsound(Exception):
    """A recipe whose network is ill-conditioned, or mixes samples, or writes into its inputs."""


class Body(nn.Module):
    """Steps, replayed with plain torch calls."""

    def __init__(self, steps: tuple[Step, ...]) -> None:
        super().__init__()
        self.steps = steps
        for number, step in enumerate(steps):
            if step.body:
                self.add_module(f"body{number}", Body(step.body))

    def forward(self, inputs: Sequence[Tensor], shapes: list[tuple[int, ...]] | None = None) -> list[Tensor]:
        """The values that no step reads; where shapes are asked for, parts are made and values are checked."""
        values, read = list(inputs), set()
        for number, step in enumerate(self.steps):
            parts = Parts(self, number if step.like < 0 else step.like, making=shapes is not None)
            xs = [values[source] for source in step.sources]
            value = self._joined(number, step, parts, xs[0], shapes) if step.body else MOVES[step.move].run(parts, *xs)
            if shapes is not None:
                check_value(value)
                shapes.append(tuple(value.shape[1:]))
            values.append(value)
            read.update(step.sources)
        return [value for number, value in enumerate(values) if number not in read]

    def has_parts(self, number: int) -> bool:
        """Whether a step has parameters or modules of its own."""
        return any(name.startswith((f"p{number}_", f"m{number}_")) for name in (*self._parameters, *self._modules))

    def _joined(self, number: int, step: Step, parts: Parts, x: Tensor, shapes: Any) -> Tensor:
        body = getattr(self, f"body{number}")
        for k in range(3 if step.move == "again" else 1):
            said = body([x], None if shapes is None or k else [])
            fitted = Parts(self, parts.step, parts.making)
            x = JOINS[step.move](x, sum(fitted.fit(value, x.shape[1:]) for value in said))
        return x


def check_value(value: Tensor) -> None:
    """Refuses what is no batch, large, or so near 0 that only rounding tells its sign."""
    if (
        not 0 < value.dim() < 6
        or value.shape[0] != EXAMPLES
        or not 0 < value[0].numel() <= 600
        or not value.is_floating_point()
    ):
        raise Unsound("no batch, or too large")
    size = value.detach().abs()
    if not bool(size.isfinite().all()) or float(size.max()) > 50 or bool(((size > 0) & (size < 1e-9)).any()):
        raise Unsound("not finite, too large, or 0 but for rounding")


class Net(nn.Module):
    """The network of a recipe: its steps, then a linear layer into the classes from whatever no step reads."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.body, self.shapes = Body(recipe.steps), [*recipe.inputs, *([(4,)] if recipe.ids else [])]
        with torch.random.fork_rng():
            torch.manual_seed(recipe.seed)
            self.table = nn.Embedding(5, 4, dtype=torch.float64) if recipe.ids else None
            self._replay(inputs_of(recipe, EXAMPLES, 1), self.shapes)
        self.eval()

    def forward(self, *inputs: Tensor) -> Tensor:
        return self._replay(inputs, None)

    def _replay(self, inputs: Sequence[Tensor], shapes: list[tuple[int, ...]] | None) -> Tensor:
        values = list(inputs) if self.table is None else [*inputs[:-1], self.table(inputs[-1])]
        head = Parts(self, 0, making=shapes is not None)
        return sum(head.fit(value, (CLASSES,)) for value in self.body(values, shapes))


def inputs_of(recipe: Recipe, batch: int, seed: int) -> tuple[Tensor, ...]:
    """A random batch for the network of a recipe; floating inputs first."""
    generator = torch.Generator().manual_seed(1000 * recipe.seed + seed)
    made = [torch.randn((batch, *shape), generator=generator, dtype=torch.float64) for shape in recipe.inputs]
    ids = [torch.randint(5, (batch,), generator=generator)] if recipe.ids else []
    return (*made, *ids)


def network(recipe: Recipe) -> Net:
    """The network of a recipe.

    Raises:
        Unsound: it is ill-conditioned, mixes samples, or writes into its inputs; no claim is made of such a network.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the spread of one number, for example, which is then found not finite
            net = Net(recipe)
        inputs = inputs_of(recipe, EXAMPLES, 1)
        before = [x.clone() for x in inputs]
        leaves = [x.clone().requires_grad_(x.is_floating_point()) for x in inputs]
        output = net(*leaves)
        floating = [leaf for leaf in leaves if leaf.requires_grad]
        gradients = torch.autograd.grad(output.square().sum(), floating, materialize_grads=True, allow_unused=True)
        alone = torch.cat([net(*(x[n : n + 1] for x in inputs)) for n in range(EXAMPLES)])
        net(*inputs)
    except (RuntimeError, ValueError, IndexError, TypeError, ZeroDivisionError) as error:
        raise Unsound(str(error)) from error
    check_value(output)
    if not all(bool(g.isfinite().all()) and float(g.abs().max()) < 1e4 for g in gradients):
        raise Unsound("gradients")
    if float((alone - output).detach().abs().max()) > 1e-9:
        raise Unsound("mixes samples")
    if not all(torch.equal(x, old) and x._version == 0 for x, old in zip(inputs, before, strict=True)):
        raise Unsound("writes into its inputs")
    return net


SHAPES = ((6,), (1,), (4, 5), (3, 2), (1, 4), (2, 5, 4), (3, 4, 4), (1, 3, 6), (2, 3, 4, 3), ())
NAMES = {rank: tuple(sorted(name for name, move in MOVES.items() if rank in move.ranks)) for rank in range(1, 6)}


NUMBERS = st.integers(0, 2**24)


@st.composite
def recipes(draw: st.DrawFn, most: int) -> Recipe:
    """Recipes of sound networks: one to three inputs, perhaps one of integers, up to `most` steps, blocks among them.

    Every step is drawn by a random generator of its own, whose seed hypothesis draws: left to choose each move,
    hypothesis repeats itself (126 of 302 moves in 200 networks).
    """
    chance = Random(draw(NUMBERS))
    inputs = tuple(chance.choice(SHAPES) for _ in range(chance.choice([1, 1, 1, 2, 3])))
    held = (chance.randrange(len(inputs)),) if len(inputs) > 1 and chance.random() < 0.5 else ()
    recipe = Recipe(inputs, (), held, ids=chance.random() < 0.3, seed=chance.randrange(1000))
    return grown(recipe, [Random(seed) for seed in draw(st.lists(NUMBERS, min_size=2, max_size=most, unique=True))])


def grown(recipe: Recipe, chances: Sequence[Random], deep: bool = True) -> Recipe:
    """The recipe with a step more from each random generator; one that makes it unsound is drawn again, twice."""
    net = network(recipe)
    for chance in chances:
        for _ in range(3):
            longer = replace(recipe, steps=(*recipe.steps, _step(chance, recipe, net, deep)))
            try:
                net = network(longer)
            except Unsound:
                continue
            recipe = longer
            break
    return recipe


def _step(chance: Random, recipe: Recipe, net: Net, deep: bool) -> Step:
    shapes = net.shapes
    source = len(shapes) - 1 if chance.random() < 0.5 else chance.randrange(len(shapes))
    rank, kind = len(shapes[source]) + 1, chance.random()
    known = [
        number
        for number, step in enumerate(recipe.steps)
        if net.body.has_parts(number) and not step.body and rank in MOVES[step.move].ranks
    ]
    if deep and kind < 0.12:
        inner = grown(Recipe((shapes[source],), (), seed=recipe.seed), [chance] * chance.randint(1, 2), deep=False)
        return Step(chance.choice(sorted(JOINS)), (source,), body=inner.steps or (Step("relu", (0,)),))
    like = chance.choice(known) if known and kind > 0.8 else -1
    name = chance.choice(NAMES[rank]) if like < 0 else recipe.steps[like].move
    return Step(name, (source, *(chance.randrange(len(shapes)) for _ in range(MOVES[name].sources - 1))), like)


def smaller(recipe: Recipe) -> Iterator[Recipe]:
    """Recipes with a step less, or a block opened, or every input explained; not all of them are sound."""
    first = len(recipe.inputs) + recipe.ids
    for k in reversed(range(len(recipe.steps))):
        step = recipe.steps[k]
        yield replace(recipe, steps=_without(recipe.steps, k, first))
        bodies = [_without(step.body, n, 1) for n in range(len(step.body))] if len(step.body) > 1 else []
        simpler = [replace(step, body=body) for body in bodies]
        simpler += [replace(step, move="residual")] if step.move == "again" else []
        for one in simpler:
            yield replace(recipe, steps=(*recipe.steps[:k], one, *recipe.steps[k + 1 :]))
    if recipe.held:
        yield replace(recipe, held=())


def _without(steps: tuple[Step, ...], k: int, first: int) -> tuple[Step, ...]:
    """The steps but number k, whose readers read its source instead; values of steps are numbered from `first`."""

    def renumbered(source: int) -> int:
        source = steps[k].sources[0] if source == first + k else source
        return source - 1 if source > first + k else source

    def shared(like: int) -> int:
        return -1 if like == k else like - 1 if like > k else like

    kept = (step for number, step in enumerate(steps) if number != k)
    return tuple(replace(step, sources=tuple(map(renumbered, step.sources)), like=shared(step.like)) for step in kept)
