"""``--protect measured`` (experimental): blocks that lose far more than their scores promised may lose half as much.

Every block of the plan is measured alone on text that importance did not see (``importance.block_losses``), against
what its scores promised (``core.plan_check``). Flagged blocks may lose half of what was planned, the budget goes
elsewhere, and the new plan is kept only if all of it together loses no more than the one before.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from core.errors import BudgetError
from core.plan_check import FLAG_FACTOR, FLAG_SHARE, PlanCheck, check_of
from core.say import say
from importance.block_losses import measure_block_losses
from run.decision import Ranked
from run.judging import difference_text, loss_difference, not_worse, removes_as_much
from run.refine.driver import Refined
from run.session import Session
from run.settings import Settings

REPEATS = 3


class Caps:
    record, stage = "plan_check", "check the plan"

    def wanted(self, settings: Settings) -> bool:
        return settings.refinement.protect == "measured"

    def refine(self, session: Session, decision: Ranked) -> Refined:
        steps = [_checked(session, decision, None, 1)]
        reason = "No block loses far more than its scores promised."
        for step, why in _capped(session, steps[0]):
            reason = why
            if step is not None:
                steps.append(step)
        best = [step for step in steps if step.check is not None][-1]
        record = {
            "reason": reason,
            "repeats_at_most": REPEATS,
            "flag_factor": FLAG_FACTOR,
            "flag_share": FLAG_SHARE,
            "windows": session.judge.describe(),
            "tried": [step.row(session) | {"taken": step is best} for step in steps],
        }
        return Refined(replace(best.decision, check=best.check), record, f"plan check: {reason}")


@dataclass(frozen=True)
class Step:
    """One plan that was tried. before: the one it was held against. check None: it lost more and was dropped before
    its blocks were measured."""

    decision: Ranked
    before: Ranked | None
    check: PlanCheck | None

    def row(self, session: Session) -> dict[str, Any]:
        judge, plan, check = session.judge, self.decision.plan, self.check
        against = None
        if self.before is not None:
            against = loss_difference(judge.loss(plan, "plan"), judge.loss(self.before.plan, "plan"))
        return {
            "nll_nats_per_token": judge.mean_loss(plan, "plan"),
            "minus_before": against,
            "removed_params": plan.removed_params,
            "nats_per_token_a_unit_of_importance": check.kappa if check else None,
            "num_flagged": len(check.flagged) if check else None,
            "blocks": check.to_json() if check else None,
        }


def _capped(session: Session, first: Step) -> Iterator[tuple[Step | None, str]]:
    """Plans under tighter and tighter caps, each with how matters stand after it; ends where nothing is flagged, the
    budget has no other place, or a plan loses more than the one before."""
    judge, at_hand, limits = session.judge, first, first.decision.limits
    caps: tuple[int, ...] = ()
    for repeat in range(1, REPEATS + 1):
        assert at_hand.check is not None
        flagged = at_hand.check.flagged
        named = at_hand.check.names(flagged)
        if not len(flagged):
            return
        caps = halved_caps(at_hand.check, first.decision.architecture.block_table.widths, caps)
        try:
            capped = at_hand.decision.replanned(limits=replace(limits, caps=caps))
        except BudgetError as error:
            yield None, f"The budget cannot be spent elsewhere: {error}"
            return
        if not removes_as_much(capped.plan, first.decision.plan):
            spared = first.decision.plan.removed_params - capped.plan.removed_params
            yield None, f"The budget cannot be spent elsewhere: {spared} parameters would be left over."
            return
        capped = replace(capped, limits=limits)  # a cap is no limit of the user's: findings go by those
        loss, before = judge.loss(capped.plan, "plan"), judge.loss(at_hand.decision.plan, "plan")
        say(f"plan check: {named} capped: {difference_text(loss, before)}")
        if not not_worse(loss, before):
            dropped = Step(capped, at_hand.decision, None)
            yield dropped, f"Capping {named} loses more, so the previous plan is kept."
            return
        at_hand = _checked(session, capped, at_hand.decision, repeat + 1)
        assert at_hand.check is not None
        reason = "All blocks now lose about what was promised."
        if len(at_hand.check.flagged):
            still = at_hand.check.names(at_hand.check.flagged)
            reason = f"{still} still lose more than promised after {repeat} rounds of caps."
        yield at_hand, reason


def _checked(session: Session, decision: Ranked, before: Ranked | None, number: int) -> Step:
    measured = measure_block_losses(
        session.dense(),
        session.family,
        session.architecture,
        session.judging,
        decision.plan.keep,
        batch_size=session.batch_size,
        description=f"plan check {number}",
    )
    return Step(decision, before, check_of(decision.plan, decision.importance.values, measured))


def halved_caps(check: PlanCheck, widths: np.ndarray, caps: tuple[int, ...]) -> tuple[int, ...]:
    """The caps so far (empty for none), and half of what was planned for every flagged block. widths: int64, groups of
    each block."""
    most = np.array(caps, dtype=np.int64) if caps else widths.astype(np.int64)
    most[check.flagged] = np.minimum(most, check.planned // 2)[check.flagged]
    return tuple(most.tolist())
