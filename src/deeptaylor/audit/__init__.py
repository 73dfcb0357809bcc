"""The theory of Taylor decomposition, checked on the user's model and inputs."""

from .report import AuditReport as AuditReport
from .run import audit as audit
