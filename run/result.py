"""What a run hands to its caller."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.plan import PruningPlan
from core.shown import html_list, html_table
from diagnostics.findings.diagnosis import Diagnosis
from diagnostics.findings.finding import Finding
from pruning.recovery.report import RecoveryReport
from pruning.repair_report import RepairReport
from run.decision import Decision
from run.settings import Settings


@dataclass
class Outcome:
    """What a run has come to so far, filled stage by stage. dense, pruned: what was measured on each model.
    unrepaired: on the pruned model without its repair. unrecovered: on the cut model before it was trained. model: the
    pruned one, None where it is not in memory."""

    decision: Decision
    diagnosis: Diagnosis
    dense: dict[str, Any] | None
    unrepaired: dict[str, Any] | None = None
    repaired: RepairReport | None = None
    unrecovered: dict[str, Any] | None = None
    recovered: RecoveryReport | None = None
    pruned: dict[str, Any] | None = None
    model: Any = None


@dataclass(frozen=True, repr=False)
class Result:
    """A finished run.

    path: its folder. plan: what was removed. findings: what the plan looks like, the most severe first. evaluation: the
    content of ``evaluation_results.json``, None where nothing was measured. model: the pruned transformers model, None
    in a dry run and where it was never in memory. settings: resolved for this model. written: files, in the order of
    the run. report: what the command prints at the end.
    """

    path: Path
    plan: PruningPlan
    findings: tuple[Finding, ...]
    evaluation: dict[str, Any] | None
    model: Any
    settings: Settings
    written: tuple[Path, ...]
    report: str

    @property
    def perplexity(self) -> dict[str, tuple[float | None, float | None]]:
        """Dataset -> (dense, pruned); None where not measured or not finite."""
        dense, pruned = ((self.evaluation or {}).get(side) or {} for side in ("dense", "pruned"))
        before, after = dense.get("perplexity", {}), pruned.get("perplexity", {})
        return {name: (before[name]["perplexity"], after.get(name, {}).get("perplexity")) for name in before}

    @property
    def distance(self) -> dict[str, float]:
        """Dataset -> KL(dense ‖ pruned) in nats per token, where it was measured and is finite."""
        found = ((self.evaluation or {}).get("pruned") or {}).get("distance", {})
        known = {name: distance["kl_nats_per_token"] for name, distance in found.items()}
        return {name: value for name, value in known.items() if value is not None}

    def __repr__(self) -> str:
        return self.report

    def _repr_html_(self) -> str:
        dense, pruned = self.plan.architecture.total_params, self.plan.pruned_architecture.total_params
        rows = [["parameters", f"{dense:,}", f"{pruned:,}"]]
        for dataset, pair in self.perplexity.items():
            rows.append([f"perplexity on {dataset}", *("not measured" if x is None else f"{x:.3f}" for x in pair)])
            if dataset in self.distance:
                rows.append(["KL from dense, nats/token", "", f"{self.distance[dataset]:.4f}"])
        table = html_table(str(self.path), rows, ["", "dense", "pruned"])
        return table + html_list("findings", [f"{item.severity}: {item.description}" for item in self.findings])
