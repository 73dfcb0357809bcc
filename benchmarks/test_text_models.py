"""explain_text on transformers' models and tokenizers: every head, padding, slow and fast, odd scripts (`make language`)."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import shim  # noqa: F401  before torchvision, which transformers imports

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import csv
import itertools

import pytest
import torch
import transformers as hf
from torch import nn
from typer.testing import CliRunner

import deeptaylor as dt
from deeptaylor.cli import app
from deeptaylor.text.encode import encode
from deeptaylor.text.layout import stretches

TEXTS = {
    "plain": "It is not a BAD movie!",
    "emoji": "née 你好 👩‍👩‍👧👍🏽 ok",
    "marks": "cafe\u0301 nai\u0308ve",
    "chinese": "这部电影很好。",
    "right to left": "שלום עולם, مرحبا بالعالم",
    "hindi": "हिन्दी में",
    "unknown": "hi👩x unknown☃word  two\n\nlines",
    "quotes": "don't stop, it's “great”…",
}
WORDS = "[PAD] [UNK] [CLS] [SEP] [MASK] it is not a bad movie good ! , . don ' t stop ##s hi two lines cafe naive nee unknown word ok the ca ##fe".split()
CHARACTERS = [*list("你好这部电影很。हनमदשלוםמעולם"), "ि", "ी"]
SIZES: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}


@pytest.fixture(scope="session")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("words") / "vocab.txt"
    path.write_text("\n".join(dict.fromkeys([*WORDS, *CHARACTERS])), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def fast(vocabulary: Path) -> Any:
    table = {word: n for n, word in enumerate(vocabulary.read_text(encoding="utf-8").splitlines())}
    return hf.BertTokenizer(vocab=table)


@pytest.fixture(scope="session")
def slow(vocabulary: Path) -> Any:
    return hf.BertTokenizerLegacy(str(vocabulary))


@pytest.fixture(scope="session")
def byte_level() -> Any:
    """Byte-level BPE as GPT-2 and its kin use, trained on the texts above."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator([TEXTS["plain"]] * 9, trainer)
    return hf.PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def built(kind: Any, config: Any) -> nn.Module:
    torch.manual_seed(0)
    model = kind(config)
    for name, parameter in model.named_parameters():
        if "orm" in name:
            nn.init.uniform_(parameter, 0.7, 1.3)
        else:
            nn.init.normal_(parameter, 0, 0.3 if parameter.dim() == 2 else 0.1)
    return model.eval()


def bert(kind: str, tokenizer: Any, **more: Any) -> nn.Module:
    return built(getattr(hf, f"BertFor{kind}"), hf.BertConfig(vocab_size=len(tokenizer), **SIZES, **more))


def llama(tokenizer: Any) -> nn.Module:
    config = hf.LlamaConfig(vocab_size=len(tokenizer), **SIZES, num_key_value_heads=2)
    return built(hf.LlamaForCausalLM, config)


def agree(one: dt.text.TextExplanation, other: dt.text.TextExplanation) -> None:
    assert [t.id for t in one.tokens] == [t.id for t in other.tokens]
    scale = max(1.0, float(one.relevance.abs().max()), abs(one.explained))
    assert torch.allclose(one.relevance, other.relevance, atol=1e-5 * scale)
    assert one.explained == pytest.approx(other.explained, abs=1e-5 * scale)


# --- tokenizers


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
@pytest.mark.parametrize("which", ["fast", "slow", "byte_level", "bytes"])
def test_offsets_rebuild_the_text_exactly(text: str, which: str, request: pytest.FixtureRequest) -> None:
    tokenizer = hf.ByT5Tokenizer() if which == "bytes" else request.getfixturevalue(which)
    encoded = encode(tokenizer, text, limit=None)
    plain = [token for token in encoded.tokens if not token.special]
    assert all(a.start <= b.start and a.end <= b.end for a, b in itertools.pairwise(plain))
    covered = {n for token in plain for n in range(token.start, token.end)}
    left = "".join(c for n, c in enumerate(text) if n not in covered)
    assert left.strip() == "" or which in ("fast", "slow")  # WordPiece drops accents that stand alone
    one = dt.text.TextExplanation((text,), encoded.tokens, torch.zeros(len(encoded.tokens)), "", 0.0)
    for level in ("token", "word"):
        assert "".join(s.text for s in stretches(one, level) if not s.special) == text


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_slow_and_fast_tokenizers_explain_alike(text: str, fast: Any, slow: Any) -> None:
    assert fast.is_fast
    assert not slow.is_fast
    model = bert("SequenceClassification", fast)
    one, other = (dt.explain_text(model, tokenizer, text, target=1)[0] for tokenizer in (fast, slow))
    agree(one, other)
    for a, b in zip(one.words(), other.words(), strict=True):
        assert a.text == b.text
        assert a.special or (a.start, a.end) == (b.start, b.end)
        assert a.relevance == pytest.approx(b.relevance, abs=1e-5)


