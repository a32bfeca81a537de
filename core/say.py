"""The one place where a run speaks to people on its way: notes, stages, warnings. Whoever calls a run may listen.

Lines go to stderr unless a caller hears them elsewhere (``with heard_by(listener)``), for as long as the block lasts,
in its thread alone.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar, copy_context
from functools import partial
from typing import TypeVar

Say = Callable[[str], None]
T = TypeVar("T")


def say_on_stderr(line: str) -> None:
    if sys.stderr is None:
        return
    bars = sys.modules.get("tqdm")  # --help draws none, and does without it
    with bars.tqdm.external_write_mode(sys.stderr) if bars else nullcontext():  # else it is glued to the bar
        print(line, file=sys.stderr, flush=True)


def silent(line: str) -> None:
    """A ``say`` that hears nothing: ``gp.prune(..., say=gp.silent)``. Progress bars are drawn only where lines go to
    stderr, so there are none either."""


_listener: ContextVar[Say] = ContextVar("listener", default=say_on_stderr)
_said: ContextVar[set[str] | None] = ContextVar("said", default=None)
_kept: ContextVar[list[str] | None] = ContextVar("kept", default=None)


def on_stderr() -> bool:
    """Whether lines go to stderr, where progress bars belong too."""
    return _listener.get() is say_on_stderr


def say(line: str) -> None:
    """Tell the listener."""
    _listener.get()(line)


def note(line: str) -> None:
    """Something the user may want to know: ``note: …``, unless the listener has heard these words before (a text is
    read more than once in a run)."""
    said, kept = _said.get(), _kept.get()
    if kept is not None:
        kept.append(line)
    if said is None or line not in said:
        say(f"note: {line}")
    if said is not None:
        said.add(line)


@contextmanager
def heard_by(listener: Say) -> Iterator[None]:
    """Inside, ``listener`` hears what is said; it hears each note once."""
    told, known = _listener.set(listener), _said.set(set())
    try:
        yield
    finally:
        _listener.reset(told)
        _said.reset(known)


def heard_here(function: Callable[..., T]) -> Callable[..., T]:
    """The function, which this thread's listener hears, wherever it is called: on a GPU autograd calls hooks in
    another thread."""
    return partial(copy_context().run, function)


@contextmanager
def heard_notes() -> Iterator[list[str]]:
    """Inside, notes are said as ever, and kept in the list, so that they can be said again."""
    kept: list[str] = []
    token = _kept.set(kept)
    try:
        yield kept
    finally:
        _kept.reset(token)
