"""Rules on what only some runs measure: outlier channels, and what each block of the plan loses alone."""

import numpy as np

from core.transforms import Remedy
from diagnostics.findings.finding import Finding
from diagnostics.findings.quantities import Measured
from diagnostics.findings.remedies import ADVICE_ONLY, ActiveRemedies
from diagnostics.wording import name_layers, percent

SHOWN = 8


def outliers_pruned(m: Measured, active: ActiveRemedies) -> Finding | None:
    """Outlier channels that the plan removes."""
    outliers = m.extras.outliers
    if outliers is None:
        return None
    gone = ~m.plan.keep[outliers.rows]
    if not gone.any():
        return None
    description = (
        f"The plan removes {_channels(m, gone)}, whose output norms exceed {outliers.threshold:g} times the median of "
        "their block. Models have been seen to fail after losing one such channel."
    )
    remedy = Remedy(protect="outliers")
    text = f"Try {remedy.flags}, which never prunes them. {ADVICE_ONLY}"
    return Finding("outliers_pruned", "high", description, text, remedy)


def outliers_kept(m: Measured, active: ActiveRemedies) -> Finding | None:
    outliers = m.extras.outliers
    if outliers is None or not len(outliers.rows) or not m.plan.keep[outliers.rows].all():
        return None
    description = (
        f"The plan keeps all outlier channels (output norm over {outliers.threshold:g} times their block's median): "
        f"{_channels(m, np.ones(len(outliers.rows), dtype=bool))}."
    )
    return Finding("outliers_kept", "info", description, "Nothing to do.")


def blocks_lose_more(m: Measured, active: ActiveRemedies) -> Finding | None:
    """Blocks that alone lose far more than their scores promised."""
    check = m.extras.check
    if check is None or not len(check.flagged):
        return None
    parts = []
    for block in check.flagged[:SHOWN]:
        factor = check.factor[block]
        times = f"{factor:.1f} times" if np.isfinite(factor) else "not"
        parts.append(f"{check.names([block])} {times} what was promised, {percent(check.share[block])} of all")
    description = (
        f"Measured alone, on calibration text that was set aside, {len(check.flagged)} of "
        f"{np.count_nonzero(check.planned)} narrowed blocks lose far more than their scores promised: "
        f"{'; '.join(parts)}."
    )
    layers = sorted(set(check.blocks.block_layer[check.flagged].tolist()))
    text = (
        f"Capping these blocks further did not help. The criterion misjudges {name_layers(layers)}: try another "
        "--importance_method."
    )
    return Finding("blocks_lose_more_than_promised", "medium", description, text)


def _channels(m: Measured, chosen: np.ndarray) -> str:
    """``channel 7310 of layer 1 (95 times)``, the largest first, the rest counted."""
    outliers = m.extras.outliers
    assert outliers is not None
    rows, factor = outliers.rows[chosen], outliers.factor[chosen]
    largest = np.argsort(-factor, kind="stable")
    groups = m.plan.groups
    names = [
        f"{groups.kind_of(groups.block[rows[i]]).noun} {groups.index[rows[i]]} of layer {groups.layer[rows[i]]} "
        f"({factor[i]:.0f} times)"
        for i in largest[:SHOWN]
    ]
    rest = [f"{len(rows) - SHOWN} more"] if len(rows) > SHOWN else []
    return ", ".join([*names, *rest])
