"""deeptaylor: explains neural network predictions by Taylor decomposition."""

from . import composites as composites
from . import errors as errors
from . import extend as extend
from . import rules as rules
from . import taylor as taylor
from . import testing as testing
from ._version import __version__ as __version__
from .attribution import Attribution as Attribution
from .composites import Composite as Composite
from .explainer import Explainer as Explainer
from .explainer import explain as explain
from .ledger import Ledger as Ledger
from .targets import contrast as contrast
from .targets import log_odds as log_odds
from .targets import top as top
from .taylor import check_derivatives as check_derivatives
from .taylor import differences as differences
from .taylor import fit_taylor as fit_taylor
from .taylor import gradient_regression as gradient_regression
from .taylor import gradient_secant as gradient_secant
from .taylor import integrated_hessians as integrated_hessians
from .taylor import integrated_terms as integrated_terms
from .taylor import safe_mode as safe_mode
from .taylor import shapley_taylor as shapley_taylor
from .taylor import taylor_orders as taylor_orders
from .taylor import taylor_terms as taylor_terms
