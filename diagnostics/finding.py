"""One thing worth saying about a run, and what a rule is."""

from collections.abc import Callable
from dataclasses import asdict, dataclass

from diagnostics.measured import Measured
from diagnostics.remedies import ActiveRemedies, Advice

SEVERITIES = ("high", "medium", "low", "info")


@dataclass(frozen=True)
class Finding:
    """issue: a stable identifier. severity: one of SEVERITIES. description: the numbers and the layers
    concerned. recommendation: a sentence or two. flags: exact options to try, as one string, or None."""

    issue: str
    severity: str
    description: str
    recommendation: str
    flags: str | None = None

    def to_json(self) -> dict[str, str | None]:
        return asdict(self)


Rule = Callable[[Measured, ActiveRemedies], Finding | None]


def advised(issue: str, severity: str, description: str, advice: Advice) -> Finding:
    return Finding(issue, severity, description, advice.recommendation, advice.flags)
