"""The budget: how many parameters a ratio allows to remove, checked against what the limits let go.

    budget_params = ⌊ratio · P⌋,   P = the model's total parameters, or those of its groups (``prunable``)

in exact arithmetic on the decimal that was typed: 0.29 of 100 parameters are 29, although 0.29 * 100 < 29 in
floats.
"""

from decimal import Decimal
from fractions import Fraction

from core.errors import BudgetError, UsageError
from core.groups import Architecture
from core.names import RATIO_OF
from pruning.limits import Limits, exact, least_params, removable_params, smallest_removal_params


def budget_params(architecture: Architecture, ratio: float, ratio_of: str, limits: Limits) -> int:
    """⌊ratio · P⌋. Out of reach: BudgetError naming the largest ratio and a command that works; so is one too small
    for equal widths (``Limits.uniform``) where the layers differ."""
    budget = requested_params(architecture, ratio, ratio_of)
    if budget > removable_params(architecture, limits):
        raise BudgetError(_refusal(architecture, ratio, ratio_of, limits))
    least = least_params(architecture, limits)
    if budget < least:
        lowest = Fraction(-(-least * 10_000 // _whole(architecture, ratio_of)), 10_000)
        raise BudgetError(
            f"--pruning_ratio {ratio} of {ratio_of} parameters is {budget}, but equal widths in all layers take "
            f"{least}: use --pruning_ratio {_decimal(float(lowest))} --ratio_of {ratio_of} or more, or --target hf"
        )
    return budget


def requested_params(architecture: Architecture, ratio: float, ratio_of: str) -> int:
    """⌊ratio · P⌋, whether or not it can be reached."""
    if not 0 < ratio < 1:
        raise UsageError(f"--pruning_ratio {ratio}: needs a number above 0, below 1, e.g. 0.2")
    return int(exact(ratio) * _whole(architecture, ratio_of))


def largest_ratio(architecture: Architecture, ratio_of: str, limits: Limits) -> float:
    """The largest ratio of 4 decimals, or of as many as let the smallest step in, that passes; 0.0 if none does.

    With M parameters removable of P, these are the ratios below (M + 1)/P, as the budget is rounded down.
    """
    whole, most = _whole(architecture, ratio_of), removable_params(architecture, limits)
    decimals, ratio = 3, Fraction(0)
    while int(ratio * whole) < smallest_removal_params(architecture, limits):
        decimals += 1
        ratio = Fraction(-(-(most + 1) * 10**decimals // whole) - 1, 10**decimals)
    return float(ratio)


def _whole(architecture: Architecture, ratio_of: str) -> int:
    if ratio_of not in RATIO_OF:
        raise UsageError(f"--ratio_of {ratio_of}: needs one of {', '.join(RATIO_OF)}")
    return architecture.total_params if ratio_of == "total" else architecture.prunable_params


def _refusal(architecture: Architecture, ratio: float, ratio_of: str, limits: Limits) -> str:
    most, asked = removable_params(architecture, limits), requested_params(architecture, ratio, ratio_of)
    kept = "floors, caps, frozen layers and protected groups" if limits.protected else "floors, caps and frozen layers"
    say = f"--pruning_ratio {ratio} of {ratio_of} parameters is {asked}, but {kept}"
    if not most:
        return f"{say} allow none to be removed: freeze fewer layers, or lower --min_kv_heads and --round_to"
    largest = largest_ratio(architecture, ratio_of, limits)
    advice = f"use --pruning_ratio {_decimal(largest)} --ratio_of {ratio_of}"
    alternative = requested_params(architecture, ratio, "prunable")
    if ratio_of == "total" and smallest_removal_params(architecture, limits) <= alternative <= most:
        advice += f", or --pruning_ratio {ratio} --ratio_of prunable"
    if limits.protected:
        advice += ", or leave out --protect outliers"
    return f"{say} allow at most {most} to be removed: the largest ratio possible is {_decimal(largest)}; {advice}"


def _decimal(ratio: float) -> str:
    """Without an exponent, as a person types it: 0.00003, not 3e-05."""
    return format(Decimal(repr(ratio)), "f")
