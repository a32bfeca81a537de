"""Recovery after the cut: the dense model comes back as teacher, and what is delivered is the trained model."""

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch

from core import ranks
from core.errors import ModelError, VerificationError
from core.plan import PruningPlan
from core.say import say
from models.architecture import architecture_of
from models.expected import Reference, reference_of
from models.rounding import round_parameters
from models.verification import Check, surgery_check
from pruning.recovery.blocks import BlockSettings, recover_blocks
from pruning.recovery.blocks import training_bytes as block_bytes
from pruning.recovery.report import RecoveryReport, write_recovery_report
from run.deliver import Cut
from run.distillation_checkpoints import checkpoints_of
from run.distillation_windows import Divided, distillation_windows
from run.session import Session
from run.settings import RecoverySettings
from run.streamed_model import for_one_process
from run.teacher import READ_AGAIN, Teacher

if TYPE_CHECKING:
    from pruning.recovery.distill import DistilReport, DistilSettings


def text_to_distil(session: Session, plan: PruningPlan) -> Divided | None:
    """What the run will distil on, None where it will not. The dense model writes its own text as it is, so this comes
    before a repair. DataError for a text too short."""
    if plan.keep.all() or not (session.settings.recovers and session.settings.recovery.distills):
        return None
    return distillation_windows(session, session.settings.recovery.tokens_on(session.device.type))


def recover(session: Session, small: Cut, text: Divided | None = None) -> tuple[Cut, RecoveryReport | None]:
    """Train the cut model in place as the settings ask, and write the report; (small, None) where they ask for nothing.

    text: of ``text_to_distil``.
    The proof of what is saved compares with the trained model. So surgery is proved here, in memory, before training:
    VerificationError where the cut model is not the dense one without the removed groups.
    """
    if not session.settings.recovers or small.plan.keep.all():
        return small, None
    surgery = _proved_surgery(session, small)
    report = recover_model(session, small.model, small.plan, session.settings.recovery, text, resumable=True)
    if session.writes:
        write_recovery_report(session.folder / "analysis" / "recovery.json", report)
    if not isinstance(small.expected, Reference):
        return small, report
    trained = for_one_process(small.model, session.streaming)
    expected = reference_of(trained, session.family, small.expected.windows)
    return Cut(small.plan, small.model, expected, surgery), report


def recover_model(
    session: Session,
    model: Any,
    plan: PruningPlan,
    asked: RecoverySettings,
    text: Divided | None = None,
    *,
    resumable: bool = False,
) -> RecoveryReport:
    """Train ``model``, cut by ``plan``, in place on the calibration windows; it is left in eval mode and frozen.

    text: to distil on, where it is at hand. resumable: whether settings alone say how the model came about, so that the
    same run can go on where it was killed.
    """
    if text is None and asked.distills:
        text = distillation_windows(session, asked.tokens_on(session.device.type))
    for ids in text or ():
        ranks.insist_on_same(ids.tobytes(), "text to distil on", "give all of them the same")
    teacher = Teacher(session)
    teacher.model(_first_takes(session, model, asked))  # booked as loading, not as this stage
    with session.stages("recover"):
        blocks = distilled = None
        if "blocks" in asked.recover:
            windows, how_blocks = session.calibrated, _block_settings(session)
            taught_by = teacher.model(block_bytes(model, session.family))
            blocks = recover_blocks(model, taught_by, session.family, plan, windows, how_blocks)
            del taught_by
            say(blocks.line())
        if text is not None:
            distilled = _distilled(session, model, plan, teacher, text, asked, resumable)
            say(distilled.line())
        session.drop_dense()
        if not session.streamed:  # there each weight was kept in that dtype when it was changed
            round_parameters(model, session.saved_dtype)
    return RecoveryReport(blocks, distilled)


def _distilled(
    session: Session,
    model: Any,
    plan: PruningPlan,
    teacher: Teacher,
    text: Divided,
    asked: RecoverySettings,
    resumable: bool,
) -> "DistilReport":
    """With the teacher in memory, and once more without it where training does not fit beside it."""
    from pruning.recovery.distill import NoRoom, distil

    how = _distil_settings(session, asked)
    decides = {"tokens": how.tokens, "stored_dtype": str(how.stored_dtype), "step_tokens": how.a_step}
    keeping = checkpoints_of(session, plan, *text, decides) if resumable else nullcontext()
    takes = _distillation_takes(session, model, how)
    with keeping as checkpoints:
        try:
            return distil(model, teacher.model(takes), session.family, *text, how, checkpoints)
        except NoRoom:
            if not teacher.would_help(takes):
                raise
        # Only now, as the exception held on to the frames that hold the teacher.
        teacher.leave(f"distillation does not fit in memory beside the dense model: {READ_AGAIN}")
        return distil(model, teacher.model(), session.family, *text, how, checkpoints)


def _first_takes(session: Session, model: Any, asked: RecoverySettings) -> int:
    """Bytes that the first of the steps takes beside the models."""
    if "blocks" in asked.recover:
        return block_bytes(model, session.family)
    return _distillation_takes(session, model, _distil_settings(session, asked))


def _distillation_takes(session: Session, model: Any, how: "DistilSettings") -> int:
    from pruning.recovery.distill import training_bytes

    return training_bytes(model, session.family, how)


def _distil_settings(session: Session, asked: RecoverySettings) -> "DistilSettings":
    from pruning.recovery.distill import DistilSettings

    return DistilSettings(
        tokens=asked.tokens_on(session.device.type),
        lora=asked.recover_lora,
        stored_dtype=session.saved_dtype,
        seed=session.settings.calibration.seed,
        report_to=asked.report_to,
    )


def insist_on_cut(session: Session, model: Any, plan: PruningPlan) -> None:
    """ModelError for what is not a model of the plan's widths."""
    config = getattr(model, "config", None)
    if not isinstance(model, torch.nn.Module) or config is None:
        raise ModelError(f"recover() takes the model that prune() returned, not {type(model).__name__}")
    if architecture_of(model, session.family).layers != plan.pruned_architecture.layers:
        raise ModelError("recover() takes the model that prune(plan) returned for this plan; its widths are others")


def _block_settings(session: Session) -> BlockSettings:
    asked = session.settings
    return BlockSettings(
        text=asked.repair.reconstruct_text,
        batch_size=session.batch_size,
        stored_dtype=session.saved_dtype,
        seed=asked.calibration.seed,
    )


def _proved_surgery(session: Session, small: Cut) -> Check | None:
    if not isinstance(small.expected, Reference):
        return None
    check = surgery_check(for_one_process(small.model, session.streaming), small.expected, session.dtype)
    if not check.passed:
        raise VerificationError(f"the cut model is not the dense model without the removed groups: {check.detail}")
    return check
