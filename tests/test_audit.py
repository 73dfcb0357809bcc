"""The audit says what holds of an explanation, names planted faults, and passes a clean case."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from typer.testing import CliRunner

import deeptaylor as dt
from deeptaylor.audit.layer_roots import roots_of
from deeptaylor.audit.pieces import Pieces
from deeptaylor.audit.replica import Replica
from deeptaylor.cli import app
from deeptaylor.composites import Composite, first, last, role
from deeptaylor.extend import AffineRule, Part, maps, redistribute
from deeptaylor.rules import Flat, LRPZero, WSquare, ZBox, ZPlus
from deeptaylor.rules.base import Redistribution, Relevance
from deeptaylor.step import Step


def convolutional(bias: bool = True, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, bias=bias), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 8, 3, bias=bias), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4, bias=bias),
    ).eval()  # fmt: skip


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.first, self.second = nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = torch.relu(x + self.second(torch.relu(self.first(x))))
        return self.head(x.mean((2, 3)))


def images(n: int = 1) -> Tensor:
    return torch.rand(n, 3, 10, 10, generator=torch.Generator().manual_seed(0))


def audited(model: nn.Module, composite: object, x: Tensor | None = None, **options: object) -> dt.AuditReport:
    x = images() if x is None else x
    return dt.audit(dt.Explainer(model, x, composite=composite, **options), x)


CLEAN = Composite([(role("affine"), LRPZero(bias="ignore"))], "lrp-0")


def dense(*sizes: int) -> nn.Sequential:
    torch.manual_seed(0)
    layers = [m for a, b in pairwise(sizes) for m in (nn.Linear(a, b, bias=False), nn.ReLU())]
    return nn.Sequential(*layers[:-1]).eval()


def test_a_clean_case_passes():
    """LRP-0 without biases expands every neuron of a dense network at 0: a root, and in the closed region."""
    report = audited(dense(12, 16, 10, 4), CLEAN, torch.rand(2, 12))
    assert report.passed, str(report)
    report.raise_if_failed()
    assert report["region"].figures["in region"] == 1
    assert "roots are locally constant" in report["gradient-times-input"].sentence


def test_a_box_that_excludes_the_input_is_named():
    report = audited(convolutional(), Composite([(first(), ZBox(-0.1, 0.1)), (role("affine"), ZPlus())], "boxed"))
    assert [finding.check for finding in report.failed] == ["box"]
    assert "excludes the input" in report["box"].sentence
    with pytest.raises(dt.errors.AuditFailed, match="box"):
        report.raise_if_failed()


@dataclass(frozen=True)
class WrongDenominator(AffineRule):
    """z⁺ divided by 1.3 times what it should be, and silent about it."""

    def __call__(self, step: Step, relevance: Relevance) -> Redistribution:
        def denominator() -> Tensor:
            return 1.3 * step.affine.forward(step.x, step.affine.weight.clamp(min=0))

        return redistribute(step, relevance, [Part(maps.IDENTITY, maps.PLUS)], denominator=denominator)


def test_a_rule_with_a_wrong_denominator_is_named():
    planted = Composite([(lambda place: place.index == 1, WrongDenominator()), *_clean_z_plus()], "planted")
    report = audited(convolutional(), planted)
    assert report["conservation"].status == "fails"
    assert report["conservation"].layers == ("conv2d (3)",)
    assert report["roots"].status == "fails"
    worst = max(report.layers, key=lambda layer: layer.kept_back)
    assert (worst.module, worst.rule) == ("3", "WrongDenominator()")
    assert worst.kept_back == pytest.approx(1 - 1 / 1.3)


def _clean_z_plus() -> list[tuple[object, object]]:
    return [(first(), WSquare()), (last(), LRPZero(bias="ignore")), (role("affine"), ZPlus())]


def test_a_map_that_ignores_the_class_is_named():
    model, x = dense(20, 60, 60, 60, 5), torch.rand(2, 20, generator=torch.Generator().manual_seed(0))
    report = audited(model, Composite([(role("affine"), ZPlus())], "z+"), x)
    finding = report["class-sensitivity"]
    assert finding.status == "fails"
    assert "barely depends on the class: cos " in finding.sentence
    assert finding.figures["median |cos|"] > 0.99
    assert report["convergence"].status == "fails"
    assert audited(model, CLEAN, x)["class-sensitivity"].status == "holds"


def test_positive_biases_that_push_roots_out_of_their_domain_are_named():
    model = convolutional()
    with torch.no_grad():
        model[3].bias += 1.0
    finding = audited(model, Composite(_clean_z_plus(), "z+"))["domain"]
    assert finding.status == "fails"
    assert finding.layers[0] == "conv2d 3"
    assert "positive bias" in finding.sentence
    assert finding.figures["positive biases"] > 0
    with torch.no_grad():
        model[3].bias -= 2.0
    assert audited(model, Composite(_clean_z_plus(), "z+"))["domain"].status == "holds"


def test_relevance_on_inputs_of_weight_zero_has_no_root():
    model = convolutional(bias=False)
    with torch.no_grad():
        model[3].weight[:, ::2] = 0.0
    finding = audited(model, Composite([(lambda place: place.index == 1, Flat()), *CLEAN.lines], "flat"))["roots"]
    assert finding.status == "fails"
    assert "weight 0" in finding.sentence


@pytest.mark.parametrize("model", [convolutional(), Residual().eval()], ids=["max-pool", "residual"])
def test_regions_apply_to_piecewise_linear_models(model: nn.Module):
    report = audited(model, "deep-taylor", bounds=(0.0, 1.0))
    assert not report.smooth
    assert all(layer.in_region is not None and layer.remainder is None for layer in report.layers)
    assert 0 < report["region"].figures["first boundary"]


class Picking(nn.Module):
    """An affine layer, something that picks among its outputs, and another affine layer."""

    def __init__(self, picks: Callable[[Tensor], Tensor], width: int) -> None:
        super().__init__()
        self.below, self.picks, self.above = nn.Linear(5, 12), picks, nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.above(self.picks(self.below(x)).flatten(1))


PICKS: dict[str, tuple[Callable[[Tensor], Tensor], int]] = {
    "amax": (lambda h: h.unflatten(1, (3, 2, 2)).amax((1, 3)), 2),
    "amin, kept": (lambda h: h.unflatten(1, (3, 4)).amin(1, keepdim=True), 4),
    "max": (lambda h: h.unflatten(1, (3, 4)).max(2).values, 3),
    "min": (lambda h: h.unflatten(1, (3, 4)).min(1)[0], 4),
    "sort": (lambda h: h.unflatten(1, (3, 4)).sort(1, descending=True).values, 12),
    "topk": (lambda h: h.topk(5, 1).values, 5),
    "least": (lambda h: h.unflatten(1, (3, 4)).topk(2, 1, largest=False).values, 8),
    "median": (lambda h: h.unflatten(1, (3, 4)).median(2).values, 3),
    "kthvalue": (lambda h: h.kthvalue(4, 1, keepdim=True).values, 1),
    "cummax": (lambda h: h.cummax(1).values, 12),
    "adaptive, line": (lambda h: F.adaptive_max_pool1d(h[:, None], 5), 5),
    "adaptive, image": (lambda h: F.adaptive_max_pool2d(h.unflatten(1, (1, 3, 4)), (2, 3)), 6),
}


@pytest.mark.parametrize("name", PICKS)
def test_the_region_of_an_operation_that_picks_is_where_it_picks_the_same(name: str):
    """Inside the region the network is the affine piece; outside it the gradient differs."""
    torch.manual_seed(0)
    model = Picking(*PICKS[name]).double().eval()
    x = torch.randn(1, 5, dtype=torch.float64)
    replica, _ = _replica(model, x)
    above = replica.above("x", torch.tensor([[1.0, -0.5]]))
    assert above.is_piecewise_linear
    points = x + 0.6 * torch.randn(200, 5, dtype=torch.float64)
    with torch.no_grad():
        inside = (above.margins(points) >= 0).all(1)
        real, piece = above.run(points, real=True), above.run(points)
        assert torch.allclose(real, model(points) @ torch.tensor([1.0, -0.5], dtype=torch.float64), atol=1e-12)
        assert torch.allclose(real[inside], piece[inside], atol=1e-12)
    leaf = points.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(above.run(leaf, real=True).sum(), leaf)
    same = (gradient - above.gradient).abs().amax(1) < 1e-9
    assert not bool((inside & ~same).any())
    # a middle value may stay the middle one while others change sides around it: then the regions differ, not the pieces
    assert torch.equal(inside, same) or name in ("median", "kthvalue")
    assert 0 < int(inside.sum()) < 200


def test_where_regions_do_not_apply_the_remainder_is_reported():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 3)).eval()
    report = audited(model, "epsilon", torch.rand(1, 6))
    assert set(report.smooth) == {"gelu", "layer_norm"}
    assert "do not apply below" in report["remainder"].sentence
    below = [layer for layer in report.layers if layer.module in ("0", "2")]
    assert all(layer.in_region is None and layer.remainder >= 0 for layer in below)


def _replica(model: nn.Module, x: Tensor, composite: object = "epsilon") -> tuple[Replica, dt.Explainer]:
    explainer = dt.Explainer(model, x, composite=composite)
    return Replica.of(explainer, explainer._call(x, None), 0, 1), explainer


def test_the_network_held_on_its_piece_is_the_network_inside_the_region():
    model, x = convolutional().double(), images().double()
    replica, _ = _replica(model, x)
    weights = torch.eye(4, dtype=torch.float64)[1:2]
    above = replica.above("input", weights)
    near = x + 1e-7 * torch.randn(3, 3, 10, 10, dtype=torch.float64)
    with torch.no_grad():
        assert torch.allclose(above.run(near), model(near)[:, 1], rtol=0, atol=1e-14)
        assert torch.allclose(above.run(near, real=True), model(near)[:, 1], rtol=0, atol=1e-14)
    leaf = x.clone().requires_grad_()
    model(leaf)[0, 1].backward()
    assert torch.allclose(above.gradient, leaf.grad, rtol=0, atol=1e-14)


def test_roots_of_the_audit_are_those_of_the_rule():
    layer = nn.Linear(5, 4).double().eval()
    x = torch.rand(1, 5, dtype=torch.float64)
    replica, _ = _replica(layer, x, ZPlus())
    (step,) = [s for s in replica.run.steps.values() if s.affine is not None]
    found = roots_of(ZPlus(), step, torch.arange(4)).points
    assert torch.allclose(found, ZPlus().root_points(layer, x[0]), rtol=0, atol=1e-12)


def test_in_region_means_what_a_dense_description_of_the_region_says():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2)).double().eval()
    x = torch.randn(1, 4, dtype=torch.float64)
    replica, _ = _replica(model, x)
    above: Pieces = replica.above("input", torch.tensor([[1.0, 0.0]]))
    matrix, offset, rows, offsets = torch.eye(4).double(), torch.zeros(4).double(), [], []
    for layer in (model[0], model[2]):  # A_{l+1} = W diag(s) A
        matrix, offset = layer.weight @ matrix, layer.weight @ offset + layer.bias
        on = (matrix @ x[0] + offset > 0).double()
        rows.append((2 * on - 1)[:, None] * matrix)
        offsets.append((2 * on - 1) * offset)
        matrix, offset = on[:, None] * matrix, on * offset
    points = torch.randn(20, 4, dtype=torch.float64)
    with torch.no_grad():
        assert torch.allclose(above.margins(points), points @ torch.cat(rows).T + torch.cat(offsets), atol=1e-12)
        assert torch.allclose(above.rows(torch.arange(11)), torch.cat(rows), atol=1e-12)


def test_the_model_and_the_random_state_are_left_as_they_were():
    model, x = convolutional(), images()
    explainer = dt.Explainer(model, x, composite="deep-taylor", bounds=(0.0, 1.0))
    before, state, relevance = copy.deepcopy(model.state_dict()), torch.get_rng_state(), explainer(x).relevance
    first_report, second = (dt.audit(explainer, x).to_dict() for _ in range(2))
    assert first_report == second
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(explainer(x).relevance, relevance)
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_the_report_is_json_and_refuses_unknown_checks(tmp_path):
    report = audited(convolutional(), "epsilon")
    report.save(tmp_path / "audit.json")
    stored = json.loads((tmp_path / "audit.json").read_text())
    assert stored["format"] == "deeptaylor-audit-1"
    assert [finding["check"] for finding in stored["findings"]] == [f.check for f in report.findings]
    report.raise_if_failed("class-sensitivity")
    with pytest.raises(dt.errors.AuditFailed, match="are not roots"):
        report.raise_if_failed("roots")
    with pytest.raises(dt.errors.InputError, match="the checks are"):
        report.raise_if_failed("rots")
    with pytest.raises(KeyError, match="was not looked at"):
        report["box"]


def test_several_targets_per_sample_are_refused():
    explainer = dt.Explainer(convolutional(), images(), composite="epsilon")
    with pytest.raises(dt.errors.InputError, match="one target per sample"):
        dt.audit(explainer, images(), target=torch.tensor([[0, 1]]))
    report = dt.audit(explainer, images(), target=2)
    assert report.maps[0].target == 2


FACTORY = """
from torch import nn
import torch

