"""The page of a comparison: the same sections as a run's, over several runs."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from core.files import write_text
from core.program import program_name
from diagnostics.comparison.charts_of_runs import losses_by_dataset
from diagnostics.comparison.ranking import Ranking
from diagnostics.comparison.runs import Named
from diagnostics.comparison.shared import Overlap
from diagnostics.comparison.tables import DISTANCE, GENERATION, RECOVERY, Table, best_lines, missing_lines
from diagnostics.page.charts import Chart, scatter
from diagnostics.page.headline import brief
from diagnostics.page.heat import Cell, HeatMap, runs_by_layer
from diagnostics.page.render import render
from diagnostics.reports.next_command import beside
from diagnostics.wording import percent


def write_comparison_page(
    path: Path,
    runs: Sequence[Named],
    ranked: Sequence[Ranking],
    shared: Sequence[Overlap],
    tables: Sequence[Table],
    written: Sequence[Path],
) -> Path:
    """Write the page; tables as they are printed, ``written`` linked by name. Returns its path."""
    named = {table.title: table for table in tables}
    values = {
        "title": headline(runs, ranked),
        "subtitle": " · ".join(item.name for item in runs),
        "best": best_lines(ranked),
        "cost": [named[title] for title in ("Cost", RECOVERY, DISTANCE, GENERATION) if title in named],
        "losses": _loss_charts(runs),
        "heat": runs_by_layer([(item.name, item.run) for item in runs]),
        "layers": [named["Layers"], named["Health"]],
        "shared": named.get("Shared removals"),
        "shared_by_layer": _shared_by_layer(shared) if shared else None,
        "steps": next_steps(runs, ranked),
        "missing": missing_lines(runs),
        "files": [file.relative_to(path.parent).as_posix() for file in written],
    }
    return write_text(path, render("comparison.html", values))


def headline(runs: Sequence[Named], ranked: Sequence[Ranking]) -> str:
    """``baseline is best of 3 at 20.0 % removed; perplexity 36.9 → 39.4``."""
    won = max(ranked, key=lambda ranking: len(ranking.names), default=None)
    if won is None or won.best is None:
        healthy = sum(item.health.healthy is True for item in runs)
        return f"{len(runs)} run{'' if len(runs) == 1 else 's'}, no two of them ranked; {healthy} healthy"
    dense = next(item.run for item in runs if item.name == won.best).perplexity("dense").get(won.dataset)
    before = "" if dense is None else f"{brief(dense)} → "
    return (
        f"{won.best} is best of {len(won.names)} at {percent(won.of_total)} removed; "
        f"perplexity {before}{brief(won.perplexities[0])}"
    )


def next_steps(runs: Sequence[Named], ranked: Sequence[Ranking]) -> list[tuple[str, str]]:
    """(sentence, command): carry out dry runs that are healthy, measure what was not, look at the best two."""
    steps = []
    for item in runs:
        run, model = item.run, item.run.option("base_model")
        if model and run.plan and not run.perplexity("pruned") and run.option("dry_run") is True:
            command = _replay(item, str(model))
            steps.append((f"{item.name} was a dry run: carry out its plan and measure what that costs.", command))
    for ranking in ranked:
        worse = [name for name in ranking.names if name not in ranking.winners]
        if ranking.best is not None and worse:
            files = [
                str(item.run.folder / "analysis" / "pruning_comparison.json")
                for name in (ranking.best, worse[0])
                for item in runs
                if item.name == name
            ]
            steps.append((f"What differs between the best two on {ranking.dataset}:", f"diff {shlex.join(files)}"))
    return steps


def _replay(item: Named, model: str) -> str:
    folder = item.run.folder
    options = ["--base_model", model]
    data = item.run.option("dataset")
    if isinstance(data, str):
        options += ["--dataset", data]
    options += ["--plan", str(folder / "analysis" / "pruning_plan.json")]
    return f"{program_name()} {shlex.join([*options, '--output', beside(folder, 'pruned')])}"


def _loss_charts(runs: Sequence[Named]) -> list[Chart]:
    charts = []
    for dataset, losses in losses_by_dataset(runs).items():
        points = [
            (
                loss.name,
                100 * loss.of_total,
                loss.pruned,
                f"{loss.name}: {percent(loss.of_total, 2)} removed, {loss.pruned:.4f} nats per token",
            )
            for loss in losses
        ]
        dense = dict.fromkeys(loss.dense for loss in losses if loss.dense is not None)
        points += [("dense", 0.0, loss, f"dense: {loss:.4f} nats per token") for loss in dense]
        description = "Held-out loss after pruning; lower is better."
        labels = ("removed parameters, % of all", "nats per token")
        charts.append(scatter(f"Loss against ratio, {dataset}", description, labels, points))
    return charts


def _shared_by_layer(shared: Sequence[Overlap]) -> HeatMap:
    num_layers = max(len(pair.by_layer) for pair in shared)
    rows = tuple(
        (f"{pair.first} ∩ {pair.second}", tuple(_cell(pair, layer) for layer in range(num_layers))) for pair in shared
    )
    caption = "Removed by both plans / by either, in percent of parameters"
    return HeatMap(caption, "plans", tuple(map(str, range(num_layers))), rows)


def _cell(pair: Overlap, layer: int) -> Cell:
    value = pair.by_layer[layer] if layer < len(pair.by_layer) else None
    where = f"{pair.first} and {pair.second}, layer {layer}"
    if value is None:
        return Cell(None, f"{where}: neither plan removes anything")
    return Cell(value, f"{where}: {percent(value, 2)} shared")
