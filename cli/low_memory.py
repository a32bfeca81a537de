"""Runs that never hold the model: magnitude or a replayed plan, tensor by tensor from the checkpoint on disk."""

import argparse
from pathlib import Path

from cli.job import Job
from core.measures import Importance
from core.plan import PruningPlan
from importance.streaming import streamed_magnitude
from models.loading import open_weights
from models.narrow import empty_narrow_model
from models.saving import save_tensors
from models.stock import save_stock_checkpoint, stock_model
from pruning.streaming import PrunedTensors

MEMINFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")


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
        if self.stock:
            stock, _ = stock_model(narrow, family)
            saved_dtype, size = self.job.saved_dtype, self.max_shard_size
            return save_stock_checkpoint(stock, tokenizer, folder, saved_dtype, size, tensors=pruned)
        return save_tensors(pruned, narrow, family, tokenizer, folder, self.job.saved_dtype, self.max_shard_size)


def streams(job: Job, options: argparse.Namespace) -> bool:
    """Whether this run can and should do without the model: asked for, or it would take over half the free memory."""
    if options.low_memory:
        return True  # what it cannot be combined with was refused with the options
    if job.needs_text or options.measures or job.device.type != "cpu":
        return False
    free = free_bytes()
    return free is not None and job.source.architecture.total_params * job.dtype.itemsize > free / 2


def free_bytes() -> int | None:
    """Memory this process may still take (Linux, a container's limit included); None where it cannot be told."""
    try:
        free = _fields(MEMINFO)["MemAvailable:"] * 1024
    except (OSError, LookupError, ValueError):
        return None
    try:
        limit = int((CGROUP / "memory.max").read_text())
        return min(free, limit - _fields(CGROUP / "memory.stat")["anon"])  # the page cache makes room when asked
    except (OSError, LookupError, ValueError):  # no container, or one without a limit ("max")
        return free


def _fields(path: Path) -> dict[str, int]:
    """Lines of a name and a number."""
    rows = (line.split() for line in path.read_text().splitlines())
    return {row[0]: int(row[1]) for row in rows}