def build():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
"""


def test_the_command_prints_the_verdict_and_says_by_its_status_what_failed(tmp_path, monkeypatch):
    pixels = np.random.default_rng(0).integers(0, 256, (20, 24, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "cat.png")
    (tmp_path / "auditnet.py").write_text(FACTORY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    call = ["audit", "auditnet:build", "cat.png", "--size", "16", "--mean", "0.5", "--std", "0.25", "-c", "epsilon"]
    fine = CliRunner().invoke(app, [*call, "--fail-on", "class-sensitivity,conservation", "--json", "audit.json"])
    assert fine.exit_code == 0, fine.output
    assert "FAILS" in fine.output
    assert json.loads((tmp_path / "audit.json").read_text())["passed"] is False
    failing = CliRunner().invoke(app, [*call, "--fail-on", "any"])
    assert failing.exit_code == 1
    refused = CliRunner().invoke(app, [*call, "--fail-on", "nonsense"])
    assert refused.exit_code == 2
    assert "no check is called 'nonsense'" in refused.output


class Attending(nn.Module):
    """Tokens whose batch axis is merged with others on the way."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 5, stride=5)
        self.block = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(self.patches(x).flatten(2).transpose(1, 2)).mean(1))


class Reading(nn.Module):
    """Explained at the embeddings of its ids."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.hidden, self.head = nn.Embedding(20, 6), nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(torch.relu(self.hidden(self.embedding(ids)).mean(1)))


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.head = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x * 2 if x.sum() > 0 else x
        return self.head(torch.relu(self.hidden(x)))


@pytest.mark.parametrize("kind", ["attention", "ids", "recorded"])
def test_other_kinds_of_models_are_audited_too(kind: str):
    torch.manual_seed(0)
    model, x, record = {
        "attention": (Attending().eval(), images(), False),
        "ids": (Reading().eval(), torch.arange(5)[None], False),
        "recorded": (Branching().eval(), torch.rand(1, 4), True),
    }[kind]
    report = dt.audit(dt.Explainer(model, x, record=record), x)
    assert report["conservation"].status == "holds"
    assert bool(report.smooth) == (kind == "attention")
    roots = [finding.sentence for finding in report.findings if finding.check == "roots"]
    assert "zero-order term" in roots[0]
    assert all(layer.identity < 1e-9 for layer in report.layers)


def test_relevance_put_at_the_output_and_inference_mode():
    model, x = dense(6, 8, 3), torch.rand(1, 6, generator=torch.Generator().manual_seed(0))
    explainer = dt.Explainer(model, x, composite=CLEAN)
    plain = dt.audit(explainer, x, target=model(x).detach() * torch.tensor([[0.0, 1.0, 0.0]]))
    assert plain.layers == dt.audit(explainer, x, target=1).layers
    with torch.inference_mode():
        inside = torch.rand(1, 6, generator=torch.Generator().manual_seed(0))
        assert dt.audit(explainer, inside, target=1).findings == dt.audit(explainer, x, target=1).findings
