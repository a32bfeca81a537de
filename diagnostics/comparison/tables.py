"""The comparison as tables of text: the same cells on the console, in Markdown and in the page."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from diagnostics.comparison.health import CRITERIA
from diagnostics.comparison.ranking import Ranking
from diagnostics.comparison.runs import Named, missing
from diagnostics.comparison.shared import Overlap
from diagnostics.reports.closing import MISSING
from diagnostics.reports.closing import table as aligned
from diagnostics.run_folder import number
from diagnostics.wording import decimal, nats, percent, spans, times

WATCHED_LAYERS = (2, 3, 4)
BEST = "best"
RECOVERY, DISTANCE = "Repair and recovery", "Distance from the dense model"
GENERATION = "What the models write"


@dataclass(frozen=True)
class Table:
    """rows: cells of text, as many as the header has; the first is the name of a run. note: what the columns mean."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""

    def console(self) -> str:
        lines = [self.title, aligned([self.header, *self.rows]), self.note]
        return "\n".join(line for line in lines if line)

    def markdown(self) -> str:
        rule = ("---", *["---:"] * (len(self.header) - 1))
        lines = [_markdown_row(row) for row in (self.header, rule, *self.rows)]
        return "\n".join([f"## {self.title}", "", *lines, *(["", self.note] if self.note else [])])


def all_tables(runs: Sequence[Named], ranked: Sequence[Ranking], shared: Sequence[Overlap]) -> list[Table]:
    far = [distance_table(runs)] if any(item.run.distance for item in runs) else []
    written = [generation_table(runs)] if any(item.run.generation("pruned") for item in runs) else []
    trained = [recovery_table(runs)] if any(item.run.recovery for item in runs) else []
    tables = [cost_table(runs, ranked), *trained, *far, *written, layer_table(runs), health_table(runs)]
    return [*tables, overlap_table(runs, shared)] if shared else tables


def cost_table(runs: Sequence[Named], ranked: Sequence[Ranking]) -> Table:
    """Size, perplexity and tasks before and after; a column only where some run has it."""
    datasets = _names(run.run.perplexity(side) for run in runs for side in ("dense", "pruned"))
    tasks = _names(run.run.tasks(side) for run in runs for side in ("dense", "pruned"))
    header = ["run", "of total", "of prunable", "parameters"]
    for dataset in datasets:
        header += [f"perplexity {dataset}", "change", "rank"]
    header += tasks
    rows = [tuple(_cost_row(item, datasets, tasks, ranked)) for item in runs]
    note = "dense → pruned; rank: among runs of one model, on one text, of equal size" if datasets or tasks else ""
    return Table("Cost", tuple(header), tuple(rows), note)


def _cost_row(item: Named, datasets: Sequence[str], tasks: Sequence[str], ranked: Sequence[Ranking]) -> list[str]:
    run = item.run
    row = [item.name, _text(run.of_total, _percent), _text(run.of_prunable, _percent)]
    row.append(_text(run.parameters[1], "{:,.0f}".format))
    for dataset in datasets:
        dense, pruned = (run.perplexity(side).get(dataset) for side in ("dense", "pruned"))
        row += [_arrow(dense, pruned, decimal), _change(dense, pruned), _rank(item.name, dataset, ranked)]
    for task in tasks:
        before, after = (run.tasks(side).get(task, (None,))[0] for side in ("dense", "pruned"))
        row.append(_arrow(before, after, _value))
    return row


def recovery_table(runs: Sequence[Named]) -> Table:
    """What was trained after the cut, and perplexity after each step towards the model that was delivered."""
    datasets = _names(item.run.on_the_way for item in runs)
    header = ["run", "--recover"]
    for dataset in datasets:
        header += [f"perplexity {dataset}, cut", "repaired", "recovered"]
    rows = []
    for item in runs:
        found = [item.run.on_the_way.get(dataset, {}) for dataset in datasets]
        steps = [_text(way.get(step), decimal) for way in found for step in ("cut", "repaired", "recovered")]
        rows.append((item.name, recovery_of(item), *steps))
    note = "each column after the step that it names; a step that was not taken has none"
    return Table(RECOVERY, tuple(header), tuple(rows), note)


def recovery_of(item: Named) -> str:
    """As --recover names it."""
    steps = item.run.recovery
    return MISSING if steps is None else ",".join(steps) or "none"


def distance_table(runs: Sequence[Named]) -> Table:
    """How far each pruned model's predictions are from its dense model's, by text."""
    datasets = _names(item.run.distance for item in runs)
    header = ["run"]
    for dataset in datasets:
        header += [f"KL {dataset}", "same top token"]
    rows = []
    for item in runs:
        found = [item.run.distance.get(dataset, (None, None)) for dataset in datasets]
        rows.append((item.name, *(cell for kl, same in found for cell in (_text(kl, nats), _text(same, percent)))))
    note = "KL(dense ‖ pruned) per token; same top token: share of tokens that both models think likeliest"
    return Table(DISTANCE, tuple(header), tuple(rows), note)


