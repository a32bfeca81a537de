"""Which engine works on a model: as asked, or resident where its weights and the work on them fit into free memory."""

from dataclasses import dataclass

import torch

from core import ranks
from core.errors import UsageError
from core.memory import free_bytes
from models.loading import ModelSource
from run.settings import Settings

ACTIVATIONS_BYTES = 1 << 30  # of a batch, at most; a small model's take no more than its weights


@dataclass(frozen=True)
class EngineChoice:
    """streams: whether weights come and go. why: for the console."""

    streams: bool
    why: str


def choose_engine(settings: Settings, source: ModelSource, device: torch.device, dtype: torch.dtype) -> EngineChoice:
    """UsageError where the model would have to be streamed and the run asks for what a streamed model cannot do. Where
    one of several processes has to stream, all of them do."""
    choices = ranks.gathered(_choice(settings, source, device, dtype), "engine")
    return next((choice for choice in choices if choice.streams), choices[0])


def _choice(settings: Settings, source: ModelSource, device: torch.device, dtype: torch.dtype) -> EngineChoice:
    asked = settings.model.engine
    if asked != "auto":
        return EngineChoice(asked == "streamed", f"engine: {asked}, as asked")
    needed, free = resident_bytes(settings, source, device, dtype), _free_bytes(settings, device)
    if free is None:
        return EngineChoice(False, "engine: resident, as nothing tells how much memory is free")
    sizes = f"weights and work need {_gigabytes(needed)}, {_gigabytes(free)} are free"
    if needed <= free:
        return EngineChoice(False, f"engine: resident ({sizes})")
    if settings.needs_whole_model is not None:
        raise UsageError(
            f"{sizes} on {device}, so the model would be streamed, and {settings.needs_whole_model} needs the whole of "
            "it: leave that out, or add --engine resident"
        )
    return EngineChoice(True, f"engine: streamed ({sizes})")


def resident_bytes(settings: Settings, source: ModelSource, device: torch.device, dtype: torch.dtype) -> int:
    """What the weights take with the work on them, roughly: activations and logits of a batch, and the largest block's
    matrices where it is solved (H in float32 and four in float64 for obs, as many sums for a repair).

    A run on the CPU that computes nothing but sums of weights is given half of the memory: streaming costs it nothing.
    """
    shape = source.architecture
    weights = shape.total_params * dtype.itemsize
    computes = settings.reads_calibration or bool(settings.evaluation.run_evaluation)
    if not computes and device.type == "cpu":
        return 2 * weights
    if not computes:
        return weights
    solves = settings.repairs or (settings.ranks_on_text and settings.criterion.priced_in_loss)
    widest = max(max(layer.num_heads * layer.head_dim, layer.intermediate_size) for layer in shape.layers)
    return weights + min(weights, ACTIVATIONS_BYTES) + (4 + 4 * 8) * widest**2 * solves


def _free_bytes(settings: Settings, device: torch.device) -> int | None:
    """Main memory is shared by the processes that work on this machine."""
    free, cap = free_bytes(device), settings.model.gpu_memory_bytes
    if free is not None and device.type == "cpu":
        return free // ranks.here().local_count
    return min(free, cap) if free is not None and cap is not None and device.type == "cuda" else free


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 5e7 else f"{max(1, round(count / 1e6))} MB"
