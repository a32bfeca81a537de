"""What a cached measurement depends on: equal keys, equal numbers."""

import functools
import hashlib
import platform
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from calibration.self_text import Beginnings
from core import ranks
from core.outsides import outsides_below
from core.plan import PruningPlan
from core.windows import TokenWindows
from models.identity import model_identity
from models.loading import ModelSource
from run.settings import ScoreSettings, Settings

SCHEMA = 3  # of the entries' content; raised when arrays or facts get another meaning
PACKAGES = ("global-pruning", "numpy", "torch", "transformers")
READERS = ("datasets", "pyarrow", "safetensors", "sentencepiece", "tokenizers")  # of checkpoints, tokenizers and texts
ROOT = Path(__file__).resolve().parent.parent
# Files that decide what is measured. Names of folders mean every Python file below them.
SOURCES = ("core", "importance", "models/templates", "models/family_table.py", "models/loading.py", "models/narrow.py")
OF_CHECKS = ("core", "models")
OF_WINDOWS = ("calibration", "core/windows.py", "models/tokenizers.py", "run/windows.py")
OF_PERPLEXITY = ("core/as_found.py", "evaluation/perplexity.py")
OF_DISTILLATION = ("models", "pruning")
OF_SELF_TEXT = (
    "calibration/self_text.py",
    *(f"core/{name}.py" for name in ("attending", "few_queries", "graphs", "one_at_a_time", "precision")),
    *(f"core/{name}.py" for name in ("products", "sampling")),
)


def common_key(source: ModelSource, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """What every measurement depends on. Batch sizes are left out: they show in rounding alone."""
    return {
        "schema": SCHEMA,
        "model": model_identity(source),
        "dtype": str(dtype),
        "device": device_key(device),
        "processes": ranks.count(),
        "versions": {name: _version(name) for name in PACKAGES},
        "sources_sha256": sources_hash(SOURCES),
    }


def check_key(base_model: str, folder: Path) -> dict[str, Any]:
    """What the checks of a model in a folder depend on: every file there, from outside. OSError."""
    return {
        "schema": SCHEMA,
        "base_model": base_model,
        "folder": str(folder.resolve()),
        "files": outsides_below(folder),
        "versions": {name: _version(name) for name in (*PACKAGES, *READERS)},
        "sources_sha256": sources_hash(OF_CHECKS),
    }


def windows_key(source: ModelSource, **asked: Any) -> dict[str, Any]:
    """What drawn windows depend on: the tokenizer's files, and what is asked of which texts. OSError."""
    return {
        "schema": SCHEMA,
        "tokenizer": [str(source.folder.resolve()), outsides_below(source.folder)],
        "versions": {name: _version(name) for name in (*PACKAGES, *READERS)},
        "sources_sha256": sources_hash(OF_WINDOWS),
        **asked,
    }


def importance_key(scores: ScoreSettings, seed: int, windows: TokenWindows | None) -> dict[str, Any]:
    """A criterion that reads no text has no window and no seed in its key."""
    read = windows if scores.criterion.reads_text else None
    return {
        "criterion": scores.importance_method,
        "gradient_reduction": scores.gradient_reduction if scores.criterion.uses_gradient_reduction else None,
        "seed": None if read is None else seed,
        "windows": drawn_key(read),
    }


def prior_key(scores: ScoreSettings, seed: int, windows: TokenWindows) -> dict[str, Any]:
    """windows: those the prior is measured on, the first ``--prior_samples``."""
    return {
        "method": scores.prior,
        "prior_samples": len(windows),
        "seed": seed,
        "windows": drawn_key(windows),
    }


def outliers_key(windows: TokenWindows) -> dict[str, Any]:
    return {"windows": drawn_key(windows)}


def perplexity_key(windows: TokenWindows) -> dict[str, Any]:
    """Evaluation windows are no matter of the seed. text_bytes decides bits per byte."""
    return {
        "windows": drawn_key(windows),
        "text_bytes": windows.text_bytes,
        "perplexity_sha256": sources_hash(OF_PERPLEXITY),
    }


def self_text_key(begin: Beginnings, count: int, seq_len: int, seed: int, purpose: str, halves: bool) -> dict[str, Any]:
    """Of text that the dense model writes. halves: whether it is float32 and may write in bfloat16."""
    return {
        "halves": halves,
        "purpose": purpose,
        "shape": (count, seq_len),
        "seed": seed,
        "beginnings": begin.key,
        "self_text_sha256": sources_hash(OF_SELF_TEXT),
    }


def distillation_key(
    common: dict[str, Any],
    settings: Settings,
    plan: PruningPlan,
    calibration: TokenWindows | None,
    train: np.ndarray,
    check: np.ndarray,
) -> dict[str, Any]:
    """What the weights that a distillation begins and ends with depend on. calibration: what the repair reads."""
    asked = settings.recovery
    return {
        **common,
        "packages": {name: _version(name) for name in ("accelerate", "peft")},
        "keep_sha256": hashlib.sha256(np.packbits(plan.keep).tobytes()).hexdigest(),
        "target": settings.limits.target,
        "repair": asdict(settings.repair),
        "recover": asked.recover,
        "lora": asked.recover_lora,
        "seed": settings.calibration.seed,
        "calibration": drawn_key(calibration),
        "windows_sha256": [hashlib.sha256(ids.tobytes()).hexdigest() for ids in (train, check)],
        "distillation_sha256": sources_hash(OF_DISTILLATION),
    }


def drawn_key(windows: TokenWindows | None) -> dict[str, Any] | None:
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


@functools.cache
def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:  # run from a checkout that was never installed: sources_sha256 tells them apart
        return None
