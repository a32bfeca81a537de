"""From options as they were given to whole settings: what they imply is filled in, what cannot work is refused."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from core.errors import UsageError
from core.names import DATASETS, DEFAULT_TASK, RECOVERIES
from run.naming import default_folder
from run.option_rules import refuse_conflicts
from run.settings import OPTIONS, READ_TEXT, SECTIONS, Settings

_DEFAULTS = {
    option.name: None if option.default is MISSING else option.default
    for section in SECTIONS.values()
    for option in fields(section)
}
CACHE_VARIABLE, NO_CACHE = "GLOBAL_PRUNING_CACHE", "none"


def complete(asked: Mapping[str, Any]) -> Settings:
    """Settings from option -> value; what is missing takes its default.

    Values are of the types in ``run.settings``, or None for a default; lists, and text for paths, will do as well.
    UsageError, one line, for a name that is no option and for values that cannot work beside one another.
    """
    unknown = sorted(set(asked) - set(OPTIONS))
    if unknown:
        near = get_close_matches(unknown[0], OPTIONS, 3)
        raise UsageError(f"{unknown[0]} is not an option; {_near(near)}")
    empty = next((name for name, value in asked.items() if value == ""), None)
    if empty is not None:
        raise UsageError(f"--{empty} is empty; give a value, or leave it out")
    given = {name: _typed(name, value) for name, value in asked.items() if value is not None}
    if "base_model" not in given:
        raise UsageError("--base_model is missing; give a hub id, a folder, or demo")
    if "dataset" in given:
        return _whole(given)
    read = _whole(given | {"dataset": READ_TEXT})
    if read.model.engine in ("streamed", "sharded") or not read.reads_calibration:
        return read
    return replace(_whole(given), if_streamed=read)


def _whole(given: Mapping[str, Any]) -> Settings:
    settings = _sections(given)
    if settings.model.low_memory and "engine" not in given:
        settings = replace(settings, model=replace(settings.model, engine="streamed"))
    settings = replace(settings, evaluation=_evaluation(settings, given))
    settings = replace(settings, repair=_repair(settings, given), recovery=_recovery(settings))
    refuse_conflicts(settings)
    return replace(settings, output=_output(settings, given))


def _near(names: Sequence[str]) -> str:
    return f"did you mean {' or '.join(names)}?" if names else f"they are: {', '.join(OPTIONS)}"


def _sections(given: Mapping[str, Any]) -> Settings:
    parts = {
        name: section(**{option.name: given[option.name] for option in fields(section) if option.name in given})
        for name, section in SECTIONS.items()
    }
    return Settings(**parts)


def _typed(name: str, value: Any) -> Any:
    if name in ("output", "plan", "eval_task_path", "scratch"):
        return Path(value)
    if name in ("recover", "report_to", "run_evaluation", "eval_datasets", "eval_tasks"):
        return (value,) if isinstance(value, str) else tuple(str(item) for item in value)
    return str(value) if isinstance(value, Path) else value


def _evaluation(settings: Settings, given: Mapping[str, Any]) -> Any:
    """Naming tasks runs them, and tasks without a name are the one that needs no network."""
    asked = settings.evaluation
    measures = set(asked.run_evaluation) - {"none"} | ({"tasks"} if asked.eval_tasks else set())
    return replace(
        asked,
        run_evaluation=tuple(sorted(measures)),
        eval_datasets=asked.eval_datasets or tuple(source.name for source in settings.calibration.sources),
        eval_elsewhere=given.get("eval_elsewhere") or _elsewhere(settings, given),
        eval_tasks=asked.eval_tasks or ((DEFAULT_TASK,) if "tasks" in measures else ()),
    )


def _recovery(settings: Settings) -> Any:
    """Steps in the order in which they run, whatever the order they were named in."""
    asked = settings.recovery
    return replace(
        asked,
        recover=tuple(step for step in RECOVERIES if step in asked.recover),
        report_to=tuple(name for name in asked.report_to if name != "none"),
    )


def _elsewhere(settings: Settings, given: Mapping[str, Any]) -> str:
    """Text of another kind than what calibrates, which every Python carries; none where texts are named, and where this
    Python's library is no folder of sources."""
    if "eval_datasets" in given or not Path(os.__file__).is_file():
        return "none"
    home = {source.name for source in settings.calibration.sources}
    return next((name for name in ("pydoc", "pycode") if name not in home), "none")


def _repair(settings: Settings, given: Mapping[str, Any]) -> Any:
    return replace(
        settings.repair, **{name: given.get(name, value) for name, value in _implied_repair(settings).items()}
    )


def _implied_repair(settings: Settings) -> dict[str, str]:
    """What is taken for options of repair that were not given: it depends on the others."""
    return {
        "reconstruct": "least_squares" if _repairs_unasked(settings) else "none",
        "reconstruct_modules": "outputs" if settings.repair.reconstruct_target == "pruned" else "all",
    }


def _repairs_unasked(settings: Settings) -> bool:
    """Where another step reads the calibration text anyway, and there is a window to hold out."""
    if settings.calibration.num_samples < 2:
        return False
    if settings.replays:
        return {s.name for s in settings.calibration.sources} <= set(settings.evaluation.perplexity_on)
    return settings.ranks_on_text


def _output(settings: Settings, given: Mapping[str, Any]) -> Any:
    unasked = _DEFAULTS | _implied_repair(settings)
    named = {**unasked, **given, "recover": settings.recovery.recover}
    return replace(
        settings.output,
        output=settings.output.output or default_folder(named, unasked, DATASETS),
        cache_dir=cache_folder(given.get("cache_dir")),
    )


def cache_folder(asked: str | None) -> Path | None:
    """``--cache_dir``, else what the environment names, else global-pruning in the user's cache folder.

    None where ``none`` is asked for, and where the user has no home.
    """
    name = asked or os.environ.get(CACHE_VARIABLE)
    if name:
        return None if name == NO_CACHE else Path(name).expanduser()
    base = os.environ.get("XDG_CACHE_HOME", "")
    try:
        return (Path(base) if Path(base).is_absolute() else Path.home() / ".cache") / "global-pruning"
    except RuntimeError:
        return None
