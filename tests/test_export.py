"""An exported explanation gives what the explainer gives, in a process that has torch alone."""

from __future__ import annotations

import json
import zipfile

import pytest
import torch
from shipped import CASES, MORE, elsewhere, explainer_of, lenet, off
from torch import nn

import deeptaylor as dt
from deeptaylor.errors import InputError, TargetError

RUN = """
import torch
folder = sys.argv[1]
for case in torch.load(f"{folder}/cases.pt"):
    program = torch.export.load(f"{folder}/{case['file']}").module()
    found = [program(x, target) for x, target in case["calls"]]
    torch.save(found, f"{folder}/{case['file']}.out")
assert "deeptaylor" not in sys.modules
"""


def run_elsewhere(cases, folder):
    """Exports all cases here and runs them elsewhere, on batches of 1, 3 and 5; what they gave, beside the explainers."""
    calls, explainers = [], []
    for i, (make, composite) in enumerate(cases):
        explainers.append(explainer_of(make, composite))
        explainers[-1].export(folder / f"{i}.pt2", preprocessing={"mean": [0.5], "std": [0.25]})
        shape = make()[1].shape[1:]
        batches = [(torch.randn(n, *shape).clamp(-4, 4), torch.arange(n) % 4 - 1) for n in (1, 3, 5)]
        calls.append({"file": f"{i}.pt2", "calls": batches})
    torch.save(calls, folder / "cases.pt")
    elsewhere(RUN, str(folder), cwd=folder)
    return [(e, c["calls"], torch.load(folder / f"{c['file']}.out")) for e, c in zip(explainers, calls, strict=True)]


def agrees(explainer, calls, results):
    for (x, target), found in zip(calls, results, strict=True):
        expected = explainer(x, target=torch.where(target < 0, explainer(x).target, target))
        assert off(found["relevance"], expected.relevance) < 1e-5
        assert off(found["output"], expected.output) < 1e-5
        assert torch.equal(found["class"], expected.target)
        torch.testing.assert_close(found["explained"], expected.explained, rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    return folder, run_elsewhere(CASES, folder)


@pytest.mark.parametrize("number", range(len(CASES)), ids=[composite for _, composite in CASES])
def test_a_program_gives_in_torch_alone_what_the_explainer_gives(exported, number):
    agrees(*exported[1][number])


@pytest.mark.slow
def test_so_do_those_of_other_composites(tmp_path):
    for case in run_elsewhere(MORE, tmp_path):
        agrees(*case)


def test_a_program_says_what_it_is_and_nothing_of_who_made_it(exported):
    folder, _ = exported
    extra = {"deeptaylor.json": ""}
    torch.export.load(folder / "0.pt2", extra_files=extra)
    said = json.loads(extra["deeptaylor.json"])
    assert said["composite"] == "epsilon-gamma-box"
    assert said["inputs"] == {"input": {"dtype": "float32", "shape": ["N", 1, 16, 16], "explained": True}}
    assert "-1 stands for the predicted class" in said["target"]
    assert said["preprocessing"] == {"mean": [0.5], "std": [0.25]}
    assert said["versions"]["deeptaylor"] == dt.__version__
    assert said["rules"][0]["rule"] == "ZBox(low=-4, high=4)"
    with zipfile.ZipFile(folder / "0.pt2") as archive:
        content = b"".join(archive.read(name) for name in archive.namelist())
    assert b".py" not in content  # no source file's path
    assert b"local_response_norm" not in content


def test_a_model_changed_after_export_does_not_change_the_program(tmp_path):
    model, x = lenet()
    explainer = dt.Explainer(model, x, composite="epsilon")
    before = explainer(x).relevance
    program = torch.export.load(explainer.export(tmp_path / "a.pt2")).module()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert off(program(x, torch.full((3,), -1))["relevance"], before) < 1e-5


def test_what_a_program_cannot_explain_is_an_error_or_nan(exported):
    folder, cases = exported
    program = torch.export.load(folder / "0.pt2").module()
    x = cases[0][1][1][0].clone()
    for wrong in (5, -2):
        with pytest.raises(RuntimeError, match="out of bounds"):
            program(x, torch.full((3,), wrong))
    x[1, 0, 2, 2] = 100.0
    relevance = program(x, torch.zeros(3, dtype=torch.int64))["relevance"]
    assert relevance[1].isnan().all()
    assert relevance[[0, 2]].isfinite().all()


def test_a_fixed_contrast_takes_no_target(tmp_path):
    model, x = lenet()
    explainer = dt.Explainer(model, x, composite="epsilon")
    target = dt.contrast(1, 3)
    program = torch.export.load(explainer.export(tmp_path / "a.pt2", target=target)).module()
    assert off(program(x)["relevance"], explainer(x, target=target).relevance) < 1e-5


def test_exports_that_make_no_sense_are_refused_before_any_work(tmp_path):
    model, x = lenet()
    explainer = dt.Explainer(model, x, composite="epsilon")
    with pytest.raises(InputError, match=r"\.pt2"):
        explainer.export(tmp_path / "a.pth")
    with pytest.raises(InputError, match="no folder"):
        explainer.export(tmp_path / "absent" / "a.pt2")
    with pytest.raises(InputError, match="no folder"):
        explainer(x).save(tmp_path / "absent" / "a.safetensors")
    with pytest.raises(InputError, match="JSON"):
        explainer.export(tmp_path / "a.pt2", preprocessing={"mean": x})
    with pytest.raises(InputError, match="every batch"):
        explainer.export(tmp_path / "a.pt2", target=3)
    with pytest.raises(TargetError, match="one class per sample"):
        explainer.export(tmp_path / "a.pt2", target=dt.top(2))
    with pytest.raises(InputError, match="recorded"):
        dt.Explainer(model, x, record=True).export(tmp_path / "a.pt2")
    with pytest.raises(InputError, match="exact root"):
        dt.Explainer(nn.Sequential(nn.Flatten(), nn.Linear(256, 2)).eval(), x, composite="exact-root").export(
            tmp_path / "a.pt2"
        )
    assert not list(tmp_path.iterdir())


class Turned(nn.Module):
    """A layer whose input is turned round, as torchvision's attention does with its tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.inner(x.transpose(0, 1)).relu().transpose(0, 1).sum(1))


@pytest.mark.parametrize("composite", ["epsilon", "attn-lrp"])
def test_a_program_makes_no_copies_of_a_weight(tmp_path, composite):
    torch.manual_seed(0)
    model, x = Turned().eval(), torch.randn(3, 5, 6)
    explainer = dt.Explainer(model, x, composite=composite)
    program = torch.export.load(explainer.export(tmp_path / "explain.pt2"))
    assert not [node.name for node in program.graph.nodes if "bmm" in node.name]  # a weight per token
    found = program.module()(x, torch.full((3,), -1))
    torch.testing.assert_close(found["relevance"], explainer(x).relevance)
