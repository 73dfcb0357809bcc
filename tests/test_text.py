"""Texts explained through hand-written models: ids in, words out; offsets spell the text, relevance is conserved."""

from __future__ import annotations

import itertools
import warnings

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import deeptaylor as dt
from deeptaylor.text.align import align
from deeptaylor.text.encode import encode
from deeptaylor.text.layout import folded, stretches
from deeptaylor.text.segments import sentence_places, word_places
from deeptaylor.text.tokens import Token, merge_sentences, merge_words

WORDS = "<pad> <unk> it is not a bad good movie film but ! , . gorgeous dull i like".split()
REVIEW = "It is not a bad movie, but I like good films!"


class KimCNN(nn.Module):
    """Word embeddings, convolutions over time, max over time (Kim 2014)."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words = nn.Embedding(len(WORDS), 8, padding_idx=0)
        self.convolutions = nn.ModuleList(nn.Conv1d(8, 6, k, padding=k // 2) for k in (2, 3))
        self.decide = nn.Linear(12, 2)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.words(ids).transpose(1, 2)
        return self.decide(torch.cat([F.relu(c(x)).amax(2) for c in self.convolutions], 1))


class BiLSTM(nn.Module):
    """Word embeddings read in both directions."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words = nn.Embedding(len(WORDS), 6)
        self.read = nn.LSTM(6, 5, batch_first=True, bidirectional=True)
        self.decide = nn.Linear(10, 2)

    def forward(self, ids: Tensor) -> Tensor:
        states, _ = self.read(self.words(ids))
        return self.decide(states.mean(1))


