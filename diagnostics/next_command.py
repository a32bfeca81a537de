"""The command line that tries a remedy: what was given, plus the flags, into a folder of its own."""

import shlex
from collections.abc import Sequence
from pathlib import Path

SHORT = {
    "--norm_method": "",
    "--temperature": "T",
    "--tau": "tau",
    "--max_block_ratio": "cap",
    "--clip_percentile_low": "low",
    "--clip_percentile_high": "high",
}
SWITCHES = {"--enable_grad_norm": "", "--enable_grad_clip": "clip"}
STALE = ("--output", "--overwrite", "--plan")  # the next run writes elsewhere and makes a plan of its own


def next_command(program: str, argv: Sequence[str], flags: str, output: Path) -> str:
    """One line, quoted for the shell. argv: the options of the run that was judged. flags: those to try; they
    replace earlier values of the same options. output: the folder that run wrote to."""
    tried = shlex.split(flags)
    replaced = [*(token for token in tried if token.startswith("--")), *STALE]
    folder = beside(output, folder_suffix(tried))
    options = [*without(argv, replaced), *tried, "--output", str(folder)]
    return f"{program} {shlex.join(options)}"


def beside(folder: Path, suffix: str) -> Path:
    """``<folder>_<suffix>``; ``.`` and ``..`` are no names to add to, so the folder they stand for is named."""
    named = folder.resolve() if folder.name in ("", "..") else folder
    return named.with_name(f"{named.name}_{suffix}") if named.name else named / suffix


def without(argv: Sequence[str], names: Sequence[str]) -> list[str]:
    """argv less the named options and their values, written ``--name value`` or ``--name=value``."""
    kept: list[str] = []
    dropping = False
    for token in argv:
        if token.startswith("--"):
            dropping = token.split("=", 1)[0] in names
        if not dropping:
            kept.append(token)
    return kept


def folder_suffix(flags: Sequence[str]) -> str:
    """``log_T1.0_tau0.0`` for ``--enable_grad_norm --norm_method log --temperature 1.0 --tau 0.0``."""
    parts: list[str] = []
    for token in flags:
        if token.startswith("--"):
            parts.append(SWITCHES.get(token, SHORT.get(token, token.removeprefix("--"))))
        else:
            parts[-1] += token
    return "_".join(part for part in parts if part)
