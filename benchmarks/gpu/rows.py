"""Rows of the table: what was measured, what it is compared with, what was aimed at."""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Row:
    """One figure. seconds, of ``what``; reference_s: of the same work by plain backward, None where there is none.

    aim: a bound on seconds, or, where ``aim_is_ratio``, on seconds / reference_s. most_bytes: one on peak_bytes. flop,
    bytes: what the arithmetic needs at least. peak_bytes: largest allocation on a GPU. launches, waits: a layer and
    window.
    """

    what: str
    seconds: float
    reference_s: float | None = None
    aim: float | None = None
    aim_is_ratio: bool = False
    flop: float | None = None
    bytes: float | None = None
    peak_bytes: int | None = None
    most_bytes: int | None = None
    launches: float | None = None
    waits: float | None = None

    @property
    def ratio(self) -> float | None:
        return None if self.reference_s is None else self.seconds / self.reference_s

    @property
    def reached(self) -> bool | None:
        """Whether the aims were reached; None without one."""
        measured = self.ratio if self.aim_is_ratio else self.seconds
        if self.aim is None or measured is None:
            return None
        fits = self.most_bytes is None or self.peak_bytes is None or self.peak_bytes <= self.most_bytes
        return measured <= self.aim and fits

    def share_of(self, rate: float) -> float | None:
        """Of a matmul rate, FLOP a second."""
        return None if self.flop is None else self.flop / self.seconds / rate

    def record(self, rate: float) -> dict[str, Any]:
        return asdict(self) | {"ratio": self.ratio, "reached": self.reached, "share_of_peak": self.share_of(rate)}


HEAD = "| what | s | × backward | aim | | TFLOP | share of peak | GB moved | peak GiB | launches | waits |"


def table(rows: list[Row], rate: float) -> str:
    """Markdown. launches and waits are a layer and window."""
    lines = [HEAD, "|---|---|---|---|---|---|---|---|---|---|---|"]
    for row in rows:
        aim = "" if row.aim is None else f"≤ {row.aim:g}{' ×' if row.aim_is_ratio else ' s'}"
        reached = {None: "", True: "yes", False: "no"}[row.reached]
        cells = [row.what, _number(row.seconds, ".3g"), _number(row.ratio, ".2f"), aim, reached]
        cells += [_number(row.flop and row.flop / 1e12, ".3g"), _number(row.share_of(rate), ".0%")]
        cells += [_number(row.bytes and row.bytes / 1e9, ".3g")]
        cells += [_number(row.peak_bytes and row.peak_bytes / 2**30, ".1f")]
        cells += [_number(row.launches, ".0f"), _number(row.waits, ".2f")]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
