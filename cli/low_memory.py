"""Runs that never hold the model: magnitude or a replayed plan, tensor by tensor from the checkpoint on disk."""

import argparse
from pathlib import Path

from cli.job import Job
from core.measures import Importance
from core.memory import free_bytes
from core.plan import PruningPlan
from importance.streaming import streamed_magnitude
from models.loading import open_weights
from models.narrow import empty_narrow_model
from models.saving import save_tensors
from models.stock import save_stock_checkpoint, stock_model
from models.travel import dense_folder
from pruning.streaming import PrunedTensors


class StreamedModel:
    """Stands where the model would: its importance can be measured and its pruned checkpoint written, no more.

    Weights are rounded to ``--dtype`` where it was given, so plans and files equal those of a model in memory.
    """

    def __init__(self, job: Job, options: argparse.Namespace) -> None:
        self.job = job
        self.max_shard_size = options.max_shard_size
        self.stock = options.target == "stock"
        self.empty, self.tensors = open_weights(job.source, None if options.dtype == "auto" else job.dtype)

    def magnitude(self) -> Importance:
        return streamed_magnitude(self.tensors, self.job.source.family, self.job.source.architecture)

    def prune_and_save(self, plan: PruningPlan, folder: Path) -> Path:
        family, tokenizer = self.job.source.family, self.job.source.tokenizer
        narrow = empty_narrow_model(self.empty, family, plan)
        narrow.generation_config = self.empty.generation_config
        pruned = PrunedTensors(self.tensors, family, plan)
        base = dense_folder(self.job.source.path, getattr(self.job.source.config, "_commit_hash", None))
        dtype, size = self.job.saved_dtype, self.max_shard_size
        if self.stock:
            stock, _ = stock_model(narrow, family)
            return save_stock_checkpoint(stock, tokenizer, folder, dtype, size, tensors=pruned, base=base)
        return save_tensors(pruned, narrow, family, tokenizer, folder, dtype, size, base)


def streams(job: Job, options: argparse.Namespace) -> bool:
    """Whether this run can and should do without the model: asked for, or it would take over half the free memory."""
    if options.low_memory:
        return True  # what it cannot be combined with was refused with the options
    if job.needs_text or options.measures or job.device.type != "cpu":
        return False
    free = free_bytes()
    return free is not None and job.source.architecture.total_params * job.dtype.itemsize > free / 2
