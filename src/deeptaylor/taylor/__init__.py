"""Taylor decomposition proper: orders, interactions, remainder, along segments of the input."""

from .result import Cost as Cost
from .result import Expansion as Expansion
from .score import Score as Score
from .segments import Segments as Segments
