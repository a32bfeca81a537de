"""``--remedy auto``: try the remedies on the scores at hand, measure what each plan costs, prune with the best.

A candidate costs one forward pass over the windows of ``trials``, calibration text that importance did not see. The
baseline is the command line as given.
"""

import argparse
import shlex
import sys
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from cli.cache import KeptMeasurements
from cli.job import Job, transforms_of
from cli.measured import ModelOnDemand, prior_of
from cli.options import build_parser
from cli.record import Stages
from cli.steps import Decision, active_remedies, diagnosis_of, plan_with
from cli.trials import HeldOut
from core.errors import PruningError
from core.measures import Prior
from core.windows import TokenWindows
from diagnostics.console import table
from diagnostics.rules_of_rates import healthy
from diagnostics.trials import Choice, Trial, choose, paired

# Tried in any case, each instead of the transforms that were given; percentiles and tau stay as given.
USUAL = (
    "--enable_grad_norm --norm_method log",
    "--enable_grad_norm --norm_method sqrt",
    "--enable_grad_norm --norm_method minmax",
    "--enable_grad_clip --enable_grad_norm --norm_method log",
    "--temperature 1.0",
    "--enable_grad_norm --norm_method log --temperature 1.0",
)
NONE = {"enable_grad_norm": False, "enable_grad_clip": False, "temperature": 0.0}


@dataclass(frozen=True)
class Candidate:
    """A job like the one asked for, under other transforms or caps, and the findings that name them."""

    job: Job
    named_by: tuple[str, ...] = ()

    @property
    def flags(self) -> str:
        return flags_of(self.job)


def take_the_best(
    model: ModelOnDemand,
    job: Job,
    options: argparse.Namespace,
    calibration: TokenWindows,
    decision: Decision,
    kept: KeptMeasurements,
    held_out: HeldOut,
    stages: Stages,
) -> tuple[Job, Decision]:
    """The job and the decision of the plan that won; the decision carries what was tried, for ``remedy.json``."""
    assert decision.importance is not None
    prior = decision.prior
    if prior is None:
        prior = prior_of(model, job, options, calibration, kept, stages)
    model()  # loaded under its own name
    with stages("remedy"):
        trials: list[Trial] = []
        outcomes: list[tuple[Job, Decision]] = []
        refused: list[dict[str, Any]] = []
        for candidate in candidates(job, options, decision):
            try:
                other = _decide(candidate.job, options, decision, prior)
            except PruningError as error:
                refused.append({"flags": candidate.flags, "named_by": candidate.named_by, "reason": str(error)})
                continue
            nll = held_out.loss(other.plan, f"remedy {candidate.flags or 'none'}")
            trials.append(_trial(candidate, options, other, nll, baseline=not trials))
            outcomes.append((candidate.job, other))
        choice = choose(trials)
    print(report(choice), file=sys.stderr)
    taken, winner = outcomes[choice.winner]
    return taken, winner.noting(remedy=as_json(choice, held_out, refused))


def candidates(job: Job, options: argparse.Namespace, decision: Decision) -> list[Candidate]:
    """The baseline, what the findings on it name, no transform at all, and the usual ones; none of them twice."""
    plain = argparse.Namespace(**vars(options) | NONE)
    wanted: list[tuple[Job, tuple[str, ...]]] = [(job, ())]
    wanted += [(_under(job, options, flags), issues) for flags, issues in _named(job, options, decision).items()]
    wanted += [(_under(job, plain, flags), ()) for flags in ("", *USUAL)]
    found: dict[str, Candidate] = {}
    for other, issues in wanted:
        found.setdefault(flags_of(other), Candidate(other, issues))
    return list(found.values())


def _named(job: Job, options: argparse.Namespace, decision: Decision) -> dict[str, tuple[str, ...]]:
    """Flags that findings on the baseline name -> the issues that name them, the most severe first."""
    named: dict[str, tuple[str, ...]] = {}
    for finding in diagnosis_of(job, options, decision).findings:
        if finding.flags is not None:
            named[finding.flags] = (*named.get(finding.flags, ()), finding.issue)
    return named


def _under(job: Job, options: argparse.Namespace, flags: str) -> Job:
    """The job that the options and these flags on top of them resolve to."""
    parser = build_parser()
    parser.set_defaults(**vars(options))
    found = parser.parse_args(["--base_model", options.base_model, *shlex.split(flags)])
    limits = replace(job.limits, max_block_ratio=found.max_block_ratio)
    return replace(job, transforms=transforms_of(found), limits=limits)


def flags_of(job: Job) -> str:
    """The flags of a job's transforms and cap, whole; empty for none."""
    transforms, words = job.transforms, []
    if transforms.clip:
        words += ["--enable_grad_clip", "--clip_percentile_low", f"{transforms.clip_low:g}"]
        words += ["--clip_percentile_high", f"{transforms.clip_high:g}"]
    if transforms.normalise:
        words += ["--enable_grad_norm", "--norm_method", transforms.normalise]
    if transforms.temperature:
        words += ["--temperature", f"{transforms.temperature:g}", "--tau", _number(transforms.tau)]
    if job.limits.max_block_ratio < 1:
        words += ["--max_block_ratio", f"{job.limits.max_block_ratio:g}"]
    return " ".join(words)


def _number(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:g}"


def _decide(job: Job, options: argparse.Namespace, baseline: Decision, prior: Prior) -> Decision:
    assert baseline.importance is not None
    return plan_with(job, options, baseline.importance, prior if job.transforms.temperature > 0 else None)


def _trial(
    candidate: Candidate, options: argparse.Namespace, decision: Decision, nll: np.ndarray, *, baseline: bool
) -> Trial:
    active = active_remedies(candidate.job, options)
    measured = diagnosis_of(candidate.job, options, decision).measured
    flags = candidate.flags
    return Trial(
        name=f"baseline ({flags or 'no transform'})" if baseline else flags or "no transform",
        flags=flags,
        named_by=candidate.named_by,
        nll=nll,
        healthy=healthy(measured, active) is not None,
        num_extreme=len(measured.extreme),
        spread=measured.spread,
        of_total=decision.plan.achieved_of_total,
    )


def report(choice: Choice) -> str:
    """What was tried, one line each, and why the winner won."""
    rows = [("remedy tried", "nats/token", "minus baseline", "extreme", "spread", "healthy")]
    for trial in choice.trials:
        mean, error = paired(trial.nll, choice.trials[0].nll)
        against = "" if trial is choice.trials[0] else f"{mean:+.4f} ± {error:.4f}"
        shape = (str(trial.num_extreme), f"{100 * trial.spread:.0f}", "yes" if trial.healthy else "no")
        rows.append((trial.name, f"{trial.mean:.4f}", against, *shape))
    return f"{table(rows)}\ntaken: {choice.trials[choice.winner].name}. {choice.reason}"


def as_json(choice: Choice, held_out: HeldOut, refused: list[dict[str, Any]]) -> dict[str, Any]:
    """The content of ``remedy.json``. refused: candidates that the ratio or the scores rule out, and why."""
    winner = choice.trials[choice.winner]
    return {
        "taken": {"name": winner.name, "flags": winner.flags, "is_baseline": choice.winner == 0},
        "reason": choice.reason,
        "windows": held_out.describe(),
        "tried": choice.to_json(),
        "refused": refused,
    }