# --- padding and batches

MODELS = ["bert", "roberta", "distilbert", "llama", "gpt2", "t5"]


def model_named(name: str, tokenizer: Any) -> nn.Module:
    size = len(tokenizer)
    if name == "bert":
        return bert("SequenceClassification", tokenizer)
    if name == "llama":
        return llama(tokenizer)
    if name == "roberta":
        config = hf.RobertaConfig(vocab_size=size, **SIZES, max_position_embeddings=80, pad_token_id=0)
        return built(hf.RobertaForSequenceClassification, config)
    if name == "distilbert":
        config = hf.DistilBertConfig(vocab_size=size, dim=32, n_layers=2, n_heads=4, hidden_dim=48)
        return built(hf.DistilBertForSequenceClassification, config)
    if name == "gpt2":
        return built(hf.GPT2LMHeadModel, hf.GPT2Config(vocab_size=size, n_embd=32, n_layer=2, n_head=4, n_positions=64))
    config = hf.T5Config(
        vocab_size=size, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, decoder_start_token_id=0
    )
    return built(hf.T5ForConditionalGeneration, config)


@pytest.mark.parametrize("name", MODELS)
def test_a_padded_batch_is_what_single_texts_are(name: str, fast: Any) -> None:
    texts = ["it is not a bad movie !", "good", "the movie is good , don't stop"]
    model = model_named(name, fast)
    more = {"answer": "a good movie"} if name == "t5" else {"target": 1}
    together = dt.explain_text(model, fast, texts, ledger=True, **more)
    for attribution in together.attributions:
        assert (attribution.ledger.gap.abs() <= 1e-4 * attribution.explained.abs().clamp(min=1)).all()
    for number, text in enumerate(texts):
        alone = dt.explain_text(model, fast, text, **more)
        own = [one for one in together if one.text == number]
        assert len(own) == len(alone)
        for one, other in zip(own, alone, strict=True):
            agree(one, other)


def test_what_the_ledger_absorbed_is_what_no_token_received(fast: Any) -> None:
    found = dt.explain_text(bert("SequenceClassification", fast), fast, TEXTS["plain"], target=1, ledger=True)
    assert found[0].absorbed == pytest.approx(float(found.attributions[0].ledger.absorbed), abs=1e-5)


# --- heads


def test_several_positions_of_a_decoder_take_one_pass_and_see_only_what_came_before(fast: Any) -> None:
    model = llama(fast)
    runs = []
    hook = model.model.layers[0].register_forward_hook(lambda *_: runs.append(1))
    found = dt.explain_text(model, fast, "it is not a bad movie", at=["not", "movie"])
    together = len(runs)
    runs.clear()
    dt.explain_text(model, fast, "it is not a bad movie", at=["not"])
    assert together == len(runs)  # no forward pass more than for one position
    hook.remove()
    assert [one.target for one in found] == ["“not”", "“movie”"]
    assert [len(one.tokens) for one in found] == [3, 6]
    shorter = dt.explain_text(model, fast, "it is", target="not")[0]
    agree(found[0], shorter)


def test_an_answer_is_explained_token_by_token_and_a_written_one_is_the_likeliest(fast: Any) -> None:
    model = llama(fast)
    given = dt.explain_text(model, fast, "it is not", answer=" a bad movie")
    assert [one.target for one in given] == ["“a”", "“bad”", "“movie”"]
    assert given[-1].parts[0] == "it is not a bad movie"
    written = dt.explain_text(model, fast, "it is not", answer=3)
    ids = torch.tensor([[t.id for t in written[0].tokens]])
    with torch.no_grad():
        likeliest = int(model(ids).logits[0, -1].argmax())
    assert written[0].target == f"“{fast.decode([likeliest])}”"
    alone = dt.explain_text(model, fast, "it is not", target=likeliest)[0]
    agree(written[0], alone)


