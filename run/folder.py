"""The folder of a run: claimed from the start, filled aside, put in place when everything is ready.

    with claimed(output, overwrite=True, inputs={"--base_model": "some/model"}) as folder:
        write_json(folder.staging / "analysis" / "x.json", ...)
        folder.publish(record)

A run that ends before ``publish`` leaves an earlier finished run as it was. Where there was none, it leaves what it has
written, with ``unfinished.json`` in the place of ``run.json``.
"""

import errno
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from core.errors import OutputError, PruningError
from core.files import write_json
from core.output import RECORD, UNFINISHED, cannot_write, not_empty, readable, reason
from run.leftovers import is_ours, make_staging, name_of_staging, remove_staging, tidy
from run.lock import lock
from run.owned import MODEL, Earlier, earlier_run, files_below, fingerprints, in_the_way
from run.swap import JOURNAL, NEW, swap

DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS}


@dataclass
class RunFolder:
    """output: the folder as the user named it. staging: where stages write. earlier: what a run had left in it."""

    output: Path
    root: Path
    staging: Path
    earlier: Earlier
    published: bool = field(default=False, init=False)

    def final(self, path: Path) -> Path:
        """Where a path below ``staging`` will be; other paths as they are."""
        return self.output / path.relative_to(self.staging) if path.is_relative_to(self.staging) else path

    def publish(self, record: Mapping[str, Any]) -> Path:
        """Put everything in place of the earlier run and write ``run.json`` with a list of it; returns its path.

        OutputError where somebody has put a file in the way meanwhile: the results then stay in a folder of their own.
        """
        self._record(RECORD, record)
        self._put_in_place(RECORD)
        return self.output / RECORD

    def keep_what_there_is(self, error: BaseException) -> bool:
        """After a failure: put in place what was written, unless that would cost a finished run."""
        if self.published or self.earlier.finished or not files_below(self.staging):
            return False
        why = str(error).splitlines() or [type(error).__name__]
        try:
            self._record(UNFINISHED, {"schema_version": 1, "unfinished": self.in_words(why[0])})
            self._put_in_place(UNFINISHED)
        except (OSError, OutputError):
            return False
        return True

    def in_words(self, text: str) -> str:
        """``text`` with final paths in it."""
        return text.replace(str(self.staging), str(self.output))

    def without_lost_paths(self, text: str) -> str:
        """``text`` less the clauses that point to files which are not kept."""
        return "; ".join(clause for clause in text.split("; ") if str(self.staging) not in clause)

    def _record(self, name: str, content: Mapping[str, Any]) -> None:
        listed = fingerprints(self.staging, files_below(self.staging))
        write_json(self.staging / name, {**content, "files": listed})

    def _put_in_place(self, record: str) -> None:
        old = earlier_run(self.root).files if self.earlier.record else ()  # again: it may have been changed meanwhile
        new = sorted(files_below(self.staging), key=lambda name: name == record)
        taken = [name for name in new if name not in old and (self.root / name).exists()]
        if taken:
            self._keep_aside(f"{readable(self.output / taken[0])} has been made or changed meanwhile")
        try:
            swap(self.root, self.staging.parent, old, new)
        except OSError as error:
            if (self.staging.parent / JOURNAL).exists():  # nor could it be undone
                raise OutputError(
                    f"--output {readable(self.output)} is half replaced ({reason(error)}); the next run into it will "
                    "put the rest in place first"
                ) from error
            self._keep_aside(f"--output {readable(self.output)} cannot be written ({reason(error)})", error)
        self.published = True

    def _keep_aside(self, why: str, cause: OSError | None = None) -> None:
        aside = self.root / f"unpublished-{self.staging.parent.name[-12:]}"
        self.staging.rename(aside)
        self.staging.mkdir()
        shown = readable(self.output / aside.name)
        raise OutputError(f"{why} and stays as it is; this run is whole in {shown}") from cause


