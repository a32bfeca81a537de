"""The cells as Markdown: extra loss over the dense model, mean ± spread over seeds, one table a model and text."""

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from benchmarks.quality.cells import DENSE, Cell
from benchmarks.quality.methods import METHODS, OURS, is_ours, is_variant

SMALL = 0.02  # nats/token; where the best published method loses less, not being worse is all that can be shown
NOISE = 2.0  # standard errors of a difference


def tables(cells: list[Cell]) -> str:
    """A section a model and calibration text; of several such texts one more table, of the means over the texts."""
    parts = []
    for model in unique(cells, lambda cell: cell.setting.model):
        of_model = [cell for cell in cells if cell.setting.model == model]
        calibrations = unique(of_model, lambda cell: cell.setting.calibration)
        for calibration in calibrations:
            named = f"### {model}" + (f", calibrated on {calibration}" if len(calibrations) > 1 else "")
            parts += [named, *_section([c for c in of_model if c.setting.calibration == calibration])]
        if len(calibrations) > 1:
            parts += [f"### {model}, means over texts", _means(of_model, calibrations)]
    return "\n\n".join(parts)


def _section(here: list[Cell]) -> list[str]:
    whole = [cell for cell in here if not is_variant(cell.setting.method)]
    parts = [_heading(here), *(_losses(whole, text) for text in here[0].nll)]
    if any(cell.setting.method == OURS for cell in here):
        parts += [_verdict(whole), *([_ingredients(here)] if len(here) > len(whole) else [])]
        if any(METHODS[method].trains for method in rows_and_columns(whole)[0]):
            parts.append(_lowest(whole))
    return [*parts, _costs(here)]


