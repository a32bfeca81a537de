"""The beginning of a run: claim the folder, check everything that can be known, read the text, load the model."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from core import ranks
from core.collection import collect_again
from core.errors import UsageError
from core.failures import warn
from core.say import note, say
from models.identity import model_identity
from run.folder import RunFolder, claimed
from run.library_folders import writable_folders
from run.owned import GGUF, MODEL
from run.preflight import intent, preflight
from run.session import Session
from run.settings import Settings
from run.surroundings import surroundings


@contextmanager
def open_session(settings: Settings, *, model: Any = None, tokenizer: Any = None) -> Iterator[Session]:
    """A session whose results go to the claimed output folder. What can be known is asked before the first minute of
    measuring: folder, disk, model, text, tasks, pictures, and weights where they will be needed in any case.

    Raises PruningError with one line for the first problem; an earlier run in the folder is then as it was.
    """
    if ranks.count() == 1 and settings.model.engine == "sharded":
        raise UsageError(
            "--engine sharded deals weights out to several processes, and this is one: start it by torchrun, or use "
            "--engine streamed"
        )
    around = surroundings(settings.calibration.seed, model)
    with around, writable_folders() as replaced, _claimed_by_first(settings) as folder:
        for sentence in replaced:
            note(sentence)
        session = Session(settings, model=model, tokenizer=tokenizer, folder=folder)
        for sentence in session.source.notes:
            note(sentence)
        with session.within_its_memory():
            with session.stages("check", quietly=True):
                if ranks.is_first():
                    _ask_beforehand(session)
            with session.stages("windows", quietly=True):
                session.read_texts()
            say(session.describe())
            session.cache.announce()
            collect_again()
            session.write_windows()
            _insist_on_same_input(session)
            if not settings.output.dry_run:
                session.dense()
            yield session


@contextmanager
def _claimed_by_first(settings: Settings) -> Iterator[RunFolder]:
    """The claimed folder, in which the first of several processes alone writes."""
    claim: AbstractContextManager[Any] = _claimed(settings) if ranks.is_first() else nullcontext()
    with claim as folder:
        yield ranks.from_first(folder, "folder")


def _insist_on_same_input(session: Session) -> None:
    """DataError where several processes were asked for different things, or read different files under one name, as on
    machines with copies of their own."""
    if ranks.count() == 1:
        return
    model = model_identity(session.source)
    files = [{key: value for key, value in file.items() if key != "mtime_ns"} for file in model.pop("files")]
    windows = {name: item.fingerprint for name, item in session.windows.items()}
    options = session.settings.record()
    for what, found in (("command line", options), ("model", [model, files]), ("text", windows)):
        ranks.insist_on_same(repr(found).encode(), what, "give all of them the same")


def _claimed(settings: Settings) -> AbstractContextManager[RunFolder]:
    asked = settings.output
    assert asked.output is not None
    writes = [] if asked.dry_run or asked.no_save_model else [MODEL, *[GGUF] * (asked.export == "gguf")]
    return claimed(asked.output, overwrite=asked.overwrite, inputs=_inputs(settings), writes=writes)


def _inputs(settings: Settings) -> dict[str, str | Path]:
    """What a run reads, by option. A plan is none of it: its run writes the same plan again."""
    named: dict[str, str | Path | None] = {
        "--base_model": settings.model.base_model,
        "--eval_task_path": settings.evaluation.eval_task_path,
    }
    named |= {f"--dataset {source.name}": source.name for source in settings.calibration.sources}
    named |= {f"--eval_datasets {name}": name for name in settings.evaluation.eval_datasets}
    if settings.evaluation.eval_elsewhere != "none":
        named["--eval_elsewhere"] = settings.evaluation.eval_elsewhere
    return {option: value for option, value in named.items() if value}


def _ask_beforehand(session: Session) -> None:
    """OutputError where the run would end in nothing; a warning for what it will go without."""
    asked, shape = session.settings.output, session.architecture
    assert asked.output is not None
    without = preflight(
        intent(
            asked.output,
            params_left=shape.total_params - session.planned_removal,
            itemsize=session.saved_dtype.itemsize,
            num_groups=len(shape.groups),
            saves=not (asked.dry_run or asked.no_save_model),
            exports=asked.export is not None and not asked.dry_run,
            cache=asked.cache_dir,
        )
    )
    for sentence in without.values():
        warn(sentence, session.warnings)
    session.draws = "pictures" not in without
