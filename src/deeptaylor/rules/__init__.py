"""Propagation rules, by the role that they serve."""

from .activation import Secant as Secant
from .affine import AlphaBeta as AlphaBeta
from .affine import Epsilon as Epsilon
from .affine import Flat as Flat
from .affine import Gamma as Gamma
from .affine import GeneralizedGamma as GeneralizedGamma
from .affine import LRPZero as LRPZero
from .affine import WSquare as WSquare
from .affine import ZBox as ZBox
from .affine import ZPlus as ZPlus
from .base import Redistribution as Redistribution
from .base import Relevance as Relevance
from .base import Rule as Rule
from .gradient import Gradient as Gradient
from .gradient import HeldConstant as HeldConstant
from .pooling import PNorm as PNorm
from .pooling import WinnerTakesAll as WinnerTakesAll
from .product import SignalTakesAll as SignalTakesAll
from .product import StatisticConstant as StatisticConstant
from .product import Uniform as Uniform
from .rearrange import Move as Move
from .redistribute import Part as Part
from .redistribute import redistribute as redistribute
from .sums import PositiveProportional as PositiveProportional
from .sums import Proportional as Proportional
