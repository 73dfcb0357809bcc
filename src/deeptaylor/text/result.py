"""`TextAttribution`: relevance of texts, per token, word and sentence, with views for terminal, page and notebook."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, overload

from torch import Tensor

from ..attribution import Attribution
from ..errors import InputError
from .tokens import Span, Token, merge_sentences, merge_words

Level = Literal["token", "word", "sentence"]


@dataclass(frozen=True)
class TextExplanation:
    """Relevance of one text (or pair) for one target."""

    parts: tuple[str, ...]
    """The text; both of a pair; source and answer of an encoder-decoder."""
    tokens: tuple[Token, ...]
    relevance: Tensor
    """(tokens,)"""
    target: str
    explained: float
    """The explained score."""
    probability: float | None = None
    """Softmax of the scores at the target, where it is one class or word."""
    text: int = 0
    """Number of the text."""
    token: int | None = None
    """Index of the token that the score belongs to, where it belongs to one."""

    @property
    def on_special(self) -> float:
        """Relevance of tokens that stand for no characters, such as [CLS]."""
        return sum(span.relevance for span in self.words() if span.special)

    @property
    def absorbed(self) -> float:
        """What no token received: the explained score less the sum of relevance. The ledger says who took it."""
        return self.explained - float(self.relevance.double().sum())

    def words(self) -> list[Span]:
        """Tokens merged per word."""
        return merge_words(self.parts, self.tokens, self.relevance.tolist())

    def sentences(self) -> list[Span]:
        """Tokens merged per sentence."""
        return merge_sentences(self.parts, self.tokens, self.relevance.tolist())

    def spans(self, level: Level = "word") -> list[Span]:
        """Tokens, words or sentences, in the order of the text."""
        if level == "token":
            return [
                Span(self.parts[t.part][t.start : t.end] or t.piece, t.start, t.end, float(r), t.part, t.special, (n,))
                for n, (t, r) in enumerate(zip(self.tokens, self.relevance, strict=True))
            ]
        if level not in ("word", "sentence"):
            raise InputError(f"level {level!r}; one of token, word, sentence")
        return self.words() if level == "word" else self.sentences()

    def __rich__(self) -> Any:
        from .terminal import drawn

        return drawn(self)

    def _repr_html_(self) -> str:
        from .html import fragment

        return fragment([self])

    def plot(self, level: Level = "word") -> Any:
        """A matplotlib figure of the text in colours."""
        from .figure import draw

        return draw([self], level)


@dataclass(frozen=True)
class TextAttribution(Sequence[TextExplanation]):
    """Explanations of texts, one per text and target; the targets of a text stand side by side."""

    explanations: tuple[TextExplanation, ...]
    attributions: tuple[Attribution, ...]
    """What the engine found, batch by batch: plan, ledger, settings."""
    task: str

    @overload
    def __getitem__(self, index: int) -> TextExplanation: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[TextExplanation]: ...
    def __getitem__(self, index: int | slice) -> TextExplanation | Sequence[TextExplanation]:
        return self.explanations[index]

    def __len__(self) -> int:
        return len(self.explanations)

    def __iter__(self) -> Iterator[TextExplanation]:
        return iter(self.explanations)

    def __rich__(self) -> Any:
        from rich.console import Group

        return Group(*[one.__rich__() for one in self])

    def print(self) -> None:
        """Writes every text in colours to the terminal, with its strongest words in numbers."""
        from rich.console import Console

        Console(highlight=False).print(self)

    def _repr_html_(self) -> str:
        from .html import fragment

        return fragment(self.explanations)

    def to_html(self, path: str | Path, title: str = "What counted in each text") -> None:
        """Writes one self-contained page."""
        from .html import page

        Path(path).write_text(page(self.explanations, title), encoding="utf-8")

    def save(self, path: str | Path) -> None:
        """Writes everything to one safetensors file: texts, tokens, relevance, plans and ledgers. No pickle."""
        from .saved import write

        write(self, path)

    @staticmethod
    def load(path: str | Path) -> TextAttribution:
        """Reads what `save` wrote.

        Raises:
            FileFormatError: the file is missing, damaged, or something else.
        """
        from .saved import read

        return read(path)

    def plot(self, level: Level = "word") -> Any:
        """A matplotlib figure of all texts in colours."""
        from .figure import draw

        return draw(self.explanations, level)
