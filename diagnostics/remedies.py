"""Which flags to try next, given those that are switched on already.

A remedy is advice until held-out loss at equal size confirms it: on a healthy model normalising erases true
differences between layers and costs quality.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from core.criteria import CRITERIA
from diagnostics.measured import TOLERANCE, Measured

BY_LOSS = (
    "obs ranks all blocks by what they cost once the rest is refitted, and the rates follow from that. Nothing to do; "
    "--remedy auto measures whether a transform loses less."
)
ADVICE_ONLY = "This is advice until held-out loss at equal size confirms it."


@dataclass(frozen=True)
class ActiveRemedies:
    """What the run that is judged had switched on.

    clip: percentile clipping, at clip_percentiles. normalise: log, sqrt, minmax, zscore or None.
    temperature: T of the correction, 0 = off. max_block_ratio: largest fraction of a block that may go.
    criterion: the importance method.
    """

    clip: bool = False
    normalise: str | None = None
    temperature: float = 0.0
    max_block_ratio: float = 1.0
    criterion: str = "taylor"
    clip_percentiles: tuple[float, float] = (5.0, 95.0)

    @property
    def ranks_by_loss(self) -> bool:
        """Whether importance is a loss once the rest is refitted, one unit for all blocks: the rates follow from it."""
        return CRITERIA[self.criterion].priced_in_loss


@dataclass(frozen=True)
class Remedy:
    """One thing to switch on: its name in a sentence, its flags, and whether this run had it already."""

    name: str
    flags: str
    is_on: bool


@dataclass(frozen=True)
class Advice:
    """What a finding recommends: a sentence, and the exact flags or None."""

    recommendation: str
    flags: str | None = None


def log(active: ActiveRemedies) -> Remedy:
    return Remedy("log normalisation", "--enable_grad_norm --norm_method log", active.normalise == "log")


def sqrt(active: ActiveRemedies) -> Remedy:
    """The mild one; any other normalisation stands in for it."""
    name = f"{active.normalise or 'sqrt'} normalisation"
    return Remedy(name, "--enable_grad_norm --norm_method sqrt", active.normalise is not None)


def temperature(active: ActiveRemedies) -> Remedy:
    return Remedy("correction by the block prior", "--temperature 1.0 --tau 0.0", active.temperature > 0)


def clipping(active: ActiveRemedies) -> Remedy:
    return Remedy("clipping", "--enable_grad_clip", active.clip)


def block_cap(measured: Measured, active: ActiveRemedies) -> Remedy | None:
    """A cap under which no layer can be extreme; None where capped blocks cannot yield what was removed."""
    cap = math.floor(100 * measured.threshold + TOLERANCE) / 100
    blocks = 2 * measured.architecture.num_layers
    open_groups = np.bincount(measured.plan.groups.block, weights=~measured.frozen, minlength=blocks)
    cost = np.array([cost for layer in measured.architecture.layers for cost in layer.group_params])
    reachable = float(np.sum(np.floor(cap * open_groups + TOLERANCE) * cost))
    if reachable < measured.plan.removed_params:
        return None
    return Remedy("a cap on each block", f"--max_block_ratio {cap:g}", active.max_block_ratio <= cap + TOLERANCE)


def advise(wanted: Sequence[Remedy], measured: Measured, active: ActiveRemedies) -> Advice:
    """The wanted remedies that are not on yet; where all are, the next of temperature, clipping, block cap;
    where those are exhausted, no flags."""
    on = [remedy.name for remedy in wanted if remedy.is_on]
    missing = [remedy for remedy in wanted if not remedy.is_on]
    if not missing:
        ladder = [temperature(active), clipping(active), block_cap(measured, active)]
        missing = [remedy for remedy in ladder if remedy is not None and not remedy.is_on][:1]
    if not missing:
        return Advice("Every remedy that can reach this ratio is on already: remove less with --pruning_ratio.")
    flags = " ".join(remedy.flags for remedy in missing)
    return Advice(f"{_already(on)}Try {flags} ({_replacing(missing, active)}). {ADVICE_ONLY}", flags)


def _already(names: list[str]) -> str:
    if not names:
        return ""
    words = " and ".join(names)
    return f"{words[0].upper()}{words[1:]} {'is' if len(names) == 1 else 'are'} on already. "


def _replacing(remedies: list[Remedy], active: ActiveRemedies) -> str:
    names = " and ".join(remedy.name for remedy in remedies)
    switches = active.normalise is not None and any("--norm_method" in remedy.flags for remedy in remedies)
    return f"{names}, instead of {active.normalise}" if switches else names
