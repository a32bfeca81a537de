"""From the plan to a folder that others load: repair, cut, save, prove, export, describe. Each step a function."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from core.engine import engine_of
from core.errors import reason_of
from core.families import Family
from core.files import write_text
from core.plan import PruningPlan
from core.say import note, say
from models.card import inherited_metadata, model_card
from models.expected import Reference, reference, verification_windows
from models.gguf import export_gguf
from models.loading_afresh import places_on_disk
from models.narrow import empty_narrow_model
from models.rounding import round_parameters
from models.saving import save_checkpoint
from models.stock import save_stock_checkpoint, stock_model
from models.travel import travelling_files
from models.verification import (
    RECOVERED,
    Check,
    Verification,
    insist,
    not_verified,
    verify,
    write_verification,
)
from pruning.repair import repair as repair_dense
from pruning.repair_report import RepairReport, write_repair_report
from pruning.surgery import operate
from run.decision import Ranked
from run.result import Outcome
from run.session import Session
from run.streamed_model import for_one_process, save_streamed, streamed_pruned


@dataclass(frozen=True)
class Cut:
    """The pruned model, not yet saved.

    model: in memory, or one whose weights are cut as they are asked for. expected: what the dense model computes
    without the removed groups, or why this machine cannot tell; None where nothing will be proved. surgery: of a model
    that was trained after the cut, the comparison made before; expected is then what itself computes.
    """

    plan: PruningPlan
    model: Any
    expected: Reference | Verification | None
    surgery: Check | None = None

    @property
    def in_memory(self) -> Any:
        """The pruned model, None where it never is in memory."""
        return None if engine_of(self.model).streams else self.model


def repair(session: Session, plan: PruningPlan) -> RepairReport | None:
    """Refit the dense model in place and write the report; None where the settings ask for none."""
    if not session.settings.repairs:
        return None
    done = repair_model(session, session.own_dense(), plan)
    if session.writes:
        write_repair_report(session.folder / "analysis" / "reconstruction.json", done)
    return done


def repair_model(session: Session, model: Any, plan: PruningPlan) -> RepairReport:
    """Refit ``model`` in place on the calibration windows, as the settings ask."""
    with session.stages("repair"):
        done = repair_dense(model, session.family, plan, session.calibrated, session.repair)
    say(done.line())
    return done


def cut(session: Session, plan: PruningPlan) -> Cut:
    """Surgery. It uses up the dense model, repaired or not, which the session loads anew if it is asked for again."""
    model = session.take_dense()
    output, stock = session.settings.output, session.settings.limits.target == "stock"
    proves = output.verify and not output.no_save_model and session.writes
    with session.stages("surgery"):
        if session.streamed:
            expected = expected_of(session, for_one_process(model, session.streaming), plan) if proves else None
            engine_of(model).let_go()
            return Cut(plan, streamed_pruned(model, plan, session.streaming, stock=stock), expected)
        round_parameters(model, session.saved_dtype)  # what is compared, measured and saved is one model
        expected = expected_of(session, model, plan) if proves else None
        narrow = cut_model(model, session.family, plan, stock=stock)
    return Cut(plan, narrow, expected)


def expected_of(session: Session, model: Any, plan: PruningPlan) -> Reference | Verification:
    """What ``model`` computes without the removed groups; where this machine cannot tell, why not."""
    config, seed = session.source.config, session.settings.calibration.seed
    windows = verification_windows(session.calibration, config.vocab_size, session.source.context, seed)
    try:
        return reference(model, session.family, plan, windows)
    except (torch.OutOfMemoryError, MemoryError) as error:
        return not_verified(reason_of(error))


def cut_model(model: Any, family: Family, plan: PruningPlan, *, stock: bool) -> Any:
    """The narrow model; ``model`` must not be used again. stock: of the family's own class."""
    narrow = operate(model, empty_narrow_model(model, family, plan), family, plan)
    return stock_model(narrow, family)[0] if stock else narrow


def save(session: Session, small: Cut) -> list[Path]:
    """Write ``model/``; [] where the settings save nothing."""
    if session.settings.output.no_save_model or not session.writes:
        return []
    folder, size = session.folder / "model", session.settings.output.max_shard_size
    stock = session.settings.limits.target == "stock"
    if session.streamed:
        with session.stages("surgery and save"):
            base, dtype = session.base_folder, session.saved_dtype
            save_streamed(small.model, session.tokenizer, folder, dtype, size, base, stock=stock)
        return [folder]
    with session.stages("save"):
        if stock:
            save_stock_checkpoint(
                small.model, session.tokenizer, folder, session.saved_dtype, size, base=session.base_folder
            )
        else:
            base = session.base_folder
            save_checkpoint(small.model, session.family, session.tokenizer, folder, session.saved_dtype, size, base)
    return [folder]


def prove(session: Session, small: Cut) -> list[Path]:
    """Load the saved folder as its users will and hold it against the reference; [] where the settings ask for none.

    A folder that fails is set aside as ``model.failed``: VerificationError.
    """
    output, folder = session.settings.output, session.folder / "model"
    if output.no_save_model or not output.verify or not session.writes:
        return []
    assert small.expected is not None
    if isinstance(small.expected, Verification):
        proof = small.expected
    else:
        with session.stages("verify"):
            proof = verify(
                folder,
                session.family,
                small.expected,
                device=session.device,
                dtype=session.dtype,
                places=places_on_disk(small.model, session.family, session.device) if session.streamed else None,
            )
    if small.surgery is not None:
        proof = replace(proof, compared_with=RECOVERED, checks=[small.surgery, *proof.checks])
    written = [write_verification(session.folder / "analysis" / "verification.json", proof)]
    insist(proof, folder)
    say(proof.line())
    return written


def export(session: Session) -> list[Path]:
    """Write ``model.gguf`` beside the saved model, where the settings ask for it."""
    if session.settings.output.export != "gguf" or not session.writes:
        return []
    with session.stages("export"):
        exported = export_gguf(session.folder / "model", session.folder / "model.gguf")
    for sentence in exported.notes:
        note(sentence)
    return [exported.path]


def write_card(session: Session, outcome: Outcome) -> list[Path]:
    """``model/README.md``: what was removed, how, with what result, and how to load it; [] where nothing is saved."""
    if session.settings.output.no_save_model or not session.writes:
        return []
    decision, settings, base = outcome.decision, session.settings, session.base_folder
    ranked = decision if isinstance(decision, Ranked) else None
    card = model_card(
        decision.plan,
        base_model=settings.model.base_model,
        criterion=settings.scores.importance_method if ranked else None,
        transforms=ranked.transforms.described if ranked else {},
        calibration=session.calibration.source if session.calibration is not None else "",
        datasets=[source.name for source in settings.calibration.sources],
        travelled=[str(path) for path in travelling_files(base)] if base is not None else [],
        stored_dtype=str(session.saved_dtype).removeprefix("torch."),
        dense=outcome.dense,
        pruned=outcome.pruned,
        repair=outcome.repaired.sentence() if outcome.repaired is not None else "",
        recovery=outcome.recovered.sentence() if outcome.recovered is not None else "",
        inherited=inherited_metadata(base),
        ships_code=settings.limits.target != "stock",
    )
    return [write_text(session.folder / "model" / "README.md", card)]
