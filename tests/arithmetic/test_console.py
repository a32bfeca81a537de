"""Nothing that is printed raises: encodings without our signs, readers that have gone, full disks, closed streams."""

import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from core.console import ASCII, console

ROOT = Path(__file__).resolve().parents[2]
SIGNS = "4 → 2, 0.5 ± 0.1, é"


def printed(encoding: str, text: str) -> bytes:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding, errors="strict", newline="\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", stream)
        with console():
            print(text)
        assert sys.stdout is stream
        assert stream.errors == "strict"  # as it was found
    return raw.getvalue()


@pytest.mark.parametrize(
    ("encoding", "expected"),
    [
        ("utf-8", SIGNS.encode()),
        ("ascii", b"4 -> 2, 0.5 +- 0.1, \\xe9"),
        ("latin-1", b"4 -> 2, 0.5 \xb1 0.1, \xe9"),
        ("cp1252", b"4 -> 2, 0.5 \xb1 0.1, \xe9"),
        ("cp437", b"4 -> 2, 0.5 \xf1 0.1, \x82"),
        ("utf-16-le", SIGNS.encode("utf-16-le")),
    ],
)
def test_signs_that_an_encoding_lacks_are_spelled_and_others_stay(encoding: str, expected: bytes) -> None:
    assert printed(encoding, SIGNS) == expected + "\n".encode(encoding)


def test_a_path_that_is_not_utf_8_is_shown_escaped() -> None:
    assert printed("utf-8", b"caf\xe9".decode("utf-8", "surrogateescape")) == b"caf\\udce9\n"


def test_every_sign_that_our_sources_print_has_a_spelling() -> None:
    assert all(spelled.isascii() and not sign.isascii() for sign, spelled in ASCII.items())
    texts = [path.read_text(encoding="utf-8") for path in (ROOT / "diagnostics").rglob("*.py")]
    assert {sign for text in texts for sign in text if not sign.isascii()} <= set(ASCII)


class Failing(io.StringIO):
    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def write(self, text: str) -> int:
        raise self.error


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (BrokenPipeError(32, "Broken pipe"), ""),
        (OSError(28, "No space left on device"), "warning: stdout cannot be written (No space left on device)"),
        (ValueError("I/O operation on closed file"), "warning: stdout cannot be written (I/O operation on closed"),
    ],
)
def test_a_stream_that_fails_takes_no_more_and_only_a_reader_that_left_is_not_named(
    error: Exception, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, err = Failing(error), io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    with console():
        print("one")
        print("two")
    assert err.getvalue().startswith(said)
    assert err.getvalue().count("\n") == bool(said)


def test_without_streams_text_goes_nowhere_and_an_error_line_not_to_stdout(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", None)
    with console():
        print("an error", file=sys.stderr)  # with file=None it would be printed to stdout
        print("the report")
    assert out.getvalue() == "the report\n"


COMMAND = f"{sys.executable} {ROOT / 'run_global_pruning.py'}"


@pytest.mark.parametrize(
    ("redirection", "code"),
    [
        (" --help | true", 0),
        (" --help >/dev/full", 0),
        (" --help >&-", 0),
        (" --help >&- 2>&-", 0),
        (" --nonsense 2>&-", 2),
        (" --nonsense 2>/dev/full", 2),
    ],
)
def test_from_a_shell_the_exit_code_is_that_of_the_work(redirection: str, code: int) -> None:
    script = f"set -o pipefail; {COMMAND}{redirection}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


@pytest.mark.parametrize("setting", [{"PYTHONIOENCODING": "ascii"}, {"PYTHONIOENCODING": "cp1252"}, {"LC_ALL": "C"}])
def test_a_missing_run_with_a_foreign_name_is_one_line_in_any_encoding(setting: dict[str, str], tmp_path: Path) -> None:
    environment: dict[str, Any] = os.environ | setting
    done = subprocess.run(
        [sys.executable, str(ROOT / "run_global_pruning.py"), "compare", "läuft → nicht"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.count(b"\n") == 1
    assert done.stderr.startswith(b"error: ")
