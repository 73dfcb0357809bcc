"""The theory of Taylor decomposition, checked on the user's model and inputs."""

from .exact_root import ExactRoot as ExactRoot
from .exact_root import exact_nearest_root as exact_nearest_root
from .justify import Justification as Justification
from .justify import justify as justify
from .minmax import fit_minmax as fit_minmax
from .ray import RayRoot as RayRoot
from .ray import first_root as first_root
from .recursion import RecursiveTaylor as RecursiveTaylor
from .recursion import constant_roots as constant_roots
from .recursion import recursive_taylor as recursive_taylor
from .recursion import rule_roots as rule_roots
from .recursion import scaled_roots as scaled_roots
from .recursion import train_free as train_free
from .report import AuditReport as AuditReport
from .run import audit as audit
