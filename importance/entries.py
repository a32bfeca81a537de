"""What was measured as a cache entry, and back: the same numbers, bit for bit."""

from core.cache import Entry
from core.measured import GradientStatistics, Importance, Outliers, Prior

STATISTICS = ("mean", "norm", "min", "max")


def importance_entry(importance: Importance) -> Entry:
    """values float64 (G,); halves float64 (2, G) where there are any; mean, norm, min and max float64 (L,) where
    gradients were seen."""
    gradients = importance.gradients
    arrays = {"values": importance.values}
    if importance.halves is not None:
        arrays["halves"] = importance.halves
    if gradients is not None:
        arrays |= {f"gradient_{name}": getattr(gradients, name) for name in STATISTICS}
    facts = {
        "criterion": importance.criterion,
        "gradient_source": gradients.source if gradients else None,
        "windows_used": importance.windows_used,
        "windows_skipped": importance.windows_skipped,
        "second_order_share": importance.second_order_share,
        "notes": importance.notes,
    }
    return Entry(arrays, facts)


def importance_from(entry: Entry) -> Importance:
    arrays, facts = entry.arrays, entry.facts
    source = facts["gradient_source"]
    gradients = None
    if source is not None:
        gradients = GradientStatistics(**{name: arrays[f"gradient_{name}"] for name in STATISTICS}, source=source)
    return Importance(
        values=arrays["values"],
        criterion=facts["criterion"],
        gradients=gradients,
        windows_used=facts["windows_used"],
        windows_skipped=facts["windows_skipped"],
        second_order_share=facts["second_order_share"],
        notes=facts["notes"],
        halves=arrays.get("halves"),
    )


def prior_entry(prior: Prior) -> Entry:
    """block float64 (L, kinds), layer float64 (L,)."""
    facts = {"method": prior.method, "num_windows": prior.num_windows, "dense_nll": prior.dense_nll}
    return Entry({"block": prior.block, "layer": prior.layer}, facts)


def prior_from(entry: Entry) -> Prior:
    return Prior(block=entry.arrays["block"], layer=entry.arrays["layer"], **entry.facts)


def outliers_entry(outliers: Outliers) -> Entry:
    """rows int64 (n,), factor float64 (n,)."""
    facts = {"threshold": outliers.threshold, "num_windows": outliers.num_windows}
    return Entry({"rows": outliers.rows, "factor": outliers.factor}, facts)


def outliers_from(entry: Entry) -> Outliers:
    return Outliers(rows=entry.arrays["rows"], factor=entry.arrays["factor"], **entry.facts)
