"""Ids in, one number per id out: relevance ends at the embedding vectors that are looked up with them."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import deeptaylor as dt


class Words(nn.Module):
    """Word, position and type embeddings, tied to the output; a mask."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words, self.places, self.kinds = nn.Embedding(20, 6), nn.Embedding(10, 6), nn.Embedding(2, 6)
        self.hidden = nn.Linear(6, 6)

    def forward(self, ids: Tensor, mask: Tensor | None = None, kinds: Tensor | None = None) -> Tensor:
        x = self.words(ids) + self.places(torch.arange(ids.shape[1]))
        if kinds is not None:
            x = x + self.kinds(kinds)
        return self.decode(x, mask)

    def decode(self, x: Tensor, mask: Tensor | None) -> Tensor:
        h = F.gelu(self.hidden(x))
        h = h.mean(1) if mask is None else (h * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        return h @ self.words.weight.T


def ids() -> Tensor:
    return torch.tensor([[3, 7, 7, 1], [4, 2, 9, 0]])


@pytest.mark.parametrize("composite", ["epsilon", "attn-lrp", "gradient-times-input", "deep-taylor"])
def test_relevance_of_ids_is_that_of_their_embedding_vectors_summed_over_channels(composite: str) -> None:
    model = Words().double().eval()
    found = dt.explain(model, ids(), target=5, composite=composite, ledger=True)
    assert found.relevance.shape == (2, 4)
    assert found.ledger.gap.abs().max() < 1e-12

    def embedded(x: Tensor) -> Tensor:
        return model.decode(x + model.places(torch.arange(4)), None)

    whole = dt.explain(embedded, model.words(ids()).detach(), target=5, composite=composite)
    assert torch.allclose(found.relevance, whole.relevance.sum(-1), atol=1e-12)


def test_the_ledger_says_what_positions_and_types_took() -> None:
    model = Words().double().eval()
    kinds = torch.tensor([[0, 0, 1, 1], [1, 0, 1, 0]])
    found = dt.explain(
        model, {"ids": ids(), "kinds": kinds}, explain=("ids",), target=5, composite="epsilon", ledger=True
    )
    taken = [row.constant for row in found.ledger.rows if row.op == "add"]
    assert len(taken) == 2
    assert all(abs(share) > 1e-4 for share in taken)
    both = dt.explain(model, {"ids": ids(), "kinds": kinds}, target=5, composite="epsilon", ledger=True)
    assert set(both.relevances) == {"ids", "kinds"}
    assert both.ledger.gap.abs().max() < 1e-12


def test_a_mask_is_no_input_to_be_explained() -> None:
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]])
    found = dt.explain(Words().eval(), {"ids": ids(), "mask": mask}, target=5)
    assert set(found.relevances) == {"ids"}
    assert (found.relevance[mask == 0] == 0).all()


def test_ids_that_are_cut_and_turned_before_the_lookup_get_their_relevance_where_they_stood() -> None:
    model = Words().double().eval()
    found = dt.explain(lambda ids: model.decode(model.words(ids[:, 1:].flip(1)), None), ids(), target=5).relevance
    plain = dt.explain(lambda ids: model.decode(model.words(ids), None), ids()[:, 1:], target=5).relevance
    assert torch.allclose(found[:, 1:], plain, atol=1e-12)
    assert (found[:, 0] == 0).all()


def test_ids_used_twice_add_up_and_another_length_is_traced_anew() -> None:
    model = Words().double().eval()

    def twice(ids: Tensor) -> Tensor:
        return model.decode(model.words(ids) + 2 * model.words(ids).sin(), None)

    explainer = dt.Explainer(twice, ids(), composite="epsilon")
    for length in (4, 2):
        found = explainer(ids()[:, :length], target=5, ledger=True)
        assert found.relevance.shape == (2, length)
        assert found.ledger.gap.abs().max() < 1e-10


def test_integers_that_are_looked_up_nowhere_are_refused_with_the_cure() -> None:
    with pytest.raises(dt.errors.InputError, match="embedding"):
        dt.explain(nn.Sequential(nn.Flatten()).eval(), torch.ones(2, 4, dtype=torch.long))


def test_an_id_out_of_the_vocabulary_is_a_clear_error() -> None:
    with pytest.raises(dt.errors.InputError, match="index out of range"):
        dt.explain(Words().eval(), torch.tensor([[3, 99]]))


# torch's own warnings, of its compiler
COMPILES = pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")


class Output(dict):
    """As transformers returns it: a mapping."""


class Wrapped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Output:
        return Output(loss=None, logits=self.net(x), hidden_states=x)


@COMPILES
@pytest.mark.parametrize(
    "wrap", [lambda m: m, nn.DataParallel, torch.compile], ids=["bare", "DataParallel", "compiled"]
)
def test_wrappers_and_mappings_with_logits_are_opened(wrap: object) -> None:
    model, x = Wrapped().eval(), torch.randn(2, 4)
    found = dt.explain(wrap(model).eval(), x, target=1)
    assert torch.allclose(found.output, model.net(x))
    assert torch.allclose(found.relevance, dt.explain(model.net, x, target=1).relevance)


@COMPILES
def test_a_compiled_function_is_opened() -> None:
    def function(x: Tensor) -> Tensor:
        return x.relu() * 2

    x = torch.randn(2, 4)
    found = dt.explain(torch.compile(function), x, target=1)
    assert torch.equal(found.relevance, dt.explain(function, x, target=1).relevance)


def test_an_output_without_a_known_part_asks_for_a_head() -> None:
    with pytest.raises(dt.errors.InputError, match=r"head=lambda out: out\['a'\]"):
        dt.explain(lambda x: {"a": x, "b": x}, torch.ones(2, 3))
    with pytest.raises(dt.errors.InputError, match="head="):
        dt.explain(lambda x: SimpleNamespace(a=x), torch.ones(2, 3))
