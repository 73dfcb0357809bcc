"""Explanations of texts in one file without pickle: what comes back is what went in, and damage is told."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_text import MODELS, REVIEW, VOCABULARY

import deeptaylor as dt

ODD = "Good 👩‍👩‍👧 cafe\u0301! 我爱 שלום"


@pytest.fixture
def found() -> dt.text.TextAttribution:
    model = MODELS[2]().eval()
    return dt.explain_text(model, VOCABULARY, [REVIEW, ODD, "dull"], target=dt.top(2), ledger=True)


def test_what_was_saved_comes_back(found: dt.text.TextAttribution, tmp_path: Path) -> None:
    path = tmp_path / "words.safetensors"
    found.save(path)
    again = dt.text.TextAttribution.load(path)
    assert again.task == found.task
    for one, other in zip(found, again, strict=True):
        assert torch.equal(one.relevance, other.relevance)
        assert (one.parts, one.tokens) == (other.parts, other.tokens)
        assert (one.target, one.explained, one.probability, one.text, one.token) == (
            other.target, other.explained, other.probability, other.text, other.token,
        )  # fmt: skip
    for batch, same in zip(found.attributions, again.attributions, strict=True):
        assert batch.plan == same.plan
        assert torch.equal(batch.explained, same.explained)
        assert same.ledger.rows == batch.ledger.rows
        assert (dict(batch.settings), dict(batch.versions)) == (same.settings, same.versions)
    assert again._repr_html_() == found._repr_html_()
    again.save(tmp_path / "twice.safetensors")
    assert (tmp_path / "twice.safetensors").read_bytes() == path.read_bytes()


def test_damaged_and_foreign_files_are_refused(found: dt.text.TextAttribution, tmp_path: Path) -> None:
    path = tmp_path / "words.safetensors"
    load = dt.text.TextAttribution.load
    with pytest.raises(dt.errors.FileFormatError, match="can't be read"):
        load(path)
    found.save(path)
    whole = path.read_bytes()
    for length in (0, 5, 200, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(dt.errors.FileFormatError, match="can't be read"):
            load(path)
    found.attributions[0].save(path)
    with pytest.raises(dt.errors.FileFormatError, match="not a TextAttribution"):
        load(path)
    path.write_bytes(whole)
    with pytest.raises(dt.errors.FileFormatError, match="not an attribution"):
        dt.Attribution.load(path)
    tensors = load_file(path)
    for damage in ({"told": tensors["told"][:-9]}, {"relevance.0": torch.zeros(3)}, {"batch.0.output": None}):
        rest = {name: value for name, value in (tensors | damage).items() if value is not None}
        save_file(rest, path, metadata={"format": "deeptaylor-text-1"})
        with pytest.raises(dt.errors.FileFormatError, match="damaged TextAttribution"):
            load(path)
