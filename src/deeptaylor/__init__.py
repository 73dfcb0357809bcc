"""deeptaylor: explains neural network predictions by Taylor decomposition."""

from . import composites as composites
from . import errors as errors
from . import extend as extend
from . import rules as rules
from . import testing as testing
from ._version import __version__ as __version__
from .attribution import Attribution as Attribution
from .audit import AuditReport as AuditReport
from .audit import audit as audit
from .audit import exact_nearest_root as exact_nearest_root
from .audit import justify as justify
from .audit import recursive_taylor as recursive_taylor
from .composites import Composite as Composite
from .explainer import Explainer as Explainer
from .explainer import explain as explain
from .ledger import Ledger as Ledger
from .targets import contrast as contrast
from .targets import log_odds as log_odds
from .targets import top as top