def extra(cells: list[Cell], method: str, ratio: float, text: str) -> list[float]:
    """Nats per token above the dense model, a figure a seed."""
    dense = next(cell.loss(text) for cell in cells if cell.setting.method == DENSE)
    return [cell.loss(text) - dense for cell in _of(cells, method, ratio)]


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
    losses = ", ".join(f"{text} {dense.loss(text):.3f}" for text in dense.nll)
    tokens = max(cell.setting.recover_tokens for cell in cells)
    windows = ", ".join(f"{text} {len(nll)}" for text, nll in dense.nll.items())
    return (
        f"Dense: {losses} nats/token. Calibration {setting.samples} × {setting.seq_len} tokens of "
        f"{setting.calibration}, "
        f"{len(seeds)} seed{'s' * (len(seeds) > 1)} ({', '.join(map(str, seeds))}). {setting.part.capitalize()} "
        f"windows of {setting.seq_len} tokens: {windows}; Python {setting.python}."
        + (f" Recoveries train on {tokens:,} tokens." if tokens else "")
        + (" Ratios are of all parameters." if setting.ratio_of == "total" else "")
        + (" In float32 on a GPU." if setting.device == "cuda" else "")
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
    """The published method that loses least.

    loss: its mean extra loss. difference: mean of ours less its, with a standard error over windows and seeds. Both in
    nats per token.
    """

    method: str
    loss: float
    difference: float
    error: float

    @property
    def ours(self) -> float:
        return self.loss + self.difference

    def answer(self, share: float) -> str:
        """Whether ours loses at most this share of it. Where it loses little: whether ours is worse beyond noise."""
        if self.loss > 0 and self.ours <= share * self.loss:
            return f"yes, {self.ours / self.loss:.2f} ×"
        if self.loss < SMALL and self.difference <= NOISE * self.error:
            return f"not worse, {self.difference:+.4f} ± {self.error:.4f}"
        if self.loss < SMALL:
            return f"**no**, {self.difference:+.4f} ± {self.error:.4f}"
        return f"**no**, {self.ours / self.loss:.2f} ×"


def rival(cells: list[Cell], ratio: float, text: str, *, repaired: bool) -> Rival | None:
    """The best published method that trains nothing, of those that refit weights or of those that do not; None where
    none was measured."""
    found = {
        method: statistics.mean(extra(cells, method, ratio, text))
        for method in rows_and_columns(cells)[0]
        if not is_ours(method) and not METHODS[method].trains and METHODS[method].refits == repaired
    }
    if not found:
        return None
    best = min(found, key=lambda method: found[method])
    return Rival(best, found[best], *difference(cells, OURS, best, ratio, text))


def difference(cells: list[Cell], method: str, other: str, ratio: float, text: str) -> tuple[float, float]:
    """Mean of ``method`` less ``other``, and its standard error: that over windows and that over seeds, as both vary.

    Window by window, so that what makes a window hard for either cancels. Seeds that both have.
    """
    ours, theirs = ({c.setting.seed: c.nll[text] for c in _of(cells, name, ratio)} for name in (method, other))
    seeds = sorted(ours.keys() & theirs.keys())
    gap = np.array([ours[seed] for seed in seeds]) - np.array([theirs[seed] for seed in seeds])  # (seeds, windows)
    variance = sum(_variance_of_mean(gap.mean(axis)) for axis in (0, 1))
    return float(gap.mean()), math.sqrt(variance)


def _variance_of_mean(values: np.ndarray) -> float:
    return float(values.var(ddof=1)) / len(values) if len(values) > 1 else 0.0


def _verdict(cells: list[Cell]) -> str:
    """The defaults beside the best published method of either sort."""
    rows = [
        "| text | removed | ours | best without repair | at most half | best with refit | below |",
        "|---" * 7 + "|",
    ]
    for text in cells[0].nll:
        for ratio in rows_and_columns(cells)[1]:
            shown = []
            for repaired, share in ((False, 0.5), (True, 1.0)):
                best = rival(cells, ratio, text, repaired=repaired)
                shown += ["", ""] if best is None else [f"{best.method} {best.loss:.4f}", best.answer(share)]
            ours = statistics.mean(extra(cells, OURS, ratio, text))
            rows.append(f"| {text} | {ratio:.0%} | {ours:.4f} | {' | '.join(shown)} |")
    return "\n".join(rows)


def _lowest(cells: list[Cell]) -> str:
    """Of ours and of the published methods the one that loses least, trained or not."""
    rows = ["| text | removed | least of ours | least of the published | ours lower |", "|---" * 5 + "|"]
    methods, ratios = rows_and_columns(cells)
    for text in cells[0].nll:
        for ratio in ratios:
            lost = {method: statistics.mean(extra(cells, method, ratio, text)) for method in methods}
            least = {
                own: min((m for m in methods if is_ours(m) is own), key=lost.__getitem__, default="")
                for own in (True, False)
            }
            ours, theirs = least[True], least[False]
            shown = [f"{method} {lost[method]:.4f}" if method else "" for method in (ours, theirs)]
            answer = _below(*difference(cells, ours, theirs, ratio, text)) if ours and theirs else ""
            rows.append(f"| {text} | {ratio:.0%} | {' | '.join(shown)} | {answer} |")
    return "\n".join(rows)


def _below(gap: float, error: float) -> str:
    return f"{'yes' if gap < 0 else '**no**'}, {gap:+.4f} ± {error:.4f}"


def _means(cells: list[Cell], calibrations: list[str]) -> str:
    """Extra loss, mean over texts and seeds, by calibration text: what is lost at home and elsewhere together."""
    methods, ratios = rows_and_columns([cell for cell in cells if not is_variant(cell.setting.method)])
    columns = [(ratio, calibration) for ratio in ratios for calibration in calibrations]
    heads = " | ".join(f"{ratio:.0%}, {calibration}" for ratio, calibration in columns)
    rows = [f"| extra nats/token, mean of {', '.join(cells[0].nll)} | {heads} |", "|---" * (1 + len(columns)) + "|"]
    by_text = {name: [cell for cell in cells if cell.setting.calibration == name] for name in calibrations}

    def mean(method: str, ratio: float, calibration: str) -> float | None:
        here = by_text[calibration]
        found = [value for text in here[0].nll for value in extra(here, method, ratio, text)]
        return statistics.mean(found) if found else None

    table = {column: {m: mean(m, *column) for m in methods} for column in columns}
    for method in methods:
        shown = []
        for column in columns:
            value, best = table[column][method], min(v for v in table[column].values() if v is not None)
            shown.append("" if value is None else f"**{value:.3f}**" if math.isclose(value, best) else f"{value:.3f}")
        rows.append(f"| {method} | {' | '.join(shown)} |")
    return "\n".join(rows)


def _ingredients(cells: list[Cell]) -> str:
    """What each variant loses above the defaults, on the seeds that both have."""
    methods, ratios = rows_and_columns(cells)
    columns = [(text, ratio) for text in cells[0].nll for ratio in ratios]
    heads = " | ".join(f"{text} {ratio:.0%}" for text, ratio in columns)
    rows = [f"| nats/token above {OURS} | seeds | {heads} |", "|---" * (2 + len(columns)) + "|"]
    for method in filter(is_variant, methods):
        seeds = len({cell.setting.seed for cell in cells if cell.setting.method == method})
        found = (difference(cells, method, OURS, ratio, text) for text, ratio in columns)
        rows.append(f"| {method} | {seeds} | {' | '.join(f'{mean:+.4f} ± {error:.4f}' for mean, error in found)} |")
    return "\n".join(rows)


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
