"""What a repair did: for the console, the model card and ``analysis/reconstruction.json``."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from core.files import write_json
from pruning.held_out_errors import how_many, median_change

INPUT, OUTPUT = "input", "output"


@dataclass(frozen=True)
class RepairedBlock:
    """One side of a block: ``output``, its o_proj or down_proj, or ``input``, all projections that read the stream.

    errors: Σ ‖target - output‖² / Σ ‖target‖² on held-out windows, with sliced and with final weights; of an output
    towards ``stream`` both sums are weighted by token, and target - output is what the stream lacks behind the block.
    ridge: λ over the mean diagonal of K K^T; None where it keeps its sliced weights.
    """

    layer: int
    kind: str
    side: str
    repaired: bool
    ridge: float | None
    error_before: float
    error_after: float


@dataclass(frozen=True)
class RepairReport:
    """blocks: in the order of the model, without those that needed none."""

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
        return median_change(self.of(OUTPUT))

    def line(self) -> str:
        """One line for the console."""
        sides = [(side, self.of(side)) for side in (OUTPUT, INPUT) if self.of(side)]
        said = [f"{side}s of {how_many(blocks, sum(block.repaired for block in blocks))}" for side, blocks in sides]
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


def write_repair_report(path: Path, report: RepairReport) -> Path:
    return write_json(path, report.to_json())
