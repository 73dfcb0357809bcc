"""`AuditReport`: the verdict in sentences, all figures behind it, and JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..errors import AuditFailed, InputError
from .certificates import LayerCertificate, MapCertificate
from .verdict import Finding

CHECKS = (
    "box", "conservation", "roots", "domain", "region", "remainder", "positivity", "class-sensitivity", "convergence",
    "randomization", "gradient-times-input",
)  # fmt: skip
"""What an audit looks at; positivity and gradient-times-input are notes, which never fail."""
FORMAT = "deeptaylor-audit-1"
MARKS = {"holds": "holds", "fails": "FAILS", "note": "note"}


@dataclass(frozen=True)
class AuditReport:
    """What holds of an explanation, on the user's own model and inputs."""

    findings: tuple[Finding, ...]
    layers: tuple[LayerCertificate, ...] = ()
    maps: tuple[MapCertificate, ...] = ()
    smooth: tuple[str, ...] = ()
    """Operations without linear pieces, below which regions do not apply."""
    composite: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def failed(self) -> tuple[Finding, ...]:
        """The findings that do not hold."""
        return tuple(finding for finding in self.findings if finding.status == "fails")

    @property
    def passed(self) -> bool:
        """Whether nothing fails."""
        return not self.failed

    def __getitem__(self, check: str) -> Finding:
        """The worst finding of one check."""
        found = [finding for finding in self.findings if finding.check == check]
        if not found:
            raise KeyError(f"{check!r} was not looked at; what was: {', '.join(f.check for f in self.findings)}")
        return next((finding for finding in found if finding.status == "fails"), found[0])

    def raise_if_failed(self, *checks: str) -> None:
        """Raises where one of these checks (by default any) does not hold.

        Raises:
            AuditFailed: with the sentences; `.findings` holds them.
            InputError: no check has that name.
        """
        known_checks(checks)
        failed = [finding for finding in self.failed if not checks or finding.check in checks]
        if failed:
            raise AuditFailed(failed)

    def __str__(self) -> str:
        failed = len({finding.check for finding in self.failed})
        head = f"audit of {self.composite}: " + (
            f"{failed} check{'s' if failed > 1 else ''} failed" if failed else "nothing failed"
        )
        lines = [head, ""]
        for finding in self.findings:
            lines.append(f"{MARKS[finding.status]:<6} {finding.check}: {finding.sentence}")
            if len(finding.layers) > 1:
                lines.append(f"       where: {'; '.join(finding.layers)}")
            if finding.status == "fails" and finding.instead:
                lines.append(f"       instead: {finding.instead}")
        return "\n".join([*lines, "", *self.sampling()])

    def sampling(self) -> list[str]:
        """How many neurons the shares were measured on, and how sure they are."""
        if not self.layers:
            return []
        looked, carry = (sum(getattr(c, name) for c in self.layers) for name in ("sampled", "neurons"))
        worst = max(c.error for c in self.layers)
        error = sum((c.error * c.sampled) ** 2 for c in self.layers) ** 0.5 / looked
        return [
            f"Roots of {looked:,} of {carry:,} neurons that carry relevance, in {len(self.layers)} layers: "
            f"a share over all layers has a standard error of {error:.1%} at most, one of a single layer {worst:.0%}."
        ]

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain data."""
        return {"format": FORMAT, "passed": self.passed, **asdict(self)}

    def to_json(self) -> str:
        """Everything as JSON; a number that JSON can't hold (no boundary on the way) is null."""
        return json.dumps(_plain(self.to_dict()), indent=1, ensure_ascii=False, allow_nan=False)

    def save(self, path: str | Path) -> None:
        """Writes the JSON."""
        Path(path).write_text(self.to_json() + "\n", encoding="utf-8")


def known_checks(checks: Sequence[str]) -> None:
    """Refuses names of checks that there are none of."""
    for check in checks:
        if check not in CHECKS:
            raise InputError(f"no check is called {check!r}; the checks are {', '.join(CHECKS)}")


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if value == value and abs(value) != float("inf") else None
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
