"""What repairs and recoveries tell of their blocks: errors on held-out windows, before and afterwards."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np


class Judged(Protocol):
    """A block, with a relative error before it was changed and one after."""

    @property
    def error_before(self) -> float: ...

    @property
    def error_after(self) -> float: ...


def median_change(blocks: Sequence[Judged]) -> float:
    """Median of error_after / error_before - 1; 0.0 where there is none."""
    changes = [block.error_after / block.error_before - 1 for block in blocks if block.error_before]
    return float(np.median(changes)) if changes else 0.0


def how_many(blocks: Sequence[Judged], changed: int) -> str:
    """As in "5 of 12 blocks (held-out error −4 %, median)", with a decimal below one percent."""
    percent = 100 * median_change(blocks)
    tenths = round(percent, 1)
    change = f"{percent:+.0f} %" if abs(tenths) >= 1 else f"{tenths:+.1f} %" if tenths else "0 %"
    return f"{changed} of {len(blocks)} blocks (held-out error {change.replace('-', '−')}, median)"
