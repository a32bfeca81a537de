"""Options as Python values, checked as the command line checks its words."""

import argparse
from collections.abc import Mapping
from os import PathLike
from typing import Any

from cli.options import build_parser
from core.errors import UsageError
from run.complete import complete
from run.settings import Settings


def settings_of(asked: Mapping[str, Any]) -> Settings:
    """Settings from option -> value; None: the default. Lists will do where the command takes a comma list.

    UsageError, one line, for a name that is no option, a value out of its bounds, and values that cannot work beside
    one another.
    """
    actions = {action.dest: action for action in build_parser()._actions}
    return complete({name: _checked(name, value, actions.get(name)) for name, value in asked.items()})


def _checked(name: str, value: Any, action: argparse.Action | None) -> Any:
    """The value, of the type that the command line would make of its text. An unknown name is left to ``complete``."""
    if value is None or action is None:
        return value
    if action.nargs == 0:  # a switch
        if not isinstance(value, bool):
            raise UsageError(f"{name}={value!r} is neither True nor False")
        return value
    if isinstance(value, Mapping):
        mixture = ",".join(f"{key}:{share}" for key, share in value.items()) if name == "dataset" else ""
        raise UsageError(f"{name} is a dict; {f'write texts with shares as {mixture!r}' if mixture else 'give text'}")
    if name == "dataset" and not isinstance(value, (str, PathLike, list, tuple)):
        raise UsageError(f"dataset is of type {type(value).__name__}; give a name or a path, or several with commas")
    if isinstance(value, (list, tuple)) and name in ("eval_datasets", "eval_tasks"):
        return tuple(str(item) for item in value) or None  # names that may hold commas
    if isinstance(value, (list, tuple, set)) and not value and name in ("recover", "report_to", "run_evaluation"):
        value = "none"
    text = ",".join(map(str, value)) if isinstance(value, (list, tuple, set)) else str(value)
    if action.choices is not None and text not in action.choices:
        raise UsageError(f"{name}={value!r} is none of {', '.join(action.choices)}")
    if action.type is None:
        return text
    try:
        return action.type(text)  # type: ignore[operator]
    except argparse.ArgumentTypeError as error:
        raise UsageError(f"{name}: {error}") from None
