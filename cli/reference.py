"""``docs/options.md``: every option by stage, written from the parser itself.

python -m cli.reference > docs/options.md
"""

import argparse
import re
from collections.abc import Iterator

from cli.options import build_parser

HEAD = """# Options

Every option of `global-pruning` (`python run_global_pruning.py`), in the order of `--help`. This page is written by
`python -m cli.reference > docs/options.md`; a test keeps the two equal. In Python the same names are keyword arguments
of `gp.prune` and `gp.open` (`--num_samples 64` is `num_samples=64`).
"""


def markdown() -> str:
    """The whole page, with a final newline."""
    parser = build_parser()
    groups = [group for group in parser._action_groups if group.title not in ("options", "positional arguments")]
    tables = "\n".join(line for group in groups for line in _table(group))
    codes = (parser.epilog or "").split("exit codes: ")[-1].replace("\n", " ").strip()
    rows = "\n".join(f"| {code} | {meaning} |" for code, meaning in _codes(codes))
    return f"{HEAD}\n{tables}\n## Exit codes\n\n| code | meaning |\n|---:|---|\n{rows}\n"


def _table(group: argparse._ArgumentGroup) -> Iterator[str]:
    yield f"## {(group.title or '').capitalize()}\n"
    yield "| option | what it does |\n|---|---|"
    for action in group._group_actions:
        yield f"| `{_usage(action)}` | {_cell(action.help or '')} |"
    yield ""


def _usage(action: argparse.Action) -> str:
    value = "{" + ",".join(map(str, action.choices)) + "}" if action.choices else action.metavar
    return f"{action.option_strings[0]} {value}" if value else action.option_strings[0]


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("*", "\\*").replace("%%", "%")


def _codes(text: str) -> list[tuple[str, str]]:
    """("0", "done"), ... of "0 done; 2 the input cannot work (one line says why); 3 ..."."""
    return [(code, meaning) for part in text.split("; ") for code, meaning in re.findall(r"^(\d+) (.*)$", part)]


if __name__ == "__main__":
    print(markdown(), end="")
