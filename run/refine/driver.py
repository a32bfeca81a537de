"""What a refinement is, which there are, and the one way they run."""

from dataclasses import dataclass
from typing import Any, Protocol

from core.plan import PruningPlan
from core.say import say
from run.decision import Decision, Ranked, Replayed, agreed
from run.judging import Judge, difference_text, is_lower, loss_difference, removes_as_much
from run.session import Session
from run.settings import Settings


@dataclass(frozen=True)
class Refined:
    """What became of it. decision: the one to go on with. record: the content of ``analysis/<record>.json``. said: a
    line or more for the console."""

    decision: Ranked
    record: dict[str, Any]
    said: str


class Refinement(Protocol):
    """record: the name of its file in ``analysis/``. stage: what its time is booked under."""

    record: str
    stage: str

    def wanted(self, settings: Settings) -> bool: ...

    def refine(self, session: Session, decision: Ranked) -> Refined:
        """Try plans of the same budget; keep the decision at hand unless another loses less on judging windows."""


def refinements(settings: Settings) -> list[Refinement]:
    """Those that the settings ask for, in the order in which they run; none for a replayed plan."""
    from run.refine.caps import Caps
    from run.refine.remedy import Remedies
    from run.refine.rounds import Rounds
    from run.refine.search import Search

    every: tuple[Refinement, ...] = (Remedies(), Rounds(), Search(), Caps())
    return [] if settings.replays else [refinement for refinement in every if refinement.wanted(settings)]


def refine(session: Session, decision: Decision, refinement: Refinement) -> Decision:
    """Run one refinement; its record goes with the decision."""
    if isinstance(decision, Replayed):
        return decision
    session.dense()  # booked as loading, not as this stage
    with session.stages(refinement.stage):
        outcome = refinement.refine(session, decision)
    say(outcome.said)
    agreed(outcome.decision)
    return outcome.decision.noting(**{refinement.record: outcome.record})


@dataclass(frozen=True)
class Contest:
    """Two plans of one budget on the same windows: the one that is proposed and the one at hand.

    names: of the proposed and of the other, in the record and on the console.
    """

    judge: Judge
    proposed: PruningPlan
    other: PruningPlan
    names: tuple[str, str]

    @property
    def wins(self) -> bool:
        """Whether the proposed plan removes as much and loses less."""
        return removes_as_much(self.proposed, self.other) and is_lower(*self._losses)

    @property
    def taken(self) -> str:
        return self.names[0] if self.wins else self.names[1]

    @property
    def difference(self) -> dict[str, float]:
        return loss_difference(*self._losses)

    @property
    def text(self) -> str:
        return difference_text(*self._losses)

    @property
    def _losses(self) -> tuple[Any, Any]:
        return self.judge.loss(self.proposed, self.names[0]), self.judge.loss(self.other, self.names[1])


def tried(judge: Judge, plan: PruningPlan, name: str) -> dict[str, Any]:
    """A plan for a record: what it removes, what it loses."""
    return {"removed_params": plan.removed_params, "nll_nats_per_token": judge.mean_loss(plan, name)}
