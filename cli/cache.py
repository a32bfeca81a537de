"""Measurements kept between runs: what an entry depends on, and what became of each part in this run."""

import argparse
import functools
import hashlib
import platform
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from cli.job import Job
from cli.record import Stages
from core.cache import BadEntryError, Entry, entry_path, read_entry, write_entry
from core.failures import convenience
from core.windows import TokenWindows
from models.identity import model_identity

SCHEMA = 2  # of the entries' content; raised when arrays or facts get another meaning
PACKAGES = ("global-pruning", "numpy", "torch", "transformers")
ROOT = Path(__file__).resolve().parent.parent
# Files that decide what is measured. Names of folders mean every Python file below them.
SOURCES = ("core", "importance", "models/templates", "models/families.py", "models/loading.py", "models/narrow.py")
OF_PERPLEXITY = ("evaluation/measuring.py", "evaluation/perplexity.py")


class KeptMeasurements:
    """Importance, prior, outliers and dense perplexity, from an earlier run that measured them under the same key.

    outcomes: part -> ``hit``, ``off``, or, measured: ``miss``, ``damaged``, ``foreign``, ``unreadable``.
    Nothing that goes wrong here stops a run: it is said on stderr, and measured. warnings: takes a sentence where a
    result could not be kept; nothing more is kept then.
    """

    def __init__(self, job: Job, options: argparse.Namespace, stages: Stages, warnings: list[str]) -> None:
        keeps = job.plan is None or "ppl" in options.measures
        self.folder: Path | None = options.cache_dir if keeps else None
        self.stages, self.warnings, self.writes = stages, warnings, True
        self.outcomes: dict[str, str] = {}
        if self.folder is not None and options.trust_remote_code:
            print(
                "note: --trust_remote_code goes without the cache: no key holds a model's own Python",
                file=sys.stderr,
            )
            self.folder = None
        if self.folder is not None:
            with stages("cache", quietly=True):
                self.common = common_key(job)
            print(f"cache: {self.folder} (--cache_dir none does without)", file=sys.stderr)

    def recall(self, part: str, depends: dict[str, Any], measure: Callable[[], Entry]) -> Entry:
        """The entry of an earlier run, or what ``measure`` gives, kept for the next one."""
        entry = self.find(part, depends)
        if entry is None:
            entry = measure()
            self.keep(part, depends, entry)
        return entry

    def find(self, part: str, depends: dict[str, Any]) -> Entry | None:
        if self.folder is None:
            self.outcomes[part] = "off"
            return None
        key = self._key(part, depends)
        path = entry_path(self.folder, _file_name(part), key)
        with self.stages(part, quietly=True):
            try:
                entry = read_entry(path, key)
                self.outcomes[part] = "miss" if entry is None else "hit"
            except BadEntryError as error:
                entry, self.outcomes[part] = None, str(error).split(" ")[0]
                print(f"cache: {path} is {error}; {part} is measured again", file=sys.stderr)
        if entry is not None:
            print(f"[{part}] from the cache", file=sys.stderr)
        return entry

    def keep(self, part: str, depends: dict[str, Any], entry: Entry) -> None:
        if self.folder is None or not self.writes:
            return
        key, self.writes = self._key(part, depends), False
        with convenience(f"the cache at {self.folder} keeps nothing of this run from {part} on", self.warnings):
            write_entry(entry_path(self.folder, _file_name(part), key), key, entry)
            self.writes = True

    def _key(self, part: str, depends: dict[str, Any]) -> dict[str, Any]:
        return {"part": _file_name(part), **self.common, **depends}


def _file_name(part: str) -> str:
    """``dense perplexity`` for every dataset: which one is a matter of the key."""
    return part.split(" on ")[0].replace(" ", "_")


def common_key(job: Job) -> dict[str, Any]:
    """What every measurement depends on. Batch sizes are left out: they show in rounding alone."""
    return {
        "schema": SCHEMA,
        "model": model_identity(job.source),
        "dtype": str(job.dtype),
        "device": device_key(job.device),
        "versions": {name: _version(name) for name in PACKAGES},
        "sources_sha256": sources_hash(SOURCES),
    }


def importance_key(options: argparse.Namespace, windows: TokenWindows | None) -> dict[str, Any]:
    """``magnitude`` reads no text: no window and no seed is in its key."""
    criterion = options.importance_method
    read = None if criterion == "magnitude" else windows
    return {
        "criterion": criterion,
        "gradient_reduction": options.gradient_reduction if criterion.startswith("taylor") else None,
        "seed": None if read is None else options.seed,
        "windows": windows_key(read),
    }


def prior_key(options: argparse.Namespace, windows: TokenWindows) -> dict[str, Any]:
    """windows: those the prior is measured on, the first ``--prior_samples``."""
    return {
        "method": options.prior,
        "prior_samples": len(windows),
        "seed": options.seed,
        "windows": windows_key(windows),
    }


def outliers_key(windows: TokenWindows) -> dict[str, Any]:
    return {"windows": windows_key(windows)}


def perplexity_key(windows: TokenWindows) -> dict[str, Any]:
    """Evaluation windows are no matter of the seed. text_bytes decides bits per byte."""
    return {
        "windows": windows_key(windows),
        "text_bytes": windows.text_bytes,
        "perplexity_sha256": sources_hash(OF_PERPLEXITY),
    }


def windows_key(windows: TokenWindows | None) -> dict[str, Any] | None:
    if windows is None:
        return None
    return {
        "dataset": windows.dataset,
        "split": windows.split,
        "source": windows.source,
        "shape": windows.ids.shape,
        "sha256": windows.fingerprint,
    }


def device_key(device: torch.device) -> dict[str, Any]:
    """What rounding depends on. Sums on a CPU also depend on the number of threads that share them."""
    if device.type == "cuda":
        return {"kind": "cuda", "name": torch.cuda.get_device_name(device)}
    instructions = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    return {"kind": device.type, "name": instructions, "threads": torch.get_num_threads()}


@functools.cache
def sources_hash(names: tuple[str, ...]) -> str:
    """SHA-256 over the names and bytes of our own modules that measure."""
    digest = hashlib.sha256()
    for name in names:
        path = ROOT / name
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            digest.update(f"{file.relative_to(ROOT).as_posix()}\n".encode() + file.read_bytes())
    return digest.hexdigest()


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:  # run from a checkout that was never installed: sources_sha256 tells them apart
        return None
