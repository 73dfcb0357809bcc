"""The door for authors: declare an operation in one line, write a rule in eight."""

from .composites import Place as Place
from .graph import Node as Node
from .ops import Op as Op
from .ops import declare as declare
from .rules import maps as maps
from .rules.affine import AffineRule as AffineRule
from .rules.base import Redistribution as Redistribution
from .rules.base import Relevance as Relevance
from .rules.base import Rule as Rule
from .rules.redistribute import Part as Part
from .rules.redistribute import redistribute as redistribute
from .step import Step as Step
