"""Datasets of the Hugging Face hub: ``wikitext2`` and ``c4``, and a quick kind answer where there is no network.

Before anything is downloaded the hub is asked for the dataset once, with a time limit; only where that fails is the
cache tried. ``datasets`` and ``huggingface_hub`` are imported inside the functions that need them.
"""

import gzip
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from calibration.readers import json_documents
from calibration.text_files import documents
from core.errors import DataError

PROBE_TIMEOUT_S = 5.0
OFFLINE_CHOICES = (
    "offline choices: pydoc, pycode, self (the model writes it; not with --engine streamed or sharded), or a PATH "
    "(.txt .jsonl .json.gz .parquet or a folder)"
)

WIKITEXT_ID, WIKITEXT_CONFIG = "Salesforce/wikitext", "wikitext-2-raw-v1"
WIKITEXT_SPLITS = {"calibration": "train", "evaluation": "test"}
C4_ID = "allenai/c4"
C4_FILES = {
    "calibration": "en/c4-train.00000-of-01024.json.gz",
    "evaluation": "en/c4-validation.00000-of-00008.json.gz",
}


def check_hub(name: str) -> None:
    """Raise DataError, within seconds, where ``wikitext2`` or ``c4`` is neither on a reachable hub nor cached."""
    for split in ("calibration", "evaluation"):
        if name == "c4":
            _c4_location(split)
        else:
            _wikitext_dataset(split)


def wikitext_documents(split: str) -> list[str]:
    """Rows of WikiText-2 raw (one a line of the corpus, blank ones included)."""
    rows: list[str] = list(_wikitext_dataset(split)["text"])
    return rows


def c4_documents(split: str) -> Iterator[str]:
    """Documents of one English shard, streamed: no more is downloaded than is read."""
    location = _c4_location(split)
    if isinstance(location, Path):
        yield from documents(location)
        return
    from huggingface_hub import HfFileSystem

    try:
        with HfFileSystem().open(location, "rb") as remote, gzip.open(remote, "rb") as stream:
            yield from json_documents(stream, location)
    except DataError:
        raise
    except Exception as error:  # whatever the network stack raises is, for the user, one thing
        raise _unreachable("c4", C4_ID, error) from error


def _wikitext_dataset(split: str) -> Any:
    from datasets import load_dataset

    reason = _unreachable_reason(WIKITEXT_ID)
    try:
        with _offline(reason is not None):
            return load_dataset(WIKITEXT_ID, WIKITEXT_CONFIG, split=WIKITEXT_SPLITS[split])
    except Exception as error:  # see c4_documents
        raise _unreachable("wikitext2", WIKITEXT_ID, reason or error) from error


def _c4_location(split: str) -> Path | str:
    """The cached shard, or its place on the hub."""
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(C4_ID, C4_FILES[split], repo_type="dataset")
    if isinstance(cached, str):
        return Path(cached)
    reason = _unreachable_reason(C4_ID)
    if reason is not None:
        raise _unreachable("c4", C4_ID, reason)
    return f"datasets/{C4_ID}/{C4_FILES[split]}"


def c4_is_cached() -> bool:
    """Whether the shard that calibrates lies on this machine."""
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(C4_ID, C4_FILES["calibration"], repo_type="dataset"), str)


def _unreachable(name: str, dataset_id: str, reason: BaseException) -> DataError:
    lines = str(reason).splitlines() or [type(reason).__name__]
    return DataError(f"{name} ({dataset_id}) is not cached and the hub cannot be used: {lines[0]}; {OFFLINE_CHOICES}")


reached: set[str] = set()


def _unreachable_reason(dataset_id: str) -> BaseException | None:
    """None where the hub answers for this dataset; asked once a process, in a thread, as DNS knows no time limit."""
    from huggingface_hub import HfApi, constants

    if dataset_id in reached:
        return None
    if constants.HF_HUB_OFFLINE:
        return ConnectionError("HF_HUB_OFFLINE is set")
    outcome: list[BaseException] = [TimeoutError(f"no answer within {PROBE_TIMEOUT_S:g} s")]

    def ask() -> None:
        try:
            HfApi().dataset_info(dataset_id, timeout=PROBE_TIMEOUT_S)
            outcome.clear()
        except Exception as error:
            outcome[:] = [error]

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(PROBE_TIMEOUT_S)
    if not outcome:
        reached.add(dataset_id)
        return None
    return outcome[0]


@contextmanager
def _offline(enabled: bool) -> Iterator[None]:
    """``datasets`` looks into its cache only; its own retries against a missing network take minutes."""
    import datasets

    before = datasets.config.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = before or enabled
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE = before
