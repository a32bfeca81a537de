"""One thing worth saying about a run, and what a rule is."""

from collections.abc import Callable
from dataclasses import dataclass

from core.transforms import Remedy
from diagnostics.findings.quantities import Measured
from diagnostics.findings.remedies import ActiveRemedies, Advice

SEVERITIES = ("high", "medium", "low", "info")


@dataclass(frozen=True)
class Finding:
    """issue: a stable identifier. severity: one of SEVERITIES. description: the numbers and the layers
    concerned. recommendation: a sentence or two. remedy: what to try, or None."""

    issue: str
    severity: str
    description: str
    recommendation: str
    remedy: Remedy | None = None

    @property
    def flags(self) -> str | None:
        """The exact options to try, as one string, or None."""
        return None if self.remedy is None else self.remedy.flags

    def to_json(self) -> dict[str, str | None]:
        return {
            "issue": self.issue,
            "severity": self.severity,
            "description": self.description,
            "recommendation": self.recommendation,
            "flags": self.flags,
        }


Rule = Callable[[Measured, ActiveRemedies], Finding | None]


def advised(issue: str, severity: str, description: str, advice: Advice) -> Finding:
    return Finding(issue, severity, description, advice.recommendation, advice.remedy)
