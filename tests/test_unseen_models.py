"""What is claimed of every model, tried on hand-written ones that stand in no list: right, or refused with its line."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import pytest
import torch
import unseen
from torch import Tensor, nn
from unseen import UNSEEN, BranchOnData, inputs_of, randomized

import deeptaylor as dt

pytestmark = pytest.mark.filterwarnings("ignore::deeptaylor.errors.RelevanceWarning")

Inputs = tuple[Tensor, ...]
Keywords = Mapping[str, Tensor]
GRADIENT = "gradient-times-input"


# What is claimed ------------------------------------------------------------------------------------------------------


def check_account(result: dt.Attribution) -> None:
    """Σ inputs + absorbed = explained, per sample, to 1e-9 of the larger of |explained| and Σ|R| of the inputs."""
    inputs = [r.flatten(1) if r.dim() > 1 else r[:, None] for r in result.relevances.values()]
    total = sum(r.sum(1) for r in inputs) + result.ledger.absorbed
    scale = torch.maximum(result.explained.abs(), sum(r.abs().sum(1) for r in inputs))
    gap = (total - result.explained).abs()
    rows = ", ".join(f"{row.op} {row.source} {row.gap:.1g}" for row in result.ledger.rows if not abs(row.gap) <= 1e-9)
    worst = float((gap / scale.clamp(min=1e-300)).max())
    assert bool((gap <= 1e-9 * scale).all()), f"the account misses {worst:.2g} of max(|f|, Σ|R|): {rows}"


def check_gradient(
    model: nn.Module,
    inputs: Inputs,
    kwargs: Keywords,
    target: Tensor,
    result: dt.Attribution,
    explained: Sequence[int] | None = None,
) -> None:
    """Gradient × input of the explained inputs (by default the floating ones) is autograd's, to 1e-10 of the largest entry."""
    explained = explained or [n for n, x in enumerate(inputs) if x.is_floating_point()]
    leaves = [x.clone().requires_grad_(n in explained) for n, x in enumerate(inputs)]
    f = model(*leaves, **kwargs).gather(1, target[:, None]).sum()
    wanted = [leaves[n] for n in explained]
    gradients = torch.autograd.grad(f, wanted, allow_unused=True, materialize_grads=True)
    expected = [(leaf * gradient).detach() for leaf, gradient in zip(wanted, gradients, strict=True)]
    scale = max(float(e.abs().max()) for e in expected)
    for (name, found), e in zip(result.relevances.items(), expected, strict=True):
        off = float((found - e).abs().max())
        assert off <= 1e-10 * scale, f"gradient × input of {name!r}: off by {off:.2g}, largest entry {scale:.2g}"


def check_output(model: nn.Module, inputs: Inputs, kwargs: Keywords, target: Tensor, result: dt.Attribution) -> None:
    """The output, and what is explained of it, are the model's own."""
    with torch.no_grad():
        output = model(*inputs, **kwargs)
    off = float((result.output - output).abs().max())
    assert off <= 1e-11 * float(output.abs().max()), f"the output is off by {off:.2g}"
    assert torch.equal(result.explained, result.output.gather(1, target[:, None])[:, 0])


def check_one_by_one(
    explainer: dt.Explainer, inputs: Inputs, kwargs: Keywords, target: Tensor, result: dt.Attribution
) -> None:
    """A batch is explained like its samples alone, to 1e-8 of a sample's largest entry (sums are taken in other orders)."""
    for n in range(len(target)):
        one = tuple(x[n : n + 1] for x in inputs)
        alone = explainer(one, kwargs={k: v[n : n + 1] for k, v in kwargs.items()}, target=int(target[n]))
        scale = max(float(r.abs().max()) for r in alone.relevances.values())
        for name, r in alone.relevances.items():
            off = float((r[0] - result.relevances[name][n]).abs().max())
            assert off <= 1e-8 * scale, f"sample {n} alone: {name!r} is off by {off:.2g}, largest entry {scale:.2g}"


def check_classes_together(explainer: dt.Explainer, inputs: Inputs, kwargs: Keywords, result: dt.Attribution) -> None:
    """Classes of one sample are explained together as each is alone, to 1e-9 of the largest entry."""
    one, its = tuple(x[:1] for x in inputs), {k: v[:1] for k, v in kwargs.items()}
    classes = (torch.arange(3) + 1) % result.output.shape[1]
    found = explainer(one, kwargs=its, target=classes[None])
    for k, index in enumerate(classes.tolist()):
        alone = explainer(one, kwargs=its, target=index)
        scale = max(float(r.abs().max()) for r in alone.relevances.values())
        for name, r in alone.relevances.items():
            off = float((found.relevances[name][:, k] - r).abs().max())
            assert off <= 1e-9 * scale, f"class {index} of three: {name!r} is off by {off:.2g}, largest {scale:.2g}"


