"""The command line that asks for given settings: what differs from the defaults, as somebody would type it."""

from typing import Any

from run.complete import complete
from run.settings import Settings


def argv_of(settings: Settings) -> tuple[str, ...]:
    """Words after the program's name."""
    default = complete({"base_model": settings.model.base_model, "dataset": settings.calibration.dataset}).record()
    words = ["--base_model", settings.model.base_model]
    always = ("output",) if settings.if_streamed else ("dataset", "output")
    for name, value in settings.record().items():
        if name == "base_model" or (value == default[name] and name not in always):
            continue
        words += _words(name, value)
    return tuple(words)


def _words(name: str, value: Any) -> list[str]:
    if name == "verify":
        return [] if value else ["--no_verify"]
    if isinstance(value, bool):
        return [f"--{name}"] * value
    if value is None:
        return ["--cache_dir", "none"] if name == "cache_dir" else []
    return [f"--{name}", ",".join(map(str, value)) if isinstance(value, list) else str(value)]
