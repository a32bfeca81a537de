"""What earlier runs found out, and what became of each part of it in this run."""

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

from core import ranks
from core.cache import BadEntryError, Entry, entry_path, read_entry, write_entry
from core.failures import convenience
from core.say import say
from run.record import Stages


class MeasurementCache:
    """The checked model, windows, importance, prior, outliers and dense perplexity, from an earlier run that had them
    under the same key.

    outcomes: part -> ``hit``, ``off``, or, made anew: ``miss``, ``damaged``, ``foreign``, ``unreadable``.
    Nothing that goes wrong here stops a run: it is said, and measured.
    """

    def __init__(
        self, folder: Path | None, common: Callable[[], dict[str, Any]], stages: Stages, warnings: list[str]
    ) -> None:
        """folder None: nothing is kept. common: what the key of every measurement holds, asked for once. warnings:
        takes a sentence where a result could not be kept; nothing more is kept then."""
        self.folder, self.stages, self.warnings, self.writes = folder, stages, warnings, True
        self.outcomes: dict[str, str] = {}
        self._ask = common

    def announce(self) -> None:
        """Say where it is, before anything is measured."""
        if self.folder is not None:
            say(f"cache: {self.folder} (--cache_dir none switches it off)")

    @cached_property
    def common(self) -> dict[str, Any]:
        with self.stages("cache", quietly=True):
            return self._ask()

    def recall(self, part: str, depends: dict[str, Any], make: Callable[[], Entry], *, measured: bool = True) -> Entry:
        """The entry of an earlier run, or what ``make`` gives, kept for the next one.

        measured: of the model on this machine, so that ``common`` is part of the key, and a line says that it is not
        measured again. Of several processes the first then has its say, in the last digit too.
        """
        entry = self.find(part, depends, measured=measured)
        if entry is None:
            entry = ranks.from_first(make(), part) if measured else make()
            self.keep(part, depends, entry, measured=measured)
        return entry

    def find(self, part: str, depends: dict[str, Any], *, measured: bool = True) -> Entry | None:
        """The entry of an earlier run. What was measured the first of several processes looks up for all."""
        if not measured or ranks.count() == 1:
            return self._found(part, depends, measured)
        return ranks.from_first(self._found(part, depends, measured) if ranks.is_first() else None, part)

    def _found(self, part: str, depends: dict[str, Any], measured: bool) -> Entry | None:
        if self.folder is None:
            self.outcomes[part] = "off"
            return None
        key = self._key(part, depends, measured)
        path = entry_path(self.folder, _file_name(part), key)
        with self.stages(part, quietly=True):
            try:
                entry = read_entry(path, key)
                self.outcomes[part] = "miss" if entry is None else "hit"
            except BadEntryError as error:
                entry, self.outcomes[part] = None, str(error).split(" ")[0]
                say(f"cache: {path} is {error}, so {part} is measured again")
        if entry is not None and measured:
            say(f"[{part}] from the cache")
        return entry

    def keep(self, part: str, depends: dict[str, Any], entry: Entry, *, measured: bool = True) -> None:
        if self.folder is None or not self.writes or ranks.here().local:  # one process on each machine writes
            return
        key, self.writes = self._key(part, depends, measured), False
        with convenience(f"the cache at {self.folder} stores nothing more of this run, from {part} on", self.warnings):
            write_entry(entry_path(self.folder, _file_name(part), key), key, entry)
            self.writes = True

    def _key(self, part: str, depends: dict[str, Any], measured: bool) -> dict[str, Any]:
        return {"part": _file_name(part), **(self.common if measured else {}), **depends}


def _file_name(part: str) -> str:
    """``dense perplexity`` for every dataset: which one is a matter of the key."""
    return part.split(" on ")[0].replace(" ", "_")