def test_words_are_contrasted_and_a_word_of_two_tokens_is_refused(fast: Any) -> None:
    model = llama(fast)
    lead = dt.explain_text(model, fast, "it is", target=dt.contrast("good", "bad"))[0]
    one, other = (dt.explain_text(model, fast, "it is", target=word)[0] for word in ("good", "bad"))
    assert torch.allclose(lead.relevance, one.relevance - other.relevance, atol=1e-4)
    with pytest.raises(dt.errors.TargetError, match="is 2 tokens"):
        dt.explain_text(model, fast, "it is", target="movies")
    with pytest.raises(dt.errors.TargetError, match="names no token"):
        dt.explain_text(model, fast, "it is", target="")


def test_an_encoder_decoder_shares_its_answer_among_source_and_answer_so_far(fast: Any) -> None:
    model = model_named("t5", fast)
    found = dt.explain_text(model, fast, "it is not bad", answer="a good movie")
    assert [one.target for one in found][:3] == ["“[CLS]”", "“a”", "“good”"]
    last = found[2]
    assert last.parts == ("it is not bad", "a good movie")
    assert {token.part for token in last.tokens} == {0, 1}
    assert last.tokens[-1].piece == "a"  # the word before the one explained
    written = dt.explain_text(model, fast, "it is not bad", answer=2)
    assert len(written) <= 2


def test_labels_of_tokens(fast: Any) -> None:
    model = bert("TokenClassification", fast, id2label={0: "O", 1: "PER", 2: "LOC"})
    found = dt.explain_text(model, fast, "it is not a bad movie", at=["bad", 6], target="PER")
    assert [(one.target, one.tokens[one.token].piece) for one in found] == [("PER", "bad"), ("PER", "movie")]
    table = model(**fast("it is not a bad movie", return_tensors="pt")).logits[0]
    assert found[0].explained == pytest.approx(float(table[5, 1].detach()), abs=1e-5)
    by_default = dt.explain_text(model, fast, "it is not a bad movie")
    assert {one.target for one in by_default} <= {"PER", "LOC"}


def test_an_answer_in_a_context(fast: Any) -> None:
    model = bert("QuestionAnswering", fast)
    pair = ("is it good", "the movie is not bad , it is good")
    own = dt.explain_text(model, fast, pair, ledger=True)
    quoted = dt.explain_text(model, fast, pair, target="not bad")[0]
    assert quoted.target == "“not bad”"
    out = model(**fast(*pair, return_tensors="pt"))
    first, last = (next(n for n, t in enumerate(quoted.tokens) if t.part == 1 and t.piece == w) for w in ("not", "bad"))
    assert quoted.explained == pytest.approx(
        float((out.start_logits[0, first] + out.end_logits[0, last]).detach()), abs=1e-5
    )
    assert own[0].explained >= quoted.explained
    assert own.attributions[0].ledger.gap.abs().max() < 1e-4
    with pytest.raises(dt.errors.TargetError, match="does not stand"):
        dt.explain_text(model, fast, pair, target="excellent")


def test_a_masked_word(fast: Any) -> None:
    model = bert("MaskedLM", fast)
    found = dt.explain_text(model, fast, "it is a [MASK] movie", target=["bad"])[0]
    assert found.target == "“bad”"
    with pytest.raises(dt.errors.InputError, match=r"holds no \[MASK\]"):
        dt.explain_text(model, fast, "it is a movie")


def test_similarity_of_pairs(fast: Any) -> None:
    model = built(hf.BertModel, hf.BertConfig(vocab_size=len(fast), **SIZES))
    pairs = [("it is good", "a good movie"), ("don't stop", "it is not a bad movie")]
    found = dt.explain_text(model, fast, pairs, ledger=True)
    vectors = [[model(**fast(side, return_tensors="pt")).last_hidden_state.mean(1) for side in pair] for pair in pairs]
    for one, (a, b) in zip(found, vectors, strict=True):
        assert one.explained == pytest.approx(float(torch.cosine_similarity(a, b).detach()), abs=1e-5)
        assert {token.part for token in one.tokens} == {0, 1}
    alone = dt.explain_text(model, fast, pairs[0])[0]
    agree(found[0], alone)
    assert found.attributions[0].ledger.gap.abs().max() < 1e-5
    with pytest.raises(dt.errors.InputError, match="has no head"):
        dt.explain_text(model, fast, "it is good")


# --- the command line: hf:PATH


def saved(tokenizer: Any, folder: Path) -> str:
    model = bert("SequenceClassification", tokenizer, id2label={0: "negative", 1: "positive"})
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return f"hf:{folder}"


