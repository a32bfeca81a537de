"""What to type to call this program again: as it was called, quoted for a shell."""

import shlex
import shutil
import sys
from pathlib import Path

ENTRY = "run_global_pruning"
INSTALLED = "global-pruning"
ROOT = Path(__file__).resolve().parent.parent


def program_name() -> str:
    """``global-pruning``, ``python run_global_pruning.py``, ``python3 -m run_global_pruning`` ...

    Where the entry was not what was called (a notebook, ``python -m diagnostics.compare``), the way that would work.
    """
    return called_as() if _entry_of_process() == ROOT / f"{ENTRY}.py" else _uncalled()


def called_as() -> str:
    """The words before the first argument of this process; a script on the PATH by its bare name."""
    words = sys.orig_argv[: len(sys.orig_argv) - len(sys.argv) + 1]
    script = Path(words[-1])
    if not {"-m", "-c"} & set(words) and script.suffix not in (".py", ".pyw"):
        found = shutil.which(script.name)
        on_path = found is not None and script.exists() and Path(found).samefile(script)
        return shlex.quote(script.name if on_path else str(words[-1]))
    return shlex.join(words)


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
