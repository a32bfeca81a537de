"""lm-eval and its libraries keep the console to themselves; here they share it with a short report."""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

from core.loggers import only_errors_of
from core.say import on_stderr


@contextmanager
def quiet(*, bars: bool = True) -> Iterator[None]:
    """Inside, only errors from the libraries' loggers, and progress bars that vanish when they are done, or none."""
    import datasets
    import lm_eval.api.model
    import lm_eval.api.task
    import lm_eval.models.huggingface

    modules = (lm_eval.api.model, lm_eval.api.task, lm_eval.models.huggingface)
    bars_shown = not datasets.are_progress_bars_disabled()
    for module in modules:
        module.tqdm = functools.partial(tqdm, leave=False, mininterval=1.0) if bars and on_stderr() else _no_bar
    datasets.disable_progress_bars()
    try:
        with only_errors_of("datasets", "huggingface_hub", "lm_eval"):
            yield
    finally:
        for module in modules:
            module.tqdm = tqdm
        if bars_shown:
            datasets.enable_progress_bars()


def _no_bar(*values: Any, **how: Any) -> Any:
    return tqdm(*values, **how | {"disable": True})  # lm-eval says itself when its bars are shown
