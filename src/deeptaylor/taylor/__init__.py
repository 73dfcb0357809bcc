"""Taylor decomposition proper: orders, interactions, remainder, along segments of the input."""

from .check import DerivativeRow as DerivativeRow
from .check import WrongDerivative as WrongDerivative
from .check import check_derivatives as check_derivatives
from .cube import differences as differences
from .cube import shapley_taylor as shapley_taylor
from .fit import fit_taylor as fit_taylor
from .hidden import Hidden as Hidden
from .integrals import integrated_hessians as integrated_hessians
from .integrals import integrated_terms as integrated_terms
from .interactions import interactions as interactions
from .orders import taylor_orders as taylor_orders
from .references import reference as reference
from .result import Cost as Cost
from .result import Expansion as Expansion
from .safe import safe_mode as safe_mode
from .score import Score as Score
from .secants import gradient_regression as gradient_regression
from .secants import gradient_secant as gradient_secant
from .segments import Segments as Segments
from .terms import taylor_terms as taylor_terms
