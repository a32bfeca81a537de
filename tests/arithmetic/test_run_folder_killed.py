"""run.folder and processes that die: one run or the next is there, and what killed ones leave is removed."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from small_runs import contents, finish, refusal

from core.errors import OutputError
from core.files import write_text
from run.lock import LOCK
from run.swap import JOURNAL, swap

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    finish(tmp_path / "run")
    return tmp_path / "run"


def states(run: Path) -> Mapping[str, bytes]:
    """What counts of a run folder: times of files are another every time."""
    found = {name: data for name, data in contents(run).items() if name != LOCK}
    record = json.loads(found["run.json"])
    record["files"] = [(item["path"], item["sha256"]) for item in record["files"]]
    return found | {"run.json": json.dumps(record).encode()}


def killed_at(count: int, run: Path) -> bool:
    """Fork; the child replaces the run and is killed before its ``count``-th rename. False where it had no so many."""
    child = os.fork()
    if child == 0:  # nothing of pytest's may run here
        calls, rename = 0, os.rename

        def counted(*arguments: Any, **named: Any) -> None:
            nonlocal calls
            calls += 1
            if calls == count:
                os.kill(os.getpid(), 9)
            rename(*arguments, **named)

        os.rename = counted
        try:
            finish(run, "second", overwrite=True)
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -9


def test_a_kill_at_any_rename_leaves_one_run_or_the_next_completes_it(tmp_path: Path) -> None:
    finish(tmp_path / "first")
    finish(tmp_path / "second", "second")
    first, second = states(tmp_path / "first"), states(tmp_path / "second")
    seen = set()
    for count in range(1, 99):
        run = tmp_path / f"run{count}"
        shutil.copytree(tmp_path / "first", run)
        if not killed_at(count, run):
            break
        with pytest.raises(OutputError, match="not empty"):
            finish(run, "third")  # it looks, and tidies
        found = states(run)
        assert found in (first, second)
        seen.add(found == first)
        finish(run, "second", overwrite=True)
        assert states(run) == second
    assert seen == {True, False}


def test_a_swap_moves_the_old_aside_and_the_new_in(tmp_path: Path) -> None:
    """Worked out: one file goes, one comes, one is replaced."""
    folder, staging = tmp_path / "run", tmp_path / "run" / ".global-pruning-0123456789ab"
    write_text(folder / "gone" / "a", "old")
    write_text(folder / "both", "old")
    write_text(staging / "new" / "both", "new")
    write_text(staging / "new" / "come", "new")
    swap(folder, staging, ["both", "gone/a"], ["come", "both"])
    assert set(contents(folder)) == {
        *("both", "come", f"{staging.name}/old/both", f"{staging.name}/old/gone/a"),
    }
    assert not (folder / "gone").exists()
    assert not (staging / JOURNAL).exists()


def test_what_killed_runs_leave_is_removed_and_what_looks_like_it_is_not(run: Path) -> None:
    of_killed = run / ".global-pruning-0123456789ab"
    write_text(of_killed / "claim.json", "{}")
    write_text(of_killed / "new" / "model" / ".model.abcdefgh.safetensors", "half")
    half = run / ".model.ab_d3fgh"
    half.mkdir(mode=0o700)
    write_text(half / "model-00001-of-00002.safetensors", "half")
    temporary = run / "analysis" / ".groups.abcd3fgh.parquet"
    temporary.touch(mode=0o600)
    mine = {
        ".global-pruning-notes/x": 0o700,  # not the name
        ".global-pruning-ba9876543210/thesis.txt": 0o700,  # the name, and no such content
        ".model.backup12/config.json": 0o755,  # a name that somebody typed: open to readers
        ".model.private1/diary.txt": 0o700,  # closed, and not a model
        "analysis/.groups.parquet": 0o700,
    }
    for name, mode in mine.items():
        write_text(run / name, "mine")
        (run / name).parent.chmod(mode)
    finish(run, "second", overwrite=True)
    assert not any(path.exists() for path in (of_killed, half, temporary))
    assert all((run / name).read_text() == "mine" for name in mine)


def test_the_lock_is_gone_with_its_process(tmp_path: Path) -> None:
    code = "import os, sys; from pathlib import Path; from run.folder import claimed\n"
    code += "with claimed(Path(sys.argv[1])): print('claimed', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", code, str(tmp_path / "run")]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "claimed\n"
        assert f"process {process.pid}" in refusal(tmp_path / "run")
        process.kill()
        process.wait()
    finish(tmp_path / "run")
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"analysis", "model", "report.html", "run.json"}
