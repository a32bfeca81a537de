"""lm-eval and its libraries keep the console to themselves; here they share it with a short report."""

import functools
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

from core.say import on_stderr


@contextmanager
def quiet(*, bars: bool = True) -> Iterator[None]:
    """Inside, only errors from the libraries' loggers, and progress bars that vanish when they are done, or none."""
    import datasets
    import lm_eval.api.model
    import lm_eval.api.task
    import lm_eval.models.huggingface

    loggers = [logging.getLogger(name) for name in ("datasets", "huggingface_hub", "lm_eval")]
    levels = [logger.level for logger in loggers]
    modules = (lm_eval.api.model, lm_eval.api.task, lm_eval.models.huggingface)
    bars_shown = not datasets.are_progress_bars_disabled()
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    for module in modules:
        module.tqdm = functools.partial(tqdm, leave=False, mininterval=1.0) if bars and on_stderr() else _no_bar
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        for module in modules:
            module.tqdm = tqdm
        if bars_shown:
            datasets.enable_progress_bars()


def _no_bar(*values: Any, **how: Any) -> Any:
    return tqdm(*values, **how | {"disable": True})  # lm-eval says itself when its bars are shown
