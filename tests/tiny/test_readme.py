"""The manual is part of the program: its tables equal the code, its commands parse, its links lead somewhere."""

import ast
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli import compare, gguf, verify
from cli.options import EPILOG, build_parser, parse_options
from cli.reference import help_parts, markdown
from core.errors import PruningError
from core.names import DATASETS
from models.family_table import FAMILIES
from run.complete import complete
from run.settings import OPTIONS
from run_global_pruning import COMMANDS as COMMANDS_OF_THE_ENTRY

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
TEXTS = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES = {path: path.read_text(encoding="utf-8") for path in TEXTS}
SUBCOMMANDS = {"compare": compare.build_parser, "gguf": gguf.build_parser, "verify": verify.build_parser}
PROGRAMS = ("python run_global_pruning.py", "global-pruning")


def page(name: str) -> str:
    """The text of a page in ``docs``."""
    return PAGES[ROOT / "docs" / name]


def part(marker: str, text: str = README) -> str:
    """What stands between ``<!-- marker -->`` and ``<!-- /marker -->``."""
    assert text.count(f"<!-- {marker} -->") == text.count(f"<!-- /{marker} -->") == 1, marker
    return text.split(f"<!-- {marker} -->")[1].split(f"<!-- /{marker} -->")[0].strip()


def first_column(table: str) -> list[str]:
    """The code spans that begin the rows of a Markdown table."""
    return re.findall(r"^\| `([^`]+)`", table, flags=re.M)


# Options


def test_the_page_of_options_is_what_its_generator_writes() -> None:
    """Where it is not: ``python -m cli.reference > docs/options.md``."""
    assert page("options.md") == markdown()


def test_every_option_is_a_row_of_that_page() -> None:
    options = {action.option_strings[0] for action in build_parser()._actions} - {"-h"}
    assert {cell.split()[0] for cell in first_column(page("options.md"))} == options


# Worked out from other values where they are not given; the help says from which.
DERIVED = {"base_model", "round_to", "batch_size", "cache_dir", "output", "eval_datasets", "eval_seq_len"}
DERIVED |= {"eval_samples", "eval_tasks", "eval_elsewhere", "gpu_memory", "recover_tokens"}
UNSET = {None: "none", True: "on", False: "off"}


@pytest.mark.parametrize("name", sorted({*OPTIONS} - DERIVED))
def test_the_default_that_is_told_is_the_default(name: str) -> None:
    """Of the settings of a run that is told nothing but its model."""
    default = complete({"base_model": "demo"}).record()[name]
    (told,) = (help_parts(action)[1] for action in build_parser()._actions if f"--{name}" in action.option_strings)
    value = re.split(":|, ", told)[0]
    if isinstance(default, float):
        assert float(value) == default
    elif isinstance(default, list):
        assert sorted(told.split(",")) == sorted(default)
    else:
        assert value == (UNSET[default] if default is None or isinstance(default, bool) else str(default))


def test_the_exit_codes_are_those_of_the_help() -> None:
    told = re.findall(r"(?:^|; |;\n)(\d+) ", EPILOG.split("exit codes: ")[1])
    assert re.findall(r"^\| (\d+) \|", page("options.md"), flags=re.M) == told
    assert {"0", "2", "3", "4", "129", "130", "143"} == set(told)


# Commands


def command_lines() -> Iterator[tuple[str, str]]:
    """(page, command) of every line of the code blocks, backslashes joined, comments and prompts left out."""
    for path, page in PAGES.items():
        for block in re.findall(r"^```(?:sh|bash|console)\n(.*?)^```", page, flags=re.M | re.S):
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line.removeprefix("$ "), comments=True)
                if words:
                    yield path.name, " ".join(shlex.quote(word) for word in words)


COMMANDS = [
    (page, program, shlex.split(command.split(program, 1)[1]))
    for page, command in command_lines()
    for program in PROGRAMS
    if re.search(rf"(^|[ /]){re.escape(program)}( |$)", command)
]


def test_the_manual_holds_commands_for_both_names() -> None:
    assert {program for _, program, _ in COMMANDS} == set(PROGRAMS)
    assert len(COMMANDS) >= 5


