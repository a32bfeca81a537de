"""How numbers and layers are put into words, the same in files, pictures and on the console."""

import math
from collections.abc import Iterable, Sequence


def spans(numbers: Iterable[int]) -> str:
    """``2-4 and 7`` for [2, 3, 4, 7]; two neighbours read ``2 and 3``. Ascending input."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    parts = [part for run in runs for part in _run(run)]
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def _run(run: list[int]) -> list[str]:
    return [str(number) for number in run] if len(run) < 3 else [f"{run[0]}-{run[-1]}"]


def name_layers(layers: Sequence[int]) -> str:
    """``layer 3`` or ``layers 2-4 and 7``."""
    return f"layer{'' if len(layers) == 1 else 's'} {spans(layers)}"


def percent(fraction: float, digits: int = 1) -> str:
    return f"{100 * fraction:.{digits}f} %"


def percent_range(fractions: Sequence[float], digits: int = 1) -> str:
    """``91.0 %`` or ``91.0 to 93.5 %``."""
    low, high = percent(min(fractions), digits), percent(max(fractions), digits)
    return low if low == high else f"{low.removesuffix(' %')} to {high}"


def times(ratio: float) -> str:
    """At least three significant digits, thousands grouped: ``3.21``, ``45.3``, ``12,345``, ``4.1e+09``."""
    if ratio >= 1e6:
        return f"{ratio:.2g}"
    return f"{ratio:,.{max(0, 2 - math.floor(math.log10(ratio))) if ratio > 0 else 0}f}"


def decimal(value: float) -> str:
    """Perplexities, scores, speeds: two decimals, none from 1,000, four significant digits below 1."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}" if abs(value) < 1 else f"{value:.2f}"


def nats(value: float) -> str:
    """Nats per token, three significant digits: ``0.0213 nats``."""
    return f"{value:#.3g} nats"
