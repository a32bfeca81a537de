"""Repair after selection, for callers: what was done, for good or for now. How it is done: ``pruning.walk``."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from core.errors import UsageError
from core.families import IN, Family
from core.files import write_json
from core.plan import PruningPlan
from core.progress import tqdm
from core.windows import TokenWindows
from pruning.walk import INPUT, OUTPUT, Repair, RepairedBlock, Walk

DEFAULT = Repair()


@dataclass(frozen=True)
class Reconstruction:
    """What a repair did. blocks: in the order of the model, without those that needed none."""

    target: str
    modules: str
    ridges: tuple[float, ...]
    windows_fitted: int
    windows_shuffled: int
    windows_held_out: int
    blocks: tuple[RepairedBlock, ...]

    def of(self, side: str) -> tuple[RepairedBlock, ...]:
        return tuple(block for block in self.blocks if block.side == side)

    @property
    def num_repaired(self) -> int:
        """Blocks whose outputs changed."""
        return sum(block.repaired for block in self.of(OUTPUT))

    @property
    def median_change(self) -> float:
        """Of outputs."""
        return _median_change(self.of(OUTPUT))

    def line(self) -> str:
        """One line for the console."""
        said = [_in_numbers(self.of(side), f"{side}s") for side in (OUTPUT, INPUT) if self.of(side)]
        return f"repaired {' and '.join(said)}" if said else "nothing to repair"

    def sentence(self) -> str:
        """For the model card."""
        shuffled = f" and {self.windows_shuffled} with their tokens in random order" if self.windows_shuffled else ""
        readers = sum(block.repaired for block in self.of(INPUT))
        read = f", and the projections that read the stream in {readers} blocks to theirs" if readers else ""
        return (
            f"least squares on {self.windows_fitted} calibration windows{shuffled}: `o_proj` and `down_proj` of "
            f"{self.num_repaired} blocks were refitted {_PURPOSE[self.target]}{read}; {self.windows_held_out} further "
            "windows decided how strongly, and whether at all"
        )

    def to_json(self) -> dict[str, Any]:
        values = {"schema_version": 2} | asdict(self)
        return values | {"num_repaired": self.num_repaired, "median_change": self.median_change}


_PURPOSE = {
    "stream": "so that the residual stream comes back to the dense model's",
    "dense": "so that their outputs come close to the dense model's",
    "pruned": "so that their outputs come close to those of the whole blocks on the same inputs",
}


def _median_change(blocks: tuple[RepairedBlock, ...]) -> float:
    """Median of error_after / error_before - 1; 0.0 where there is none."""
    changes = [block.error_after / block.error_before - 1 for block in blocks if block.error_before]
    return float(np.median(changes)) if changes else 0.0


def _in_numbers(blocks: tuple[RepairedBlock, ...], what: str) -> str:
    change = f"{100 * _median_change(blocks):+.0f} %".replace("-", "−")
    repaired = sum(block.repaired for block in blocks)
    return f"{what} of {repaired} of {len(blocks)} blocks (held-out error {change}, median)"


def write_reconstruction(path: Path, reconstruction: Reconstruction) -> Path:
    return write_json(path, reconstruction.to_json())


@torch.no_grad()
def reconstruct(
    model: Any, family: Family, plan: PruningPlan, windows: TokenWindows, how: Repair = DEFAULT
) -> Reconstruction:
    """Rewrite the projections of ``model`` in place, all columns of removed groups zero; the rest is left alone.

    windows: calibration; every fourth (the last of fewer) is held out of the refits. A layer that loses nothing keeps
    its weights, frozen or not. Removed layers pass the stream on. About three passes over all windows, one more for the
    dense stream, if it is needed, and half a one for what reads the stream.
    Raises UsageError with fewer than two windows, NumericalError where a stream holds NaN or Inf.
    """
    if len(windows) < 2:
        raise UsageError("--reconstruct holds one window out to decide by: --num_samples 1 is too few, use 2 or more")
    walk = Walk(model, family, plan, windows, how)
    for layer in tqdm(range(plan.architecture.num_layers), desc="repair", unit="layer", leave=False):
        walk.layer(layer)
    return Reconstruction(
        target=how.target,
        modules=how.refits,
        ridges=how.ridges,
        windows_fitted=len(walk.fitted) - walk.shuffled,
        windows_shuffled=walk.shuffled,
        windows_held_out=len(walk.held_out),
        blocks=tuple(walk.blocks),
    )


@contextmanager
def repaired_for_now(
    model: Any, family: Family, plan: PruningPlan, windows: TokenWindows, how: Repair = DEFAULT
) -> Iterator[Reconstruction]:
    """Inside, ``reconstruct`` has been done; afterwards the weights are what they were, from copies on the CPU."""
    touched = [
        parameter
        for layer in model.get_submodule(family.layers)
        for member in family.members
        if how.refits == "all" or member.axis == IN
        for parameter in layer.get_submodule(member.path).parameters()
    ]
    before = [parameter.detach().to("cpu", copy=True) for parameter in touched]
    try:
        yield reconstruct(model, family, plan, windows, how)
    finally:
        with torch.no_grad():
            for parameter, values in zip(touched, before, strict=True):
                parameter.copy_(values)
