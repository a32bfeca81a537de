"""The cells as Markdown: extra loss over the dense model, mean ± spread over seeds, one table a model and text."""

import math
import statistics
from collections.abc import Callable

from benchmarks.quality.cells import DENSE, Cell
from benchmarks.quality.methods import METHODS


def tables(cells: list[Cell]) -> str:
    parts = []
    for model in unique(cells, lambda cell: cell.setting.model):
        here = [cell for cell in cells if cell.setting.model == model]
        texts = list(here[0].nll)
        parts += [f"### {model}", _heading(here), *(_losses(here, text) for text in texts), _costs(here)]
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
