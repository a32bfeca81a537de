"""From the plan to a folder that others load: repair, cut, save, prove, export, describe. Each step a function."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.families import Family
from core.files import write_text
from core.plan import PruningPlan
from core.say import note, say
from models.card import inherited_metadata, model_card
from models.gguf import export_gguf
from models.narrow import empty_narrow_model
from models.reference import Reference, reference, verification_windows
from models.saving import save_checkpoint
from models.stock import save_stock_checkpoint, stock_model
from models.verification import insist, verify, verify_files, write_verification
from pruning.reconstruction import Reconstruction, reconstruct, write_reconstruction
from pruning.surgery import operate
from run.decision import Decision, Ranked
from run.session import Session


@dataclass(frozen=True)
class Cut:
    """The pruned model, not yet saved.

    model: in memory, or a ``StreamedModel`` that is still to be cut while it is saved. expected: what the dense model
    computes without the removed groups; None where nothing will be proved.
    """

    plan: PruningPlan
    model: Any
    expected: Reference | None

    @property
    def in_memory(self) -> Any:
        """The pruned model, None where it never is in memory."""
        return None if hasattr(self.model, "prune_and_save") else self.model


def repair(session: Session, plan: PruningPlan) -> tuple[Reconstruction | None, list[Path]]:
    """Refit the dense model in place and write the report; (None, []) where the settings ask for none."""
    if not session.settings.repairs:
        return None, []
    done = repair_model(session, session.own_dense(), plan)
    return done, [write_reconstruction(session.folder / "analysis" / "reconstruction.json", done)]


def repair_model(session: Session, model: Any, plan: PruningPlan) -> Reconstruction:
    """Refit ``model`` in place on the calibration windows, as the settings ask."""
    with session.stages("repair"):
        done = reconstruct(model, session.family, plan, session.calibrated, session.repair)
    say(done.line())
    return done


def cut(session: Session, plan: PruningPlan) -> Cut:
    """Surgery. It uses up the dense model, repaired or not, which the session loads anew if it is asked for again."""
    model = session.take_dense()
    if session.streamed:
        return Cut(plan, model, None)
    settings, family = session.settings, session.family
    proves = settings.output.verify and not settings.output.no_save_model
    seed = settings.calibration.seed
    windows = verification_windows(session.calibration, session.source.config.vocab_size, session.source.context, seed)
    with session.stages("surgery"):
        expected = reference(model, family, plan, windows) if proves else None
        narrow = cut_model(model, family, plan, stock=settings.limits.target == "stock")
    return Cut(plan, narrow, expected)


def cut_model(model: Any, family: Family, plan: PruningPlan, *, stock: bool) -> Any:
    """The narrow model; ``model`` must not be used again. stock: of the family's own class."""
    narrow = operate(model, empty_narrow_model(model, family, plan), family, plan)
    return stock_model(narrow, family)[0] if stock else narrow


def save(session: Session, small: Cut) -> list[Path]:
    """Write ``model/``; [] where the settings save nothing."""
    if session.settings.output.no_save_model:
        return []
    folder, size = session.folder / "model", session.settings.output.max_shard_size
    stock = session.settings.limits.target == "stock"
    if session.streamed:
        with session.stages("surgery and save"):
            small.model.prune_and_save(small.plan, folder, session.saved_dtype, size, stock=stock)
        return [folder]
    with session.stages("save"):
        if stock:
            save_stock_checkpoint(small.model, session.tokenizer, folder, session.saved_dtype, size)
        else:
            save_checkpoint(small.model, session.family, session.tokenizer, folder, session.saved_dtype, size)
    return [folder]


def prove(session: Session, small: Cut) -> list[Path]:
    """Load the saved folder as its users will and hold it against the reference; [] where the settings ask for none.

    A folder that fails is set aside as ``model.failed``: VerificationError.
    """
    output, folder = session.settings.output, session.folder / "model"
    if output.no_save_model or not output.verify:
        return []
    if small.expected is None:
        proof = verify_files(folder, session.family, small.plan)
    else:
        with session.stages("verify"):
            proof = verify(folder, session.family, small.expected, device=session.device, dtype=session.dtype)
    written = [write_verification(session.folder / "analysis" / "verification.json", proof)]
    insist(proof, folder)
    say(proof.line())
    return written


def export(session: Session) -> list[Path]:
    """Write ``model.gguf`` beside the saved model, where the settings ask for it."""
    if session.settings.output.export != "gguf":
        return []
    with session.stages("export"):
        exported = export_gguf(session.folder / "model", session.folder / "model.gguf")
    for sentence in exported.notes:
        note(sentence)
    return [exported.path]


def write_card(
    session: Session,
    decision: Decision,
    dense: Mapping[str, Any] | None,
    pruned: Mapping[str, Any] | None,
    repaired: Reconstruction | None,
) -> Path:
    """``model/README.md``: what was removed, how, with what result, and how to load it."""
    ranked = decision if isinstance(decision, Ranked) else None
    settings = session.settings
    card = model_card(
        decision.plan,
        base_model=settings.model.base_model,
        criterion=settings.scores.importance_method if ranked else None,
        transforms=ranked.transforms.described if ranked else {},
        calibration=session.calibration.source if session.calibration is not None else "",
        stored_dtype=str(session.saved_dtype).removeprefix("torch."),
        dense=dense,
        pruned=pruned,
        repair=repaired.sentence() if repaired is not None else "",
        inherited=inherited_metadata(session.source.path),
        ships_code=settings.limits.target != "stock",
    )
    return write_text(session.folder / "model" / "README.md", card)