@contextmanager
def claimed(
    output: Path,
    *,
    overwrite: bool = False,
    inputs: Mapping[str, str | Path] | None = None,
    writes: Sequence[str] = (MODEL,),
) -> Iterator[RunFolder]:
    """Hold ``output`` for this run alone; leaves no trace where nothing comes of it.

    overwrite: replace what an earlier run wrote there, and nothing else. inputs: what the run reads, by option: none of
    it may be among what is replaced. writes: MODEL and ``model.gguf``, if they are to be written.
    Raises OutputError, one line, at once: the folder is in use, cannot be written, holds a run, or holds files of the
    user's where the run is to write. Inside, an OSError about the folder or the disk becomes one.
    """
    with ExitStack() as ending:
        try:
            folder = _claim(output, overwrite, inputs or {}, writes, ending)
        except OSError as error:
            raise cannot_write(output, error) from error
        except RuntimeError:  # what pathlib makes of it
            raise OutputError(
                f"--output {readable(output)} is a link that leads to itself; give another folder"
            ) from None
        try:
            yield folder
        except (PruningError, OSError, KeyboardInterrupt) as error:
            _end_badly(folder, error)
            raise
        except BaseException as error:
            folder.keep_what_there_is(error)
            raise


def _claim(
    output: Path, overwrite: bool, inputs: Mapping[str, str | Path], writes: Sequence[str], ending: ExitStack
) -> RunFolder:
    if output.exists() and not output.is_dir():
        raise OutputError(f"--output {readable(output)} is a file; give a folder")
    root = output.resolve()
    missing = [path for path in (root, *root.parents) if not path.exists()]
    ending.callback(_remove_empty, missing)
    root.mkdir(parents=True, exist_ok=True)
    held = lock(root, output)
    ending.callback(held.release)
    if not held.holds:
        print(f"note: {output} lies where files cannot be locked; start no second run into it", file=sys.stderr)
    elif tidy(root):
        print(f"note: a killed run had {output} all but in place; now it is", file=sys.stderr)
    earlier = _check(output, root, overwrite, inputs, writes)
    staging = root / name_of_staging()
    ending.callback(remove_staging, staging)
    make_staging(staging)
    return RunFolder(output, root, output / staging.name / NEW, earlier)


def _check(
    output: Path, root: Path, overwrite: bool, inputs: Mapping[str, str | Path], writes: Sequence[str]
) -> Earlier:
    """What may be replaced; OutputError where that is not allowed, or not enough."""
    if not overwrite:
        # Hidden files (.git, .DS_Store) are no results, and none of what a run writes is hidden.
        if any(not path.name.startswith(".") for path in root.iterdir() if not is_ours(path)):
            raise OutputError(not_empty(output))
        return Earlier()
    earlier = earlier_run(root)
    read = _read_again(root, earlier, inputs)
    if read:
        raise OutputError(
            f"{read[0]} {readable(read[1])} is among what --overwrite replaces in --output {readable(output)}; "
            "give another --output"
        )
    found = in_the_way(root, earlier, writes)
    if found:
        raise OutputError(
            f"--output {readable(output)} holds {readable(found)}, which no finished run wrote or somebody has changed "
            "since; move it away, or give another folder"
        )
    return earlier


def _read_again(root: Path, earlier: Earlier, inputs: Mapping[str, str | Path]) -> tuple[str, str] | None:
    """The first input that the earlier run's files are, or are part of: its option and name."""
    owned = {root / name for name in earlier.files}
    above = {parent for path in owned for parent in path.parents if root in parent.parents}
    for option, name in inputs.items():
        with suppress(OSError, ValueError):  # a name that is no path
            if Path(name).resolve() in owned | above:
                return option, str(name)
    return None


def _end_badly(folder: RunFolder, error: BaseException) -> None:
    """Keep what may be kept, and let the message say how things stand; raises OutputError for what the disk said."""
    wrote = bool(files_below(folder.staging)) and not folder.published
    kept = folder.keep_what_there_is(error)
    if isinstance(error, PruningError):
        message = str(error)
        if wrote and not kept and str(folder.staging) in message:
            message = folder.without_lost_paths(message)
        if wrote and folder.earlier.finished:
            message += f"; the earlier run in {readable(folder.output)} is as it was"
        error.args = (folder.in_words(message),)
    elif isinstance(error, OSError) and _is_about(folder, error):
        raise cannot_write(folder.output, error) from error


def _is_about(folder: RunFolder, error: OSError) -> bool:
    """Whether the error names a path in the folder; a full or broken disk that names none is taken for the folder's."""
    names = [Path(str(name)) for name in (error.filename, error.filename2) if name]
    if not names:
        return error.errno in DISK
    return any(path.resolve().is_relative_to(folder.root) for path in names)


def _remove_empty(folders: Sequence[Path]) -> None:
    for path in folders:
        with suppress(OSError):
            path.rmdir()
