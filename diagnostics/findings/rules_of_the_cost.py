"""Rules on what a pruned model lost, once it has been measured: elsewhere, in tasks, in what it writes."""

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from core.names import SELF
from core.transforms import Remedy
from diagnostics.findings.finding import SEVERITIES, Finding
from diagnostics.findings.remedies import ADVICE_ONLY, Advice, nothing_refused
from diagnostics.wording import percent

FAR_NATS, FAR_TIMES = 0.1, 2  # loss elsewhere above loss at home; docs/judging.md says what they were chosen by
SUFFERS = 0.1  # of tasks, of what is written, and of perplexity that shows it
ERRORS = 2  # standard errors that a difference must exceed
HIGHER_IS_BETTER = ("acc", "exact_match", "em", "f1", "mcc")


@dataclass(frozen=True)
class Cost:
    """results: the content of evaluation_results.json, both halves measured. home: the texts that calibrate.
    texts: options that evaluate another run on the same texts, as a remedy. to_lose_less: what this run did not do, in
    the order in which to try it. refusal: why the program would refuse this run with that remedy on it, None where it
    would not."""

    results: Mapping[str, Any]
    home: Collection[str]
    texts: Remedy = field(default_factory=Remedy)
    to_lose_less: Sequence[Advice] = ()
    refusal: Callable[[Remedy], str | None] = nothing_refused

    @property
    def losses(self) -> dict[str, float]:
        """Dataset -> nats per token that the pruned model loses there."""
        changes = self.results["change"]["perplexity"]
        found = {name: change["nll_difference_nats_per_token"] for name, change in changes.items()}
        return {name: loss for name, loss in found.items() if loss is not None}

    @property
    def loss_at_home(self) -> float | None:
        """The largest; None where it was not measured."""
        return max((loss for name, loss in self.losses.items() if name in self.home), default=None)

    @property
    def shown(self) -> bool:
        """Whether perplexity at home tells already that the model has suffered."""
        return self.loss_at_home is not None and math.expm1(self.loss_at_home) >= SUFFERS


def cost_findings(cost: Cost) -> tuple[Finding, ...]:
    """Every finding, the most severe first."""
    findings = [finding for rule in RULES if (finding := rule(cost)) is not None]
    return tuple(sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity)))


def loss_elsewhere(cost: Cost) -> Finding | None:
    """Loss on a text of another kind, far above the loss on text like the calibration's."""
    home = cost.loss_at_home
    others = {name: loss for name, loss in cost.losses.items() if name not in cost.home}
    if home is None or not others:
        return None
    name = max(others, key=lambda other: others[other])
    if others[name] - home <= FAR_NATS or others[name] <= FAR_TIMES * home:
        return None
    description = (
        f"The pruned model loses {others[name]:.3f} nats per token on {name} (perplexity "
        f"{_rise(others[name])}), and {home:.3f} on text like the calibration's ({_rise(home)})."
    )
    remedy = Remedy(dataset=SELF) | cost.texts
    if SELF in cost.home or cost.refusal(remedy) is not None:
        text = "Calibrate on text of more kinds, or remove less."
        return Finding("loss_elsewhere", "medium", description, text)
    text = f"Try calibration on text that the model writes itself, which is of every kind it knows. {ADVICE_ONLY}"
    return Finding("loss_elsewhere", "medium", description, text, remedy)


def much_is_lost(cost: Cost) -> Finding | None:
    """A tenth of perplexity or more on text like the calibration's; where that was not measured, on any text.

    What is lost elsewhere alone is another finding's: to fit such a text even better makes it worse.
    """
    name, loss = max(cost.losses.items(), key=lambda item: (item[0] in cost.home, item[1]), default=("", 0.0))
    if math.expm1(loss) < SUFFERS:
        return None
    description = f"The pruned model loses {loss:.3f} nats per token on {name} (perplexity {_rise(loss)})."
    for way in cost.to_lose_less:
        if way.remedy is not None and cost.refusal(way.remedy) is None:
            return Finding("much_is_lost", "medium", description, f"{way.recommendation} {ADVICE_ONLY}", way.remedy)
    return Finding("much_is_lost", "medium", description, "Remove less, or calibrate on more text.")


def tasks_suffer(cost: Cost) -> Finding | None:
    """A task that lost more than a tenth of its accuracy while perplexity says little."""
    worst = max(_task_losses(cost.results), default=None)
    if cost.shown or worst is None or worst[0] <= SUFFERS:
        return None
    share, name, before, after = worst
    description = f"{name} falls from {percent(before)} to {percent(after)}, by {percent(share, 0)} of what it was"
    return Finding("tasks_suffer", "medium", description + _unshown(cost), _REMOVE_LESS)


def writing_suffers(cost: Cost) -> Finding | None:
    """Text that repeats itself, or comes to an end, in a tenth more or fewer cases, while perplexity says little."""
    worst = max(_writing_changes(cost.results), default=None)
    if cost.shown or worst is None or worst[0] <= SUFFERS:
        return None
    _, what, before, after = worst
    description = f"{what}: {percent(before)} before, {percent(after)} after"
    return Finding("writing_suffers", "medium", description + _unshown(cost), _REMOVE_LESS)


RULES: tuple[Callable[[Cost], Finding | None], ...] = (loss_elsewhere, much_is_lost, tasks_suffer, writing_suffers)
_REMOVE_LESS = "Judge further runs by this as well, and remove less, or calibrate on text like that of its use."
_WRITTEN = {"repeated_4grams": "Repeated 4-grams in {} text", "ended": "{} texts that come to an end"}


def _rise(nats: float) -> str:
    return f"{100 * math.expm1(nats):+.1f} %"


def _unshown(cost: Cost) -> str:
    """How perplexity stands beside it."""
    home = cost.loss_at_home
    return "." if home is None else f", and perplexity changes by {_rise(home)} only."


def _task_losses(results: Mapping[str, Any]) -> Iterator[tuple[float, str, float, float]]:
    """(share lost, task and metric, before, after) of every fall beyond its error."""
    for task, metrics in results["pruned"]["tasks"].items():
        dense = results["dense"]["tasks"].get(task, {})
        for metric, after in metrics.items():
            before = dense.get(metric)
            if metric.split(",")[0].split("_norm")[0] not in HIGHER_IS_BETTER or not before or after is None:
                continue
            if before - after > ERRORS * _error(dense, metrics, metric):
                yield (before - after) / before, f"{task} {metric}", before, after


def _writing_changes(results: Mapping[str, Any]) -> Iterator[tuple[float, str, float, float]]:
    """(change as a fraction of the texts, what, before, after) of more repetition, and of more or fewer ends."""
    dense, pruned = (results[side].get("generation") or {} for side in ("dense", "pruned"))
    for way in ("greedy", "sampled"):
        for measure, words in _WRITTEN.items():
            before, after = (side.get(way, {}).get(measure) for side in (dense, pruned))
            if before is None or after is None:
                continue
            change = after - before if measure == "repeated_4grams" else abs(after - before)
            if change > ERRORS * _error(dense[way], pruned[way], measure):
                yield change, words.format(way).capitalize(), before, after


def _error(dense: Mapping[str, Any], pruned: Mapping[str, Any], measure: str) -> float:
    """Of the difference of two measures, taken as independent, which they are not: paired, it would be smaller."""
    return math.hypot(*(side.get(f"{measure}_stderr") or 0.0 for side in (dense, pruned)))
