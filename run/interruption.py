"""SIGTERM and SIGHUP end a run as Ctrl-C does: what was half written is tidied away, and the exit code says why."""

import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))
SAME_REQUEST_S = 2.0


class Terminated(KeyboardInterrupt):
    """A request to end, met wherever Ctrl-C would be. signum: which signal asked."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


def exit_code(interrupt: KeyboardInterrupt) -> int:
    """128 + the signal: 130 for Ctrl-C, 143 for SIGTERM, 129 for SIGHUP."""
    return 128 + (interrupt.signum if isinstance(interrupt, Terminated) else signal.SIGINT)


@contextmanager
def terminations() -> Iterator[None]:
    """Raise Terminated on SIGTERM or SIGHUP inside the block; the handlers of before are restored afterwards.

    A second signal within moments of the first is the same request, told to the process and to its group. A later one
    counts, since Python drops what is raised inside a destructor.

    Only where nobody has decided otherwise: a handler that is set stays, and so does SIGHUP that nohup has switched
    off. Outside the main thread Python lets no handler be set, and none is.
    """
    on_main = threading.current_thread() is threading.main_thread()
    ours = [number for number in SIGNALS if on_main and signal.getsignal(number) is signal.SIG_DFL]

    last = -math.inf

    def end(signum: int, _frame: FrameType | None) -> None:
        nonlocal last
        before, last = last, time.monotonic()
        if last - before >= SAME_REQUEST_S:
            raise Terminated(signum)

    try:
        for number in ours:
            signal.signal(number, end)
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)
