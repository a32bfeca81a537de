"""Which lm-eval tasks there are, and loading them with their data.

Three sources, later ones winning: lm-eval's own tasks, the embedded ones in ``tasks/``, a folder of the user's.
"""

import difflib
from contextlib import nullcontext
from functools import lru_cache
from pathlib import Path
from typing import Any

from core.errors import DataError, UsageError, reason_of
from core.failures import in_one_line
from core.hub import offline_if_unreachable
from core.names import DEFAULT_TASK
from evaluation.quiet import quiet

EMBEDDED_TASKS = Path(__file__).with_name("tasks")


def check_tasks(names: list[str], task_path: str | Path | None) -> None:
    """Load the named tasks and their data once, so that what is wrong with them shows before any weights load.

    names: lm-eval tasks, groups or tags. task_path: a folder with more of them as YAML files, or None.
    Raises UsageError for a folder or name that does not exist and for a task that runs generated code or needs
    pictures, DataError where a task or its data cannot be loaded.
    """
    if task_path is not None and not Path(task_path).is_dir():
        raise UsageError(f"--eval_task_path {str(task_path)!r} is not a folder")
    if not names:
        return  # lm-eval and datasets take seconds to import
    require_packages()
    with quiet():
        manager, _ = manager_for(names, task_path)
        for name in names:
            if name not in manager.all_tasks:
                raise UsageError(_unknown(name, manager.all_tasks, task_path))
        for name, task in load(names, task_path)["tasks"].items():
            if getattr(task, "UNSAFE_CODE", False) or getattr(task, "MULTIMODAL", False):
                raise UsageError(f"task {name!r} runs generated code or needs pictures, which is not supported")


def require_packages() -> None:
    """Raise UsageError where what runs tasks is missing or does not import; a run without tasks needs none of it."""
    try:
        import datasets  # noqa: F401
        import lm_eval.models.huggingface  # noqa: F401
    except Exception as error:  # a broken installation fails in any way
        raise UsageError(
            f"tasks need the packages lm-eval and datasets ({in_one_line(error)}): pip install lm-eval datasets, or "
            "leave tasks out of --run_evaluation and --eval_tasks"
        ) from error


def load(names: list[str], task_path: str | Path | None) -> dict[str, Any]:
    """lm-eval's {"tasks": {name: task}, "groups": ...}: fresh task objects, with their data.

    Raises DataError where a task or its data cannot be loaded.
    """
    manager, local = manager_for(names, task_path)
    listed = ", ".join(names)
    try:
        with nullcontext() if local else offline_if_unreachable():
            return manager.load(list(dict.fromkeys(names)))
    except ConnectionError as error:
        raise DataError(
            f"the data of {listed} is not cached and cannot be downloaded ({reason_of(error)}): connect to the "
            f"network, or use the task that needs none: --eval_tasks {DEFAULT_TASK}"
        ) from error
    except Exception as error:  # a task is a program of its author's: it may fail in any way, and is input to us
        raise DataError(f"{listed} cannot be loaded: {reason_of(error)}") from error


def manager_for(names: list[str], task_path: str | Path | None) -> tuple[Any, bool]:
    """An lm-eval TaskManager that knows ``names`` if anything does, and whether it left lm-eval's own tasks out.

    It does where every name is found without them: reading the thousands of task files that lm-eval ships takes
    several seconds.
    """
    folders = (str(EMBEDDED_TASKS),) if task_path is None else (str(EMBEDDED_TASKS), str(task_path))
    local = manager_of(folders, False)
    if set(names) <= set(local.all_subtasks):
        return local, True
    return manager_of(folders, True), False


@lru_cache(maxsize=4)
def manager_of(folders: tuple[str, ...], include_defaults: bool) -> Any:
    """lm-eval's TaskManager over these folders, with or without the tasks that lm-eval ships; read once."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=list(folders), include_defaults=include_defaults)


def _unknown(name: str, known: list[str], task_path: str | Path | None) -> str:
    close = difflib.get_close_matches(name, known, n=3)
    hint = f"did you mean {' or '.join(close)}?" if close else f"the task that needs no network is {DEFAULT_TASK}"
    where = "lm-eval" if task_path is None else f"lm-eval or {str(task_path)!r}"
    return f"unknown task {name!r}: no task, group or tag of {where} has that name; {hint}"
