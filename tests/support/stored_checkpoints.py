"""Checkpoints on disk, pruned tensor by tensor and in memory, for tests."""

from pathlib import Path

import torch
from tiny_models import build
from workspace import write_model

from core.plan import PruningPlan
from models.loading import ModelSource, check_model, load_model, open_weights
from models.narrow import empty_narrow_model
from models.saving import save_checkpoint, save_tensors
from models.tensors import SINGLE
from pruning.pruned_tensors import PrunedTensors
from pruning.surgery import operate

CPU = torch.device("cpu")
SHARD = "20KB"  # a tiny model is about 150 KB in float32


def stored(folder: Path, name: str, dtype: torch.dtype = torch.float32, max_shard_size: str = SHARD) -> ModelSource:
    """A dense checkpoint on disk, in shards."""
    write_model(folder, name)
    (folder / SINGLE).unlink()
    model = build(name).to(dtype)
    model.generation_config.repetition_penalty = 1.25
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    return check_model(str(folder))


def in_memory(
    source: ModelSource, plan: PruningPlan, folder: Path, size: str, dtype: torch.dtype | None = None
) -> Path:
    model = load_model(source, CPU, dtype or torch.float32)
    narrow = operate(model, empty_narrow_model(model, source.family, plan), source.family, plan)
    return save_checkpoint(narrow, source.family, source.tokenizer, folder, dtype or source.stored_dtype, size)


def streamed(source: ModelSource, plan: PruningPlan, folder: Path, size: str, dtype: torch.dtype | None = None) -> Path:
    empty, tensors = open_weights(source, dtype)
    narrow = empty_narrow_model(empty, source.family, plan)
    narrow.generation_config = empty.generation_config
    pruned = PrunedTensors(tensors, source.family, plan)
    return save_tensors(pruned, narrow, source.family, source.tokenizer, folder, dtype or source.stored_dtype, size)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}
