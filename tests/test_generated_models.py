"""What is claimed of every model, tried on random networks made of every operation that has a role.

`DEEPTAYLOR_FUZZ` is the number of networks (200), `DEEPTAYLOR_FUZZ_SEED` where hypothesis starts (0): the same networks
every time, until it is changed. `docs/fuzzing.md` tells what has been found.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import moves
import pytest
import torch
from generated import Recipe, Step, Unsound, inputs_of, network, recipes, smaller
from hypothesis import HealthCheck, Phase, given, seed, settings
from moves import MOVES
from test_unseen_models import (
    GRADIENT,
    check_account,
    check_classes_together,
    check_gradient,
    check_one_by_one,
    check_output,
    untouched,
)
from torch import Tensor, nn

import deeptaylor as dt
from deeptaylor.ops import OPS

pytestmark = [
    pytest.mark.filterwarnings("ignore::deeptaylor.errors.RelevanceWarning"),
    pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning"),
]

COUNT = int(os.environ.get("DEEPTAYLOR_FUZZ", "200"))
START = int(os.environ.get("DEEPTAYLOR_FUZZ_SEED", "0"))
SHARDS = 4
STEPS = 4 if COUNT <= 200 else 7
"""At most; tracing takes half a second, and longer for longer networks."""
OTHERS = sorted(set(dt.composites.PRESETS) - {GRADIENT})
aten = torch.ops.aten


def composites_for(recipe: Recipe) -> tuple[str, ...]:
    """Gradient × input, and two presets that differ from network to network."""
    return GRADIENT, OTHERS[recipe.seed % len(OTHERS)], OTHERS[recipe.seed // len(OTHERS) % len(OTHERS)]


def check(recipe: Recipe, composites: Sequence[str] = ()) -> None:
    """Everything that is claimed, tried on the network of a recipe."""
    net, inputs, target = network(recipe), inputs_of(recipe, 3, seed=3), torch.tensor([2, 0, 1])
    example = inputs_of(recipe, 1 + recipe.seed % 2, seed=2)  # traced with another batch size, and called on it first
    explained = [n for n in range(len(recipe.inputs)) if n not in recipe.held]
    names = tuple(f"inputs_{n}" for n in explained)
    with untouched(net, *inputs, *example):
        for composite in composites or composites_for(recipe):
            explainer, fresh = (dt.Explainer(net, example, composite=composite, explain=names) for _ in range(2))
            explainer(example)
            result = explainer(inputs, target=target, ledger=True)
            check_same("a fresh explainer", fresh(inputs, target=target), result)
            check_output(net, inputs, {}, target, result)
            check_account(result)
            check_one_by_one(explainer, inputs, {}, target, result)
            check_classes_together(explainer, inputs, {}, result)
            if composite == GRADIENT:
                check_gradient(net, inputs, {}, target, result, explained)
                check_recorded(net, inputs, target, names, result)


def failure(recipe: Recipe, composites: Sequence[str] = ()) -> str:
    """What is wrong with the explanation of a network, or nothing."""
    try:
        check(recipe, composites)
    except Unsound:
        return ""
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def check_recorded(net: nn.Module, inputs: Any, target: Tensor, names: tuple[str, ...], traced: dt.Attribution) -> None:
    """The other front end gives what tracing gives, or refuses with the line of a move."""
    refusal, found = "", None
    try:
        found = dt.explain(net, inputs, target=target, composite=GRADIENT, explain=names, record=True)
    except (dt.errors.TraceError, dt.errors.UnsupportedOp) as error:
        refusal = str(error)
    if found is not None:
        check_same("recorded", found, traced)
    assert found is not None or f"{moves.__file__}:" in refusal


def check_same(what: str, found: dt.Attribution, expected: dt.Attribution) -> None:
    """Two explanations are the same, to 1e-9 of the largest entry."""
    scale = max(float(r.abs().max()) for r in expected.relevances.values())
    for name, r in expected.relevances.items():
        off = float((found.relevances[name] - r).abs().max())
        assert off <= 1e-9 * scale, f"{what}: {name!r} is off by {off:.2g}, largest entry {scale:.2g}"


# Every move, every operation -------------------------------------------------------------------------------------------

TRIED = (GRADIENT, "epsilon", "deep-taylor", "epsilon-gamma-box")
CANONICAL = {1: (), 2: (6,), 3: (4, 6), 4: (4, 3, 4), 5: (2, 3, 3, 4)}
"""A shape of a sample for every number of axes (the batch included)."""


def together(names: Sequence[str], rank: int) -> Recipe:
    """Moves side by side, each on values of its own."""
    steps: list[Step] = []
    for name in names:
        sources = tuple(range(len(steps) + 1, len(steps) + 1 + MOVES[name].sources))
        steps += [*(Step("add number", (0,)) for _ in sources), Step(name, sources)]
    return Recipe((CANONICAL[rank],), tuple(steps), seed=1)


def ranks_of(name: str) -> tuple[int, ...]:
    """The numbers of axes at which a move is tried: all where what it runs depends on them, else one."""
    ranks = MOVES[name].ranks
    return ranks if set(ranks) <= {3, 4, 5} else ranks[len(ranks) // 2 :][:1]


def packs() -> dict[str, tuple[tuple[str, ...], int]]:
    """All moves, eight at a time: tracing is what takes the time."""
    found = {}
    for rank in CANONICAL:
        names = sorted(name for name in MOVES if rank in ranks_of(name))
        found |= {f"{rank} axes, {names[n]} …": (tuple(names[n : n + 8]), rank) for n in range(0, len(names), 8)}
    return found


@pytest.mark.parametrize("pack", packs())
def test_every_move_comes_out_right(pack: str) -> None:
    names, rank = packs()[pack]
    try:
        check(together(names, rank), TRIED)
    except Exception as error:
        alone = (together([name], rank) for name in names)
        failed = {repr(recipe): said for recipe in alone if (said := failure(recipe, TRIED))}
        assert not failed, "\n".join(f"{recipe}\n  {said}" for recipe, said in failed.items())
        raise AssertionError(f"each comes out right alone, not together: {together(names, rank)}") from error


WHOLE = "reduces over the samples of a batch, too"
UNREACHED = {
    aten.max.default: WHOLE, aten.min.default: WHOLE, aten.mean.default: WHOLE, aten.sum.default: WHOLE,
    aten.median.default: WHOLE, aten.var.default: WHOLE, aten.std.default: WHOLE, aten.norm.Scalar: WHOLE,
    aten.squeeze.default: "squeezes a batch of one, too", aten.native_channel_shuffle.default: "has no derivative",
    aten.embedding.default: "tracing opens it into an index",
    aten.lift_fresh.default: "of constants only", aten.detach.default: "gradient × input is not autograd's there",
}  # fmt: skip
"""Operations with a role that no move reaches, and why."""
ONLY_TRACED = ("batch norm module", "chunk", "to", "expand")
"""Moves with operations that recording does not show."""


def test_the_moves_reach_every_operation_that_has_a_role() -> None:
    passed: set[Any] = set()
    for recipe in [together([name], rank) for name in MOVES for rank in ranks_of(name)]:
        net, inputs = network(recipe), inputs_of(recipe, 2, seed=2)
        for record in (True, False) if recipe.steps[-1].move in ONLY_TRACED else (True,):
            try:
                plan = dt.Explainer(net, inputs, composite=GRADIENT, record=record).plan
            except (dt.errors.TraceError, dt.errors.UnsupportedOp):
                continue  # writing into views can't be recorded; that such moves can be traced is claimed above
            passed |= {assignment.place.node.op for assignment in plan.assignments.values()}
    carrying = {op for op, properties in OPS.items() if properties.role != "constant"}
    missing = sorted(str(op) for op in carrying - passed - UNREACHED.keys())
    assert not missing, f"{len(missing)} of {len(carrying)} operations are reached by no move: {', '.join(missing)}"
    assert sorted(str(op) for op in UNREACHED.keys() & passed) == [], "reached, and yet among the exceptions"


# What was found --------------------------------------------------------------------------------------------------------


def one(move: str, shape: tuple[int, ...], *others: str) -> Recipe:
    """A linear map of the input's own kind, a move, and others after it."""
    chain = ("add number", move, *others)
    return Recipe((shape,), tuple(Step(name, (number,)) for number, name in enumerate(chain)), seed=1)


