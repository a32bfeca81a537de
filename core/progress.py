"""Progress bars: drawn on stderr, so for those who hear a run there; whoever listens elsewhere is spared them."""

from typing import Any

import tqdm as bars

from core.say import on_stderr


def tqdm(*values: Any, **how: Any) -> Any:
    """``tqdm.tqdm`` with the same arguments; it draws nothing where ``say`` goes elsewhere than to stderr."""
    return bars.tqdm(*values, **how if on_stderr() else how | {"disable": True})
