"""Five sentences and the network that judged them, and words that act together, as sections of the demo's page."""

from __future__ import annotations

from rich.console import Console

from .demo_sentiment import LABELS, read_corpus, scores, train
from .report.build import Section
from .report.expansions import Shown
from .report.expansions import fragment as expanded
from .text import explain_text, text_interactions
from .text.html import fragment, legend

FIXED = ("a gorgeous, witty and deeply moving film", "it is not a bad movie")
"""The second one it gets wrong, and the words say why."""


def sentences_sections(console: Console) -> list[Section]:
    """Trains the classifier, explains the sentences, and says which words of one act together; half a minute.

    Raises:
        MissingExtra: the sentences or the word vectors are not installed.
    """
    corpus = read_corpus()
    with console.status("training a sentiment classifier on film reviews") as status:
        trained = train(corpus, told=lambda epoch: status.update(f"training a sentiment classifier: {epoch} of 4"))
    held_out = corpus.held_out
    short = [n for n, text in enumerate(held_out.texts) if len(text) < 120]
    said = scores(trained.model, trained.vocabulary, [held_out.texts[n] for n in short])
    right = {
        n: float(row[int(held_out.positive[n])] - row[int(not held_out.positive[n])])
        for n, row in zip(short, said, strict=True)
    }
    surest = max((n for n in short if held_out.positive[n]), key=lambda n: right[n])
    worst = max((n for n in short if not held_out.positive[n]), key=lambda n: right[n])
    mistake = min(short, key=lambda n: right[n])
    texts = [*FIXED, *(held_out.texts[n] for n in (surest, worst, mistake))]
    found = explain_text(trained.model, trained.vocabulary, texts, target="positive", labels=LABELS)
    truth = "positive" if held_out.positive[mistake] else "negative"
    together = text_interactions(trained.model, trained.vocabulary, FIXED[1], target=LABELS.index("positive"))
    (pair, value), *_ = together.top(1)
    console.print(f"“{FIXED[1]}”: the strongest pair of words is {' × '.join(pair)} ({value:+.2f})")
    one_by_one = Section(
        "What a small network read in five sentences",
        f"Word embeddings (GloVe) and a convolutional network, trained a moment ago on {len(corpus.train.texts):,} "
        f"rated sentences; right about {trained.accuracy:.1%} of {len(held_out.texts):,} that it has not seen. The "
        "first two sentences are ours. The others were held out: the surest of each class, and the surest mistake (its "
        f"raters said {truth}). "
        "Every map shares out the score of “positive”; red words raised it, blue words lowered it.",
        legend() + fragment(found),
    )
    acting = Section(
        f"Words that act together: {' and '.join(pair)}",
        "The same network: what two words do to the score of “positive” together and not apart, as the exact "
        "Shapley-Taylor index of all words present or absent. Words alone, pairs and remainder add up to the score, "
        "and the account shows whether the strongest pair is enough.",
        expanded([Shown(FIXED[1], together)]),
    )
    return [one_by_one, acting]