def generation_table(runs: Sequence[Named]) -> Table:
    """Repetition, end and length of what each model writes."""
    columns = _names(item.run.generation(side) for item in runs for side in ("dense", "pruned"))
    rows = []
    for item in runs:
        before, after = (item.run.generation(side) for side in ("dense", "pruned"))
        rows.append((item.name, *(_arrow(before.get(name), after.get(name), _value) for name in columns)))
    header = ("run", *(name.replace("_4grams", "") for name in columns))
    note = "dense → pruned; repeated: share of 4-grams written before; ended: texts that came to an end; length: tokens"
    return Table(GENERATION, header, tuple(rows), note)


def layer_table(runs: Sequence[Named]) -> Table:
    header = ("run", *(f"layer {layer}" for layer in WATCHED_LAYERS), "spread", "extreme layers")
    header += ("gradient ratio", "score ratio before", "after")
    rows = []
    for item in runs:
        run = item.run
        rates = [run.rates[layer] if layer < len(run.rates) else None for layer in WATCHED_LAYERS]
        extreme, spread = run.extreme_layers, run.spread
        ratios = [number(run.diagnosis, "gradient_statistics", "mean_ratio")]
        ratios += [number(run.diagnosis, "score_statistics", when, "score_ratio") for when in ("before", "after")]
        row = [item.name, *(_text(rate, percent) for rate in rates)]
        row += [MISSING if spread is None else f"{100 * spread:.1f} points"]
        row += [MISSING if extreme is None else spans(extreme) or "none"]
        rows.append((*row, *(_text(ratio, times) for ratio in ratios)))
    note = "rates: removed / prunable parameters of the layer; gradient ratio: raw, largest / smallest layer mean"
    return Table("Layers", header, tuple(rows), note)


def health_table(runs: Sequence[Named]) -> Table:
    words = {True: "yes", False: "no", None: MISSING}
    rows = [
        (item.name, *(words[verdict] for verdict in item.health.verdicts.values()), words[item.health.healthy])
        for item in runs
    ]
    return Table("Health", ("run", *CRITERIA.values(), "healthy"), tuple(rows))


def overlap_table(runs: Sequence[Named], shared: Sequence[Overlap]) -> Table:
    """J of each pair of plans, in percent; MISSING where two plans were made for different models."""
    known = {frozenset((pair.first, pair.second)): pair for pair in shared}
    names = [item.name for item in runs if any(item.name in pair for pair in known)]

    def cell(row: str, column: str) -> str:
        pair = known.get(frozenset((row, column)))
        return "" if row == column else MISSING if pair is None else _text(pair.total, percent)

    rows = tuple((row, *(cell(row, column) for column in names)) for row in names)
    chance = [pair.by_chance for pair in shared if pair.by_chance is not None]
    by_chance = f"; by chance {percent(min(chance))} to {percent(max(chance))}" if chance else ""
    note = f"removed by both / removed by either, in parameters{by_chance}"
    return Table("Shared removals", ("run", *names), rows, note)


def missing_lines(runs: Sequence[Named]) -> list[str]:
    return [f"{item.name}: {sentence}" for item in runs for sentence in missing(item.run)]


def best_lines(ranked: Sequence[Ranking]) -> list[str]:
    """One sentence a dataset and size: the best, or why there is none."""
    lines = []
    for ranking in ranked:
        size = f"{percent(ranking.of_total)} removed, {ranking.dataset}"
        if ranking.best is None:
            lines.append(f"{size}: only {ranking.names[0]} ({decimal(ranking.perplexities[0])}), nothing of equal size")
        else:
            won = f"{' and '.join(ranking.winners)} {'are' if len(ranking.winners) > 1 else 'is'} best"
            lines.append(f"{size}: {won} of {len(ranking.names)}, perplexity {decimal(ranking.perplexities[0])}")
    return lines


def _rank(name: str, dataset: str, ranked: Sequence[Ranking]) -> str:
    for ranking in ranked:
        if ranking.dataset == dataset and name in ranking.names:
            if ranking.best is None:
                return MISSING
            return BEST if name in ranking.winners else str(ranking.place(name))
    return MISSING


def _names(found: Iterable[Mapping[str, object]]) -> list[str]:
    return list(dict.fromkeys(name for names in found for name in names))


def _text(value: float | None, text: Callable[[float], str]) -> str:
    return MISSING if value is None else text(value)


def _percent(fraction: float) -> str:
    return percent(fraction, 2)


def _value(value: float) -> str:
    """Accuracies, which are fractions, as percent; anything else as it is."""
    return percent(value) if 0 <= value <= 1 else decimal(value)


def _arrow(before: float | None, after: float | None, text: Callable[[float], str]) -> str:
    if before is None and after is None:
        return MISSING
    return f"{_text(before, text)} → {_text(after, text)}"


def _change(before: float | None, after: float | None) -> str:
    return f"{100 * (after / before - 1):+.1f} %" if before and after is not None else MISSING


def _markdown_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
