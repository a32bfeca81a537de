"""Imports point one way: entry and API -> cli -> run -> stages -> core. Read with ``ast``; nothing is imported here.

The entry is ``run_global_pruning.py``, the API ``global_pruning.py``. What answers ``--help`` and wrong options knows
no stage, so that it answers at once, and nothing below ``cli/`` knows options or argparse.
"""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
STAGES = ("calibration", "importance", "pruning", "diagnostics", "evaluation", "models")
ROOMS = ("core", "run", "cli", *STAGES)
OURS = {*ROOMS, "benchmarks", "tools", "global_pruning", "global_pruning_rooms", "run_global_pruning", "tests"}
BEFORE_ANY_STAGE = (
    "cli.argv",
    "cli.one_line_parser",
    "cli.doors",
    "cli.finished",
    "cli.options",
    "cli.plan_options",
    "cli.reference",
    "cli.run_options",
    "cli.values",
    "run.complete",
    "run.folder",
    "run.interruption",
    "run.leftovers",
    "run.lock",
    "run.naming",
    "run.owned",
    "run.record",
    "run.option_rules",
    "run.settings",
    "run.swap",
)
WITHOUT_TORCH = (
    "core",
    "core.arguments",
    "core.cache",
    "core.collection",
    "core.criteria",
    "core.decoder",
    "core.families",
    "core.console",
    "core.failures",
    "core.files",
    "core.groups",
    "core.kinds",
    "core.measured",
    "core.plan",
    "core.program",
    "core.ranks",
    "core.sampling",
    "core.sources",
    "core.windows",
    *BEFORE_ANY_STAGE,
    "global_pruning",
    "importance.entries",
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
    "run.library_folders",
    "run.preflight",
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


MODULES = {name: path for folder in ROOMS for name, path in modules(folder).items()}


def test_there_is_something_to_check() -> None:
    assert len(MODULES) > 50
    assert {room(name) for name in MODULES} == set(ROOMS)


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_imports_itself_and_core(stage: str) -> None:
    strangers = {name: rooms_of(path) - {stage, "core"} for name, path in MODULES.items() if room(name) == stage}
    assert {name: found for name, found in strangers.items() if found} == {}


def test_core_imports_core() -> None:
    assert {name: rooms_of(path) for name, path in modules("core").items() if rooms_of(path) - {"core"}} == {}


def test_options_settings_and_record_know_no_stage() -> None:
    known = set(BEFORE_ANY_STAGE)
    for name in BEFORE_ANY_STAGE:
        names = {found for found in imported(MODULES[name]) if found in MODULES and "." in found}
        assert {found for found in names if room(found) != "core"} <= known, name


def test_nothing_below_the_command_line_knows_options() -> None:
    for name, path in MODULES.items():
        if room(name) == "cli":
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        arguments = {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
        assert "options" not in arguments, name
        assert "argparse" not in set(imported(path)), name


def test_the_run_imports_stages_and_core() -> None:
    strangers = {
        name: rooms_of(path) - {"run", "core", *STAGES} for name, path in MODULES.items() if room(name) == "run"
    }
    assert {name: found for name, found in strangers.items() if found} == {}


def test_nothing_but_the_api_imports_the_entry() -> None:
    files = [*MODULES.values(), ROOT / "run_global_pruning.py"]
    doors = {"run_global_pruning", "global_pruning", "tests", "benchmarks"}
    assert [str(path) for path in files if rooms_of(path) & doors] == []
    files = list(modules("benchmarks").values())
    assert [str(path) for path in files if rooms_of(path) & {"run_global_pruning", "tests"}] == []
    assert [name for name in MODULES if room(name) != "cli" and "cli" in rooms_of(MODULES[name])] == []
    assert [name for name in MODULES if room(name) not in ("cli", "run") and "run" in rooms_of(MODULES[name])] == []


def test_the_product_imports_no_tool() -> None:
    """tools/ made what the repository ships (the embedded model, the items of its task); benchmarks may use it."""
    assert [name for name, path in MODULES.items() if "tools" in rooms_of(path)] == []


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