class Attending(nn.Module):
    """One attention over the words, with a mask."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words = nn.Embedding(len(WORDS), 8)
        self.places = nn.Embedding(64, 8)
        self.query, self.decide = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        x = self.words(input_ids) + self.places(torch.arange(input_ids.shape[1]))
        scores = self.query(x) @ x.transpose(1, 2)
        weights = scores.masked_fill(attention_mask[:, None] == 0, float("-inf")).softmax(-1)
        shares = attention_mask[..., None] / attention_mask.sum(1)[:, None, None]
        return self.decide(((weights @ x) * shares).sum(1))


VOCABULARY = dt.Vocabulary(WORDS, unknown="<unk>", pad="<pad>", at_least=3)
MODELS = [KimCNN, BiLSTM, Attending]


@pytest.mark.parametrize("kind", MODELS)
def test_words_come_out_with_the_relevance_that_their_ids_have(kind: type[nn.Module]) -> None:
    model = kind().eval()
    found = dt.explain_text(model, VOCABULARY, REVIEW, target=1, ledger=True)
    words = [span.text for span in found[0].words()]
    assert words == ["It", "is", "not", "a", "bad", "movie", ",", "but", "I", "like", "good", "films", "!"]
    ids = torch.tensor([[token.id for token in found[0].tokens]])
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)} if kind is Attending else ids
    plain = dt.explain(model, given, target=1, composite=found.attributions[0].settings["composite"])
    assert torch.allclose(found[0].relevance, plain.relevance[0], atol=1e-6)
    assert found[0].explained == pytest.approx(float(plain.explained), abs=1e-6)
    assert found.attributions[0].ledger.gap.abs().max() < 1e-5
    assert found[0].absorbed == pytest.approx(float(found.attributions[0].ledger.absorbed), abs=1e-5)


@pytest.mark.parametrize("kind", MODELS)
def test_a_batch_of_different_lengths_is_what_single_texts_are(kind: type[nn.Module]) -> None:
    texts = [REVIEW, "I like good films!", "dull", "It is not a bad movie."]
    model = kind().eval()
    together = dt.explain_text(model, VOCABULARY, texts, target=1)
    assert [one.parts[0] for one in together] == texts
    for text, one in zip(texts, together, strict=True):
        alone = dt.explain_text(model, VOCABULARY, text, target=1)[0]
        assert torch.allclose(one.relevance, alone.relevance, atol=1e-5)
        assert one.explained == pytest.approx(alone.explained, abs=1e-5)


def test_a_splitting_function_and_a_plain_mapping_serve_as_tokenizers() -> None:
    table = {word: n for n, word in enumerate(WORDS)}
    text = "it is not a bad movie"
    split = dt.Vocabulary(table, split=str.split)
    one, other = (dt.explain_text(KimCNN().eval(), which, text, target=0)[0] for which in (split, table))
    assert torch.equal(one.relevance, other.relevance)
    assert [span.text for span in one.words()] == text.split()


def test_targets_are_named_counted_and_contrasted() -> None:
    model = KimCNN().eval()
    labels = ["negative", "positive"]

    def explained(target: object, texts: object = REVIEW) -> dt.TextAttribution:
        return dt.explain_text(model, VOCABULARY, texts, target=target, labels=labels)

    positive, negative = explained("positive")[0], explained(0)[0]
    assert (positive.target, negative.target) == ("positive", "negative")
    assert positive.probability + negative.probability == pytest.approx(1)
    lead = explained(dt.contrast("positive", "negative"))[0]
    assert lead.target == "positive against negative"
    # atol: the stabilizer, 1e-6, over scores of about 0.1
    assert torch.allclose(lead.relevance, positive.relevance - negative.relevance, atol=2e-5)
    both = explained(dt.top(2), [REVIEW, "good"])
    assert [one.text for one in both] == [0, 0, 1, 1]
    odds = explained(dt.log_odds("positive"))[0]
    assert torch.allclose(odds.relevance, lead.relevance, atol=2e-5)  # of two classes they are the same
    per_text = explained(["positive", "negative"], [REVIEW, REVIEW])
    assert torch.allclose(per_text[0].relevance, positive.relevance, atol=1e-6)
    with pytest.raises(dt.errors.TargetError, match="did you mean 'positive'"):
        explained("positiv")
    with pytest.raises(dt.errors.TargetError, match="3 entries for 1 texts"):
        explained([0, 1, 1])


def test_a_language_model_of_ones_own_is_asked_for_words() -> None:
    class Next(BiLSTM):
        def __init__(self) -> None:
            super().__init__()
            self.read = nn.LSTM(6, 5, batch_first=True)
            self.decide = nn.Linear(5, len(WORDS))

        def forward(self, ids: Tensor) -> Tensor:
            return self.decide(self.read(self.words(ids))[0])

    model, vocabulary = Next().eval(), dt.Vocabulary(WORDS, unknown="<unk>")
    one = dt.explain_text(model, vocabulary, "it is not", task="next-token", target="good")[0]
    assert one.target == "“good”"
    assert one.explained == pytest.approx(float(model(torch.tensor([[2, 3, 4]]))[0, -1, 7].detach()), abs=1e-6)
    earlier = dt.explain_text(model, vocabulary, "it is not a", task="next-token", at=["not"])[0]
    assert [token.piece for token in earlier.tokens] == ["it", "is"]
    with pytest.raises(dt.errors.TargetError, match="not in the vocabulary"):
        dt.explain_text(model, vocabulary, "it is", task="next-token", target="excellent")


def test_the_model_is_as_it_was() -> None:
    model = Attending().eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    names, state = [name for name, _ in model.named_modules()], torch.get_rng_state()
    dt.explain_text(model, VOCABULARY, [REVIEW, "good"])
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert names == [name for name, _ in model.named_modules()]
    assert torch.equal(state, torch.get_rng_state())
    assert all(p.grad is None for p in model.parameters())


# --- bad input


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        ("", "text 0 is empty"),
        (["good", " \n"], "text 1 is empty"),
        ([], "no texts"),
        ([3], "text 0 is int"),
        (b"good", "texts are bytes"),
        (("good", "bad"), "is a pair"),
    ],
)  # fmt: skip
def test_no_text_is_refused(texts: object, said: str) -> None:
    with pytest.raises(dt.errors.InputError, match=said):
        dt.explain_text(KimCNN().eval(), VOCABULARY, texts)


def test_a_vocabulary_that_does_not_fit_is_refused() -> None:
    with pytest.raises(dt.errors.InputError, match=r"'films' .* not in the vocabulary"):
        dt.explain_text(KimCNN().eval(), dict.fromkeys(["good"], 3), "good films")

    class HuggingFaceLike(KimCNN):
        def get_input_embeddings(self) -> nn.Embedding:
            return self.words

    large = dt.Vocabulary([*WORDS, "enormous"])
    with pytest.raises(dt.errors.InputError, match=r"19 ids.*has 18 rows"):
        dt.explain_text(HuggingFaceLike().eval(), large, "a good movie")
    with pytest.raises(dt.errors.InputError, match="index out of range"):
        dt.explain_text(KimCNN().eval(), large, "an enormous movie".replace("an", "a"))
    with pytest.raises(dt.errors.InputError, match="does not say which ids"):
        dt.explain_text(KimCNN().eval(), str.split, "good")
    with pytest.raises(dt.errors.InputError, match="has no such word"):
        dt.Vocabulary(WORDS, unknown="[UNK]")


def test_a_text_of_unknown_words_alone_is_told() -> None:
    with pytest.warns(dt.errors.TextWarning, match=r"knows no word of '这部电影': the model sees '<unk>' for each"):
        dt.explain_text(KimCNN().eval(), VOCABULARY, "这部电影", target=1)


def test_a_text_that_is_too_long_is_cut_and_the_loss_is_told() -> None:
    with pytest.warns(dt.errors.TextWarning, match=r"13 tokens, the model takes 5: the last 8 .*characters 16 to 45"):
        found = dt.explain_text(KimCNN().eval(), VOCABULARY, REVIEW, max_length=5, target=1)[0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        alone = dt.explain_text(KimCNN().eval(), VOCABULARY, "It is not a bad", target=1)[0]
    assert torch.allclose(found.relevance, alone.relevance, atol=1e-6)


def test_train_mode_and_missing_arguments_are_refused() -> None:
    with pytest.raises(dt.errors.InputError, match=r"model\.eval"):
        dt.explain_text(KimCNN(), VOCABULARY, REVIEW)

    def needs_lengths(ids: Tensor, lengths: Tensor) -> Tensor:
        return ids

    with pytest.raises(dt.errors.InputError, match="also needs lengths"):
        dt.explain_text(needs_lengths, VOCABULARY, REVIEW)
    with pytest.raises(dt.errors.InputError, match="answer is for models that write"):
        dt.explain_text(KimCNN().eval(), VOCABULARY, REVIEW, answer="good")
    for number in ({"batch_size": 0}, {"max_length": 0}, {"max_length": -3}, {"batch_size": 2.5}):
        with pytest.raises(dt.errors.InputError, match="at least 1"):
            dt.explain_text(KimCNN().eval(), VOCABULARY, REVIEW, **number)
    with pytest.raises(dt.errors.InputError, match="one after the other"):
        dt.explain_text(KimCNN().eval(), VOCABULARY, REVIEW, at=1, answer="good")
    with pytest.raises(dt.errors.InputError, match="no task is called"):
        dt.explain_text(KimCNN().eval(), VOCABULARY, REVIEW, task="sentiment")


# --- places in the text

TEXTS = {
    "emoji": ("hi 👩‍👩‍👧👍🏽 ok 🇩🇪🇫🇷", ["hi", "👩‍👩‍👧", "👍🏽", "ok", "🇩🇪", "🇫🇷"]),
    "marks": ("cafe\u0301 n\u0303o", ["cafe\u0301", "n\u0303o"]),
    "chinese": ("我爱 电影。", ["我", "爱", "电", "影", "。"]),
    "right to left": ("שלום, مرحبا", ["שלום", ",", "مرحبا"]),
    "hindi": ("हिन्दी में", ["हिन्दी", "में"]),
    "apostrophes": ("don't 'quote' it’s", ["don't", "'", "quote", "'", "it’s"]),
}


@pytest.mark.parametrize(("text", "words"), TEXTS.values(), ids=TEXTS)
def test_words_of_any_script(text: str, words: list[str]) -> None:
    assert [text[a:b] for a, b in word_places(text)] == words


def test_sentences_end_where_a_reader_would_end_them() -> None:
    text = "It's 3.5 stars, e.g. for wit. Really? “Yes!” No…\nLine two 好。看。"
    sentences = [text[a:b].strip() for a, b in sentence_places(text)]
    assert sentences == ["It's 3.5 stars, e.g. for wit.", "Really?", "“Yes!”", "No…", "Line two 好。", "看。"]


@given(st.text(max_size=40))
def test_words_and_gaps_rebuild_any_text(text: str) -> None:
    places = word_places(text)
    assert all(a < b for a, b in places)
    assert all(one[1] <= other[0] for one, other in itertools.pairwise(places))
    covered = {n for a, b in places for n in range(a, b)}
    assert "".join(c for n, c in enumerate(text) if n not in covered).strip() == ""


@given(st.text(min_size=1, max_size=30), st.data())
def test_bytes_of_any_text_find_their_characters(text: str, data: st.DataObject) -> None:
    """Byte-level BPE as GPT-2 spells it, cut anywhere, also inside a character."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in plain]
    letter = {b: chr(b) for b in plain} | {b: chr(256 + n) for n, b in enumerate(others)}
    spelled = "".join(letter[b] for b in text.encode())
    cuts = sorted(data.draw(st.sets(st.integers(1, max(1, len(spelled) - 1)), max_size=8)))
    pieces = [p for p in (spelled[a:b] for a, b in zip([0, *cuts], [*cuts, len(spelled)], strict=True)) if p]
    places = align(text, pieces)
    assert places[0][0] == 0
    assert places[-1][1] == len(text)
    assert all(other[0] - 1 <= one[1] - 1 <= other[0] for one, other in itertools.pairwise(places))


