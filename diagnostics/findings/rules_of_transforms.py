"""Rules on what clipping, normalisation and correction did to the scores."""

import numpy as np

from core.transforms import Remedy
from diagnostics.findings.finding import Finding
from diagnostics.findings.quantities import TOLERANCE, Measured
from diagnostics.findings.remedies import ADVICE_ONLY, ActiveRemedies
from diagnostics.wording import name_layers, percent, percent_range

CLIPPED_SHARE = 0.25
SMALL_FACTOR = 0.1  # of the median factor
SECOND_ORDER_SHARE = 0.01


def correction_near_zero(m: Measured, active: ActiveRemedies) -> Finding | None:
    """A block whose factor B^T is under a tenth of the median one, and that lost an extreme share."""
    factor = m.scores.factor if m.scores else None
    if factor is None:
        return None
    may_go = m.plan.groups.spread(m.plan.groups.by_block(~m.frozen) > 0)
    small = may_go & (factor < SMALL_FACTOR * np.median(factor[may_go])) & (m.plan.block_rates() > m.threshold)
    layers = [int(layer) for layer in m.extreme if small[layer].any()]
    if not layers:
        return None
    least = float(factor[layers][small[layers]].min())
    description = (
        f"The correction itself empties {name_layers(layers)}: its factor is as low as {least:.2g} there, and "
        f"{np.median(factor[may_go]):.2g} in the median block. Removing such a block alone costs "
        "next to nothing."
    )
    remedy = Remedy(temperature=active.temperature / 2 if active.temperature > 0.25 else 0.0)
    return Finding("correction_near_zero", "high", description, f"Try {remedy.flags}. {ADVICE_ONLY}", remedy)


def all_zero(m: Measured, active: ActiveRemedies) -> Finding | None:
    layers = m.scores.all_zero_layers if m.scores else ()
    if not layers:
        return None
    description = (
        f"Every importance is 0 in {name_layers(layers)}: these groups rank below all others and are removed first."
    )
    text = "No normalisation can help zeros. Look at the model's weights, or try another --importance_method."
    return Finding("all_zero_layers", "high", description, text)


def clipping_flattens(m: Measured, active: ActiveRemedies) -> Finding | None:
    share = m.scores.clipped_share if m.scores else None
    if share is None:
        return None
    layers = [int(layer) for layer in m.open_layers if share[layer] > CLIPPED_SHARE + TOLERANCE]
    if not layers:
        return None
    description = (
        f"Clipping changes more than 25 % of {name_layers(layers)} ({percent_range(share[layers].tolist())}) "
        "and flattens exactly the layers that it should help."
    )
    low, high = active.clip_percentiles
    remedy = Remedy(clip_low=low / 5, clip_high=100 - (100 - high) / 5)
    text = f"Try wider percentiles, {remedy.flags}, or normalisation without clipping. {ADVICE_ONLY}"
    return Finding("clipping_flattens_layers", "medium", description, text, remedy)


def score_ratio_undefined(m: Measured, active: ActiveRemedies) -> Finding | None:
    if m.scores is None:
        return None
    ranges = {"before": m.score_range(m.median_before), "after": m.score_range(m.median_after)}
    missing = [f"{when} the transforms: median {found.note}" for when, found in ranges.items() if found.ratio is None]
    if not missing:
        return None
    text = "A ratio needs positive medians (zscore centres them on 0); judge by the rates instead."
    return Finding("score_ratio_undefined", "info", f"score_ratio is null {'; '.join(missing)}.", text)


def second_order(m: Measured, active: ActiveRemedies) -> Finding | None:
    share = m.importance.second_order_share if m.importance else None
    if share is None or share >= SECOND_ORDER_SHARE:
        return None
    description = f"The second-order term is {percent(share, 3)} of the total: it hardly changes the ranking."
    return Finding(
        "second_order_negligible", "info", description, "--importance_method taylor gives nearly the same ranking."
    )
