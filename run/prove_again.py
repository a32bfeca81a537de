"""The proof of a folder that an earlier run wrote, made again from its base model and its own records."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from core.errors import PlanError
from core.output import RECORD
from models.rounding import round_parameters
from models.verification import Verification, verify
from run.complete import complete
from run.deliver import expected_of, repair_model
from run.session import Session
from run.settings import OPTIONS, Settings

PLAN = Path("analysis") / "pruning_plan.json"
AS_IN_THE_RUN = ("overwrite", "dry_run", "export", "no_save_model", "verify", "output", "plan", "remedy", "rounds")


def prove_again(folder: Path, *, base_model: str | None, device: str) -> Verification:
    """Load ``folder/model`` afresh and hold it against what its base model computes without the removed groups.

    A run that repaired what was left is repaired again first, on the same windows. base_model: where the base model is
    now, None: where the run found it. Raises PlanError for a folder without a run's records, ModelError and DataError
    where the base model or the text is not what it was.
    """
    settings = settings_of(folder, base_model, device)
    session = Session(settings)
    session.read_windows()
    plan, model = session.replayed, session.take_dense()
    assert plan is not None
    if session.settings.repairs:
        repair_model(session, model, plan)
    round_parameters(model, session.saved_dtype)
    expected = expected_of(session, model, plan)
    if isinstance(expected, Verification):
        return expected
    with session.stages("verify"):
        return verify(folder / "model", session.family, expected, device=session.device, dtype=session.dtype)


def settings_of(folder: Path, base_model: str | None, device: str) -> Settings:
    """What the run in ``folder`` was asked, to carry its plan out again and write nothing."""
    record, plan = _read(folder / RECORD), folder / PLAN
    if not plan.is_file():
        raise PlanError(f"{plan} is missing, so there is nothing to compare {folder / 'model'} with")
    if not (folder / "model").is_dir():
        raise PlanError(f"{folder} holds no model/: it was a dry run, or ran with --no_save_model")
    asked: Mapping[str, Any] = record.get("asked") or {}
    again = {name: asked[name] for name in OPTIONS if name in asked and name not in AS_IN_THE_RUN}
    again |= {"plan": plan, "run_evaluation": "none", "cache_dir": "none", "device": device}
    return complete(again | ({"base_model": base_model} if base_model else {}))


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise PlanError(f"{path} is missing: give the folder of a finished run, the one that --output named") from error
    except (OSError, ValueError) as error:
        raise PlanError(f"{path} cannot be read ({error}); give the folder of a finished run") from error
    if not isinstance(found, dict):
        raise PlanError(f"{path} is not the record of a run; give the folder of a finished run")
    return found
