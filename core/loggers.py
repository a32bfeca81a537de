"""Libraries that log to the console what a run's own lines tell, or what nobody need know."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def only_errors_of(*names: str) -> Iterator[None]:
    """Inside, these loggers pass errors on and nothing below."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
