"""Words to the user about text that was left out: one line on stderr, and each line once a process."""

import sys

_said: set[str] = set()


def say(note: str) -> None:
    """Print ``note: …`` on stderr, unless the same words were printed before (a text is read more than once)."""
    if note not in _said:
        _said.add(note)
        print(f"note: {note}", file=sys.stderr)
