"""Save a narrow model that is in memory, trained since it was cut or not, and prove the folder against it."""

from pathlib import Path
from typing import Any

from core.errors import OutputError
from core.say import say
from models.expected import reference_of, verification_windows
from models.narrow import is_pruned_type
from models.saving import save_checkpoint
from models.stock import save_stock_checkpoint
from models.verification import insist, verify
from run.session import Session


def save_model(session: Session, small: Any, folder: Path, *, verify_it: bool, overwrite: bool) -> Path:
    """Write ``small`` to ``folder``, whole or not at all.

    verify_it: load the folder afresh and compare it with ``small`` itself, as it is now. Raises OutputError where the
    folder holds something and ``overwrite`` is not given, VerificationError where the proof fails: the folder is then
    renamed to ``<name>.failed``.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())) and not overwrite:
        raise OutputError(f"{folder} exists and is not empty; give another folder, or overwrite=True")
    family, source = session.family, session.source
    windows = verification_windows(
        session.calibration, source.config.vocab_size, source.context, session.settings.calibration.seed
    )
    was_training = small.training
    small.eval()
    try:
        with session.stages("save"):
            save = save_checkpoint if is_pruned_type(small.config.model_type) else save_stock_checkpoint
            expected = reference_of(small, family, windows) if verify_it else None
            size = session.settings.output.max_shard_size
            if save is save_checkpoint:
                save_checkpoint(small, family, session.tokenizer, folder, session.saved_dtype, size)
            else:
                save_stock_checkpoint(small, session.tokenizer, folder, session.saved_dtype, size)
        if expected is not None:
            with session.stages("verify"):
                proof = verify(folder, family, expected, device=session.device, dtype=session.dtype)
            insist(proof, folder)
            say(proof.line())
    finally:
        small.train(was_training)
    return folder
