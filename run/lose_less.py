"""What a run did not do and could have lost less with, for the finding that says that much is lost."""

from collections.abc import Iterator

from core.criteria import CRITERIA
from core.transforms import Remedy, Transforms
from diagnostics.findings.remedies import Advice
from run.decision import Decision, Ranked
from run.session import Session

MORE_TOKENS = 4  # times those distilled on


def ways_to_lose_less(session: Session, decision: Decision) -> tuple[Advice, ...]:
    """In the order in which to try them: what costs little first, then training, then more of it.

    docs/recovery.md and docs/benchmarks.md have what each of them gained.
    """
    return tuple(_ways(session, decision))


def _ways(session: Session, decision: Decision) -> Iterator[Advice]:
    settings = session.settings
    asked, steps = settings.recovery, settings.recovery.recover
    if not settings.repairs:
        yield Advice("Try the repair, which was off.", Remedy(reconstruct="least_squares"))
    elif isinstance(decision, Ranked) and decision.transforms == Transforms() and not _priced(decision):
        yield Advice("Try obs, which ranks by what is lost after the repair.", Remedy(importance_method="obs"))
    if asked.distills:
        tokens = MORE_TOKENS * asked.tokens_on(session.device.type)
        yield Advice("Try more tokens to distil on.", Remedy(recover_tokens=tokens))
    elif not session.streamed:
        text = "Try to train what is left towards the dense model, which takes minutes on a GPU and longer on a CPU."
        yield Advice(text, Remedy(recover=",".join([*steps, "distill"])))
    elif not steps:
        yield Advice("Try to train block by block towards the dense model.", Remedy(recover="blocks"))


def _priced(decision: Ranked) -> bool:
    return CRITERIA[decision.importance.criterion].priced_in_loss
