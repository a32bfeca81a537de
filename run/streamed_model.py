"""Runs that never hold the model: magnitude or a replayed plan, tensor by tensor from the checkpoint on disk."""

from pathlib import Path
from typing import Any

import torch

from core.measured import Importance
from core.memory import free_bytes
from core.plan import PruningPlan
from importance.from_disk import streamed_magnitude
from models.loading import ModelSource, open_weights
from models.narrow import empty_narrow_model
from models.saving import save_tensors
from models.stock import save_stock_checkpoint, stock_model
from pruning.pruned_tensors import PrunedTensors
from run.settings import Settings


class StreamedModel:
    """Stands where the model would: its importance can be measured and its pruned checkpoint written, no more.

    dtype: weights are rounded to it, None: left as stored; so plans and files equal those of a model in memory.
    """

    def __init__(self, source: ModelSource, dtype: torch.dtype | None) -> None:
        self.source = source
        self.empty, self.tensors = open_weights(source, dtype)

    def magnitude(self) -> Importance:
        return streamed_magnitude(self.tensors, self.source.family, self.source.architecture)

    def prune_and_save(
        self,
        plan: PruningPlan,
        folder: Path,
        dtype: torch.dtype,
        max_shard_size: str,
        *,
        stock: bool,
        base: Path | None = None,
    ) -> Path:
        """Cut and write tensor by tensor. base: the dense model's folder, for the files that travel."""
        family, tokenizer = self.source.family, self.source.tokenizer
        narrow = empty_narrow_model(self.empty, family, plan)
        narrow.generation_config = self.empty.generation_config
        pruned: Any = PrunedTensors(self.tensors, family, plan)
        if stock:
            same_widths, _ = stock_model(narrow, family)
            return save_stock_checkpoint(
                same_widths, tokenizer, folder, dtype, max_shard_size, tensors=pruned, base=base
            )
        return save_tensors(pruned, narrow, family, tokenizer, folder, dtype, max_shard_size, base)


def must_stream(settings: Settings, source: ModelSource, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether this run can and should do without the model: asked for, or it would take over half the free memory."""
    if settings.model.low_memory:
        return True  # what it cannot be combined with was refused with the settings
    if settings.reads_calibration or settings.evaluation.run_evaluation or device.type != "cpu":
        return False
    free = free_bytes()
    return free is not None and source.architecture.total_params * dtype.itemsize > free / 2
