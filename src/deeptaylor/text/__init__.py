"""Texts in, words out: `explain_text` for people who hold a tokenizer and a sentence, not tensors."""

from .encode import Vocabulary as Vocabulary
from .explain import explain_text as explain_text
from .heads import TASKS as TASKS
from .result import TextAttribution as TextAttribution
from .result import TextExplanation as TextExplanation
from .together import text_interactions as text_interactions
from .together import text_similarity as text_similarity
from .tokens import Span as Span
from .tokens import Token as Token
