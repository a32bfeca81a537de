"""The command line that tries a remedy: what was given, plus the flags, into a folder of its own."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from core.arguments import with_flags, without

# How an option is written in the name of the next folder, before its value; others as they are.
SHORT = {
    "--norm_method": "",
    "--temperature": "T",
    "--tau": "tau",
    "--max_block_ratio": "cap",
    "--clip_percentile_low": "low",
    "--clip_percentile_high": "high",
    "--pruning_ratio": "",
    "--ratio_of": "of_",
    "--importance_method": "",
    "--reconstruct": "",
    "--recover": "",
    "--recover_tokens": "tokens",
}
SWITCHES = {"--enable_grad_norm": "", "--enable_grad_clip": "clip"}
UNNAMED = ("--eval_datasets", "--eval_elsewhere")  # where a run is judged is no part of its folder's name
NO_REMEDY = (
    "--pruning_ratio",
    "--num_samples",
    "--protect",
    "--dataset",
    "--importance_method",
    "--reconstruct",
    "--recover",
    "--recover_tokens",
)  # flags that findings name beside those of remedies
STALE = ("--output", "--overwrite", "--plan")  # the next run writes elsewhere and makes a plan of its own


def next_command(program: str, argv: Sequence[str], flags: str, output: Path, size: Sequence[str] = ()) -> str:
    """One line, quoted for the shell. argv: the options of the run that was judged. flags: those to try; they
    replace earlier values of the same options. output: the folder that run wrote to. size: the options that ask for
    the size of a replayed plan, which its own command line does not name."""
    tried = shlex.split(flags)
    asked = with_flags(argv, size) if replays(argv) else argv
    folder = beside(output, folder_suffix(tried))
    options = [*with_flags(without(asked, STALE), tried), "--output", folder]
    return f"{program} {shlex.join(options)}"


def replays(argv: Sequence[str]) -> bool:
    return any(token.split("=", 1)[0] == "--plan" for token in argv)


def beside(output: Path, suffix: str) -> str:
    """``results/run_suffix`` for results/run, also where that is written ``.`` or ``..``; never mistaken for an
    option."""
    named = output if output.name not in ("", "..") else output.resolve()
    folder = str(named.with_name(f"{named.name}_{suffix}")) if named.name else str(named / suffix)
    return f"./{folder}" if folder.startswith("-") else folder


def only_remedies(flags: str) -> bool:
    """Whether these are flags that ``--remedy auto`` tries by itself."""
    return not any(token in NO_REMEDY for token in shlex.split(flags) if token.startswith("--"))


def folder_suffix(flags: Sequence[str]) -> str:
    """``log_T1.0_tau0.0`` for ``--enable_grad_norm --norm_method log --temperature 1.0 --tau 0.0``."""
    parts: list[str] = []
    for token in without(flags, UNNAMED):
        if token.startswith("--"):
            parts.append(SWITCHES.get(token, SHORT.get(token, token.removeprefix("--"))))
        else:
            parts[-1] += token.replace(",", "_")
    return "_".join(part for part in parts if part)
