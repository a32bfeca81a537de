"""What can be known before the first minute of measuring: a list of small questions, each a row of QUESTIONS."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from core.errors import OutputError
from core.failures import in_one_line
from core.memory import bytes_text

GROUP_BYTES = 400  # of one group in plan, groups.parquet and the cache, generously
OVERHEAD_BYTES = 16_000_000  # tokenizer, code, pictures, reports


@dataclass(frozen=True)
class Intent:
    """What a run is going to write. Sizes in bytes; 0 for what it does not write.

    model: the checkpoint, gguf: the exported file, report: everything beside them. cache: None without one.
    """

    output: Path
    model: int = 0
    gguf: int = 0
    report: int = OVERHEAD_BYTES
    cache: Path | None = None
    cached: int = 0

    @property
    def written(self) -> int:
        return self.model + self.gguf + self.report


def intent(
    output: Path,
    *,
    params_left: int,
    itemsize: int,
    num_groups: int,
    saves: bool,
    exports: bool,
    cache: Path | None,
) -> Intent:
    """Sizes from counts. params_left: parameters of the pruned model. itemsize: bytes of one as it is saved."""
    return Intent(
        output,
        model=params_left * itemsize if saves else 0,
        gguf=params_left * 2 if exports else 0,  # f16
        report=OVERHEAD_BYTES + num_groups * GROUP_BYTES,
        cache=cache,
        cached=num_groups * GROUP_BYTES if cache is not None else 0,
    )


Question = Callable[[Intent], str | None]


def room_for_the_output(asked: Intent) -> str | None:
    free = free_disk_bytes(asked.output)
    if free is None or free >= asked.written:
        return None
    less = " with --no_save_model or without --export" if asked.gguf else " with --no_save_model"
    raise OutputError(
        f"--output {asked.output} needs about {bytes_text(asked.written)} and its disk has {bytes_text(free)} left: "
        f"free some, give a folder on another disk, or write less{less if asked.model else ''}"
    )


def room_for_the_cache(asked: Intent) -> str | None:
    """The cache saves time in later runs and is not worth refusing this one."""
    free = None if asked.cache is None else free_disk_bytes(asked.cache)
    if free is None or free >= asked.cached:
        return None
    return f"the cache at {asked.cache} may store nothing of this run: its disk has {bytes_text(free)} left"


def pictures(asked: Intent) -> str | None:
    """Drawn once, into memory: matplotlib missing or broken is known now, and costs the pictures alone."""
    try:
        from diagnostics.reports.canvas import drawing, new_figure

        with drawing():
            new_figure(1, 1, "", "")[0].savefig(BytesIO(), format="png", dpi=10)
    except Exception as error:  # whatever a broken installation does
        return f"there will be no pictures: {in_one_line(error)}"
    return None


QUESTIONS: tuple[Question, ...] = (room_for_the_output, room_for_the_cache, pictures)


def preflight(asked: Intent) -> dict[str, str]:
    """Ask everything: OutputError (one line) where the run would end in nothing, else a sentence for each question
    whose subject the run will go without, by the question's name (``pictures``)."""
    return {question.__name__: said for question in QUESTIONS if (said := question(asked)) is not None}


def free_disk_bytes(folder: Path) -> int | None:
    """What this user may still write there; None where the system does not tell. The folder need not exist."""
    try:
        return shutil.disk_usage(next(path for path in (folder, *folder.parents) if path.exists())).free
    except (OSError, StopIteration):
        return None
