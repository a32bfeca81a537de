"""Why these groups went: rates against the limits, scores, gradients and priors by layer."""

from collections.abc import Sequence
from dataclasses import dataclass

from core.kinds import TABLE
from diagnostics.page.charts import Chart, Values, layer_bars, layer_lines
from diagnostics.run_folder import Run, at, items, number
from diagnostics.wording import percent, times


@dataclass(frozen=True)
class Why:
    """lead: how groups were ranked. rates: None where no rate is known. charts: what was measured. unmeasured: the
    rest, a sentence each."""

    lead: str
    rates: Chart | None
    charts: tuple[Chart, ...]
    unmeasured: tuple[str, ...]


def reasons(run: Run) -> Why:
    found = {"Scores": _scores(run), "Gradients": _gradients(run), "Priors": _priors(run)}
    charts = tuple(chart for several in found.values() for chart in several)
    absent = tuple(f"{name}: not measured{_why_not(run, name)}" for name, several in found.items() if not several)
    return Why(_lead(run), rates_chart(run), charts, absent)


def rates_chart(run: Run) -> Chart | None:
    if not run.rates:
        return None
    levels = []
    if run.threshold is not None:
        levels.append((run.threshold, f"extreme above {percent(run.threshold)}", "limit"))
    if run.of_prunable is not None:
        levels.append((run.of_prunable, f"model {percent(run.of_prunable)}", "model"))
    values = Values("layer", "layer", run.rates)
    description = "Removed share of the prunable parameters of each layer."
    return layer_bars("Pruning rate by layer", description, values, run.extreme_layers or (), levels)


def _lead(run: Run) -> str:
    if run.option("plan"):
        return "A saved plan was replayed; nothing was ranked here."
    criterion = run.option("importance_method")
    if criterion is None:
        return ""
    steps = []
    if run.option("enable_grad_clip") is True:
        low, high = run.option("clip_percentile_low"), run.option("clip_percentile_high")
        steps.append(f"clipped to percentiles {low:g} to {high:g}" if number(low) is not None else "clipped")
    if run.option("enable_grad_norm") is True:
        steps.append(f"normalised by {run.option('norm_method')} inside each layer")
    if number(run.option("temperature")):
        steps.append(f"corrected by the prior with T = {run.option('temperature'):g}, τ = {run.option('tau')}")
    done = f"; scores were {', then '.join(steps)}" if steps else "; no transform was used"
    return f"Groups were ranked by {criterion} importance per parameter{done}."


def _scores(run: Run) -> list[Chart]:
    """Medians before, and after where a transform changed them."""
    before, after = (_column(run, f"score_median_{when}") for when in ("before", "after"))
    charts = [_score_chart(run, "before", before)]
    if after != before:
        charts.append(_score_chart(run, "after", after))
    return [chart for chart in charts if chart is not None]


def _score_chart(run: Run, when: str, values: Sequence[float | None]) -> Chart | None:
    ratio = number(run.diagnosis, "score_statistics", when, "score_ratio")
    spread = "" if ratio is None else f": layers differ {times(ratio)}-fold"
    several = [Values("median score", "layer", values)]
    description = f"Cost-weighted median score of each layer {when} the transforms."
    positive = all(value is None or value > 0 for value in values)
    return layer_lines(f"Scores {when} the transforms{spread}", description, "median score", several, log=positive)


def _gradients(run: Run) -> list[Chart]:
    names = ("gradient_mean", "gradient_min", "gradient_max")
    mean, low, high = (_column(run, name) for name in names)
    ratio = number(run.diagnosis, "gradient_statistics", "mean_ratio")
    spread = "" if ratio is None else f": layers differ {times(ratio)}-fold"
    several = [Values("mean |gradient|", "gradient", mean, low, high)]
    source = at(run.diagnosis, "gradient_source")
    description = f"Mean absolute gradient of {source} in each layer; band: smallest to largest window."
    chart = layer_lines(f"Raw gradients{spread}", description, "nats", several, log=True)
    return [] if chart is None else [chart]


def _priors(run: Run) -> list[Chart]:
    several = [
        Values(title, name, _column(run, f"prior_{name}"))
        for title, name in (*((TABLE[kind].title, TABLE[kind].name) for kind in run.kinds), ("layer", "layer"))
    ]
    method = at(run.diagnosis, "prior", "method")
    unit = "1 − cosine" if method == "similarity" else "nats per token"
    description = "What removing each block, or the whole layer, costs alone; measured on calibration windows."
    positive = all(value is None or value > 0 for values in several for value in values.by_layer)
    chart = layer_lines("Prior: loss without the block", description, unit, several, log=positive)
    return [] if chart is None else [chart]


def _column(run: Run, name: str) -> list[float | None]:
    return [number(row, name) for row in items(run.diagnosis, "layers")]


def _why_not(run: Run, name: str) -> str:
    if not run.diagnosis:
        return " (no analysis/gradient_diagnosis.json)"
    if run.option("plan"):
        return " (a saved plan was replayed)"
    if name == "Priors":
        return " (--temperature is 0)" if number(run.option("temperature")) == 0 else ""
    criterion = run.option("importance_method")
    return f" ({criterion} uses none)" if name == "Gradients" and criterion else ""
