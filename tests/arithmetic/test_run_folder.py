"""run.folder: what is the user's stays, a folder is one run's at a time, everything is put in place or nothing is.

The stages are played by ``small_runs.fill``; nothing here loads a model.
"""

import builtins
import errno
import io
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_runs import FILLED, RECORD, contents, fail, fill, finish, refusal

from core.errors import NumericalError, OutputError
from core.files import write_text
from run.folder import claimed
from run.lock import LOCK


@pytest.fixture
def run(tmp_path: Path) -> Path:
    finish(tmp_path / "run")
    return tmp_path / "run"


# What is the user's


def test_a_finished_run_lists_what_it_wrote_and_leaves_nothing_else(run: Path) -> None:
    listed = {item["path"]: item["bytes"] for item in json.loads((run / "run.json").read_text())["files"]}
    found = {name: len(data) for name, data in contents(run).items() if name != "run.json"}
    assert listed == found
    assert {path.name for path in run.iterdir()} == {"analysis", "model", "report.html", "run.json"}


def test_overwrite_replaces_the_earlier_run_and_nothing_else(run: Path) -> None:
    mine = {"notes.txt", "analysis/mine.txt", "model/photo.png", ".hidden/x", "evaluation/mine.csv", "model.old/a"}
    for name in mine:
        write_text(run / name, "mine")
    with claimed(run, overwrite=True) as folder:
        write_text(folder.staging / "report.html", "second")
        folder.publish(RECORD)
    assert set(contents(run)) == mine | {"report.html", "run.json"}
    assert (run / "report.html").read_text() == "second"


def test_a_copied_run_is_still_known(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "copy", copy_function=shutil.copyfile)
    finish(tmp_path / "copy", "second", overwrite=True)
    assert (tmp_path / "copy" / "report.html").read_text() == "second"


def test_a_file_that_was_changed_since_is_the_users(run: Path) -> None:
    write_text(run / "model" / "model.safetensors", "tuned")
    assert "model/model.safetensors" in refusal(run, overwrite=True)
    assert (run / "model" / "model.safetensors").read_text() == "tuned"


@pytest.mark.parametrize("name", ["model/config.json", "analysis/groups.parquet", "report.html", "run.json"])
def test_where_no_run_was_a_file_in_the_way_is_named(tmp_path: Path, name: str) -> None:
    write_text(tmp_path / name, "{}")
    assert f"holds {name}, which" in refusal(tmp_path, overwrite=True)


def test_what_would_be_read_with_the_new_model_is_in_its_way(tmp_path: Path) -> None:
    write_text(tmp_path / "model" / "adapter_config.json", "{}")
    assert "model/adapter_config.json" in refusal(tmp_path, overwrite=True)
    with claimed(tmp_path, overwrite=True, writes=()) as folder:  # without a model it is in nobody's way
        write_text(folder.staging / "report.html", "a look")
        folder.publish(RECORD)
    assert set(contents(tmp_path)) == {"model/adapter_config.json", "report.html", "run.json"}


@pytest.mark.parametrize("name", ["model", "analysis", "report.html"])
def test_a_link_is_followed_nowhere(run: Path, tmp_path: Path, name: str) -> None:
    (run / name).rename(tmp_path / "elsewhere")
    (run / name).symlink_to(tmp_path / "elsewhere")
    assert f"holds {name}, which" in refusal(run, overwrite=True)


def test_a_record_may_not_name_what_lies_elsewhere(run: Path, tmp_path: Path) -> None:
    mine = write_text(tmp_path / "mine.txt", "mine")
    record = json.loads((run / "run.json").read_text())
    item = {"bytes": 4, "mtime_ns": mine.stat().st_mtime_ns}
    record["files"] += [item | {"path": "../mine.txt"}, item | {"path": str(mine)}, {"path": 3}, None]
    (run / "run.json").write_text(json.dumps(record))
    finish(run, "second", overwrite=True)
    assert mine.read_text() == "mine"