def test_sentencepiece_and_wordpiece_find_their_characters() -> None:
    assert align("Hello 世界", ["▁Hello", "▁", "世", "<0xE7>", "<0x95>", "<0x8C>"]) == [
        (0, 5), (5, 6), (6, 7), (7, 8), (7, 8), (7, 8),
    ]  # fmt: skip
    text = "Née zzz☃q, ÉTÉ"
    found = align(text, ["nee", "[UNK]", ",", "et", "##e"], "[UNK]")
    assert [text[a:b] for a, b in found] == ["Née", "zzz☃q", ",", "ÉT", "É"]
    with pytest.raises(dt.errors.InputError, match="piece 1, 'movie'"):
        align("good film", ["good", "movie"])


@given(st.text(alphabet="ab .!\né👩\u0301好", min_size=1, max_size=25), st.data())
def test_every_token_is_in_one_word_and_one_sentence_and_views_spell_the_text(text: str, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)), max_size=9)))
    tokens = [Token("[CLS]", 0, 0, 0, special=True)]
    tokens += [Token(text[a:b], 1, a, b) for a, b in itertools.pairwise(cuts)]
    relevance = torch.arange(1.0, len(tokens) + 1)
    for merged in (merge_words, merge_sentences):
        spans = merged([text], tokens, relevance.tolist())
        assert sorted(n for span in spans for n in span.tokens) == list(range(len(tokens)))
        assert sum(span.relevance for span in spans) == pytest.approx(float(relevance.sum()))
        assert all(text[span.start : span.end] == span.text for span in spans if span.start < span.end)
    one = dt.text.TextExplanation((text,), tuple(tokens), relevance, "target", 1.0)
    for level in ("word", "token"):
        assert "".join(s.text for s in stretches(one, level) if not s.special) == text