def called(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["explain", *arguments], env={"COLUMNS": "300"})


def test_a_folder_of_save_pretrained_explains_a_text_and_a_table_of_them(
    fast: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    source = saved(fast, tmp_path / "model")
    text = "it is not a bad movie"
    done = called("--text", text, "--model", source, "--target", "positive", "--out", "words.safetensors")
    assert done.exit_code == 0, done.output
    own = dt.explain_text(hf.BertForSequenceClassification.from_pretrained("model"), fast, text, target=1)
    agree(dt.TextAttribution.load("words.safetensors")[0], own[0])
    Path("reviews.csv").write_text(f'id,text\n1,"{text}"\n2,"good, ""movie"""\n', encoding="utf-8")
    done = called("--texts", "reviews.csv", "--column", "text", "--model", "hf:model", "--out", "words.csv")
    assert done.exit_code == 0, done.output
    with Path("words.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["word"] for row in rows if row["text"] == "0"] == ["[CLS]", *text.split(), "[SEP]"]


def without_vocabulary(folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()


def without_head(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = folder / "model.safetensors"
    kept = {name: value for name, value in load_file(path).items() if not name.startswith("classifier")}
    save_file(kept, path, metadata={"format": "pt"})


def cut(name: str) -> Any:
    def damage(folder: Path) -> None:
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole[: len(whole) // 2])

    return damage


DAMAGED = {
    "weights cut short": (cut("model.safetensors"), "can't be loaded (SafetensorError)"),
    "configuration cut short": (cut("config.json"), "is not a valid JSON file"),
    "tokenizer cut short": (cut("tokenizer.json"), "can't be loaded (JSONDecodeError)"),
    "no vocabulary": (without_vocabulary, "special tokens and not a single word"),
    "no head": (without_head, "lacks 2 weights of its BertForSequenceClassification (classifier.bias"),
}


@pytest.mark.parametrize(("damage", "said"), DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_folder_is_refused_clearly(damage: Any, said: str, fast: Any, tmp_path: Path) -> None:
    source = saved(fast, tmp_path / "model")
    damage(tmp_path / "model")
    done = called("--text", "good", "--model", source, "--out", str(tmp_path / "words.html"))
    assert done.exit_code == 2, done.output
    assert said in done.output
    assert not (tmp_path / "words.html").exists()


def test_a_folder_that_is_not_there_is_named() -> None:
    done = called("--text", "good", "--model", "hf:nothing")
    assert done.exit_code == 2
    assert "nor is there a folder 'nothing' here" in done.output


# --- what does not fit


def test_a_tokenizer_of_another_model_is_refused(fast: Any) -> None:
    small = built(hf.BertForSequenceClassification, hf.BertConfig(vocab_size=9, **SIZES))
    with pytest.raises(dt.errors.InputError, match="embedding table has 9 rows"):
        dt.explain_text(small, fast, "it is good")
    large = built(hf.BertForSequenceClassification, hf.BertConfig(vocab_size=500, **SIZES))
    with pytest.warns(dt.errors.TextWarning, match="are they of one model"):
        dt.explain_text(large, fast, "it is good", target=0)


def test_a_text_longer_than_the_model_takes_is_cut_and_the_loss_told(fast: Any) -> None:
    model = bert("SequenceClassification", fast, max_position_embeddings=8)
    with pytest.warns(dt.errors.TextWarning, match=r"11 tokens, the model takes 8: the last 3 .* characters 22 to 32"):
        found = dt.explain_text(model, fast, "it is not a bad movie it is good", target=1)[0]
    assert [t.piece for t in found.tokens] == ["[CLS]", "it", "is", "not", "a", "bad", "movie", "[SEP]"]


def test_padding_without_a_mask_is_refused(fast: Any) -> None:
    model = bert("SequenceClassification", fast)
    ids = fast(["it is good", "good"], padding=True, return_tensors="pt")["input_ids"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(dt.errors.InputError, match="attention_mask"):
            dt.explain(model, {"input_ids": ids}, target=1)


def test_the_users_model_is_as_it_was(fast: Any) -> None:
    model = llama(fast)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    look = {name: sorted(vars(module)) for name, module in model.named_modules()}
    dt.explain_text(model, fast, ["it is", "not a bad movie"], answer=2)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert look == {name: sorted(vars(module)) for name, module in model.named_modules()}
    assert all(parameter.requires_grad for parameter in model.parameters())
