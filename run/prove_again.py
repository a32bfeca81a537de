"""The proof of a folder that an earlier run wrote, made again from its base model and its own records."""

import json
import math
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from core.errors import DataError, PlanError, reason_of
from core.output import RECORD
from models.expected import Reference, reference_of, verification_windows
from models.rounding import round_parameters
from models.verification import Check, Verification, verify
from models.weights_check import compare_weights, stored_tensors
from run.complete import complete
from run.deliver import cut_model, expected_of, repair_model
from run.owned import fingerprints
from run.record import environment
from run.session import Session
from run.settings import CalibrationSettings, ModelSettings, RepairSettings, Settings

PLAN, MODEL = Path("analysis") / "pruning_plan.json", "model"
# Of what the run was asked, the options that the saved weights depend on once the plan is known.
SECTIONS = (ModelSettings, CalibrationSettings, RepairSettings)
FOR_WEIGHTS = {option.name for section in SECTIONS for option in fields(section)} - {
    *("device", "engine", "scratch", "low_memory"),
}


def prove_again(folder: Path, *, base_model: str | None, device: str) -> Verification:
    """Load ``folder/model`` afresh and hold it against what its base model computes without the removed groups.

    folder: of a finished run, or its ``model``. A run that repaired what was left is repaired again first, on the same
    windows. base_model: where the base model is now, None: where the run found it. Raises PlanError for a folder
    without a run's records, ModelError and DataError where the base model or the text is not what it was.
    """
    folder = run_folder_of(folder)
    record = _read(folder / RECORD)
    session = Session(settings_of(folder, record, base_model, device))
    session.read_windows()
    _insist_on_same_text(session, record)
    plan, model = session.replayed, session.take_dense()
    assert plan is not None
    if _was_trained(record):
        narrow = cut_model(model, session.family, plan, stock=False)
        return _proof_of_trained(session, folder, record, narrow)
    repairs = session.settings.repairs and not plan.keep.all()
    if repairs:
        repair_model(session, model, plan)
    round_parameters(model, session.saved_dtype)
    expected = expected_of(session, model, plan)
    if isinstance(expected, Verification):
        return expected
    narrow = cut_model(model, session.family, plan, stock=False)
    elsewhere = repairs and not _same_machine(record, session)
    return _proof(session, folder / MODEL, expected, narrow, elsewhere)


def _proof(session: Session, folder: Path, expected: Reference, narrow: Any, elsewhere: bool) -> Verification:
    """The checks of a run, and all weights. elsewhere: the repair was made on another machine; where its weights are
    ours but for rounding, theirs are what the folder must compute with."""
    family = session.family
    with session.stages("verify"):
        try:
            weights = compare_weights(folder, narrow, family, solved_elsewhere=elsewhere)
        except (OSError, SafetensorError) as error:
            weights = Check("weights", math.nan, 0.0, reason_of(error))
        if weights.passed and weights.error:
            narrow.load_state_dict(dict(stored_tensors(folder)), strict=False)
            expected = reference_of(narrow, family, expected.windows)
        proof = verify(folder, family, expected, device=session.device, dtype=session.dtype)
        proof.checks.append(weights)
    return proof


def _was_trained(record: dict[str, Any]) -> bool:
    return (record.get("options") or {}).get("recover", ["none"]) != ["none"]


def _proof_of_trained(session: Session, folder: Path, record: dict[str, Any], narrow: Any) -> Verification:
    """The checks of a run whose model was trained after the cut. No base model gives its weights: that they are the
    run's is told by their checksums, and the folder must compute what they do in layers that this program builds.
    """
    windows = verification_windows(
        session.calibration, session.source.config.vocab_size, session.source.context, session.settings.calibration.seed
    )
    changed = _changed_weights(folder, record)
    with session.stages("verify"):
        try:
            narrow.load_state_dict(dict(stored_tensors(folder / MODEL)), strict=False)
        except (OSError, SafetensorError, RuntimeError) as error:
            changed = reason_of(error)
        expected = reference_of(narrow, session.family, windows)
        proof = verify(folder / MODEL, session.family, expected, device=session.device, dtype=session.dtype)
    proof.checks.append(Check("weights", float(bool(changed)), 0.0, changed))
    return replace(proof, compared_with="the weights in its files, which were trained after the cut")


def _changed_weights(folder: Path, record: dict[str, Any]) -> str:
    """What is wrong with the first weight file that is not as the run wrote it; empty where all are."""
    known = {item["path"]: item["sha256"] for item in record.get("files") or ()}
    files = sorted((folder / MODEL).glob("*.safetensors"))
    for item in fingerprints(folder, [file.relative_to(folder).as_posix() for file in files]):
        if known.get(item["path"]) != item["sha256"]:
            return f"{item['path']} is not the file that the run wrote: its checksum differs"
    return "" if files else f"{MODEL}/ holds no weights"


def _same_machine(record: dict[str, Any], session: Session) -> bool:
    then, now = record.get("environment") or {}, environment(session.device)
    if then.get("processes", 1) != now["processes"]:
        return False
    return all(then.get(key) == now[key] for key in ("device", "device_name", "platform", "threads", "packages"))


def run_folder_of(folder: Path) -> Path:
    """The run's folder where its ``model`` was named."""
    holds_weights = (folder / "config.json").is_file() and not (folder / RECORD).exists()
    parent = folder.resolve().parent
    return parent if holds_weights and folder.resolve().name == MODEL and (parent / RECORD).is_file() else folder


def settings_of(folder: Path, record: dict[str, Any], base_model: str | None, device: str) -> Settings:
    """What the run in ``folder`` was asked, to carry its plan out again and write nothing."""
    plan, asked = folder / PLAN, record.get("asked")
    if not isinstance(asked, dict):
        raise PlanError(f"{folder / RECORD} does not say what its run was asked; run it again with --overwrite")
    if not plan.is_file():
        raise PlanError(f"{plan} is missing, so there is nothing to compare {folder / MODEL} with")
    if not (folder / MODEL).is_dir():
        raise PlanError(f"{folder} holds no {MODEL}/: it was a dry run, or ran with --no_save_model")
    again = {name: value for name, value in asked.items() if name in FOR_WEIGHTS}
    again |= {"plan": plan, "run_evaluation": "none", "cache_dir": "none", "device": device}
    return complete(again | ({"base_model": base_model} if base_model else {}))


def _insist_on_same_text(session: Session, record: dict[str, Any]) -> None:
    """A repair on other windows is another repair."""
    known = (record.get("windows") or {}).get("calibration") or {}
    windows = session.calibration
    if windows is not None and known.get("sha256") not in (None, windows.fingerprint):
        raise DataError(
            f"{windows.dataset} is not the text that the run was repaired on ({known.get('source')}), so the repair "
            "cannot be repeated; put that text back, or run again"
        )


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise PlanError(f"{path} is missing: give the folder of a finished run, the one that --output named") from error
    except (OSError, ValueError) as error:
        raise PlanError(f"{path} cannot be read ({error}); give the folder of a finished run") from error
    if not isinstance(found, dict):
        raise PlanError(f"{path} is not the record of a run; give the folder of a finished run")
    return found
