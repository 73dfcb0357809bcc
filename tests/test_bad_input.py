"""Every mistake has one clear error of our own tree, before any number, and its message names the cure."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import deeptaylor as dt
from deeptaylor import errors
from deeptaylor.rules import AlphaBeta, ZBox, ZPlus


def scripted() -> torch.jit.ScriptModule:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own: scripting is deprecated
        return torch.jit.script(nn.Linear(4, 2).eval())


def net(width: int = 4, classes: int = 3) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(width, 6), nn.ReLU(), nn.Linear(6, classes)).eval()


def images(n: int = 2) -> Tensor:
    return torch.linspace(-1, 1, n * 4).reshape(n, 4)


class Pair(nn.Module):
    """Has no (batch, classes) output: two tensors by name."""

    def __init__(self) -> None:
        super().__init__()
        self.net = net()

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"features": x, "scores": self.net(x)}


class Branches(nn.Module):
    """Asks a value how to go on."""

    def __init__(self) -> None:
        super().__init__()
        self.net = net()

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            return self.net(x)
        return -self.net(x)


class Sorts(nn.Module):
    """Two operations that no rule can serve, on two lines."""

    def forward(self, x: Tensor) -> Tensor:
        y = torch.special.i0(x)
        return torch.erfinv(y.sigmoid())


def with_nan(x: Tensor, value: float) -> Tensor:
    x = x.clone()
    x[1, 2] = value
    return x


# what was done wrong: the call, the error, what its message must say (all of it, in any case)
MISTAKES: dict[str, tuple[Callable[[], object], type[Exception], tuple[str, ...]]] = {
    "integers as images": (
        lambda: dt.explain(net(), torch.zeros(2, 4, dtype=torch.uint8)), errors.InputError, ("uint8", r"float\(\)")
    ),
    "float64 into a float32 model": (
        lambda: dt.explain(net(), images().double()), errors.InputError, ("float64", "float32", r"\.to\(")
    ),
    "half precision into a float32 model": (
        lambda: dt.explain(net(), images().half()), errors.InputError, ("float16", "float32", r"\.to\(")
    ),
    "another device": (
        lambda: dt.explain(net(), images().to("meta")), errors.InputError, ("meta", "cpu", r"\.to\(")
    ),
    "a NaN": (lambda: dt.explain(net(), with_nan(images(), float("nan"))), errors.InputError, ("nan", r"\[1, 2\]")),
    "an infinity": (lambda: dt.explain(net(), with_nan(images(), float("inf"))), errors.InputError, ("inf",)),
    "an empty batch": (lambda: dt.explain(net(), torch.zeros(0, 4)), errors.InputError, ("empty batch",)),
    "no tensor at all": (lambda: dt.explain(net(), [1.0, 2.0]), errors.InputError, ("tensor",)),
    "train mode": (lambda: dt.explain(net().train(), images()), errors.InputError, ("train mode", r"\.eval\(\)")),
    "one submodule in train mode": (
        lambda: dt.explain(nn.Sequential(net(), nn.Dropout().train()), images()), errors.InputError, (r"\.eval\(\)",)
    ),
    "an output of several tensors": (
        lambda: dt.explain(Pair().eval(), images()), errors.InputError, ("head=", "scores")
    ),
    "an output with positions": (
        lambda: dt.explain(nn.Conv1d(1, 2, 2).eval(), images()[:, None]), errors.InputError, ("batch, classes", "head=")
    ),
    "an input name that is not there": (
        lambda: dt.explain(net(), images(), explain=("image",)), errors.InputError, ("image", "input")
    ),
    "a target past the classes": (
        lambda: dt.explain(net(), images(), target=3), errors.TargetError, ("3", "classes|0 to 2")
    ),
    "a negative target": (
        lambda: dt.explain(net(), images(), target=[0, -1]), errors.TargetError, ("-1", "classes|0 to 2")
    ),
    "a truth value for a target": (
        lambda: dt.explain(net(), images(), target=True), errors.TargetError, ("True", "class index")
    ),
    "truth values for targets": (
        lambda: dt.explain(net(), images(), target=torch.tensor([True, False])), errors.TargetError, ("bool", "class indices")
    ),
    "no target for any sample": (
        lambda: dt.explain(net(), images(), target=torch.empty(2, 0).long()), errors.TargetError, (r"\(2, 0\)", "one at least")
    ),
    "a scripted model": (
        lambda: dt.explain(scripted(), images()), errors.InputError, ("TorchScript", "nn.Module")
    ),
    "a model's class": (
        lambda: dt.explain(nn.Linear, images()), errors.InputError, ("class Linear", "nn.Module")
    ),
    "no model": (
        lambda: dt.explain(None, images()), errors.InputError, ("None", "nn.Module")
    ),
    "a sparse input": (
        lambda: dt.explain(nn.Linear(4, 2).eval(), torch.eye(4).to_sparse()), errors.InputError, ("sparse", "to_dense")
    ),
    "a head that is a name": (
        lambda: dt.explain(net(), images(), head="logits"), errors.InputError, ("logits", "function")
    ),
    "a rule's class": (
        lambda: dt.explain(net(), images(), composite=ZPlus), errors.CompositeError, (r"ZPlus\(\)",)
    ),
    "bounds for other channels": (
        lambda: dt.explain(net(), images(), composite="deep-taylor", bounds=(torch.full((4, 1, 1), -9.0), 9.0)),
        errors.DomainError, (r"\(4, 1, 1\)", "channels"),
    ),
    "one target of many past the classes": (
        lambda: dt.explain(net(), images(), target=[0, 7]), errors.TargetError, ("7",)
    ),
    "too few targets": (
        lambda: dt.explain(net(), images(3), target=[0, 1]), errors.TargetError, ("2", "3", "one .*per sample")
    ),
    "a seed of another shape": (
        lambda: dt.explain(net(), images(), target=torch.ones(2, 5)), errors.TargetError, (r"\(2, 5\)", r"\(2, 3\)")
    ),
    "a contrast with a class that is not there": (
        lambda: dt.explain(net(), images(), target=dt.contrast(0, 9)), errors.TargetError, ("9",)
    ),
    "log-odds of a class that is not there": (
        lambda: dt.explain(net(), images(), target=dt.log_odds(9)), errors.TargetError, ("9",)
    ),
    "more of the top classes than there are": (
        lambda: dt.explain(net(), images(), target=dt.top(5)), errors.TargetError, ("5", "3")
    ),
    "a box that excludes the input": (
        lambda: dt.explain(net(), images(), composite=ZBox(-0.5, 0.5)), errors.DomainError, ("-1", "0.5", "bounds")
    ),
    "bounds that exclude the input": (
        lambda: dt.explain(net(), images(), composite="deep-taylor", bounds=(0.0, 1.0)), errors.DomainError, ("bounds",)
    ),
    "a box above zero": (
        lambda: dt.explain(net(), images() + 2, composite=ZBox(0.5, 4.0)), errors.DomainError, ("low", "0")
    ),
    "a box below zero": (
        lambda: dt.explain(net(), images() - 2, composite=ZBox(-4.0, -0.5)), errors.DomainError, ("high", "0")
    ),
    "a misspelt composite": (
        lambda: dt.explain(net(), images(), composite="epsilon-pluss"), errors.CompositeError, ("'epsilon-plus'",)
    ),
    "a space and a slip in a composite's name": (
        lambda: dt.explain(net(), images(), composite="deep taylr"), errors.CompositeError, ("deep-taylor",)
    ),
    "alpha and beta that do not conserve": (
        lambda: dt.explain(net(), images(), composite=AlphaBeta(2.0, -1.0)), errors.CompositeError, ("alpha - beta",)
    ),
    "an inner node that is not there": (
        lambda: dt.explain(net(), images(), inner=("layer9",)), errors.DeepTaylorError, ("layer9",)
    ),
    "a branch on data": (lambda: dt.explain(Branches().eval(), images()), errors.TraceError, ("record=True",)),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_raises_our_own_error_that_names_the_cure(mistake: str) -> None:
    call, error, words = MISTAKES[mistake]
    with pytest.raises(error) as caught:
        call()
    assert isinstance(caught.value, errors.DeepTaylorError)
    message = str(caught.value)
    assert [word for word in words if not re.search(word, message, re.IGNORECASE)] == [], message


def test_an_explainer_checks_the_batches_that_come_later_too() -> None:
    explainer = dt.Explainer(net(), images(), composite="deep-taylor", bounds=(-1.0, 1.0))
    explainer(images())
    with pytest.raises(errors.DomainError):
        explainer(3 * images())
    with pytest.raises(errors.InputError, match=r"(?i)nan"):
        explainer(with_nan(images(), float("nan")))
    with pytest.raises(errors.InputError, match=r"(?i)empty batch"):
        explainer(torch.zeros(0, 4))
    with pytest.raises(errors.InputError, match="float64"):
        explainer(images().double())


def test_an_explainer_refuses_a_model_that_was_put_back_into_train_mode() -> None:
    model = net()
    explainer = dt.Explainer(model, images())
    model.train()
    with pytest.raises(errors.InputError, match=r"\.eval\(\)"):
        explainer(images())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_an_error_with_the_node(value: float) -> None:
    model = net()
    with torch.no_grad():
        model[2].weight[0, 0] = value
    with pytest.raises(errors.DeepTaylorError) as caught:
        dt.explain(model, images(), target=0)
    assert re.search("(?i)nan|inf", str(caught.value))


def test_relevance_that_overflows_is_an_error_with_the_line() -> None:
    tiny = torch.tensor([[1e-200]], dtype=torch.float64)
    x, seed = torch.tensor([[1e-120]], dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)
    with pytest.raises(errors.NonFiniteRelevance, match=r"test_bad_input\.py:\d+: .*nn\.functional\.linear"):
        dt.explain(lambda x: nn.functional.linear(x, tiny), x, target=seed, composite=ZPlus())


def test_relevance_that_explodes_is_a_warning_with_the_line() -> None:
    difference = torch.tensor([[1.0, -1.0]])
    with pytest.warns(errors.RelevanceWarning, match=r"test_bad_input\.py:\d+: .*nn\.functional\.linear") as caught:
        dt.explain(
            lambda x: nn.functional.linear(x, difference), torch.tensor([[1.0, 1.0 - 1e-6]]), composite="epsilon"
        )
    assert caught[0].filename == __file__


def test_relevance_that_vanishes_on_the_way_is_a_warning() -> None:
    layers = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    with torch.no_grad():
        layers[0].bias.fill_(-100.0)
        layers[2].bias.fill_(1.0)
    explainer = dt.Explainer(layers, torch.rand(2, 3), composite="epsilon")
    with pytest.warns(errors.RelevanceWarning, match="no relevance reached the inputs: 2 .*ledger=True"):
        result = explainer(torch.rand(2, 3))
    assert not result.relevance.any()


@pytest.mark.parametrize("composite", ["epsilon-plus", "gradient-times-input"])
def test_values_written_to_one_place_are_refused_with_the_line(composite: str) -> None:
    def scattered(x: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(x).scatter(1, (x > 9).long(), x)

    def put(x: torch.Tensor) -> torch.Tensor:
        y = torch.zeros_like(x)
        y[:, [0, 1, 0]] = x
        return y

    for function in (scattered, put):
        with pytest.raises(errors.InputError, match=r"test_bad_input\.py:\d+ writes several values to one place"):
            dt.explain(function, torch.randn(2, 3), composite=composite)


def test_an_operation_without_a_role_is_one_error_that_names_all_of_them() -> None:
    with pytest.raises(errors.UnsupportedOp) as caught:
        dt.explain(Sorts().eval(), torch.ones(2, 6))
    nodes = caught.value.nodes
    assert len(nodes) >= 2
    assert len({node.line for node in nodes}) == 2
    for node in nodes:
        assert node.file.endswith("test_bad_input.py")
        assert node.source.strip() in (
            "y = torch.special.i0(x)",
            "return torch.erfinv(y.sigmoid())",
        )
    message = str(caught.value)
    assert "test_bad_input.py" in message
    assert "declare" in message
    for node in nodes:
        assert f":{node.line}" in message
        assert node.source.strip() in message


def test_an_operation_without_a_role_is_named_with_its_module() -> None:
    with pytest.raises(errors.UnsupportedOp) as caught:
        dt.explain(nn.Sequential(nn.Linear(6, 6), nn.Sequential(nn.ReLU(), Sorts())).eval(), torch.ones(2, 6))
    assert {node.module for node in caught.value.nodes} == {"1.1"}


def test_a_complex_branch_without_a_role_is_refused_and_not_taken_for_a_constant() -> None:
    with pytest.raises(errors.UnsupportedOp) as caught:
        dt.explain(lambda x: x + torch.fft.fft(x).angle(), torch.ones(2, 6))
    assert any("torch.fft.fft" in node.source for node in caught.value.nodes)


def test_a_branch_on_data_is_quoted_and_can_be_recorded() -> None:
    with pytest.raises(errors.TraceError) as caught:
        dt.explain(Branches().eval(), images())
    assert "if x.sum() > 0" in str(caught.value)
    result = dt.explain(Branches().eval(), images(), record=True, composite=ZPlus())
    assert result.relevance.shape == (2, 4)


def test_every_error_is_caught_by_the_root_of_the_tree() -> None:
    ours = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, Exception)]
    ours = [error for error in ours if not issubclass(error, Warning)]
    assert len(ours) >= 9
    assert all(issubclass(error, errors.DeepTaylorError) for error in ours)


@pytest.mark.parametrize(
    "rule", [dt.rules.ZPlus(), dt.rules.AlphaBeta(), dt.rules.WSquare(), dt.rules.GeneralizedGamma()]
)
def test_rules_by_sign_refuse_complex_weights(rule: dt.rules.Rule) -> None:
    weight = torch.randn(8, 3, dtype=torch.complex64)

    def model(x: torch.Tensor) -> torch.Tensor:
        return (torch.fft.fft(x) @ weight).real

    with pytest.raises(dt.errors.CompositeError, match=r"complex values have none.*torch.fft.fft\(x\) @ weight"):
        dt.explain(model, torch.randn(2, 8), composite=rule)
    assert dt.explain(model, torch.randn(2, 8), composite=dt.rules.Epsilon()).relevance.isfinite().all()


@pytest.mark.parametrize(
    "lines", ["epsilon", [dt.rules.ZPlus()], [("affine", dt.rules.ZPlus())], [(dt.composites.first(), "z+")]]
)
def test_lines_of_a_composite_are_pairs_of_match_and_rule(lines: object) -> None:
    with pytest.raises(
        dt.errors.CompositeError, match=r"line 1 of composite 'custom' is .*write a list of \(match, rule\)"
    ):
        dt.Composite(lines)