# --- views


def review(sentences: int = 1) -> dt.text.TextExplanation:
    text = " ".join([REVIEW] * sentences)
    return dt.explain_text(KimCNN().eval(), VOCABULARY, text, target=1, labels=["negative", "positive"])[0]


def test_a_terminal_without_colours_still_reads_numbers() -> None:
    from rich.console import Console

    console = Console(record=True, width=100, force_terminal=False)
    one = review()
    console.print(one)
    said = console.export_text()
    assert REVIEW in said
    assert said.startswith("positive: score ")
    best = max(one.words(), key=lambda span: span.relevance)
    assert f"for: “{best.text}” +" in said
    assert "absorbed" in said


def test_html_says_every_word_and_its_number_and_asks_no_server() -> None:
    one = dt.explain_text(KimCNN().eval(), VOCABULARY, "a <b>bad</b> movie & 'film'", target=1)
    html = one._repr_html_()
    assert "&lt;" in html
    assert html.count("<b title=") == len(one[0].words())
    assert "http" not in html
    assert "<script" not in html


def test_a_page_is_written_whole(tmp_path: object) -> None:
    path = tmp_path / "page.html"  # type: ignore[operator]
    dt.explain_text(KimCNN().eval(), VOCABULARY, [REVIEW, "good"]).to_html(path, title="Films & more")
    page = path.read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>")
    assert "<title>Films &amp; more</title>" in page
    assert page.count('<section class="dt-text">') == 2


def test_a_figure_shows_every_word() -> None:
    one = review()
    figure = one.plot()
    drawn = [text.get_text() for text in figure.axes[0].texts]
    assert [word.text for word in one.words()] == [text for text in drawn if text in {w.text for w in one.words()}]
    figure.canvas.draw()


def test_a_long_text_is_folded_to_its_strongest_sentences_and_loses_no_relevance() -> None:
    one = review(40)
    short = folded(one)
    assert sum(s.relevance is not None for s in short) < 150
    assert sum(s.relevance for s in short if s.relevance is not None) == pytest.approx(
        float(one.relevance.sum()), abs=1e-4
    )
    assert sum(s.folded or (s.relevance is not None) for s in short) == len(one.words())


def test_offsets_of_a_vocabulary_rebuild_the_text() -> None:
    text = "Good 👩‍👩‍👧 cafe\u0301! 我爱"
    found = encode(VOCABULARY, text, limit=None)
    assert [text[t.start : t.end] for t in found.tokens] == ["Good", "👩‍👩‍👧", "cafe\u0301", "!", "我", "爱"]
