"""``docs/options.md``: every option by stage, written from the parser itself.

python -m cli.reference > docs/options.md
"""

import argparse
import re
from collections.abc import Iterator

from cli.options import EPILOG, build_parser

HEAD = """# Options

Every option of `global-pruning` (`python run_global_pruning.py`), in the order of `--help`. This page is written by
`python -m cli.reference > docs/options.md`; a test keeps the two equal. In Python the same names are keyword arguments
of `gp.prune` (`--num_samples 64` is `num_samples=64`); only `--base_model` and `--pruning_ratio` are `model` and
`ratio`. `gp.open` takes those of the model (but for `engine`, `scratch` and `low_memory`), of calibration and of
repair, `cache_dir` and `max_shard_size`. The rest belongs to the steps of its session.

If an option has no effect next to the others, a note on stderr says so. Options that contradict one another are refused
in one line. `global-pruning compare`, `gguf` and `verify` have a `--help` of their own.
"""
AFTER_CODES = """Any other code is a bug and leaves a traceback. What a run promises when it fails is in
[reliability.md](reliability.md).
"""
DEFAULT = re.compile(r"(?P<meaning>.*) \(default (?P<default>.*)\)", re.S)


def markdown() -> str:
    """The whole page, with a final newline."""
    tables = "\n".join(line for group in _groups(build_parser()) for line in _table(group))
    codes = "\n".join(f"| {code} | {meaning} |" for code, meaning in exit_codes())
    return f"{HEAD}\n{tables}\n## Exit codes\n\n| code | meaning |\n|---:|---|\n{codes}\n\n{AFTER_CODES}"


def help_parts(action: argparse.Action) -> tuple[str, str]:
    """(meaning, default) as the help of an option tells them. Raises ValueError where it tells no default."""
    text = (action.help or "").replace("%%", "%")
    if action.required:
        return text.removesuffix("; required"), "required"
    found = DEFAULT.fullmatch(text)
    if found is None:
        raise ValueError(f"{action.option_strings[0]}: its help does not end in (default ...)")
    return found["meaning"], found["default"]


def exit_codes() -> list[tuple[str, str]]:
    """("0", "done"), ... as the end of ``--help`` lists them."""
    listed = EPILOG.split("exit codes: ")[1].replace("\n", " ").strip().split("; ")
    return [(code, meaning) for code, meaning in (entry.split(" ", 1) for entry in listed)]


def _groups(parser: argparse.ArgumentParser) -> list[argparse._ArgumentGroup]:
    return [group for group in parser._action_groups if group.title not in ("options", "positional arguments")]


def _table(group: argparse._ArgumentGroup) -> Iterator[str]:
    title = group.title or ""
    yield f"## {title[0].upper()}{title[1:]}\n\n| option | default | meaning |\n|---|---|---|"
    for action in group._group_actions:
        meaning, default = help_parts(action)
        yield f"| `{_usage(action)}` | {_default(default)} | {_cell(meaning)} |"
    yield ""


def _usage(action: argparse.Action) -> str:
    value = "{" + ",".join(map(str, action.choices)) + "}" if action.choices else action.metavar
    return f"{action.option_strings[0]} {value}" if value else action.option_strings[0]


def _default(text: str) -> str:
    """The value in code; what follows it (``auto: a GPU if there is one``) in words."""
    value = re.match(r"([^\s:,]+(?:,[^\s:,]+)*)(?=$|[:,])", text)
    if value is None or text == "required":
        return _cell(text)
    return f"`{value[0]}`{_cell(text[value.end() :])}"


def _cell(text: str) -> str:
    return re.sub(r"[|*<]", r"\\\g<0>", text)


if __name__ == "__main__":
    print(markdown(), end="")
