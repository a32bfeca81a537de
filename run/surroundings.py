"""What a run changes in its process, for as long as it runs: seeds, determinism, the talk of libraries."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from transformers.utils import logging

from core.as_found import left_as_found
from core.determinism import deterministic, full_float32
from core.say import on_stderr

CUBLAS = "CUBLAS_WORKSPACE_CONFIG"
_ONE_AT_A_TIME = threading.RLock()


@contextmanager
def surroundings(seed: int, model: Any = None) -> Iterator[None]:
    """Inside, the same machine, threads and seed give the same plan, byte for byte, float32 is float32, and libraries
    keep quiet.

    Afterwards everything is as it was, also after an exception: a notebook's own settings are none of ours. They
    belong to the process, so calls from several threads take turns. model: one that the caller brought; inside it is
    in eval mode and frozen, afterwards it is left as found.
    """
    found = left_as_found(model) if isinstance(model, torch.nn.Module) else nullcontext()
    with _ONE_AT_A_TIME, _deterministic(seed), full_float32(), _quiet_transformers(), _quiet_hub(), found:
        yield


@contextmanager
def _deterministic(seed: int) -> Iterator[None]:
    """cuBLAS reads its variable when it is first used."""
    unset = CUBLAS not in os.environ
    os.environ.setdefault(CUBLAS, ":4096:8")
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    try:
        with torch.random.fork_rng(devices), deterministic(strict=False):
            torch.manual_seed(seed)
            yield
    finally:
        if unset:
            os.environ.pop(CUBLAS, None)


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Progress and findings are ours to show; TRANSFORMERS_VERBOSITY asks for the library's own notes as well."""
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    try:
        if "TRANSFORMERS_VERBOSITY" not in os.environ:
            logging.set_verbosity_error()
        logging.disable_progress_bar()
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


@contextmanager
def _quiet_hub() -> Iterator[None]:
    """Downloads show their bars to whoever hears the run on stderr."""
    if on_stderr() or are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()
