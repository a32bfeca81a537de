"""What is asked before the first minute: room on the disk, folders of the libraries, pictures."""

import os
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest

import run.library_folders
from core.errors import OutputError
from run.library_folders import FOLDERS, hf_home, why_not_writable, writable_folders
from run.preflight import OVERHEAD_BYTES, QUESTIONS, Intent, intent, preflight, room_for_the_cache, room_for_the_output

ROOT = Path(__file__).resolve().parents[2]
Usage = namedtuple("Usage", ["total", "used", "free"])


def free(monkeypatch: pytest.MonkeyPatch, by_folder: dict[str, int]) -> None:
    def disk_usage(path: Path) -> Usage:
        return Usage(10**15, 0, next((left for name, left in by_folder.items() if name in str(path)), 10**15))

    monkeypatch.setattr(shutil, "disk_usage", disk_usage)


def test_sizes_follow_from_counts() -> None:
    common: dict[str, Any] = {"params_left": 7_000_000_000, "num_groups": 1000, "cache": None}
    asked = intent(Path("x"), itemsize=2, saves=True, exports=True, **common)
    assert (asked.model, asked.gguf) == (14_000_000_000, 14_000_000_000)
    wide = intent(Path("x"), itemsize=4, saves=True, exports=False, **common)
    assert (wide.model, wide.gguf) == (28_000_000_000, 0)
    dry = intent(Path("x"), itemsize=2, saves=False, exports=False, **common)
    assert (dry.model, dry.gguf) == (0, 0)
    assert OVERHEAD_BYTES < dry.written < 2 * OVERHEAD_BYTES


def test_a_disk_without_room_is_refused_with_both_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Intent(tmp_path / "not" / "there" / "yet", model=14_000_000_000, report=0)
    free(monkeypatch, {str(tmp_path): 14_000_000_000})
    assert room_for_the_output(asked) is None
    free(monkeypatch, {str(tmp_path): 13_900_000_000})
    with pytest.raises(OutputError, match=r"needs about 14\.0 GB and its disk has 13\.9 GB left.*--no_save_model"):
        room_for_the_output(asked)


def test_a_cache_without_room_refuses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free(monkeypatch, {str(tmp_path / "cache"): 4000})
    asked = Intent(tmp_path / "out", cache=tmp_path / "cache", cached=5000)
    (tmp_path / "cache").mkdir()
    assert "may store nothing" in (room_for_the_cache(asked) or "")
    assert set(preflight(asked)) == {"room_for_the_cache"}
    assert room_for_the_cache(Intent(tmp_path / "out")) is None


def test_a_new_question_is_a_row(tmp_path: Path) -> None:
    assert {question.__name__ for question in QUESTIONS} == {"room_for_the_output", "room_for_the_cache", "pictures"}
    assert preflight(Intent(tmp_path)) == {}


@pytest.mark.parametrize(
    "setting",
    [
        {"MPLBACKEND": "module://matplotlib_inline.backend_inline"},
        {"MPLBACKEND": "TkAgg"},
        {"MPLCONFIGDIR": "/proc/nowhere"},
        {"HOME": "/proc/nowhere", "XDG_CONFIG_HOME": "/proc/nowhere"},
        {"MATPLOTLIBRC": "matplotlibrc"},
    ],
)
def test_pictures_are_drawn_whatever_the_user_has_set_for_matplotlib(setting: dict[str, str], tmp_path: Path) -> None:
    """A notebook's backend, no home, and settings that want LaTeX."""
    (tmp_path / "matplotlibrc").write_text("text.usetex: True\nfigure.facecolor: black\n")
    code = (
        "import os, pathlib\nfrom diagnostics.reports.canvas import drawing, new_figure, save\n"
        "before = dict(os.environ)\n"
        "with drawing():\n    save(new_figure(3, 1, 'a $ of $x', '')[0], pathlib.Path('x.png'))\n"
        "os.environ.pop('MPLCONFIGDIR', None), before.pop('MPLCONFIGDIR', None)\n"  # matplotlib puts its own there
        "assert dict(os.environ) == before"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | setting,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert (tmp_path / "x.png").stat().st_size > 1000


def test_why_a_folder_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert why_not_writable(tmp_path / "a" / "b") is None
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    assert why_not_writable(tmp_path / "file" / "below") == f"{tmp_path / 'file'} is a file"
    assert why_not_writable(Path("/proc/nowhere")) is not None


def test_a_folder_that_can_be_written_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    for variable in FOLDERS:
        monkeypatch.delenv(variable, raising=False)
    assert hf_home() == tmp_path
    with writable_folders() as notes:
        assert notes == []
        assert not set(FOLDERS) & set(os.environ)


def test_one_that_cannot_is_replaced_for_the_time_of_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import dynamic_module_utils

    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "file"))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    before = dynamic_module_utils.HF_MODULES_CACHE
    with writable_folders() as notes:
        (note,) = notes
        assert note.startswith(f"{tmp_path / 'file'} cannot be written (")
        stand_in = Path(os.environ["HF_MODULES_CACHE"])
        assert stand_in.is_dir()
        assert str(stand_in) == dynamic_module_utils.HF_MODULES_CACHE  # imported already: a variable comes too late
        assert os.environ["HF_DATASETS_CACHE"] == str(tmp_path / "datasets")
    assert not stand_in.exists()
    assert os.environ["HF_MODULES_CACHE"] == str(tmp_path / "file")
    assert before == dynamic_module_utils.HF_MODULES_CACHE


def test_without_any_temporary_folder_there_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(**_: Any) -> None:
        raise FileNotFoundError(2, "No usable temporary directory found")

    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(run.library_folders.tempfile, "TemporaryDirectory", full)
    with pytest.raises(OutputError, match="set TMPDIR"), writable_folders():
        pass


def test_a_run_without_tasks_imports_nothing_for_them() -> None:
    code = (
        "import sys\nfrom evaluation.catalogue import check_tasks\ncheck_tasks([], None)\n"
        "import run.opening, run.decide, run.finish\n"
        "assert not {'lm_eval', 'datasets', 'matplotlib'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True)


def test_tasks_without_their_packages_are_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    from core.errors import UsageError
    from evaluation.catalogue import check_tasks

    monkeypatch.setitem(sys.modules, "lm_eval.models.huggingface", None)
    with pytest.raises(UsageError, match="pip install lm-eval datasets"):
        check_tasks(["pydoc_cloze"], None)
