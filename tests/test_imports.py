"""Imports point one way: the entry and its rooms -> stages -> core. Read with ``ast``; nothing is imported here.

The entry is ``run_global_pruning.py`` with ``cli/``. ``cli.options``, ``cli.output`` and ``cli.record`` know no stage,
so that ``--help`` and wrong options answer at once. Programs that made what the repository ships (the embedded model,
the items of its task) are started by hand and imported by benchmarks alone; like those they may use any stage.
"""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
STAGES = ("calibration", "importance", "pruning", "diagnostics", "evaluation", "models")
ROOMS = ("core", "cli", *STAGES)
OURS = {*ROOMS, "benchmarks", "run_global_pruning", "tests"}
BEFORE_ANY_STAGE = (
    "cli.finished",
    "cli.options",
    "cli.output",
    "cli.plan_options",
    "cli.record",
    "cli.run_options",
    "cli.together",
    "cli.values",
)
BY_HAND = ("models.demo.train", "models.demo.recipe", "evaluation.tasks.build_pydoc_cloze")
WITHOUT_TORCH = (
    "core",
    "core.cache",
    "core.criteria",
    "core.families",
    "core.files",
    "core.groups",
    "core.measures",
    "core.plan",
    "core.windows",
    "cli.finished",
    "cli.options",
    "cli.output",
    "cli.record",
    "importance.kept",
    "importance.scoring",
    "pruning.planning",
    "pruning.plan_file",
    *sorted(
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in (ROOT / "diagnostics").rglob("*.py")
        if path.stem != "__init__"
    ),
    "pruning.targets",
    "pruning.uniform",
)


def room(name: str) -> str:
    return name.split(".")[0]


def modules(folder: str) -> dict[str, Path]:
    """Dotted name -> file of every module below a folder, hidden folders left out."""
    paths = [path for path in (ROOT / folder).rglob("*.py") if not any(part.startswith(".") for part in path.parts)]
    return {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in paths}


def imported(path: Path) -> Iterator[str]:
    """Dotted names that a file imports, at its top, inside functions, or for type checking."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def rooms_of(path: Path) -> set[str]:
    """Top-level packages of ours that a file imports."""
    return {room(name) for name in imported(path)} & OURS


MODULES = {name: path for folder in ROOMS for name, path in modules(folder).items() if name not in BY_HAND}


def test_there_is_something_to_check() -> None:
    assert len(MODULES) > 50
    assert {room(name) for name in MODULES} == set(ROOMS)
    assert set(BY_HAND) <= {name for folder in ROOMS for name in modules(folder)}


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_imports_itself_and_core(stage: str) -> None:
    strangers = {name: rooms_of(path) - {stage, "core"} for name, path in MODULES.items() if room(name) == stage}
    assert {name: found for name, found in strangers.items() if found} == {}


def test_core_imports_core() -> None:
    assert {name: rooms_of(path) for name, path in modules("core").items() if rooms_of(path) - {"core"}} == {}


def test_options_output_and_record_know_no_stage() -> None:
    assert {name: rooms_of(MODULES[name]) - {"cli", "core"} for name in BEFORE_ANY_STAGE} == {
        name: set() for name in BEFORE_ANY_STAGE
    }
    for name in BEFORE_ANY_STAGE:
        inside = {found for found in imported(MODULES[name]) if found in MODULES and found.startswith("cli.")}
        assert inside <= set(BEFORE_ANY_STAGE), name


def test_nothing_imports_the_entry() -> None:
    files = [*MODULES.values(), ROOT / "run_global_pruning.py"]
    assert [str(path) for path in files if rooms_of(path) & {"run_global_pruning", "tests", "benchmarks"}] == []
    files = list(modules("benchmarks").values())
    assert [str(path) for path in files if rooms_of(path) & {"run_global_pruning", "tests"}] == []
    assert [name for name in MODULES if room(name) != "cli" and "cli" in rooms_of(MODULES[name])] == []


def test_nothing_imports_the_programs_started_by_hand() -> None:
    users = {name: set(imported(path)) & set(BY_HAND) for name, path in MODULES.items()}
    assert {name: found for name, found in users.items() if found} == {}


def test_scores_plans_and_findings_need_no_torch() -> None:
    """Any plan can be recomputed from a saved score table, and any report from a plan, where torch is missing."""
    code = (
        "import importlib, sys\n"
        "for name in sys.argv[1:]:\n"
        "    importlib.import_module(name)\n"
        "    assert not {'torch', 'transformers'} & set(sys.modules), name"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *WITHOUT_TORCH],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