FOUND = {
    "a gate divided by its sum": (one("gates in all", (4,)), "epsilon"),
    "both results of topk": (one("topk and where", (6,)), "epsilon"),
    "both results of max": (one("max and where", (4, 6)), "deep-taylor"),
    "weights of the best experts": (one("routed", (6,)), "epsilon"),
    "pooled, and back to where it was": (one("unpooled", (2, 4, 4)), "epsilon"),
    "unpooled beside a complex turn": (
        Recipe(((4, 5),), (Step("unpooled", (0,)), Step("complex turn", (1,))), ids=True, seed=5),
        "epsilon",
    ),
    "values written into a slice": (one("set slice", (4, 6)), "epsilon"),
    "a slice added to": (one("add to slice_", (4, 6)), "epsilon"),
    "a number written into a slice": (one("set number", (4, 6)), "epsilon"),
    "a buffer filled in a loop": (one("loop into buffer", (4, 6)), "deep-taylor"),
    "a weight expanded to the batch": (one("bmm", (4, 6)), "deep-taylor"),
    "a matrix made of an input that is not explained": (
        Recipe(((4, 6), (6, 3)), (Step("product of matrices", (0, 1)),), held=(1,)),
        "deep-taylor",
    ),
    "a matrix times a vector": (one("matmul vector", (4, 6)), "epsilon-gamma-box"),
    "a vector times a matrix": (one("vector matmul", (4, 6)), "epsilon-gamma-box"),
    "a matrix times columns of samples": (one("transposed", (6,)), "deep-taylor"),
    "a sum with a matrix product": (one("addmm data", (6,)), "epsilon"),
    "a mask made of data": (one("sdpa mask of data", (4, 6)), "epsilon"),
    "attention to constants": (one("sdpa parameter values", (4, 6)), "epsilon"),
    "a mask of minus infinity": (one("causal by hand", (4, 6)), GRADIENT),
    "minus infinity added": (one("causal by sum", (4, 6)), GRADIENT),
    "one number per sample": (Recipe(((),), (Step("waves", (0,)),)), "epsilon"),
    "one number per sample, in its own range": (Recipe(((),), (), seed=667), "epsilon-gamma-box"),
    "sorted with the batch last": (one("sort of columns", (6,)), GRADIENT),
    "index_add below a flat layer": (one("index_add", (4, 6)), "epsilon-plus-flat"),
    "index_add, relevance by size": (one("index_add", (4, 6)), "res-lrp"),
    "expanded after a number was written": (one("linear up", (3, 2), "set number", "expand_as"), "epsilon-gamma-box"),
    "softsign below a first layer": (one("number over data", (2, 5, 4), "softsign"), "epsilon-plus-flat"),
    "zeroed by triu below a first layer": (one("triu", (4, 6)), "epsilon-gamma-box"),
    "log-softmax over one class": (Recipe(((4, 5), (1,)), (Step("log_softmax", (1,)),)), "deep-taylor"),
    "a filter of frequencies": (one("filter", (4, 6)), "epsilon"),
    "the imaginary part of a conjugate": (one("hermitian back", (4, 6)), "epsilon"),
    "a sum before a ReLU below a flat layer": (
        Recipe(((),), (Step("sigmoid gate", (0,)), Step("add_", (1, 0)), Step("relu_", (2,))), seed=360),
        "epsilon-alpha2-beta1-flat",
    ),
    "one number against many constants": (
        Recipe(((1,),), (Step("maximum", (0, 1)),), ids=True, seed=742),
        "mamba-lrp",
    ),
    "a shifted value below a GELU": (Recipe(((3, 2),), (Step("log", (0,)), Step("gelu", (1,))), seed=254), "cp-lrp"),
    "samples in columns of a batch": (one("sequence first", (4, 5)), "epsilon-gamma-box"),
}
"""Networks that came out wrong, or not at all, when the generator was written, with the composite that showed it."""


@pytest.mark.parametrize("name", FOUND)
def test_what_was_found_stays_found(name: str) -> None:
    recipe, composite = FOUND[name]
    check(recipe, (GRADIENT, composite))


# Random networks ------------------------------------------------------------------------------------------------------


def smallest(recipe: Recipe, said: str) -> tuple[Recipe, str]:
    """A part of a recipe that still fails, with what is wrong with it."""
    for part in smaller(recipe):
        if part != recipe and (still := failure(part)):
            return smallest(part, still)
    return recipe, said


@pytest.mark.parametrize("shard", range(SHARDS))
def test_a_random_network_comes_out_right(shard: int) -> None:
    @seed(SHARDS * START + shard)
    @settings(
        max_examples=-(-COUNT // SHARDS),
        deadline=None,
        database=None,
        phases=[Phase.generate],  # hypothesis would shrink for minutes: a trace takes half a second
        suppress_health_check=list(HealthCheck),
    )
    @given(recipe=recipes(most=STEPS))
    def run(recipe: Recipe) -> None:
        if said := failure(recipe):
            part, still = smallest(recipe, said)
            raise AssertionError(
                f"{recipe!r}\nof which remains, under {', '.join(composites_for(part))},\n{part!r}\n{still}"
            )

    run()
