"""Taylor estimators refuse what they can't serve, before any work, and leave alone what is the user's."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from test_taylor_use import DERIVING, ESTIMATORS, X0, X, mlp, names, sample
from torch import Tensor, nn

import deeptaylor as dt

# ---------------------------------------------------------------------------------------------------------------------
# Bad input: clear errors, before any work


@pytest.mark.parametrize("estimate", ESTIMATORS, **names)
def test_what_is_no_problem_is_refused(estimate: Callable[..., object]) -> None:
    net = mlp()
    with pytest.raises(dt.errors.InputError, match="reference equals the input"):
        estimate(net, X, X)
    with pytest.raises(dt.errors.InputError, match="shape"):
        estimate(net, X, sample(5))
    with pytest.raises(dt.errors.InputError, match="one sample"):
        estimate(net, torch.cat([X, X0]), X0)
    with pytest.raises(dt.errors.InputError, match="NaN"):
        estimate(net, X * float("nan"), X0)
    with pytest.raises(dt.errors.InputError, match="NaN"):
        estimate(net, X, X0 * float("inf"))
    with pytest.raises(dt.errors.InputError, match="float32"):
        estimate(net, X.float(), X0.float())
    with pytest.raises(dt.errors.InputError, match="train mode"):
        estimate(nn.Sequential(nn.Linear(6, 2), nn.Dropout()), X.float(), "zero")
    with pytest.raises(dt.errors.TargetError, match="out of range"):
        estimate(net, X, X0, target=7)


@pytest.mark.parametrize("estimate", DERIVING, **names)
def test_ids_have_no_derivatives(estimate: Callable[..., object]) -> None:
    net = nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(12, 2)).eval()
    with pytest.raises(dt.errors.InputError, match="floating"):
        estimate(net, torch.tensor([[1, 2, 3]]), torch.tensor([[0, 0, 0]]))


def test_numbers_passed_as_integers_are_named() -> None:
    with pytest.raises(dt.errors.InputError, match=r"x\.float"):
        dt.interactions(mlp(), X.long(), 0)


def test_orders_of_a_table_are_drawn_as_an_account() -> None:
    figure = dt.taylor_orders(mlp(), X, X0).plot()
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()][-1] == "remainder"


def test_a_path_that_leaves_the_domain_is_named() -> None:
    for estimate in (dt.taylor_orders, dt.integrated_terms, dt.integrated_hessians):
        with pytest.raises(dt.errors.InputError, match="NaN or Inf at"):
            estimate(
                lambda z: (z[:, 0] - 0.5).log() + z[:, 1], torch.tensor([[2.0, 1.0]]), torch.tensor([[1.0, 0.0]]) * -1
            )
    with pytest.raises(dt.errors.InputError, match="NaN or Inf at"):
        dt.differences(
            lambda z: (z.sum(1) - 1).sqrt(), torch.tensor([[1.0, 1.0]]), torch.tensor([[3.0, -3.0]]) / 1.0 + 2
        )


def test_work_beyond_the_budget_is_refused_with_its_size() -> None:
    for call in (
        lambda: dt.taylor_terms(mlp(), X, X0, order=3, budget=20),
        lambda: dt.integrated_terms(mlp(), X, X0, budget=20),
        lambda: dt.shapley_taylor(mlp(), X, X0, budget=20),
        lambda: dt.differences(mlp(), X, X0, budget=20),
        lambda: dt.fit_taylor(mlp(), X, X0, budget=20),
    ):
        with pytest.raises(dt.errors.InputError, match=r"passes through the model, the budget is 20"):
            call()


def test_orders_methods_and_places_that_do_not_exist_are_refused() -> None:
    for call in (
        lambda: dt.taylor_orders(mlp(), X, X0, order=5),
        lambda: dt.taylor_terms(mlp(), X, X0, order=4),
        lambda: dt.integrated_terms(mlp(), X, X0, order=1),
        lambda: dt.taylor_terms(mlp(), X, X0, at="end"),
        lambda: dt.interactions(mlp(), X, X0, method="magic"),
        lambda: dt.taylor_terms(mlp(), X, X0).to_features("best"),
        lambda: dt.taylor_orders(mlp(), X, X0).interactions,
        lambda: dt.taylor_terms(mlp(), X, X0, groups=torch.tensor([0, 2, 2, 0, 0, 0])),
        lambda: dt.interactions(nn.Embedding(9, 1).eval(), torch.tensor([[1, 2]])),
    ):
        with pytest.raises(dt.errors.InputError):
            call()


# ---------------------------------------------------------------------------------------------------------------------
# Nothing of the user's is touched


@pytest.mark.parametrize("estimate", [*ESTIMATORS, dt.check_derivatives], **names)
@pytest.mark.parametrize("raises", [False, True])
def test_the_model_and_the_process_are_left_alone(estimate: Callable[..., object], raises: bool) -> None:
    torch.manual_seed(5)
    net = nn.Sequential(nn.Linear(6, 12), nn.LayerNorm(12), nn.Tanh(), nn.Linear(12, 2)).double().eval()
    net[0].register_forward_hook(lambda *_: None)
    net(X).sum().backward()
    net[3].bias.requires_grad_(False)
    before, state = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    grads = [None if p.grad is None else p.grad.clone() for p in net.parameters()]
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks), m.training) for m in net.modules()]
    flags = torch.backends.mha.get_fastpath_enabled(), torch.is_grad_enabled(), torch._C._get_mkldnn_enabled()
    x = X.clone()
    calls = 0

    def failing(z: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if raises and calls > 3:
            raise ZeroDivisionError
        return net(z)

    arguments = (x,) if estimate is dt.check_derivatives else (x, X0)
    if raises:
        with pytest.raises(ZeroDivisionError):
            estimate(failing, *arguments)
    else:
        estimate(net, *arguments)
    assert all(torch.equal(a, b) for a, b in zip(before.values(), net.state_dict().values(), strict=True))
    assert torch.equal(torch.get_rng_state(), state)
    for p, g in zip(net.parameters(), grads, strict=True):
        assert (p.grad is None) == (g is None)
        assert g is None or torch.equal(p.grad, g)
    assert [p.requires_grad for p in net.parameters()] == [True] * 5 + [False]
    assert [(len(m._forward_hooks), len(m._forward_pre_hooks), m.training) for m in net.modules()] == hooks
    assert flags == (torch.backends.mha.get_fastpath_enabled(), torch.is_grad_enabled(), torch._C._get_mkldnn_enabled())
    assert torch.equal(x, X)
    assert not x.requires_grad


def test_it_works_inside_inference_mode_and_no_grad() -> None:
    net = mlp()
    want = dt.integrated_terms(net, X, X0).matrix()
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            assert torch.allclose(dt.integrated_terms(net, X.clone(), X0.clone()).matrix(), want)
