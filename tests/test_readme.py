"""The manual is part of the program: its tables equal the code, its commands parse, its links lead somewhere."""

import argparse
import ast
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli.options import EPILOG, build_parser, parse_options
from core.errors import PruningError
from core.names import DATASETS
from models.family_table import FAMILIES

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = {path: path.read_text(encoding="utf-8") for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]}
PROGRAMS = ("python run_global_pruning.py", "global-pruning")
HELP = re.compile(r"(?P<text>.*) \(default:? (?P<default>[^:]*)(?:: (?P<note>.*))?\)", re.S)


def part(marker: str) -> str:
    """What stands between ``<!-- marker -->`` and ``<!-- /marker -->`` of the README."""
    assert README.count(f"<!-- {marker} -->") == README.count(f"<!-- /{marker} -->") == 1, marker
    return README.split(f"<!-- {marker} -->")[1].split(f"<!-- /{marker} -->")[0].strip()


def first_column(table: str) -> list[str]:
    """The code spans that begin the rows of a Markdown table."""
    return re.findall(r"^\| `([^`]+)`", table, flags=re.M)


# Options


def flag_tables(parser: argparse.ArgumentParser) -> str:
    """The README's tables as ``--help`` would have them: one a group, a row an option, in the same order."""
    sections = []
    for group in parser._action_groups:
        options = [action for action in group._group_actions if "--help" not in action.option_strings]
        if options:
            rows = ["| option | default | meaning |", "|---|---|---|", *map(flag_row, options)]
            sections.append("\n".join([f"### {group.title}", "", *rows]))
    return "\n\n".join(sections)


def flag_row(action: argparse.Action) -> str:
    value = "{" + ",".join(action.choices) + "}" if action.choices else action.metavar
    option = f"`{action.option_strings[0]}{f' {value}' if value else ''}`"
    text, default = help_parts(action)
    shown = default if " " in default or default == "required" else f"`{default}`"
    return f"| {option} | {shown} | {text} |".replace("|w g|", r"\|w g\|").replace("|w sum g|", r"\|w sum g\|")


def help_parts(action: argparse.Action) -> tuple[str, str]:
    """(meaning, default) as the option's help tells them; what it adds to the default belongs to the meaning."""
    assert action.help is not None
    if action.required:
        return action.help.removesuffix("; required"), "required"
    found = HELP.fullmatch(action.help)
    assert found is not None, f"{action.option_strings}: no '(default ...)' at the end of its help"
    text, default, note = found.group("text", "default", "note")
    return (f"{text}; {default}: {note}" if note else text), default


def test_the_flag_tables_equal_the_help() -> None:
    assert part("options") == flag_tables(build_parser())


@pytest.mark.parametrize("action", build_parser()._actions, ids=lambda action: action.dest)
def test_the_default_that_is_told_is_the_default(action: argparse.Action) -> None:
    if action.default is None or action.default == argparse.SUPPRESS:
        return  # required, or worked out from other values: the help says from which
    told = help_parts(action)[1]
    if isinstance(action.default, bool):
        on = action.default and not isinstance(action, argparse._StoreFalseAction)
        assert told == ("on" if on else "off")
    elif isinstance(action.default, (int, float)):
        assert float(told) == action.default
    else:
        assert told == (action.default if isinstance(action.default, str) else ",".join(action.default))


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
        settings = parse_options(arguments).settings
    except (SystemExit, PruningError) as stop:
        pytest.fail(f"{page}: {program} {shlex.join(arguments)}: {stop}")
    assert settings.model.base_model


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
        for module in re.findall(r"python -m ((?:benchmarks|evaluation|models)[\w.]*)", command):
            path = ROOT / module.replace(".", "/")
            assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file(), (page, command)
        for script in re.findall(r"bash (\S+\.sh)", command):
            assert (ROOT / script).is_file(), (page, command)


def test_the_variables_of_the_experiments_script_are_listed() -> None:
    script = (ROOT / "run_experiments.sh").read_text(encoding="utf-8")
    variables = dict(re.findall(r"^([A-Z]+)=\$\{\1:-([^}]+)\}", script, flags=re.M))
    assert dict(re.findall(r"^\| `([A-Z]+)` \| `([^`]+)` \|", part("experiments"), flags=re.M)) == variables


# Tables and links


def test_the_families_are_those_of_the_code() -> None:
    assert first_column(part("families")) == list(FAMILIES)


def test_the_datasets_are_those_of_the_code() -> None:
    assert set(first_column(part("datasets"))) == {*DATASETS, "PATH"}


def test_the_exit_codes_are_those_of_the_help() -> None:
    told = re.findall(r"(?:^|; |;\n)(\d+) ", EPILOG.split("exit codes: ")[1])
    assert re.findall(r"^\| (\d+) \|", README, flags=re.M) == told


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
    table = (ROOT / "docs" / "judging.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `(\w+)` \| (?:high|medium|low|info) \|", table, flags=re.M)) == issues


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
