"""Which engine works on a model: as asked, or the first that has room in free memory: resident, where weights and the
work on them fit; sharded, where they fit into that of several processes together; streamed."""

from dataclasses import dataclass

import torch

from core import ranks
from core.errors import UsageError
from core.memory import bytes_text, free_bytes
from models.loading import ModelSource
from run.settings import Settings

ACTIVATIONS_BYTES = 1 << 30  # of a batch, at most; a small model's take no more than its weights


@dataclass(frozen=True)
class EngineChoice:
    """name: ``resident``, ``sharded`` or ``streamed``. why: for the console."""

    name: str
    why: str

    @property
    def streams(self) -> bool:
        """Whether weights come and go."""
        return self.name != "resident"

    @property
    def sharded(self) -> bool:
        return self.name == "sharded"


@dataclass(frozen=True)
class _Room:
    """Bytes that one process needs for the whole model or for its part of it, with the work, and has free; None where
    nothing tells."""

    whole: int
    part: int
    free: int | None

    def holds(self, needed: int) -> bool:
        return self.free is None or needed <= self.free


def choose_engine(settings: Settings, source: ModelSource, device: torch.device, dtype: torch.dtype) -> EngineChoice:
    """The same for all processes: what one of them has no room for none of them does.

    UsageError where weights would have to come and go and the run asks for what needs the whole model.
    """
    asked = settings.model.engine
    if asked != "auto":
        return EngineChoice(asked, f"engine: {asked}, as asked")
    whole, part = (needed(settings, source, device, dtype) for needed in (resident_bytes, sharded_bytes))
    rooms = ranks.gathered(_Room(whole, part, free_for_one(settings, device)), "engine")
    room = next((room for room in rooms if not room.holds(room.whole)), rooms[0])
    if room.free is None:
        return EngineChoice("resident", "engine: resident, as nothing tells how much memory is free")
    sizes = f"weights and work need {bytes_text(room.whole)}, {bytes_text(room.free)} are free"
    if room.holds(room.whole):
        return EngineChoice("resident", f"engine: resident ({sizes})")
    needs = (settings.if_streamed or settings).needs_whole_model
    if needs is not None:
        raise UsageError(
            f"{sizes} on {device}, so the model would be streamed, and {needs} needs the whole of it: leave that out, "
            "or add --engine resident"
        )
    if ranks.count() == 1 or not _computes(settings):
        return EngineChoice("streamed", f"engine: streamed ({sizes})")
    crowded = next((room for room in rooms if not room.holds(room.part)), None)
    if crowded is None:
        return EngineChoice("sharded", f"engine: sharded ({sizes}; a part and the work {bytes_text(room.part)})")
    sizes = f"a part of the weights and work need {bytes_text(crowded.part)}, {bytes_text(crowded.free or 0)} are free"
    return EngineChoice("streamed", f"engine: streamed ({sizes})")


def resident_bytes(settings: Settings, source: ModelSource, device: torch.device, dtype: torch.dtype) -> int:
    """What the weights take with the work on them, roughly: activations and logits of a batch, and the largest block's
    matrices where it is solved (H in float32 and four in float64 for obs, as many sums for a repair).

    A run on the CPU that computes nothing but sums of weights is given half of the memory: streaming costs it nothing.
    """
    shape = source.architecture
    weights = shape.total_params * dtype.itemsize
    if not _computes(settings):
        return 2 * weights if device.type == "cpu" else weights
    solves = settings.repairs or (settings.ranks_on_text and settings.criterion.priced_in_loss)
    widest = max(max(layer.num_heads * layer.head_dim, layer.intermediate_size) for layer in shape.layers)
    return weights + min(weights, ACTIVATIONS_BYTES) + (4 + 4 * 8) * widest**2 * solves


def sharded_bytes(settings: Settings, source: ModelSource, device: torch.device, dtype: torch.dtype) -> int:
    """The same where each process holds a part of the weights (recovery: of two models), and what is needed of them at
    once twice: as it arrives, and in its place."""
    shape = source.architecture
    outside = shape.total_params - shape.layer_params
    passing = 2 * max(outside, *(layer.total_params for layer in shape.layers))
    parts = (1 + settings.recovers) * shape.total_params // ranks.count()
    work = resident_bytes(settings, source, device, dtype) - shape.total_params * dtype.itemsize
    return (parts + passing) * dtype.itemsize + work


def _computes(settings: Settings) -> bool:
    """Whether any layer is run."""
    return settings.reads_calibration or bool(settings.evaluation.run_evaluation)


def free_for_one(settings: Settings, device: torch.device) -> int | None:
    """Main memory is shared by the processes that work on this machine."""
    free, cap = free_bytes(device), settings.model.gpu_memory_bytes
    if free is not None and device.type == "cpu":
        return free // ranks.here().local_count
    return min(free, cap) if free is not None and cap is not None and device.type == "cuda" else free
