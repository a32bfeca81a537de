"""Which flags to try next, given those that are switched on already.

A remedy is advice until held-out loss at equal size confirms it: on a healthy model normalising erases true
differences between layers and costs quality.
"""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from core.criteria import CRITERIA
from core.transforms import Remedy
from diagnostics.findings.quantities import TOLERANCE, Measured

BY_LOSS = (
    "obs ranks all groups by what they cost after the rest of their block is refitted, and uneven rates follow from "
    "that. Nothing to do; --remedy auto measures whether a transform would lose less."
)
ADVICE_ONLY = "This is advice until held-out loss at equal size confirms it."


def nothing_refused(remedy: Remedy) -> str | None:
    return None


@dataclass(frozen=True)
class ActiveRemedies:
    """What the run that is judged had switched on.

    clip: percentile clipping, at clip_percentiles. normalise: log, sqrt, minmax, zscore or None.
    temperature: T of the correction, 0 = off. max_block_ratio: largest fraction of a block that may go.
    criterion: the importance method. dtype: computed in, ``float32`` ..., empty where it is not known.
    refusal: why the program would refuse this run with that remedy on it, None where it would not.
    """

    clip: bool = False
    normalise: str | None = None
    temperature: float = 0.0
    max_block_ratio: float = 1.0
    criterion: str = "taylor"
    clip_percentiles: tuple[float, float] = (5.0, 95.0)
    dtype: str = ""
    refusal: Callable[[Remedy], str | None] = field(default=nothing_refused, compare=False)

    @property
    def ranks_by_loss(self) -> bool:
        """Whether importance is a loss once the rest is refitted, one unit for all blocks: the rates follow from it."""
        return CRITERIA[self.criterion].priced_in_loss


@dataclass(frozen=True)
class Step:
    """One thing to switch on: its name in a sentence, the remedy, and whether this run had it already."""

    name: str
    remedy: Remedy
    is_on: bool


@dataclass(frozen=True)
class Advice:
    """What a finding recommends: a sentence, and the remedy or None."""

    recommendation: str
    remedy: Remedy | None = None


def log(active: ActiveRemedies) -> Step:
    return Step("log normalisation", Remedy(normalise="log"), active.normalise == "log")


def sqrt(active: ActiveRemedies) -> Step:
    """The mild one; any other normalisation stands in for it."""
    name = f"{active.normalise or 'sqrt'} normalisation"
    return Step(name, Remedy(normalise="sqrt"), active.normalise is not None)


def temperature(active: ActiveRemedies) -> Step:
    return Step("correction by the block prior", Remedy(temperature=1.0, tau=0.0), active.temperature > 0)


def clipping(active: ActiveRemedies) -> Step:
    return Step("clipping", Remedy(clip=True), active.clip)


def block_cap(measured: Measured, active: ActiveRemedies) -> Step | None:
    """A cap under which no layer can be extreme; None where capped blocks cannot yield what was removed."""
    cap = math.floor(100 * measured.threshold + TOLERANCE) / 100
    groups = measured.plan.groups
    reachable = float(np.sum(np.floor(cap * groups.by_block(~measured.frozen) + TOLERANCE) * groups.block_cost))
    if reachable < measured.plan.removed_params:
        return None
    return Step("a cap on each block", Remedy(max_block_ratio=cap), active.max_block_ratio <= cap + TOLERANCE)


def advise(wanted: Sequence[Step], measured: Measured, active: ActiveRemedies) -> Advice:
    """The wanted remedies that are not on yet; where all are, the next of temperature, clipping, block cap;
    where those are exhausted, no flags. What the other options of the run rule out is not advised."""
    on = [step.name for step in wanted if step.is_on]
    missing = _usable(wanted, active)
    if not missing:
        missing = _usable([temperature(active), clipping(active), block_cap(measured, active)], active)[:1]
    if not missing:
        return Advice(
            "Every remedy that can reach this ratio is on already: remove less, with a smaller --pruning_ratio."
        )
    remedy = functools.reduce(Remedy.__or__, (step.remedy for step in missing))
    return Advice(f"{_already(on)}Try {remedy.flags} ({_replacing(missing, active)}). {ADVICE_ONLY}", remedy)


def _usable(steps: Sequence[Step | None], active: ActiveRemedies) -> list[Step]:
    return [step for step in steps if step and not step.is_on and active.refusal(step.remedy) is None]


def _already(names: list[str]) -> str:
    if not names:
        return ""
    words = " and ".join(names)
    return f"{words[0].upper()}{words[1:]} {'is' if len(names) == 1 else 'are'} on already. "


def _replacing(steps: list[Step], active: ActiveRemedies) -> str:
    names = " and ".join(step.name for step in steps)
    switches = active.normalise is not None and any(step.remedy.normalise for step in steps)
    return f"{names}, instead of {active.normalise}" if switches else names
