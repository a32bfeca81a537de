"""Other libraries' errors, told in one line that keeps the reason."""

import pytest

from core.errors import reason_of


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("one line"), "one line"),
        (ValueError("Error(s) in loading:\n\tsize mismatch for w"), "Error(s) in loading: size mismatch for w"),
        (ValueError("It cannot be read\n\n  for lack of\n  a key"), "It cannot be read; for lack of; a key"),
        (ValueError("\x1b[1mBold\x1b[0m.\n=======\nPlain"), "Bold. Plain"),
        (OSError(), "OSError"),
        (KeyError("rope"), "KeyError: 'rope'"),
        (PermissionError(13, "Permission denied", "/x"), "[Errno 13] Permission denied: '/x'"),
    ],
)
def test_every_line_counts(error: Exception, line: str) -> None:
    assert reason_of(error) == line


def test_a_long_reason_is_cut_between_words() -> None:
    line = reason_of(ValueError("word " * 100), limit=22)
    assert line == "word word word word…"
