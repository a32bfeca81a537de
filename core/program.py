"""What to type to call this program again: as it was called, quoted for a shell."""

import os
import shlex
import shutil
import sys
from pathlib import Path

from core.ranks import started

ENTRY = "run_global_pruning"
INSTALLED = "global-pruning"
ROOT = Path(__file__).resolve().parent.parent


def program_name() -> str:
    """``global-pruning``, ``python run_global_pruning.py``, ``python3 -m run_global_pruning`` ...

    Where the entry was not what was called (a notebook, ``python -m diagnostics.compare``), the way that would work.
    """
    return called_as() if _entry_of_process() == ROOT / f"{ENTRY}.py" else _uncalled()


def called_as() -> str:
    """The words before the first argument of this process; a script on the PATH by its bare name. What ``torchrun``
    started on one machine begins with that."""
    words = sys.orig_argv[: len(sys.orig_argv) - len(sys.argv) + 1]
    by_torchrun, script = _torchrun(), Path(words[-1])
    if not {"-m", "-c"} & set(words) and script.suffix not in (".py", ".pyw"):
        found = shutil.which(script.name)
        on_path = found is not None and script.exists() and Path(found).samefile(script)
        return shlex.join([*by_torchrun, *["--no-python"] * bool(by_torchrun), script.name if on_path else words[-1]])
    return shlex.join([*by_torchrun, *words[-2 if "-m" in words else -1 :]] if by_torchrun else words)


def _torchrun() -> list[str]:
    """The words that started this process and those beside it; none where it is alone, or others are elsewhere."""
    here = started()
    alike = 1 < here.count == here.local_count and "TORCHELASTIC_RUN_ID" in os.environ
    return ["torchrun", "--nproc_per_node", str(here.count)] if alike else []


def _entry_of_process() -> Path | None:
    """The file that defines ``main`` of the module this process runs: an installed script imports it from there."""
    main = getattr(sys.modules.get("__main__"), "main", None)
    code = getattr(main, "__code__", None)
    return Path(code.co_filename).resolve() if code is not None else None


def _uncalled() -> str:
    if shutil.which(INSTALLED) or Path(sys.executable).with_name(INSTALLED).exists():
        return INSTALLED
    path = ROOT / f"{ENTRY}.py"
    return shlex.join(["python", str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)])
