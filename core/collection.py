"""Garbage collection, put off while the program starts.

Imports make millions of objects, all of which stay. Looking through them for garbage, again and again, takes a quarter
of the time of a run that has nothing to measure. A caller from Python keeps its own collection: only the command puts
it off.
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


class _State:
    put_off = False
    frozen = False


@contextmanager
def collected_later() -> Iterator[None]:
    """Inside, nothing is collected until ``collect_again``; afterwards everything is as it was."""
    _State.put_off = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        collect_again()


def collect_again() -> None:
    """The start is over. What has been imported is never looked through again. Nothing happens where nothing was put
    off."""
    if not _State.put_off:
        return
    _State.put_off = False
    if not _State.frozen:  # once: a later call of a long-lived process holds garbage too
        gc.freeze()
        _State.frozen = True
    gc.enable()
