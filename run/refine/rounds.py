"""``--rounds N``: prune in N steps, importance measured again after each, against pruning in one.

In round k the plan for k/N of the ratio is made from importance that was measured on the model without the groups that
went before; those rank lowest and stay gone. The last plan and the one-shot plan spend the same budget; the one that
loses less on text that importance did not see is taken, and of equals the one-shot plan.
"""

from dataclasses import replace

import numpy as np

from core.measured import Importance
from importance.scoring import Scores, score_groups
from models.architecture import decoder_layers
from models.expected import without_removed_groups
from run.decision import Ranked
from run.refine.driver import Contest, Refined, tried
from run.session import Session
from run.settings import Settings


class Rounds:
    record = stage = "rounds"

    def wanted(self, settings: Settings) -> bool:
        return settings.refinement.rounds > 1 and settings.criterion.reads_text

    def refine(self, session: Session, decision: Ranked) -> Refined:
        rounds, asked = session.settings.refinement.rounds, decision.budget.pruning_ratio
        best, steps = decision, []
        for number in range(1, rounds + 1):
            if number > 1:
                best = _measured_again(session, best)
            ratio = asked if number == rounds else asked * number / rounds
            best = best.replanned(ratio=ratio)
            measured = tried(session.judge, best.plan, f"round {number}")
            steps.append({"round": number, "pruning_ratio": ratio} | measured)
        contest = Contest(session.judge, best.plan, decision.plan, ("rounds", "one shot"))
        record = {
            "taken": contest.taken,
            "rounds": rounds,
            "windows": session.judge.describe(),
            "steps": steps,
            "one_shot": tried(session.judge, decision.plan, "one shot"),
            "rounds_minus_one_shot": contest.difference,
        }
        said = f"rounds: {contest.text} in one step; taken: {contest.taken}"
        return Refined(best if contest.wins else decision, record, said)


def _measured_again(session: Session, before: Ranked) -> Ranked:
    """Importance and scores without the groups that ``before`` removes; its plan is not yet the next one.

    Those groups keep the importance of the round that removed them, influence no statistic, and rank first.
    """
    gone = ~before.plan.keep
    if (gone | before.frozen).all():
        return before
    layers = decoder_layers(session.dense(), session.family)
    with without_removed_groups(layers, session.family, before.plan):
        measured = session.measured_importance(session.settings.scores)
    values = np.where(gone, before.importance.values, measured.values)
    scores = score_groups(
        before.architecture.groups, values, before.transforms, frozen=before.frozen | gone, prior=before.prior
    )
    importance = replace(measured, values=values, gradients=before.importance.gradients)
    return replace(
        before, importance=_most_skipped(importance, before.importance), scores=_removed_first(scores, before, gone)
    )


def _removed_first(scores: Scores, before: Ranked, gone: np.ndarray) -> Scores:
    first = before.scores.order[gone[before.scores.order]]
    order = np.concatenate([first, scores.order[~gone[scores.order]]])
    return replace(scores, score=np.where(gone, before.scores.score, scores.score), order=order)


def _most_skipped(importance: Importance, before: Importance) -> Importance:
    """The most windows that any round left out are those the report tells of."""
    return replace(importance, windows_skipped=max(importance.windows_skipped, before.windows_skipped))