@pytest.mark.parametrize(("page", "program", "arguments"), COMMANDS, ids=lambda value: str(value)[:60])
def test_commands_parse(page: str, program: str, arguments: list[str]) -> None:
    if arguments == ["--help"]:
        return
    try:
        if arguments[0] in SUBCOMMANDS:
            assert SUBCOMMANDS[arguments[0]](program).parse_args(arguments[1:])
        else:
            assert parse_options(arguments).settings.model.base_model
    except (SystemExit, PruningError) as stop:
        pytest.fail(f"{page}: {program} {shlex.join(arguments)}: {stop}")


def test_every_subcommand_is_shown_in_the_manual() -> None:
    assert set(SUBCOMMANDS) == set(COMMANDS_OF_THE_ENTRY)
    assert set(SUBCOMMANDS) <= {arguments[0] for _, _, arguments in COMMANDS}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_python_in_the_manual_compiles(path: Path) -> None:
    for block in re.findall(r"^```python\n(.*?)^```", PAGES[path], flags=re.M | re.S):
        compile(block, path.name, "exec")


def test_the_readme_opens_with_make_demo_and_make_test() -> None:
    commands = [command for page, command in command_lines() if page == "README.md"]
    assert commands[:2] == ["make demo", "make test"]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = {command.split()[1] for _, command in command_lines() if command.startswith("make ")}
    assert {"demo", "test"} <= targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, flags=re.M), target


def test_the_console_command_is_installed_by_that_name() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["scripts"]["global-pruning"] == "run_global_pruning:main"
    assert f"Python {project['requires-python'].removeprefix('>=')}" in README


def test_modules_and_scripts_that_commands_name_exist() -> None:
    for page, command in command_lines():
        for module in re.findall(r"python -m ([\w.]+)", command):
            path = ROOT / module.replace(".", "/")
            if not (ROOT / module.split(".")[0]).exists():
                continue  # pytest, venv
            assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file(), (page, command)
        for script in re.findall(r"bash (\S+\.sh)", command):
            assert (ROOT / script).is_file(), (page, command)


def test_the_variables_of_the_experiments_script_are_listed() -> None:
    script = (ROOT / "run_experiments.sh").read_text(encoding="utf-8")
    variables = dict(re.findall(r"^([A-Z]+)=\$\{\1:-([^}]+)\}", script, flags=re.M))
    assert (
        dict(re.findall(r"^\| `([A-Z]+)` \| `([^`]+)` \|", part("experiments", page("migrating.md")), flags=re.M))
        == variables
    )


# Tables and links


def test_the_families_are_those_of_the_code() -> None:
    assert first_column(part("families")) == list(FAMILIES)


def test_the_datasets_are_those_of_the_code() -> None:
    assert set(first_column(part("datasets"))) == {*DATASETS, "PATH"}


def test_the_tested_versions_are_those_of_the_constraints() -> None:
    pins = dict(re.findall(r"^([\w-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), flags=re.M))
    for package in ("torch", "transformers"):
        assert f"{package} {pins[package]}" in README


def test_every_finding_is_explained() -> None:
    """docs/judging.md names each issue that a rule can report."""
    issues = set()
    for path in (ROOT / "diagnostics").rglob("rules_*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            name = getattr(node.func, "id", "") if isinstance(node, ast.Call) else ""
            if isinstance(node, ast.Call) and name in ("Finding", "advised") and isinstance(node.args[0], ast.Constant):
                issues.add(node.args[0].value)
    assert len(issues) >= 15
    assert set(re.findall(r"^\| `(\w+)` \| (?:high|medium|low|info) \|", page("judging.md"), flags=re.M)) == issues


def anchors(page: str) -> set[str]:
    """Anchors that a Markdown viewer makes of the headings."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", page, flags=re.M | re.S), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_relative_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", PAGES[path]):
        if not target.startswith("https://"):
            name, _, anchor = target.partition("#")
            file = (path.parent / name).resolve() if name else path
            assert file.exists(), target
            if anchor:
                assert anchor in anchors(file.read_text(encoding="utf-8")), target
