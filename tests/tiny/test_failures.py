"""What a machine may do to a run, in one line; and what is a convenience, which ends none."""

import errno
import json
import os
import signal
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from safetensors import SafetensorError
from workspace import Workspace, call

import core.cache
import core.files
import diagnostics.page.run_page
import diagnostics.reports.analysis
from cli.doors import interrupted, other_command
from core.errors import NumericalError, UsageError
from core.failures import convenience, exit_code, in_one_line, of_the_machine
from diagnostics.reports import canvas
from run.interruption import Terminated


def system_error(number: int, path: str | None = None) -> OSError:
    return OSError(number, os.strerror(number), path)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (system_error(errno.ENOSPC, "/x/y"), "/x/y: No space left on device"),
        (system_error(errno.EIO), "Input/output error"),
        (ModuleNotFoundError("No module named 'matplotlib'", name="matplotlib"), "the package matplotlib is not"),
        (RuntimeError("first\n  second"), "first; second"),
        (ValueError(), "ValueError"),
    ],
)
def test_a_failure_is_one_line_and_names_its_path(error: Exception, line: str) -> None:
    assert in_one_line(error).startswith(line)
    assert "\n" not in in_one_line(error)


@pytest.mark.parametrize(
    ("error", "next_step"),
    [
        (system_error(errno.ENOSPC, "/x"), "free some space"),
        (system_error(errno.EDQUOT, "/x"), "free some space"),
        (SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"), "free some"),
        (Exception("No space left on device (os error 28)"), "free some space"),  # tokenizers
        (system_error(errno.EROFS, "/x"), "a folder that can be written"),
        (system_error(errno.EMFILE, "/x"), "ulimit -n"),
        (system_error(errno.EIO, "/x"), "that disk or connection"),
        (OSError("no number"), "that disk or connection"),
        (MemoryError(), "--engine streamed"),
        (system_error(errno.ENOMEM), "--batch_size"),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory"), "--scratch"),
    ],
)
def test_what_the_machine_refuses_comes_with_a_next_step(error: Exception, next_step: str) -> None:
    said = of_the_machine(error)
    assert said is not None
    assert next_step in said


@pytest.mark.parametrize("bug", [RuntimeError("shapes differ"), ValueError("(os error"), KeyError("x")])
def test_a_bug_keeps_its_traceback(bug: Exception) -> None:
    def run() -> None:
        raise bug

    assert of_the_machine(bug) is None
    with pytest.raises(type(bug)):
        exit_code(run)


@pytest.mark.parametrize(
    ("error", "code"), [(UsageError("x"), 2), (NumericalError("x"), 3), (system_error(errno.EIO, "/x"), 2)]
)
def test_an_expected_failure_is_a_line_and_its_code(
    error: Exception, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    def run() -> None:
        raise error

    assert exit_code(run) == code
    assert capsys.readouterr().err.count("\n") == 1
    assert exit_code(lambda: None) == 0


def test_a_convenience_is_said_once_and_ctrl_c_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    warnings: list[str] = []
    for _ in range(2):
        with convenience("no picture", warnings):
            raise ValueError("broken")
    assert warnings == ["no picture: broken"]
    assert capsys.readouterr().err == "warning: no picture: broken\n"
    with pytest.raises(KeyboardInterrupt), convenience("no picture", warnings):
        raise KeyboardInterrupt


def fail(error: BaseException) -> Any:
    def failing(*_: Any, **__: Any) -> None:
        raise error

    return failing


FULL = system_error(errno.ENOSPC, "/full")
# The seam that fails -> what the warning begins with.
CONVENIENCES = {
    "cache": (core.cache, "write_atomically", FULL, "the cache at"),
    "safetensors": (core.cache, "write_atomically", SafetensorError("I/O error (os error 28)"), "the cache at"),
    "pictures": (
        canvas,
        "write_atomically",
        FULL,
        "the picture of rates could not be drawn: /full: No space",
    ),
    "matplotlib": (
        canvas,
        "drawing",
        ModuleNotFoundError("", name="matplotlib"),
        "there will be no pic",
    ),
    "page": (diagnostics.page.run_page, "render", RuntimeError("template"), "report.html is missing: template"),
}


@pytest.mark.parametrize("name", CONVENIENCES)
def test_a_run_whose_convenience_fails_is_a_finished_run(
    name: str, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, seam, error, begins = CONVENIENCES[name]
    output = workspace.root / name
    monkeypatch.setattr(module, seam, fail(error))
    cache = str(workspace.root / f"cache-{name}")
    code, out, said = call([*workspace.base_arguments(), "--cache_dir", cache, "--output", str(output)])
    assert code == 0, said
    assert "Written" in out
    assert (output / "model" / "config.json").is_file()
    record = json.loads((output / "run.json").read_text())
    assert record["facts"]["warnings"][0].startswith(begins)
    assert all(f"warning: {sentence}" in said for sentence in record["facts"]["warnings"])
    assert "Traceback" not in said


def test_a_result_that_cannot_be_written_is_one_line(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnostics.reports.analysis, "write_atomically", fail(FULL))
    code, _, said = call([*workspace.base_arguments(), "--dry_run", "--output", str(workspace.root / "unwritten")])
    assert code == 2
    assert said.splitlines()[-1].startswith("error: /full: No space left on device; free some space there")
    assert not (workspace.root / "unwritten" / "run.json").exists()


def test_a_text_with_a_path_that_is_not_utf_8_is_written(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9")
    path = core.files.write_json(tmp_path / "x.json", {"output": name})
    assert json.loads(path.read_text())["output"] == name


@pytest.mark.parametrize(("interrupt", "code"), [(KeyboardInterrupt(), 130), (Terminated(signal.SIGTERM), 143)])
def test_every_command_ends_in_a_line_when_asked_to(
    interrupt: KeyboardInterrupt, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "slow", SimpleNamespace(main=fail(interrupt)))
    assert other_command("slow", [], "global-pruning slow") == code
    assert capsys.readouterr().err == "interrupted; nothing was finished\n"


def test_a_proof_that_the_disk_ends_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("run.prove_again.prove_again", fail(system_error(errno.EIO, "/x/model")))
    assert other_command("cli.verify", [str(tmp_path)], "global-pruning verify") == 2
    assert capsys.readouterr().err.startswith("error: /x/model: Input/output error; ")


def test_the_last_line_of_an_interrupted_run_says_what_is_there(tmp_path: Path) -> None:
    """Nothing, what a run left when it failed, or an earlier finished run."""
    folder = tmp_path / "run"
    assert interrupted(folder) == f"interrupted; nothing was written to {folder}"
    folder.mkdir()
    assert interrupted(folder) == f"interrupted; {folder} has no run.json and is not a finished run"
    (folder / "run.json").write_text("{}", encoding="utf-8")
    assert interrupted(folder) == f"interrupted; the finished run in {folder} is complete"
