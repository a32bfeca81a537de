"""How reports of repairs and recoveries tell what became of held-out errors."""

from dataclasses import dataclass

import pytest

from pruning.held_out_errors import how_many, median_change


@dataclass(frozen=True)
class Block:
    error_before: float
    error_after: float


def test_the_median_leaves_out_what_had_no_error() -> None:
    blocks = [Block(0.0, 0.0), Block(2.0, 1.0), Block(4.0, 3.0), Block(1.0, 1.0)]
    assert median_change(blocks) == -0.25
    assert median_change([Block(0.0, 0.0)]) == median_change([]) == 0.0


SHOWN = {0.963: "−4 %", 0.9962: "−0.4 %", 1.0: "0 %", 0.9997: "0 %", 0.9902: "−1 %", 1.0096: "+1 %", 1.02: "+2 %"}


@pytest.mark.parametrize(("after", "shown"), SHOWN.items())
def test_a_change_below_a_percent_has_a_decimal(after: float, shown: str) -> None:
    assert how_many([Block(1.0, after)] * 3, 2) == f"2 of 3 blocks (held-out error {shown}, median)"
