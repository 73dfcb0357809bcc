"""Texts on the command line: what is written holds every word, and what can't be read is refused before any work."""

import csv

import pytest
from typer.testing import CliRunner

import deeptaylor as dt
from deeptaylor.cli import app
from deeptaylor.targets import contrast, top
from deeptaylor.text.command import parse_target

FACTORY = """
import torch
from torch import nn
import deeptaylor as dt

WORDS = "<unk> it is not a bad good movie".split()

class Sum(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.words, self.decide = nn.Embedding(len(WORDS), 4), nn.Linear(4, 2)
    def forward(self, ids):
        return self.decide(self.words(ids).tanh().mean(1))

def reader():
    return Sum(), dt.Vocabulary(WORDS, unknown="<unk>")

def lone():
    return Sum()
"""
REVIEWS = 'id,text\n1,"it is not a bad movie"\n2,\n3,"good, ""movie""\nit is"\n'


@pytest.fixture
def desk(tmp_path, monkeypatch):
    """A folder with reviews, class names and a factory; the working directory of the test."""
    (tmp_path / "textnet.py").write_text(FACTORY)
    (tmp_path / "reviews.csv").write_text(REVIEWS)
    (tmp_path / "labels.txt").write_text("negative\npositive\n")
    (tmp_path / "latin.csv").write_bytes(b"text\ncaf\xe9\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(__import__("sys").modules, "textnet", raising=False)
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path


def called(*arguments):
    return CliRunner().invoke(app, ["explain", *arguments])


def test_a_csv_of_texts_becomes_one_row_a_word(desk):
    more = ("--labels", "labels.txt", "-t", "positive", "-t", "positive vs negative")
    done = called("--texts", "reviews.csv", "--column", "text", "-m", "textnet:reader", "-o", "words.csv", *more)
    assert done.exit_code == 0, done.output
    assert "1 rows hold no text and are left out, first line 3" in done.output
    with (desk / "words.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["word"] for row in rows][:6] == "it is not a bad movie".split()
    assert {row["target"] for row in rows} == {"positive", "positive against negative"}
    for text in ("0", "1"):
        own = [row for row in rows if row["text"] == text and row["target"] == "positive"]
        assert len(own) in (6, 7)


@pytest.mark.parametrize("out", ["words.html", "words.png"])
def test_texts_become_a_page_or_a_picture(desk, out):
    done = called("--text", "it is not a bad movie", "--text", "good", "-m", "textnet:reader", "-t", "1", "-o", out)
    assert done.exit_code == 0, done.output
    assert "it is not a bad movie" in done.output
    assert (desk / out).stat().st_size > 1000
    assert not list(desk.glob(".*.part"))


def test_texts_become_a_file_for_further_work(desk):
    texts = ("--texts", "reviews.csv", "--column", "text")
    done = called(*texts, "-m", "textnet:reader", "-t", "0", "-t", "1", "-o", "words.safetensors")
    assert done.exit_code == 0, done.output
    found = dt.TextAttribution.load(desk / "words.safetensors")
    assert [(one.text, one.target) for one in found] == [(0, "0"), (0, "1"), (1, "0"), (1, "1")]
    assert found[2].parts == ('good, "movie"\nit is',)


REFUSED = {
    "nothing": ([], "nothing to explain"),
    "photos too": (["cat.png", "--text", "good"], "photos and texts in one call"),
    "suffix": (["--text", "good", "-o", "x.npz"], "of texts can be written"),
    "no file": (["--texts", "none.csv", "--column", "text"], "there is no such file"),
    "no column": (["--texts", "reviews.csv"], "it has id, text"),
    "wrong column": (["--texts", "reviews.csv", "--column", "review"], "has no column 'review'; it has id, text"),
    "latin": (["--texts", "latin.csv", "--column", "text"], "is not UTF-8 (byte 8)"),
    "empty text": (["--text", " "], "text 0 is empty"),
    "no class": (["--text", "good", "-t", "positive"], "does not name its classes"),
    "lone model": (["--text", "good", "-m", "textnet:lone"], "must give (model, tokenizer)"),
    "photos' model": (["--text", "good", "-m", "resnet18"], "is no model that reads text"),
    "no folder": (["--text", "good", "-m", "hf:./nothing"], "there is nothing at nothing"),
    "two composites": (["--text", "good", "-c", "epsilon", "-c", "auto"], "one --composite at a time"),
}


@pytest.mark.parametrize(("arguments", "said"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_read_is_refused_clearly(desk, arguments, said):
    model = [] if "-m" in arguments else ["-m", "textnet:reader"]
    done = called(*arguments, *model)
    assert done.exit_code == 2
    assert said in done.output
    assert "Traceback" not in done.output


def test_targets_as_typed():
    assert parse_target("top2") == top(2)
    assert parse_target("3") == 3
    assert parse_target("good vs bad") == contrast("good", "bad")
    assert parse_target(" Paris") == " Paris"
