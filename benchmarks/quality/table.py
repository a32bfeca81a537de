"""The cells as Markdown: extra loss over the dense model, mean ± spread over seeds, one table a model and text."""

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.quality.cells import DENSE, Cell
from benchmarks.quality.methods import METHODS, OURS, is_published, repairs

SMALL = 0.02  # nats/token; where the best published method loses less, not being worse is all that can be shown
RESOLUTION = 0.0005  # nats/token: standard error over 48 windows of what magnitude loses at 20 % of gemma3


def tables(cells: list[Cell]) -> str:
    parts = []
    for model in unique(cells, lambda cell: cell.setting.model):
        here = [cell for cell in cells if cell.setting.model == model]
        texts = list(here[0].nll)
        parts += [f"### {model}", _heading(here), *(_losses(here, text) for text in texts)]
        parts += [_verdict(here), _costs(here)] if any(c.setting.method == OURS for c in here) else [_costs(here)]
    return "\n\n".join(parts)


def extra(cells: list[Cell], method: str, ratio: float, text: str) -> list[float]:
    """Nats per token above the dense model, a figure a seed."""
    dense = next(cell.nll[text] for cell in cells if cell.setting.method == DENSE)
    return [cell.nll[text] - dense for cell in _of(cells, method, ratio)]


def unique(cells: list[Cell], key: Callable[[Cell], object]) -> list:
    return list(dict.fromkeys(map(key, cells)))


def rows_and_columns(cells: list[Cell]) -> tuple[list[str], list[float]]:
    """Methods in the order of METHODS, ratios ascending."""
    used = {cell.setting.method for cell in cells}
    ratios = sorted({cell.setting.ratio for cell in cells if cell.setting.method != DENSE})
    return [method for method in METHODS if method in used], ratios


def _of(cells: list[Cell], method: str, ratio: float) -> list[Cell]:
    return [cell for cell in cells if (cell.setting.method, cell.setting.ratio) == (method, ratio)]


def _heading(cells: list[Cell]) -> str:
    dense = next(cell for cell in cells if cell.setting.method == DENSE)
    setting = dense.setting
    seeds = unique(cells, lambda cell: cell.setting.seed)
    losses = ", ".join(f"{text} {nll:.3f}" for text, nll in dense.nll.items())
    return (
        f"Dense: {losses} nats/token. Calibration {setting.samples} × {setting.seq_len} tokens, "
        f"{len(seeds)} seed{'s' * (len(seeds) > 1)} ({', '.join(map(str, seeds))}); {setting.eval_samples} × "
        f"{setting.seq_len} tokens of each text, Python {setting.python}."
    )


def _losses(cells: list[Cell], text: str) -> str:
    methods, ratios = rows_and_columns(cells)
    rows = [f"| extra nats/token on {text} | {' | '.join(f'{ratio:.0%}' for ratio in ratios)} |"]
    rows.append("|---" * (1 + len(ratios)) + "|")
    best = {ratio: min(statistics.mean(extra(cells, m, ratio, text)) for m in methods) for ratio in ratios}
    for method in methods:
        found = [extra(cells, method, ratio, text) for ratio in ratios]
        shown = [_emphasised(values, best[ratio]) for values, ratio in zip(found, ratios, strict=True)]
        rows.append(f"| {method} | {' | '.join(shown)} |")
    return "\n".join(rows)


def _emphasised(values: list[float], best: float) -> str:
    mean = statistics.mean(values)
    text = f"{mean:.3f}" + (f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else "")
    return f"**{text}**" if math.isclose(mean, best) else text


@dataclass(frozen=True)
class Rival:
    """The published method that loses least: its mean extra loss, and the larger of its spread and ours over seeds."""

    method: str
    loss: float
    spread: float

    @property
    def is_small(self) -> bool:
        return self.loss < SMALL

    def allows(self, ours: float, share: float) -> bool:
        """Whether ours is at most this share of it; where it loses little, whether it is no worse beyond noise."""
        return ours <= share * self.loss or (self.is_small and ours <= self.loss + max(self.spread, RESOLUTION))


def rival(cells: list[Cell], ratio: float, text: str, *, repaired: bool) -> Rival | None:
    """The best published method, of those that refit weights or of those that do not; None where none was measured.

    A loss below the dense model's counts as 0 here and for ours: what is aimed at is the dense model.
    """
    ours = extra(cells, OURS, ratio, text)
    found = [
        Rival(method, max(statistics.mean(losses), 0.0), max(_spread(losses), _spread(ours)))
        for method in rows_and_columns(cells)[0]
        if is_published(method) and repairs(method) == repaired
        for losses in [extra(cells, method, ratio, text)]
    ]
    return min(found, key=lambda one: one.loss, default=None)


def _verdict(cells: list[Cell]) -> str:
    """The defaults beside the best published method of either sort."""
    rows = [
        "| text | removed | ours | best without repair | at most half | best with refit | below |",
        "|---" * 7 + "|",
    ]
    for text in cells[0].nll:
        for ratio in rows_and_columns(cells)[1]:
            ours = max(statistics.mean(extra(cells, OURS, ratio, text)), 0.0)
            shown = []
            for repaired, share in ((False, 0.5), (True, 1.0)):
                best = rival(cells, ratio, text, repaired=repaired)
                if best is None:
                    shown += ["", ""]
                    continue
                shown.append(f"{best.method} {best.loss:.4f}")
                shown.append(_answer(best, ours, share))
            rows.append(f"| {text} | {ratio:.0%} | {ours:.4f} | {' | '.join(shown)} |")
    return "\n".join(rows)


def _answer(best: Rival, ours: float, share: float) -> str:
    if ours <= share * best.loss:
        return f"yes, {ours / best.loss:.2f} ×" if best.loss > 0 else "yes"
    if best.allows(ours, share):
        return "not worse"
    return f"**no**, {ours / best.loss:.2f} ×" if best.loss > 0 else "**no**"


def _spread(values: list[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


def _costs(cells: list[Cell]) -> str:
    methods, ratios = rows_and_columns(cells)
    removed = " | ".join(f"removed at {ratio:.0%}" for ratio in ratios)
    rows = [f"| method | {removed} | seconds | peak MiB | |", "|---" * (4 + len(ratios)) + "|"]
    for method in methods:
        achieved = [statistics.mean(c.achieved for c in _of(cells, method, ratio)) for ratio in ratios]
        own = [cell for cell in cells if cell.setting.method == method]
        seconds = statistics.median(cell.seconds for cell in own)
        peak = max(cell.peak_bytes for cell in own) / 2**20
        shares = " | ".join(f"{100 * share:.2f} %" for share in achieved)
        rows.append(f"| {method} | {shares} | {seconds:.1f} | {peak:,.0f} | {METHODS[method].says} |")
    return "\n".join(rows)
