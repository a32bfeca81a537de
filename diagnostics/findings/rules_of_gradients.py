"""Rules on the raw gradients. Their ratio between layers is a property of the model and does not change with
a remedy; the score ratio and the rates do."""

import numpy as np

from core.transforms import Remedy
from diagnostics.findings.finding import Finding, advised
from diagnostics.findings.quantities import TOLERANCE, Measured
from diagnostics.findings.remedies import ADVICE_ONLY, ActiveRemedies, Advice, Step, advise, log, sqrt
from diagnostics.wording import name_layers, times

HIGH_RATIO = 1000.0
MODERATE_RATIO = 100.0


def gradient_scale(m: Measured, active: ActiveRemedies) -> Finding | None:
    """Above 1000."""
    if not _ratio(m) > HIGH_RATIO * (1 + TOLERANCE):
        return None
    return advised("gradient_scales_differ", "high", _gradients(m), _advise_if_harmful(log(active), m, active))


def gradient_scale_moderate(m: Measured, active: ActiveRemedies) -> Finding | None:
    """From 100 to 1000, both included."""
    if not MODERATE_RATIO * (1 - TOLERANCE) <= _ratio(m) <= HIGH_RATIO * (1 + TOLERANCE):
        return None
    advice = _advise_if_harmful(sqrt(active), m, active)
    if active.normalise is None:
        advice = Advice(
            f"{advice.recommendation} --norm_method minmax is an alternative, but with it one huge channel can "
            "flatten its layer, which sqrt avoids.",
            advice.remedy,
        )
    return advised("gradient_scales_differ_moderately", "medium", _gradients(m), advice)


def mild(m: Measured, active: ActiveRemedies) -> Finding | None:
    """Below 100, and no extreme layer."""
    if not _ratio(m) < MODERATE_RATIO * (1 - TOLERANCE) or len(m.extreme) or not m.plan.removed_params:
        return None
    description = f"{_gradients(m)} No layer is extreme."
    if active.temperature > 0 or active.normalise is not None or active.clip:
        text = "Nothing more to do; compare held-out loss with a run without any remedy."
        return Finding("gradient_scales_mild", "info", description, text)
    if active.ranks_by_loss:
        text = "obs prices all blocks in one unit of loss, so they can be compared as they are. Nothing to do."
        return Finding("gradient_scales_mild", "info", description, text)
    text = f"Nothing needs a remedy; --temperature 1.0 alone may be worth a try. {ADVICE_ONLY}"
    return Finding("gradient_scales_mild", "info", description, text, Remedy(temperature=1.0))


def gradient_ratio_undefined(m: Measured, active: ActiveRemedies) -> Finding | None:
    if m.gradients is None or m.gradient_mean.ratio is not None:
        return None
    mean = m.gradients.mean
    layers = np.flatnonzero(~(np.isfinite(mean) & (mean > 0))).tolist()
    where = f"zero or not finite in {name_layers(layers)}" if layers else "too far apart for float64"
    description = f"Mean |gradient| is {where}, so mean_ratio is null."
    text = "Look at the model and the calibration text: without gradients, these layers cannot be ranked."
    return Finding("gradient_ratio_undefined", "medium", description, text)


def no_gradients(m: Measured, active: ActiveRemedies) -> Finding | None:
    if m.gradients is not None:
        return None
    if m.importance is None:
        description = "The plan was replayed, so nothing was measured: gradient and score statistics are null."
        text = "Run without --plan to measure importances, gradients and scores."
    else:
        description = f"{active.criterion} uses no gradients: gradient_statistics are null."
        text = "--importance_method taylor, fisher or obs measures gradients; the ranking may change with it."
        if active.refusal(Remedy(importance_method="taylor")) is not None:
            text = "Nothing to do: the other options of this run need a criterion without gradients."
    return Finding("no_gradient_statistics", "info", description, text)


def _gradients(m: Measured) -> str:
    found, gradients = m.gradient_mean, m.gradients
    assert gradients is not None
    assert found.ratio is not None
    low, high = int(np.argmin(gradients.mean)), int(np.argmax(gradients.mean))
    return (
        f"Raw mean |gradient| ({gradients.source}) differs {times(found.ratio)}-fold between layers: "
        f"{found.low:.2e} in layer {low}, {found.high:.2e} in layer {high}. "
        "No remedy changes this ratio; a remedy changes how the ranking uses it."
    )


def _ratio(m: Measured) -> float:
    """NaN where it is undefined: every comparison with it is False."""
    return float("nan") if m.gradient_mean.ratio is None else m.gradient_mean.ratio


def _advise_if_harmful(step: Step, m: Measured, active: ActiveRemedies) -> Advice:
    """Unequal scales harm nothing by themselves: where no layer is extreme the advice says so, and names
    nothing more to try once the remedy is on."""
    if len(m.extreme):
        return advise([step], m, active)
    if not m.plan.removed_params:
        return Advice("Nothing is removed, so there is nothing to remedy.")
    if step.is_on:
        name = step.name
        return Advice(f"{name[0].upper()}{name[1:]} is on already and no layer is extreme: nothing more to try.")
    advice = advise([step], m, active)
    warning = "No layer is extreme in this plan, so the remedy may cost more than it gains."
    return Advice(f"{advice.recommendation} {warning}", advice.remedy)
