"""The command line does what it says, refuses early and clearly, and never loses what it has found."""

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from typer.testing import CliRunner

import deeptaylor as dt
from deeptaylor.cli import app
from deeptaylor.composites import PRESETS
from deeptaylor.report.caveats import CAVEATS

FACTORY = """
import torch
from torch import nn

def build():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(5, 3),
    )

def grey():
    return nn.Sequential(nn.Flatten(), nn.Linear(256, 2))

def broken():
    raise ZeroDivisionError("one over nothing")

def several():
    class Several(nn.Module):
        def forward(self, x):
            return x, x
    return Several()

number = 3
"""
SIZE = ["--size", "16", "--mean", "0.5", "--std", "0.25"]


@pytest.fixture
def desk(tmp_path, monkeypatch):
    """A folder with two photos, class names and a factory; the working directory of the test."""
    random = np.random.default_rng(0)
    for name in ("cat", "dog"):
        Image.fromarray(random.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(tmp_path / f"{name}.png")
    (tmp_path / "labels.txt").write_text("tabby, tabby cat\nlynx\ntiger cat\n")
    (tmp_path / "two.txt").write_text("tabby\nlynx\n")
    (tmp_path / "word.json").write_text('"tabby"')
    (tmp_path / "desknet.py").write_text(FACTORY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(__import__("sys").modules, "desknet", raising=False)
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path


def run(*arguments, code=0):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert "Traceback" not in result.output
    assert result.exit_code == code, (result.output, result.exception)
    return result


def explain(*arguments, model="desknet:build", photos=("cat.png",), code=0):
    return run("explain", *photos, "-m", model, *SIZE, *arguments, code=code)


def test_a_page_is_the_default(desk):
    result = explain("--labels", "labels.txt", photos=("cat.png", "dog.png"))
    page = (desk / "report.html").read_text()
    assert "wrote report.html" in result.stdout
    assert re.search(r"cat: (tabby|lynx|tiger cat) \d+%", result.stdout)
    assert page.count('<section class="card" id="photo-') == 2
    assert " vs " in page


def test_a_png_shows_every_composite(desk):
    explain("-o", "maps.png", "-c", "epsilon", "-c", "deep-taylor", "-t", "top2", photos=("cat.png", "dog.png"))
    with Image.open(desk / "maps.png") as picture:
        width, height = picture.size
    assert height > 4 * 300  # two photos, two composites each
    assert width > 3 * 300


def test_arrays_hold_what_the_engine_gives(desk):
    explain(
        "-o", "maps.npz", "-c", "epsilon", "-c", "deep-taylor", "-t", "2", "-t", "0 vs 1", photos=("cat.png", "dog.png")
    )
    held = np.load(desk / "maps.npz")
    assert held["relevance"].shape == (2, 2, 2, 3, 16, 16)
    assert held["composites"].tolist() == ["epsilon", "deep-taylor"]
    assert held["photos"].tolist() == ["cat", "dog"]
    assert held["targets"].tolist() == [["class 2", "class 0 vs class 1"]] * 2
    assert np.allclose(held["explained"][:, 0, 0], held["scores"][:, 2])
    assert np.allclose(held["explained"][:, 0, 1], held["scores"][:, 0] - held["scores"][:, 1])
    import desknet

    inputs = (torch.from_numpy(held["pixels"]).permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.25
    expected = dt.explain(desknet.build().eval(), inputs, target=2, composite="epsilon").relevance
    assert np.allclose(held["relevance"][:, 0, 0], expected, atol=1e-6)


def test_a_single_map_is_one_attribution_file(desk):
    explain("-o", "one.safetensors")
    loaded = dt.Attribution.load(desk / "one.safetensors")
    assert loaded.relevance.shape == (1, 3, 16, 16)
    assert loaded.ledger is not None


def test_several_maps_are_one_file_each(desk):
    result = explain(
        "-o", "a.safetensors", "-c", "epsilon", "-c", "epsilon-plus", "--labels", "labels.txt", "-t", "tabby vs lynx"
    )
    names = sorted(path.name for path in desk.glob("*.safetensors"))
    assert names == ["a.cat.epsilon-plus.tabby-vs-lynx.safetensors", "a.cat.epsilon.tabby-vs-lynx.safetensors"]
    assert all(f"wrote {name}" in result.stdout for name in names)


def test_an_exported_program_says_its_own_size(desk):
    import desknet

    model = desknet.build().eval()
    torch.export.save(torch.export.export(model, (torch.zeros(1, 3, 16, 16),)), "net.pt2")
    run("explain", "cat.png", "-m", "net.pt2", "--mean", "0.5", "--std", "0.25", "-o", "p.npz", "-c", "epsilon")
    explain("-o", "m.npz", "-c", "epsilon")
    assert np.allclose(np.load("p.npz")["relevance"], np.load("m.npz")["relevance"], atol=1e-6)


def test_grey_photos_for_a_grey_network(desk):
    explain("--channels", "1", "-o", "g.npz", model="desknet:grey")
    assert np.load("g.npz")["relevance"].shape[3:] == (1, 16, 16)


def test_plan_names_every_operation_and_its_rule(desk):
    printed = run("plan", "desknet:build", "--size", "16", "-c", "deep-taylor").stdout
    for word in ("conv2d", "linear", "adaptive_avg_pool2d", "affine", "activation", "WSquare", "ZPlus"):
        assert word in printed


def test_composites_are_all_listed_with_their_caveats():
    printed = run("composites").stdout
    assert set(CAVEATS) == set(PRESETS)
    assert all(name in printed for name in PRESETS)
    assert printed.count("Beware") == len(PRESETS)


@pytest.mark.parametrize("command", ["", "explain", "plan", "demo", "composites"])
def test_help_teaches(command):
    printed = run(*([command] if command else []), "--help").stdout
    assert "deeptaylor" in printed
    if command in ("explain", "plan"):
        assert "For example" in printed


def test_the_version_is_the_packages():
    assert run("--version").stdout.strip() == f"deeptaylor {dt.__version__}"


BAD = {
    "missing photo": (["explain", "nowhere.png", "-m", "desknet:build", *SIZE], "no photo at nowhere.png"),
    "folder": (["explain", ".", "-m", "desknet:build", *SIZE], "that is a folder"),
    "no photo": (["explain", "labels.txt", "-m", "desknet:build", *SIZE], "labels.txt can't be read as a photo"),
    "suffix": (
        ["explain", "cat.png", "-m", "desknet:build", *SIZE, "-o", "x.pdf"],
        "one of .html, .png, .npz, .safetensors",
    ),
    "no such folder": (["explain", "cat.png", "-m", "desknet:build", *SIZE, "-o", "a/b.png"], "there is no folder"),
    "composite": (
        ["explain", "cat.png", "-m", "desknet:build", *SIZE, "-c", "deep-tailor"],
        "did you mean 'deep-taylor'",
    ),
    "form of model": (["explain", "cat.png", "-m", "resnet50", *SIZE], "torchvision:NAME"),
    "weights as model": (["explain", "cat.png", "-m", "w.safetensors", *SIZE], "--weights w.safetensors"),
    "missing program": (["explain", "cat.png", "-m", "w.pt2", *SIZE], "no model at w.pt2"),
    "missing module": (["explain", "cat.png", "-m", "nomodule:build", *SIZE], "no module 'nomodule'"),
    "missing function": (["explain", "cat.png", "-m", "desknet:buidl", *SIZE], "did you mean build"),
    "no model": (["explain", "cat.png", "-m", "desknet:number", *SIZE], "building desknet:number failed"),
    "factory fails": (["explain", "cat.png", "-m", "desknet:broken", *SIZE], "ZeroDivisionError: one over nothing"),
    "output": (["explain", "cat.png", "-m", "desknet:several", *SIZE], "not (1, classes)"),
    "preprocessing": (["explain", "cat.png", "-m", "desknet:build"], "pass --size, --mean and --std"),
    "mean": (["explain", "cat.png", "-m", "desknet:build", "--mean", "grey"], "--mean 'grey'"),
    "two means": (
        ["explain", "cat.png", "-m", "desknet:build", "--size", "9", "--mean", "1,2", "--std", "1"],
        "mean has 2",
    ),
    "zero std": (["explain", "cat.png", "-m", "desknet:build", "--size", "9", "--mean", "0", "--std", "0"], "positive"),
    "missing weights": (
        ["explain", "cat.png", "-m", "desknet:build", *SIZE, "--weights", "w.pt"],
        "no weights at w.pt",
    ),
    "pretrained": (
        ["explain", "cat.png", "-m", "desknet:build", *SIZE, "--weights", "pretrained"],
        "torchvision: and timm:",
    ),
    "target": (["explain", "cat.png", "-m", "desknet:build", *SIZE, "-t", "3"], "classes 0 to 2"),
    "negative target": (["explain", "cat.png", "-m", "desknet:build", *SIZE, "--target=-1"], "out of range"),
    "top": (["explain", "cat.png", "-m", "desknet:build", *SIZE, "-t", "top4"], "only 3 classes"),
    "top0": (["explain", "cat.png", "-m", "desknet:build", *SIZE, "-t", "top0"], "ranks start at top1"),
    "no names": (["explain", "cat.png", "-m", "desknet:build", *SIZE, "-t", "lynx"], "--labels FILE"),
    "name": (
        ["explain", "cat.png", "-m", "desknet:build", *SIZE, "-t", "tiger-cat", "--labels", "labels.txt"],
        "did you mean 'tiger cat'",
    ),
    "one class against itself": (
        ["explain", "cat.png", "-m", "desknet:build", *SIZE, "-t", "1 vs 1"],
        "both sides are",
    ),
    "three sides": (["explain", "cat.png", "-m", "desknet:build", *SIZE, "-t", "0 vs 1 vs 2"], "'this vs that'"),
    "labels": (["explain", "cat.png", "-m", "desknet:build", *SIZE, "--labels", "none.txt"], "no labels at none.txt"),
    "label count": (
        ["explain", "cat.png", "-m", "desknet:build", *SIZE, "--labels", "two.txt"],
        "there are 2 class names, and the model has 3 classes",
    ),
    "label text": (
        ["explain", "cat.png", "-m", "desknet:build", *SIZE, "--labels", "word.json"],
        "does not hold class names (TypeError: a str",
    ),
    "photo as out": (
        ["explain", "cat.png", "-m", "desknet:build", *SIZE, "-o", "cat.png"],
        "--out cat.png is a file that is read here",
    ),
    "infinite mean": (["explain", "cat.png", "-m", "desknet:build", "--mean", "inf"], "--mean 'inf': write one number"),
    "demo suffix": (["demo", "-o", "x.png"], "must end in .html"),
    "plan without size": (["plan", "desknet:build"], "pass --size"),
}


@pytest.mark.parametrize("case", BAD.values(), ids=BAD)
def test_bad_input_is_one_clear_message_and_nothing_is_written(desk, case):
    arguments, said = case
    before = set(desk.iterdir())
    result = run(*arguments, code=2)
    assert said in result.stderr
    assert result.stderr.startswith("error: ")
    assert {path for path in desk.iterdir() if path.name != "__pycache__"} == before


def test_weights_that_would_be_overwritten_are_still_there(desk):
    save_file({"w": torch.ones(2)}, "w.safetensors")
    before = (desk / "w.safetensors").read_bytes()
    said = explain("--weights", "w.safetensors", "-o", "w.safetensors", code=2).stderr
    assert "would be overwritten" in said
    assert (desk / "w.safetensors").read_bytes() == before


def test_a_folder_that_can_not_be_written_is_refused_before_any_work(desk, monkeypatch):
    monkeypatch.setattr("os.access", lambda _, mode, **__: mode != os.W_OK)
    assert "--out maps.npz can't be written: no permission" in explain("-o", "maps.npz", code=2).stderr


def test_a_mean_of_pixels_up_to_255_is_noted(desk):
    assert (
        "for pixels in 0..255 divide"
        in run(
            "explain",
            "cat.png",
            "-m",
            "desknet:build",
            "--size",
            "16",
            "--mean",
            "127",
            "--std",
            "64",
            "-o",
            "m.npz",
            "-c",
            "epsilon",
        ).stderr
    )


def test_the_package_runs_as_a_module():
    import subprocess
    import sys

    said = subprocess.run([sys.executable, "-m", "deeptaylor", "--version"], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == f"deeptaylor {dt.__version__}"


def test_all_bad_photos_are_named_at_once(desk):
    said = explain(photos=("one.png", "cat.png", "two.png"), code=2).stderr
    assert "one.png" in said
    assert "two.png" in said


@pytest.mark.parametrize("error", [dt.errors.InputError, MemoryError], ids=lambda error: error.__name__)
def test_a_failure_on_one_photo_keeps_the_others(desk, monkeypatch, error):
    honest = dt.Explainer.__call__

    def fails_on_the_second(self, inputs, **options):
        if torch.equal(inputs, fails_on_the_second.first) or fails_on_the_second.first.numel() == 0:
            fails_on_the_second.first = inputs
            return honest(self, inputs, **options)
        raise error("the second photo is cursed")

    fails_on_the_second.first = torch.empty(0)
    monkeypatch.setattr(dt.Explainer, "__call__", lambda self, inputs, **o: fails_on_the_second(self, inputs, **o))
    result = explain("-c", "epsilon", photos=("cat.png", "dog.png"), code=1)
    assert re.search("dog, epsilon: .*the second photo is cursed", result.stderr)
    page = (desk / "report.html").read_text()
    assert "What desknet:build saw" in page
    assert page.count('<section class="card" id="photo-') == 1


def test_an_interruption_keeps_the_photos_explained_so_far(desk, monkeypatch):
    honest, calls = dt.Explainer.__call__, []

    def interrupted(self, inputs, **options):
        calls.append(1)
        if len(calls) > 1:
            raise KeyboardInterrupt
        return honest(self, inputs, **options)

    monkeypatch.setattr(dt.Explainer, "__call__", interrupted)
    explain("-o", "maps.npz", photos=("cat.png", "dog.png"), code=130)
    assert np.load(desk / "maps.npz")["photos"].tolist() == ["cat"]


def test_a_fault_of_ours_is_a_message_too(desk, monkeypatch):
    def faulty(self, *_, **__):
        raise RuntimeError("a bug")

    monkeypatch.setattr(dt.Explainer, "__init__", faulty)
    assert "this should not happen (RuntimeError: a bug)" in explain(code=1).stderr


def test_the_last_whole_file_survives_a_failed_write(desk, monkeypatch):
    (desk / "report.html").write_text("the last report")
    monkeypatch.setattr("deeptaylor.report.write.build_html", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    assert "disk full" in explain(code=1).stderr
    assert (desk / "report.html").read_text() == "the last report"


@pytest.mark.parametrize("kind", ["safetensors", "pt"])
def test_weights_are_loaded_and_change_the_answer(desk, kind):
    import desknet

    state = {name: torch.zeros_like(value) for name, value in desknet.build().state_dict().items()}
    state["6.bias"] = torch.tensor([0.0, 9.0, 0.0])
    save_file(state, "w.safetensors") if kind == "safetensors" else torch.save(state, "w.pt")
    explain("--weights", f"w.{kind}", "-o", "maps.npz")
    assert np.load("maps.npz")["scores"].tolist() == [[0, 9, 0]]


def test_labels_may_be_json(desk):
    (desk / "names.json").write_text(json.dumps({"0": "a", "1": "b", "2": "c"}))
    explain("--labels", "names.json", "-t", "c", "-o", "maps.npz")
    assert np.load("maps.npz")["targets"].tolist() == [["c"]]


def test_the_page_tells_the_command_that_made_it(desk, monkeypatch):
    monkeypatch.setattr("sys.argv", ["deeptaylor", "explain", "my cat.png", "-m", "desknet:build"])
    Path("cat.png").rename("my cat.png")
    explain(photos=("my cat.png",))
    assert "deeptaylor explain &#39;my cat.png&#39; -m desknet:build" in (desk / "report.html").read_text()