def photograph(model: nn.Module) -> dict[str, Any]:
    """Everything of a model, and the random state, that must be bit-identical afterwards."""
    picture: dict[str, Any] = {"random state": torch.get_rng_state().tolist(), "grad mode": torch.is_grad_enabled()}
    for name, tensor in (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)):
        own = (id(tensor), tensor.data_ptr(), tensor._version, tensor.requires_grad, tensor.grad is None)
        picture[name] = own, tensor.tolist()
    for name, module in model.named_modules(remove_duplicate=False):
        hooks = {k: [*map(id, v.values())] for k, v in vars(module).items() if k.endswith("_hooks") and v}
        picture[f"module {name}"] = id(module), module.training, sorted(vars(module)), hooks
    return picture


@contextmanager
def untouched(model: nn.Module, *tensors: Tensor) -> Iterator[None]:
    """Fails where the block changes the model, the random state or one of the tensors."""
    before, values = photograph(model), [(t.clone(), t._version) for t in tensors]
    yield
    after = photograph(model)
    assert {key for key in before | after if before.get(key) != after.get(key)} == set(), "the model was changed"
    for tensor, (value, version) in zip(tensors, values, strict=True):
        assert torch.equal(tensor, value), "an input was changed"
        assert tensor._version == version, "an input was written to"


# Models that no one has seen ------------------------------------------------------------------------------------------


@cache
def model_of(name: str) -> nn.Module:
    return unseen.model_of(name)


@cache
def explainer_of(name: str, composite: str) -> dt.Explainer:
    inputs, kwargs = inputs_of(name, batch=2, seed=4)
    return dt.Explainer(model_of(name), inputs, kwargs=kwargs, composite=composite)


@pytest.mark.parametrize("composite", sorted(dt.composites.PRESETS))
@pytest.mark.parametrize("name", UNSEEN)
def test_a_model_no_one_has_seen_comes_out_right(name: str, composite: str) -> None:
    model = model_of(name)
    inputs, kwargs = inputs_of(name, batch=3, seed=5)  # traced with another batch size
    target = torch.tensor([2, 0, 1])
    with untouched(model, *inputs):
        explainer = explainer_of(name, composite)
        result = explainer(inputs, kwargs=kwargs, target=target, ledger=True)
    check_output(model, inputs, kwargs, target, result)
    check_account(result)
    check_one_by_one(explainer, inputs, kwargs, target, result)
    check_classes_together(explainer, inputs, kwargs, result)
    if composite == GRADIENT:
        check_gradient(model, inputs, kwargs, target, result)


@pytest.mark.parametrize("name", UNSEEN)
def test_recording_such_a_model_gives_what_exporting_gives_or_refuses_with_its_line(name: str) -> None:
    model = model_of(name)
    inputs, kwargs = inputs_of(name, batch=3, seed=5)
    expected = explainer_of(name, GRADIENT)(inputs, kwargs=kwargs, target=1)
    refusal, found = "", None
    with untouched(model, *inputs):
        try:
            found = dt.explain(model, inputs, kwargs=kwargs, target=1, composite=GRADIENT, record=True)
        except (dt.errors.TraceError, dt.errors.UnsupportedOp) as error:
            refusal = str(error)
    assert found is not None or f"{unseen.__file__}:" in refusal
    for key, r in expected.relevances.items() if found is not None else ():
        assert (found.relevances[key] - r).abs().max() <= 1e-10 * r.abs().max()


def branches() -> tuple[nn.Module, Tensor, Tensor]:
    model, x = randomized(BranchOnData()), torch.randn(3, 5, generator=torch.Generator().manual_seed(2)).double()
    return model, x - x.mean() + 0.5, x - x.mean() - 0.5


def line_of(text: str) -> str:
    """FILE:LINE of the line of `BranchOnData` that holds a text."""
    lines, first = inspect.getsourcelines(BranchOnData)
    return f"{unseen.__file__}:{first + next(n for n, line in enumerate(lines) if text in line)}"


def test_a_branch_on_data_is_refused_with_its_file_and_line() -> None:
    model, x, _ = branches()
    with untouched(model, x), pytest.raises(dt.errors.TraceError, match="record=True") as caught:
        dt.Explainer(model, x)
    assert f"{line_of('if x.mean() > 0')}: if x.mean() > 0:" in str(caught.value)


@pytest.mark.parametrize("composite", sorted(dt.composites.PRESETS))
@pytest.mark.parametrize("path", [0, 1], ids=["bright", "dark"])
def test_either_path_of_a_branch_on_data_is_explained_where_it_is_recorded(path: int, composite: str) -> None:
    model, *inputs = branches()
    x, target = inputs[path], torch.tensor([0, 2, 1])
    explainer = dt.Explainer(model, inputs[1 - path], composite=composite, record=True)
    with untouched(model, x):
        result = explainer(x, target=target, ledger=True)
    check_output(model, (x,), {}, target, result)
    check_account(result)
    taken, other = (("bright", "dark"), ("dark", "bright"))[path]
    sources = {row.source for row in result.plan.rows}
    assert line_of(f"self.{taken}(h)") in sources
    assert line_of(f"self.{other}(h)") not in sources
    if composite == GRADIENT:
        check_gradient(model, (x,), {}, target, result)
