"""What a recovery did: for the console, the model card and ``analysis/recovery.json``."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from core.files import write_json


@dataclass(frozen=True)
class RecoveredBlock:
    """layer: in the dense model. steps: that count. errors: on windows held out, mean over tokens of
    ‖h - h_dense‖² / ‖h_dense‖², h the stream behind the block. curve: that error before, and at every look since."""

    layer: int
    kind: str
    recovered: bool
    steps: int
    error_before: float
    error_after: float
    curve: tuple[float, ...]


@dataclass(frozen=True)
class BlocksReport:
    """blocks: in the order of the model, without those that needed none."""

    windows_fitted: int
    windows_shuffled: int
    windows_held_out: int
    rate: float
    step_tokens: int
    blocks: tuple[RecoveredBlock, ...]

    @property
    def num_recovered(self) -> int:
        return sum(block.recovered for block in self.blocks)

    @property
    def median_change(self) -> float:
        """Median of error_after / error_before - 1; 0.0 where there is none."""
        changes = [block.error_after / block.error_before - 1 for block in self.blocks if block.error_before]
        return float(np.median(changes)) if changes else 0.0

    def line(self) -> str:
        """One line for the console."""
        if not self.blocks:
            return "nothing to recover"
        change = f"{100 * self.median_change:+.0f} %".replace("-", "−")
        return f"recovered {self.num_recovered} of {len(self.blocks)} blocks (held-out error {change}, median)"

    def sentence(self) -> str:
        """For the model card."""
        shuffled = f" and {self.windows_shuffled} with their tokens in random order" if self.windows_shuffled else ""
        return (
            f"{self.num_recovered} blocks were trained one after the other to keep the dense model's residual stream, "
            f"on {self.windows_fitted} calibration windows{shuffled}, without labels; {self.windows_held_out} further "
            "windows decided how long, and whether at all"
        )

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"num_recovered": self.num_recovered, "median_change": self.median_change}


@dataclass(frozen=True)
class RecoveryReport:
    """What was done after surgery, in this order; None for what was not asked for."""

    blocks: BlocksReport | None = None

    def sentence(self) -> str:
        """For the model card."""
        return "; then ".join(step.sentence() for step in (self.blocks,) if step is not None)

    def facts(self) -> dict[str, Any]:
        """For run.json."""
        blocks = self.blocks
        return {
            "blocks": blocks
            and {
                "blocks_recovered": blocks.num_recovered,
                "blocks_trained": len(blocks.blocks),
                "median_change": blocks.median_change,
            }
        }

    def to_json(self) -> dict[str, Any]:
        return {"schema_version": 1, "blocks": self.blocks and self.blocks.to_json()}


def write_recovery_report(path: Path, report: RecoveryReport) -> Path:
    return write_json(path, report.to_json())
