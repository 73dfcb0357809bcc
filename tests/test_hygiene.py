"""An explanation leaves no trace on the model, the inputs or the process, also where it raises half-way."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import deeptaylor as dt
from deeptaylor.fingerprints import Fingerprint


@dataclass(frozen=True)
class RaisesHalfWay(dt.rules.Rule):
    """A rule of somebody's own, with a mistake in it."""

    roles = ("affine",)

    def __call__(self, step: object, relevance: object) -> dt.rules.Redistribution:
        raise ZeroDivisionError("a mistake in a rule")


class Net(nn.Module):
    """What hygiene is hard for: tied weights, batch norm, frozen parts, hooks, a buffer, in-place operations."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.act = nn.ReLU(inplace=True)
        self.first = nn.Linear(4, 4)
        self.again = nn.Linear(4, 4)
        self.again.weight = self.first.weight
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(4, 5)
        self.head.bias.requires_grad_(False)
        self.register_buffer("scale", torch.tensor(1.5))

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.norm(self.conv(x))) * self.scale
        x = x.mean((2, 3))
        x = x + self.again(torch.relu_(self.first(x)))
        return self.head(self.drop(x))


def make() -> tuple[Net, Tensor]:
    torch.manual_seed(0)
    net = Net()
    for _ in range(3):
        net(torch.randn(8, 3, 6, 6))  # running statistics that are not the initial ones
    net(torch.randn(2, 3, 6, 6)).sum().backward()
    net.conv.register_forward_hook(lambda *_: None)
    net.head.register_full_backward_hook(lambda *_: None)
    net.note = "the user's own attribute"
    return net.eval(), torch.randn(2, 3, 6, 6)


HOOKS = [name for name in vars(nn.Module()) if "hooks" in name]


def photograph(model: nn.Module) -> dict[str, object]:
    """Everything that must be bit-identical afterwards; objects by identity, values as copies."""
    picture: dict[str, object] = {"random": random.getstate(), "numpy": np.random.get_state()[1].tolist()}
    picture["torch"] = torch.get_rng_state().tolist()
    picture["grad mode"] = torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.get_default_dtype()
    picture["deterministic"] = torch.are_deterministic_algorithms_enabled(), torch.backends.mkldnn.is_available()
    picture["state_dict"] = [(k, v.dtype, v.data_ptr(), v.tolist()) for k, v in model.state_dict().items()]
    for name, parameter in (*model.named_parameters(remove_duplicate=False), *model.named_buffers()):
        grad = None if parameter.grad is None else (id(parameter.grad), parameter.grad.tolist())
        picture[name] = id(parameter), type(parameter), parameter.requires_grad, grad, parameter._version
        picture[f"{name}, autograd"] = parameter.is_leaf, parameter._backward_hooks is None
    for name, module in model.named_modules():
        picture[f"module {name}"] = id(module), type(module), module.training, sorted(vars(module))
        hooks = {key: getattr(module, key) for key in HOOKS}
        picture[f"hooks of {name}"] = {key: [*map(id, held.values())] for key, held in hooks.items() if held}
        picture[f"forward of {name}"] = getattr(module.forward, "__func__", module.forward)
    return picture


def runs(net: Net, x: Tensor) -> dict[str, Callable[[], object]]:
    return {
        "the one-liner": lambda: dt.explain(net, x),
        "deep-taylor": lambda: dt.explain(net, x, composite="deep-taylor"),
        "epsilon-plus-flat, with everything asked for": lambda: dt.explain(
            net, x, target=torch.tensor([[0, 1], [2, 3]]), composite="epsilon-plus-flat", ledger=True, inner=("first",)
        ),
        "epsilon-gamma-box with bounds": lambda: dt.explain(net, x, composite="epsilon-gamma-box", bounds=(-9.0, 9.0)),
        "gradient-times-input": lambda: dt.explain(net, x, composite="gradient-times-input"),
        "recorded": lambda: dt.explain(net, x, record=True),
        "log-odds": lambda: dt.explain(net, x, target=dt.log_odds(1)),
    }


def failures(net: Net, x: Tensor) -> dict[str, Callable[[], object]]:
    rule = RaisesHalfWay()
    half = dt.Composite([(dt.composites.last("affine"), dt.rules.Epsilon()), (dt.composites.role("affine"), rule)])
    narrow, hidden = dt.rules.ZBox(-0.01, 0.01), dt.rules.ZPlus()
    outside = dt.Composite([(dt.composites.first("affine"), narrow), (dt.composites.role("affine"), hidden)])

    def head(out: Tensor) -> Tensor:
        raise ZeroDivisionError("a mistake in a head")

    return {
        "a rule": lambda: dt.explain(net, x, composite=half),
        "the domain, at the last layer to be reached": lambda: dt.explain(net, x, composite=outside),
        "the head": lambda: dt.explain(net, x, head=head),
        "the target": lambda: dt.explain(net, x, target=99),
        "an input that is NaN": lambda: dt.explain(net, x * float("nan")),
        "the composite": lambda: dt.explain(net, x, composite="no such thing"),
    }


RUNS = sorted(runs(*make()))
FAILURES = sorted(failures(*make()))


@pytest.mark.parametrize("run", RUNS)
def test_an_explanation_leaves_the_model_and_the_process_as_they_were(run: str) -> None:
    net, x = make()
    before, values, version = photograph(net), x.clone(), x._version
    runs(net, x)[run]()
    after = photograph(net)
    assert {key for key in before | after if before.get(key) != after.get(key)} == set()
    assert torch.equal(x, values)
    assert (x._version, x.grad, x.requires_grad) == (version, None, False)


@pytest.mark.parametrize("failure", FAILURES)
def test_an_explanation_that_raises_half_way_leaves_everything_as_it_was(failure: str) -> None:
    net, x = make()
    before, values = photograph(net), x.clone()
    with pytest.raises((ZeroDivisionError, dt.errors.DeepTaylorError)):
        failures(net, x)[failure]()
    after = photograph(net)
    assert {key for key in before | after if before.get(key) != after.get(key)} == set()
    assert torch.equal(x, values)


def test_a_mistake_in_a_rule_reaches_the_user_as_it_is() -> None:
    net, x = make()
    with pytest.raises(ZeroDivisionError, match="a mistake in a rule"):
        failures(net, x)["a rule"]()


def one_step(net: Net, optimizer: torch.optim.Optimizer, x: Tensor) -> None:
    optimizer.zero_grad()
    net(x).square().sum().backward()
    optimizer.step()


@pytest.mark.parametrize("run", RUNS)
def test_an_optimizer_made_before_trains_the_model_as_if_nothing_had_happened(run: str) -> None:
    (explained, x), (untouched, _) = make(), make()
    optimizers = [torch.optim.Adam(net.parameters(), lr=0.1) for net in (explained, untouched)]
    runs(explained, x)[run]()
    for net, optimizer in zip((explained, untouched), optimizers, strict=True):
        one_step(net, optimizer, torch.linspace(-1, 1, 2 * 3 * 6 * 6).reshape(2, 3, 6, 6))
    for (name, a), b in zip(explained.state_dict().items(), untouched.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def shuffle(net: Net) -> None:
    """As in sanity checks by randomisation: the same values in other places."""
    net.conv.weight.copy_(net.conv.weight.flatten()[torch.randperm(net.conv.weight.numel())].view_as(net.conv.weight))


def replace(net: Net) -> None:
    net.head.weight = nn.Parameter(-net.head.weight.detach())


CHANGES: dict[str, Callable[[Net], object]] = {
    "a step of training": lambda net: [p.sub_(0.1 * p.grad) for p in net.parameters() if p.grad is not None],
    "shuffled weights": shuffle,
    "flipped behind autograd's back": lambda net: net.conv.weight.data.copy_(net.conv.weight.data.flip(0)),
    "a parameter replaced": replace,
    "other running statistics": lambda net: net.norm.running_mean.copy_(net.norm.running_mean.flip(0)),
    "weights loaded": lambda net: net.load_state_dict({k: v * 1.5 for k, v in net.state_dict().items()}),
}


@pytest.mark.parametrize("change", CHANGES)
def test_an_explainer_follows_the_weights_of_the_model_it_was_made_of(change: str) -> None:
    net, x = make()
    explainer = dt.Explainer(net, x, composite="epsilon-plus")
    explainer(x)
    with torch.no_grad():
        CHANGES[change](net)
    fresh = dt.explain(copy.deepcopy(net), x, composite="epsilon-plus")
    assert torch.allclose(explainer(x).relevance, fresh.relevance, rtol=1e-5, atol=1e-6)


def test_a_small_change_of_one_half_precision_weight_behind_autograds_back_is_seen() -> None:
    for seed in range(10):  # a checksum in bfloat16 itself missed every second one
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 3)).bfloat16().eval()
        x = torch.rand(2, 256, dtype=torch.bfloat16)
        explainer = dt.Explainer(net, x, composite=dt.rules.ZPlus())
        explainer(x)
        net[0].weight.data[5, 7] += 0.004
        fresh = dt.explain(copy.deepcopy(net), x, composite=dt.rules.ZPlus())
        assert torch.equal(explainer(x).relevance, fresh.relevance), seed


def test_an_input_that_requires_a_gradient_stays_the_users() -> None:
    net, x = make()
    x.requires_grad_()
    result = dt.explain(net, x)
    assert x.requires_grad
    assert x.grad is None
    assert not result.relevance.requires_grad


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_an_explanation_is_the_same_under_any_gradient_mode(mode: Callable[[], object]) -> None:
    net, x = make()
    expected = dt.explain(net, x, composite="epsilon-plus").relevance
    with mode():
        found = dt.explain(net, x, composite="epsilon-plus").relevance
    assert torch.equal(found, expected)


def test_a_result_is_the_users_own_and_later_calls_do_not_write_into_it() -> None:
    net, x = make()
    explainer = dt.Explainer(net, x, composite="epsilon-plus")
    first = explainer(x)
    kept = first.relevance.clone()
    explainer(torch.randn_like(x))
    assert torch.equal(first.relevance, kept)
    assert torch.equal(explainer(x).relevance, kept)  # nor is anything used up


def test_every_small_write_to_a_weight_is_seen_whatever_its_layout() -> None:
    torch.manual_seed(0)
    base = torch.randn(130, 300)
    layouts: dict[str, torch.Tensor] = {
        "as it is": torch.randn(130, 300),
        "transposed": torch.randn(300, 130).t(),
        "channels last": torch.randn(40, 30, 5, 7).to(memory_format=torch.channels_last),
        "a part of another": torch.randn(260, 300)[::2],
        "expanded": base[:, :1].expand(130, 300),
        "one number": torch.tensor(2.0),
        "no number": torch.empty(0, 3),
        "half": torch.randn(200, 300).half(),
        "bfloat16": torch.randn(200, 300).bfloat16(),
        "float64": torch.randn(200, 300).double(),
        "complex": torch.randn(130, 300, dtype=torch.cfloat),
        "integers": torch.randint(9, (130, 300)),
    }
    prints = Fingerprint(layouts)
    assert prints.holds(layouts, tuple(layouts))
    for name, tensor in layouts.items():
        for place in {0, tensor.numel() // 2, tensor.numel() - 1} if tensor.numel() else ():
            index = torch.unravel_index(torch.tensor(place), tensor.shape)
            before = tensor[index].clone()
            tensor.data[index] = before + (1 if tensor.dtype == torch.int64 else 0.01 * before.abs() + 0.01)
            assert not prints.holds(layouts, (name,)), (name, place)
            assert prints.holds(layouts, tuple(n for n in layouts if n != name))
            tensor.data[index] = before
            assert prints.holds(layouts, (name,))
    replaced = {**layouts, "as it is": layouts["as it is"].clone()}
    assert not prints.holds(replaced, ("as it is",))
