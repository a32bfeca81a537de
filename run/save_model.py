"""Save a narrow model that is in memory, trained since it was cut or not, and prove the folder against it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from core.as_found import left_as_found
from core.errors import ModelError, OutputError
from core.say import say
from models.expected import Reference, reference_of, verification_windows
from models.family_table import family_of
from models.narrow import is_pruned_type
from models.rounding import round_parameters
from models.saving import save_checkpoint
from models.stock import save_stock_checkpoint
from models.verification import insist, verify
from run.session import Session


def save_model(session: Session, small: Any, folder: Path, *, verify_it: bool, overwrite: bool) -> Path:
    """Write ``small`` to ``folder``, whole or not at all; it is left as found.

    verify_it: load the folder afresh and compare it with ``small`` itself, as it is now, its weights rounded to what
    the folder holds. Raises ModelError for a model of another family or with an adapter, OutputError where the folder
    holds something and ``overwrite`` is not given or what it holds is no saved model, VerificationError where the proof
    fails: the folder is then renamed to ``<name>.failed``.
    """
    _insist_on_family(session, small)
    _insist_on_room(session, folder, overwrite)
    with left_as_found(small), _rounded_for_now(small, session.saved_dtype):
        expected = _expected(session, small) if verify_it else None
        with session.stages("save"):
            _write(session, small, folder)
    if expected is not None:
        with session.stages("verify"):
            proof = verify(folder, session.family, expected, device=small.device, dtype=small.dtype)
        insist(proof, folder)
        say(proof.line())
    return folder


def _write(session: Session, small: Any, folder: Path) -> None:
    family, tokenizer, dtype = session.family, session.tokenizer, session.saved_dtype
    size, base = session.settings.output.max_shard_size, session.base_folder
    if is_pruned_type(small.config.model_type):
        save_checkpoint(small, family, tokenizer, folder, dtype, size, base)
    else:
        save_stock_checkpoint(small, tokenizer, folder, dtype, size, base=base)


def _expected(session: Session, small: Any) -> Reference:
    context, seed = session.source.context, session.settings.calibration.seed
    windows = verification_windows(session.calibration, small.config.vocab_size, context, seed)
    return reference_of(small, session.family, windows)


@contextmanager
def _rounded_for_now(model: Any, dtype: torch.dtype) -> Iterator[None]:
    """Inside, the weights are those of a checkpoint in ``dtype``; afterwards what they were, to the last bit."""
    before = [
        (parameter, parameter.detach().to("cpu", copy=True))
        for parameter in model.parameters()
        if parameter.dtype != dtype
    ]
    try:
        round_parameters(model, dtype)
        yield
    finally:
        with torch.no_grad():
            for parameter, values in before:
                parameter.data.copy_(values)


def _insist_on_family(session: Session, small: Any) -> None:
    config = getattr(small, "config", None)
    if config is None or not isinstance(small, torch.nn.Module):
        raise ModelError(f"save() takes the model that prune() returned, not {type(small).__name__}")
    if hasattr(small, "peft_config"):
        raise ModelError("the model has an adapter attached; merge it first: small = small.merge_and_unload()")
    if family_of(config.model_type) is not session.family and config.model_type != "mistral":  # see models.stock
        raise ModelError(f"save() takes a {session.family.model_type} model here, and this is {config.model_type}")


def _insist_on_room(session: Session, folder: Path, overwrite: bool) -> None:
    """Nothing but a saved model is ever replaced, and never the one that the weights are read from."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not overwrite:
        raise OutputError(f"{folder} exists and is not empty; give another folder, or overwrite=True")
    if folder.resolve() == session.source.folder.resolve():
        raise OutputError(f"{folder} is the model that is being pruned; give another folder")
    if not (folder / "config.json").is_file() or any(path.is_dir() for path in folder.iterdir()):
        raise OutputError(f"{folder} holds something else than a saved model, and is not replaced; name another")
