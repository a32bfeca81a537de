"""All rules in the order in which equally severe findings are told, and the one that applies them."""

from dataclasses import replace

from diagnostics.findings import (
    rules_of_gradients,
    rules_of_protection,
    rules_of_rates,
    rules_of_the_run,
    rules_of_transforms,
)
from diagnostics.findings.finding import SEVERITIES, Finding, Rule
from diagnostics.findings.quantities import Measured
from diagnostics.findings.remedies import ActiveRemedies

RULES: tuple[Rule, ...] = (
    rules_of_transforms.correction_near_zero,
    rules_of_transforms.all_zero,
    rules_of_protection.outliers_pruned,
    rules_of_rates.early_layers,
    rules_of_rates.many_extreme_layers,
    rules_of_rates.extreme_layers,
    rules_of_gradients.gradient_scale,
    rules_of_gradients.gradient_scale_moderate,
    rules_of_protection.blocks_lose_more,
    rules_of_transforms.clipping_flattens,
    rules_of_gradients.gradient_ratio_undefined,
    rules_of_the_run.nothing_removed,
    rules_of_the_run.skipped_windows,
    rules_of_the_run.unstable,
    rules_of_rates.few_extreme_layers,
    rules_of_rates.uneven,
    rules_of_the_run.removed_layers,
    rules_of_the_run.budget_gap,
    rules_of_gradients.mild,
    rules_of_rates.healthy,
    rules_of_gradients.no_gradients,
    rules_of_transforms.score_ratio_undefined,
    rules_of_transforms.second_order,
    rules_of_protection.outliers_kept,
    rules_of_the_run.single_kv_head,
)


def find(measured: Measured, active: ActiveRemedies) -> tuple[Finding, ...]:
    """Every finding, the most severe first, equally severe ones in the order of RULES."""
    findings = [_usable(finding, active) for rule in RULES if (finding := rule(measured, active)) is not None]
    return tuple(sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity)))


def _usable(finding: Finding, active: ActiveRemedies) -> Finding:
    """Without its remedy where the program would refuse them beside the other options of this run; with the reason."""
    refusal = active.refusal(finding.remedy) if finding.remedy else None
    if refusal is None:
        return finding
    text = f"{finding.recommendation} The other options of this run rule that out: {refusal}"
    return replace(finding, recommendation=text, remedy=None)
