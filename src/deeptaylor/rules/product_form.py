"""Which rules hand on c, R = x·c: nothing arrives where a value is 0. Flat, for one, hands on R by place."""

from __future__ import annotations

from ..ops import Op
from .activation import Secant, Tangent
from .affine import AlphaBeta, Epsilon, Gamma, GeneralizedGamma, LRPZero, ZPlus
from .base import Rule
from .gradient import Gradient, HeldConstant
from .pooling import WinnerTakesAll
from .product import SignalTakesAll, StatisticConstant, Uniform
from .rearrange import Move
from .sums import PositiveProportional, Proportional, ResidualGamma

_GIVE_C = {
    AlphaBeta, Epsilon, Gamma, GeneralizedGamma, Gradient, HeldConstant, LRPZero, Move, PositiveProportional,
    Proportional, ResidualGamma, Secant, SignalTakesAll, StatisticConstant, Tangent, Uniform, WinnerTakesAll, ZPlus,
}  # fmt: skip


def gives_c(op: Op, rule: Rule) -> bool:
    """Whether a rule hands on c at that operation, given c; a subclass may do as it likes."""
    if type(rule) not in _GIVE_C or getattr(rule, "bias", None) == "distribute":
        return False
    if isinstance(rule, Proportional):
        return op.role == "sum"
    return not (isinstance(rule, PositiveProportional) and op.coefficients == "single")
