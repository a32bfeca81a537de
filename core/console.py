"""The console as people have it: any encoding, a reader that has gone, a full disk behind it, no console at all.

What is printed is never worth a run. Inside ``console()`` nothing that is written to stdout or stderr raises: signs
that the encoding lacks are spelled in ASCII, and a stream that fails takes no more text from then on.
"""

import codecs
import errno
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO, cast

READABLE = "readable-in-ascii"  # our error handler's name
ASCII = {
    "→": "->",
    "←": "<-",
    "±": "+-",
    "×": "x",
    "÷": "/",
    "·": "*",
    "−": "-",
    "–": "-",
    "—": "-",
    "…": "...",
    "≤": "<=",
    "≥": ">=",
    "≠": "!=",
    "≈": "~",
    "∂": "d",
    "∑": "sum",
    "Σ": "sum",
    "σ": "sigma",
    "τ": "tau",
    "κ": "kappa",
    "√": "sqrt",
    "‖": "||",
    "∈": "in",
    "∩": "&",
    "∪": "|",
    "∞": "inf",
    "⌊": "floor(",
    "⌋": ")",
    "°": "deg",
    "“": '"',
    "”": '"',
    "‘": "'",
    "’": "'",
    "«": '"',
    "»": '"',
    "•": "*",
    "✓": "ok",
    "✗": "x",
    "\u00a0": " ",
    "█": "#",
    "▏": "|",
    "²": "^2",
    "³": "^3",
    "µ": "u",
    "μ": "u",
}
STREAMS = ("stdout", "stderr")


class Forgiving(io.TextIOBase):
    """A text stream that never raises on writing. failure: why the first write failed, None while all is well."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.failure: OSError | ValueError | None = None

    def write(self, text: str) -> int:
        if self.failure is None:
            try:
                self.stream.write(text)
            except (OSError, ValueError) as error:
                self._lose(error)
        return len(text)

    def flush(self) -> None:
        if self.failure is None:
            try:
                self.stream.flush()
            except (OSError, ValueError) as error:
                self._lose(error)

    def _lose(self, error: OSError | ValueError) -> None:
        """What is still buffered goes to the null device, so that the interpreter's own last flush says nothing."""
        self.failure = error
        with suppress(OSError, ValueError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self.stream.fileno())
            os.close(null)

    def close(self) -> None:
        """The stream below belongs to the caller and stays open."""

    @property
    def reader_has_gone(self) -> bool:
        """``| head``, ``| true``, a pager that was quit: nobody is missing the text."""
        return isinstance(self.failure, OSError) and self.failure.errno in (errno.EPIPE, errno.ESHUTDOWN)

    def fileno(self) -> int:
        return self.stream.fileno()

    def isatty(self) -> bool:
        return not self.stream.closed and self.stream.isatty()

    def writable(self) -> bool:
        return True

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return getattr(self.stream, "encoding", None) or "utf-8"

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@contextmanager
def console() -> Iterator[None]:
    """Inside, ``sys.stdout`` and ``sys.stderr`` are forgiving; afterwards they are the caller's again.

    A stdout that failed for another reason than a reader that has gone is named on stderr.
    """
    codecs.register_error(READABLE, _in_ascii)
    _occupy_missing_descriptors()
    found = {name: getattr(sys, name) for name in STREAMS}
    ours = {name: Forgiving(_null() if stream is None else stream) for name, stream in found.items()}
    errors = {name: _set_errors(stream, READABLE) for name, stream in found.items()}
    for name, stream in ours.items():
        setattr(sys, name, stream)
    try:
        yield
    finally:
        out, error = (ours[name] for name in STREAMS)
        out.flush()
        if out.failure is not None and not out.reader_has_gone:
            error.write(f"warning: stdout cannot be written ({_why(out.failure)})\n")
        error.flush()
        for name, stream in found.items():
            setattr(sys, name, stream)
            _set_errors(stream, errors[name])


def _in_ascii(error: UnicodeError) -> tuple[str, int]:
    """One sign that the encoding lacks, spelled: ``->`` for an arrow, ``\\xe9`` for what has no spelling here."""
    assert isinstance(error, UnicodeEncodeError)
    sign = error.object[error.start]
    spelled = ASCII.get(sign) or sign.encode("ascii", "backslashreplace").decode()
    return spelled, error.start + 1


def _set_errors(stream: Any, errors: str | None) -> str | None:
    """Give a text stream another error handler; returns the one it had, None where it has none (``StringIO``)."""
    before = getattr(stream, "errors", None)
    if errors is None or before is None or not hasattr(stream, "reconfigure"):
        return None
    with suppress(OSError, ValueError):  # reconfigure flushes first
        stream.reconfigure(errors=errors)
    return cast(str, before)


def _null() -> TextIO:
    """Where text goes when the program was started without that stream (``>&-``, a service, pythonw)."""
    return _Void()


class _Void(io.StringIO):
    def write(self, text: str) -> int:
        return len(text)


def _occupy_missing_descriptors() -> None:
    """Descriptors 0 to 2 that the program was started without, so that no file of ours is opened as one of them and
    written into by a library that complains on descriptor 2."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)  # the lowest free number
            if null != descriptor:
                os.dup2(null, descriptor)
                os.close(null)


def _why(error: OSError | ValueError) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
