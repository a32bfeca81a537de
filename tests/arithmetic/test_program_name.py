"""Commands that are printed call the program as it was called, so that a copy of them runs."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from core.program import called_as, program_name

ROOT = Path(__file__).resolve().parents[2]


def script(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["python", "run_global_pruning.py"], "python run_global_pruning.py"),
        (["python3", "-X", "dev", "../tool/run_global_pruning.py"], "python3 -X dev ../tool/run_global_pruning.py"),
        (["python", "-m", "run_global_pruning"], "python -m run_global_pruning"),
        (["python", "my tools/run_global_pruning.py"], "python 'my tools/run_global_pruning.py'"),
        (["/venv/bin/python", "./elsewhere/global-pruning"], "./elsewhere/global-pruning"),
        (["/venv/bin/python", "/my venv/bin/global-pruning"], "'/my venv/bin/global-pruning'"),
    ],
)
def test_the_words_before_the_first_argument(words: list[str], shown: str, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["--base_model", "demo"]
    monkeypatch.setattr(sys, "orig_argv", [*words, *arguments])
    monkeypatch.setattr(sys, "argv", [words[-1], *arguments])
    assert called_as() == shown


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["/venv/bin/python", "-u", "run_global_pruning.py"], "run_global_pruning.py"),
        (["/venv/bin/python", "-u", "-m", "run_global_pruning"], "-m run_global_pruning"),
        (["/venv/bin/python", "./elsewhere/global-pruning"], "--no-python ./elsewhere/global-pruning"),
    ],
)
def test_processes_that_torchrun_started_on_one_machine(
    words: list[str], shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "orig_argv", [*words, "--base_model", "demo"])
    monkeypatch.setattr(sys, "argv", [words[-1], "--base_model", "demo"])
    environment = {"MASTER_ADDR": "localhost", "MASTER_PORT": "29500", "RANK": "1", "TORCHELASTIC_RUN_ID": "none"}
    for name, value in (environment | {"WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "8"}).items():
        monkeypatch.setenv(name, value)
    assert called_as() == f"torchrun --nproc_per_node 8 {shown}"
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")  # two machines: what started them is not known here
    assert not called_as().startswith("torchrun")


def test_a_script_on_the_path_goes_by_its_bare_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = script(tmp_path / "bin" / "global-pruning")
    monkeypatch.setattr(sys, "orig_argv", ["/venv/bin/python", str(path)])
    monkeypatch.setattr(sys, "argv", [str(path)])
    assert called_as() == shlex.quote(str(path))
    monkeypatch.setenv("PATH", str(path.parent))
    assert called_as() == "global-pruning"
    other = script(tmp_path / "another" / "global-pruning")  # of the same name, and first on the PATH
    monkeypatch.setenv("PATH", os.pathsep.join([str(other.parent), str(path.parent)]))
    assert called_as() == shlex.quote(str(path))


def test_where_the_program_was_not_called_it_is_named_so_that_it_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a notebook, or here."""
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", "")
    monkeypatch.chdir(ROOT)
    assert program_name() == "python run_global_pruning.py"
    monkeypatch.chdir(tmp_path)
    assert program_name() == shlex.join(["python", str(ROOT / "run_global_pruning.py")])
    script(tmp_path / "global-pruning")  # installed beside the interpreter
    assert program_name() == "global-pruning"


# The three ways to call it, and subcommands, from a folder whose packages have the names of ours.
WAYS = {
    "script": [sys.executable, str(ROOT / "run_global_pruning.py")],
    "module": [sys.executable, "-m", "run_global_pruning"],
    "installed": [sys.executable, "-c", "import sys\nfrom run_global_pruning import main\nsys.exit(main())"],
}


@pytest.mark.parametrize("command", [[], ["compare"], ["gguf"]])
@pytest.mark.parametrize("way", WAYS)
def test_commands_work_where_the_user_has_packages_of_our_names(way: str, command: list[str], tmp_path: Path) -> None:
    for name in ("core", "models", "cli", "diagnostics", "run"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit('the package of the user')\n")
    done = subprocess.run(
        [*WAYS[way], *command, "--help"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([".", str(ROOT)])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    usage = " ".join(done.stdout.split())
    assert usage.startswith(f"usage: {' '.join([*shlex.join(WAYS[way]).split(), *command])} ")


def test_a_package_that_was_imported_before_ours_is_named(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "__init__.py").write_text("")
    code = "import sys, models\nfrom run_global_pruning import main\nsys.exit(main(['--help']))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: a package named 'models' was imported before ours (")
    assert str(tmp_path) in done.stderr
