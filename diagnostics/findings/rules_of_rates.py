"""Rules on how the plan spreads over the layers.

With r = removed / prunable parameters of the model, and a layer's rate = removed / original prunable
parameters of that layer, a layer is extreme above max(0.5, min(0.9, 1.5 r)).
"""

from diagnostics.findings.finding import Finding, advised
from diagnostics.findings.quantities import TOLERANCE, Measured
from diagnostics.findings.remedies import BY_LOSS, ActiveRemedies, advise, block_cap, clipping, log, temperature
from diagnostics.wording import name_layers, percent, percent_range

EXTREME_LAYERS, MANY_EXTREME_LAYERS = 3, 6  # 3 to 5 are extreme, 6 and more are many
EARLY_LAYERS = range(5)
HEALTHY_LAYERS = range(2, 5)
HEALTHY_SPREAD = 0.30


def early_layers(m: Measured, active: ActiveRemedies) -> Finding | None:
    layers = [int(layer) for layer in m.extreme if layer in EARLY_LAYERS]
    if not layers:
        return None
    rates = ", ".join(f"layer {layer} {percent(m.rate[layer])}" for layer in layers)
    description = (
        f"Early layers lose more than {percent(m.threshold)} of their prunable parameters: {rates}; "
        f"the model loses {percent(m.achieved)}. All later layers build on what these compute."
    )
    return advised(
        "early_layers_over_pruned", "high", description, advise([log(active), temperature(active)], m, active)
    )


def extreme_layers(m: Measured, active: ActiveRemedies) -> Finding | None:
    if not EXTREME_LAYERS <= len(m.extreme) < MANY_EXTREME_LAYERS:
        return None
    return advised("extreme_layers", "medium", _extremes(m), advise([log(active)], m, active))


def many_extreme_layers(m: Measured, active: ActiveRemedies) -> Finding | None:
    if len(m.extreme) < MANY_EXTREME_LAYERS:
        return None
    return advised("many_extreme_layers", "high", _extremes(m), advise([log(active), clipping(active)], m, active))


def few_extreme_layers(m: Measured, active: ActiveRemedies) -> Finding | None:
    """One or two extreme layers, none of them early: no pattern, but not nothing."""
    if not 0 < len(m.extreme) < EXTREME_LAYERS or any(layer in EARLY_LAYERS for layer in m.extreme):
        return None
    cap = block_cap(m, active)
    wanted = [cap] if cap is not None else [log(active)]
    return advised("few_extreme_layers", "low", _extremes(m), advise(wanted, m, active))


def uneven(m: Measured, active: ActiveRemedies) -> Finding | None:
    if len(m.extreme) or m.spread < HEALTHY_SPREAD - TOLERANCE:
        return None
    rates = m.rate[m.open_layers]
    low, high = (int(m.open_layers[i]) for i in (rates.argmin(), rates.argmax()))
    description = (
        f"No layer is extreme, but rates differ by {100 * m.spread:.1f} points (healthy: under 30): "
        f"layer {low} loses {percent(m.rate[low])}, layer {high} loses {percent(m.rate[high])}."
    )
    if active.ranks_by_loss:
        return Finding("uneven_pruning", "info", description, BY_LOSS)
    return advised("uneven_pruning", "low", description, advise([temperature(active)], m, active))


def healthy(m: Measured, active: ActiveRemedies) -> Finding | None:
    if len(m.extreme) >= EXTREME_LAYERS or any(layer in HEALTHY_LAYERS for layer in m.extreme):
        return None
    if m.spread >= HEALTHY_SPREAD - TOLERANCE or not m.plan.removed_params:
        return None
    rates = m.rate[m.open_layers] if len(m.open_layers) else m.rate
    extreme = f"Only {name_layers(m.extreme.tolist())} extreme" if len(m.extreme) else "No layer is extreme"
    description = (
        f"{extreme}, and the layers that may be pruned lose "
        f"{percent_range([float(rates.min()), float(rates.max())])}: less than 30 points apart."
    )
    harm = "Normalising the scores of a healthy model erases true differences between layers and costs quality."
    return Finding("healthy", "info", description, f"Nothing to do. {harm}")


def _extremes(m: Measured) -> str:
    layers, rates = m.extreme.tolist(), m.rate[m.extreme].tolist()
    return (
        f"{len(layers)} layer{'s lose' if len(layers) > 1 else ' loses'} more than {percent(m.threshold)} of "
        f"{'their' if len(layers) > 1 else 'its'} prunable parameters: {name_layers(layers)} "
        f"({percent_range(rates)}); the model loses {percent(m.achieved)}."
    )