def test_an_input_is_not_replaced_by_what_it_leads_to(run: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(run / "model")
    for name in (run / "model", run / ".." / "run" / "model", tmp_path / "link", run / "report.html"):
        assert "--base_model" in refusal(run, overwrite=True, inputs={"--base_model": name})
    write_text(run / "texts" / "a.txt", "mine")
    for name in (run / "texts", run, tmp_path, Path("demo"), Path("owner/name")):
        finish(run, "again", overwrite=True, inputs={"--dataset": name})
    assert (run / "texts" / "a.txt").read_text() == "mine"


def of_0_1_0(run: Path) -> None:
    """That version listed no files."""
    record = json.loads((run / "run.json").read_text())
    del record["files"]
    (run / "run.json").write_text(json.dumps(record))


def test_a_run_of_0_1_0_is_known_by_its_names(run: Path) -> None:
    of_0_1_0(run)
    write_text(run / "analysis" / "mine.json", "mine")
    finish(run, "second", overwrite=True)
    assert (run / "report.html").read_text() == "second"
    assert (run / "analysis" / "mine.json").read_text() == "mine"


@pytest.mark.parametrize("name", ["model/config.json", "report.html"])
def test_in_a_run_of_0_1_0_what_is_younger_than_its_record_is_the_users(run: Path, name: str) -> None:
    of_0_1_0(run)
    later = (run / "run.json").stat().st_mtime + 60
    os.utime(run / name, (later, later))
    assert f"holds {name}, which" in refusal(run, overwrite=True)


# Which folders can be had


def test_an_empty_folder_and_one_of_hidden_files_need_no_overwrite(tmp_path: Path, monkeypatch: Any) -> None:
    write_text(tmp_path / ".git" / "config", "mine")
    write_text(tmp_path / LOCK, "process 1")  # of a killed run
    monkeypatch.chdir(tmp_path)
    finish(Path())
    assert (tmp_path / "run.json").is_file()
    assert (tmp_path / ".git" / "config").read_text() == "mine"
    assert not (tmp_path / LOCK).exists()
    assert "add --overwrite" in refusal(Path())


@pytest.mark.parametrize("name", ["with space", "Füße 模型", "two\nlines", "x/y/z"])
def test_names_of_folders(tmp_path: Path, name: str) -> None:
    finish(tmp_path / name)
    assert (tmp_path / name / "run.json").is_file()
    assert "not empty" in refusal(tmp_path / name)


def test_folders_that_cannot_be_had(tmp_path: Path) -> None:
    file = write_text(tmp_path / "file", "")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert "is a file" in refusal(file)
    assert "cannot be written" in refusal(file / "below")
    assert "name too long" in refusal(tmp_path / ("x" * 300)).lower()
    assert "--output" in refusal(tmp_path / "loop" / "below")
    assert {path.name for path in tmp_path.iterdir()} == {"file", "loop"}


def test_a_folder_that_a_link_names(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    finish(tmp_path / "link")
    assert (tmp_path / "real" / "run.json").is_file()
    assert (tmp_path / "link").is_symlink()


def test_of_three_runs_at_once_one_wins(tmp_path: Path) -> None:
    with claimed(tmp_path / "run") as folder:
        for _ in range(2):
            assert f"process {os.getpid()}" in refusal(tmp_path / "run", overwrite=True)
        fill(folder, "first")
        folder.publish(RECORD)
    finish(tmp_path / "run", "second", overwrite=True)


def test_where_files_cannot_be_locked_a_note_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def unsupported(*_: Any) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", unsupported)
    finish(tmp_path / "run")
    assert "cannot be locked" in capsys.readouterr().err


# Failures


def test_a_failure_leaves_the_earlier_run_as_it_was_and_says_so(run: Path) -> None:
    before = contents(run)
    error = NumericalError("NaN; see STAGING/analysis; try again")
    with pytest.raises(NumericalError) as failed:
        fail(run, error, overwrite=True)
    assert str(failed.value) == f"NaN; try again; the earlier run in {run} is unchanged"
    assert contents(run) == before


@pytest.mark.parametrize("error", [NumericalError, KeyboardInterrupt, ZeroDivisionError])
def test_without_an_earlier_run_what_was_written_stays(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error) as failed:
        fail(tmp_path / "run", error("wrong, see STAGING/analysis"))
    left = contents(tmp_path / "run")
    assert set(left) == {*FILLED, "unfinished.json"}
    why = json.loads(left["unfinished.json"])["unfinished"]
    assert why == f"wrong, see {tmp_path / 'run' / 'analysis'}"
    if error is NumericalError:
        assert str(failed.value) == why
    finish(tmp_path / "run", overwrite=True)
    assert "unfinished.json" not in contents(tmp_path / "run")


def test_a_failure_before_anything_is_written_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(NumericalError, match=r"^too few$"), claimed(tmp_path / "a" / "b"):
        raise NumericalError("too few")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_appears_meanwhile_is_not_replaced_and_the_run_is_not_lost(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(OutputError) as refused:
        finish(run, meanwhile=run / "report.html")
    (aside,) = run.glob("unpublished-*")
    assert str(aside) in str(refused.value)
    assert (aside / "run.json").is_file()
    assert (run / "report.html").read_text() == "mine"


def test_only_what_the_folder_or_a_nameless_disk_said_is_about_the_folder(tmp_path: Path) -> None:
    full = errno.ENOSPC, "No space left on device"
    for error in (OSError(*full), OSError(*full, str(tmp_path / "run" / "x"))):
        with pytest.raises(OutputError, match="No space left"), claimed(tmp_path / "run"):
            raise error
    with pytest.raises(OSError, match="elsewhere"), claimed(tmp_path / "run"):
        raise OSError(*full, "/elsewhere/hub")


def failing_at(count: int, below: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Let the ``count``-th call that writes below a folder fail: the disk is full. Returns how many there were."""
    calls = 0

    def wrapped(call: Callable[..., Any], writes: Callable[..., bool]) -> Callable[..., Any]:
        def inner(path: Any, *arguments: Any, **named: Any) -> Any:
            nonlocal calls
            if isinstance(path, (str, Path)) and str(path).startswith(str(below)) and writes(*arguments, **named):
                calls += 1
                if calls == count:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
            return call(path, *arguments, **named)

        return inner

    def always(*_: Any, **__: Any) -> bool:
        return True

    def for_writing(mode: Any = "r", *_: Any, **__: Any) -> bool:
        return (isinstance(mode, int) and bool(mode & os.O_CREAT)) or (isinstance(mode, str) and mode[0] in "wax")

    for name in ("replace", "rename", "mkdir"):
        monkeypatch.setattr(os, name, wrapped(getattr(os, name), always))
    monkeypatch.setattr(os, "open", wrapped(os.open, for_writing))
    monkeypatch.setattr(io, "open", wrapped(io.open, for_writing))
    monkeypatch.setattr(builtins, "open", wrapped(builtins.open, for_writing))
    return lambda: calls


def test_every_write_failing_in_turn_leaves_the_earlier_run(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = contents(run)
    for count in range(1, 200):
        said = ""
        with monkeypatch.context() as patch:
            calls = failing_at(count, run, patch)
            try:
                finish(run, "second", overwrite=True)
            except OutputError as error:
                said = str(error)
        if calls() < count:
            break
        if not said:  # what failed was to make a folder that is there already
            before = contents(run)
            continue
        assert "No space left" in said
        assert len(said.splitlines()) == 1
        for aside in run.glob("unpublished-*"):  # the swap failed: the new run is whole beside
            assert (aside / "run.json").is_file()
            shutil.rmtree(aside)
        assert contents(run) == before, count
    assert count > 25
    assert (run / "report.html").read_text() == "second"
