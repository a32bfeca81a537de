"""What a recovery did: for the console, the model card and ``analysis/recovery.json``."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from core.files import write_json
from pruning.held_out_errors import how_many, median_change


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
    """blocks: in the order of the model, without those that needed none. products: in which precision gradients were
    computed."""

    windows_fitted: int
    windows_shuffled: int
    windows_held_out: int
    rate: float
    step_tokens: int
    blocks: tuple[RecoveredBlock, ...]
    products: str

    @property
    def num_recovered(self) -> int:
        return sum(block.recovered for block in self.blocks)

    @property
    def median_change(self) -> float:
        return median_change(self.blocks)

    def line(self) -> str:
        """One line for the console."""
        if not self.blocks:
            return "nothing to recover"
        return f"recovered {how_many(self.blocks, self.num_recovered)}"

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
class DistilReport:
    """rate: the highest on the way. share: of the way from the weights before to the trained ones, as far as they went;
    kept: whether anywhere. kl, nll: on windows held out, nats per token, before training and that far, or as far as is
    best where none is kept. windows: that the text has, read again where tokens ask for more. losses: (step, mean
    divergence since the one before). products: in which precision they were computed. resumed_from_step: of the
    checkpoint that an interrupted run had left, None: of none."""

    tokens: int
    steps: int
    step_tokens: int
    rate: float
    windows: int
    windows_held_out: int
    seq_len: int
    lora: int | None
    kept: bool
    share: float
    kl_before: float
    kl_after: float
    nll_before: float
    nll_after: float
    losses: tuple[tuple[int, float], ...]
    products: str
    resumed_from_step: int | None = None

    def line(self) -> str:
        """One line for the console."""
        found = f"held-out divergence from the dense model {self.kl_before:.4f} → {self.kl_after:.4f} nats/token"
        return f"distilled ({found})" if self.kept else f"distillation gained nothing and is undone ({found})"

    def sentence(self) -> str:
        """For the model card."""
        if not self.kept:
            return "distillation from the dense model gained nothing on held-out windows and was undone"
        how = "" if self.lora is None else f" through LoRA adapters of rank {self.lora}, merged since,"
        return (
            f"the layers were trained{how} to the dense model's token distribution on {self.tokens:,} tokens, without "
            f"labels; on held-out windows the divergence fell from {self.kl_before:.3f} to {self.kl_after:.3f} nats a "
            "token"
        )

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class RecoveryReport:
    """What was done after surgery, in this order; None for what was not asked for."""

    blocks: BlocksReport | None = None
    distil: DistilReport | None = None

    def sentence(self) -> str:
        """For the model card."""
        return "; then ".join(step.sentence() for step in (self.blocks, self.distil) if step is not None)

    def facts(self) -> dict[str, Any]:
        """For run.json."""
        blocks, distil = self.blocks, self.distil
        return {
            "blocks": blocks
            and {
                "blocks_recovered": blocks.num_recovered,
                "blocks_trained": len(blocks.blocks),
                "median_change": blocks.median_change,
            },
            "distill": distil and {name: getattr(distil, name) for name in ("tokens", "kept", "kl_before", "kl_after")},
        }

    def to_json(self) -> dict[str, Any]:
        steps = {"blocks": self.blocks, "distill": self.distil}
        return {"schema_version": 1} | {name: step and step.to_json() for name, step in steps.items()}


def write_recovery_report(path: Path, report: RecoveryReport) -> Path:
    return write_json(path, report.to_json())
