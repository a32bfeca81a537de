"""Heat maps as tables: a coloured cell that shows a whole percentage and says the exact one."""

from collections.abc import Sequence
from dataclasses import dataclass

from core.kinds import TABLE
from diagnostics.run_folder import Run
from diagnostics.wording import percent


@dataclass(frozen=True)
class Cell:
    """value: fraction, None where unknown. exact: the whole sentence, for pointers and screen readers."""

    value: float | None
    exact: str
    marks: str = ""  # CSS classes: extreme, frozen

    @property
    def text(self) -> str:
        return "–" if self.value is None else f"{100 * self.value:.0f}"

    @property
    def heat(self) -> str:
        """CSS percentage: how far the colour goes from cold to hot."""
        return f"{100 * min(1.0, max(0.0, self.value or 0.0)):.1f}%"


@dataclass(frozen=True)
class HeatMap:
    caption: str
    corner: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]


def layers_by_kind(run: Run) -> HeatMap | None:
    """What one run took: each kind of block and the whole layer, by layer. None where the folder does not tell."""
    if not run.block_rates and not run.rates:
        return None
    num_layers = max(len(run.block_rates), len(run.rates))
    rows = [(TABLE[kind].title, tuple(_block(run, layer, kind) for layer in range(num_layers))) for kind in run.kinds]
    rows.append(("layer", tuple(_layer(run, layer) for layer in range(num_layers))))
    columns = tuple(str(layer) for layer in range(num_layers))
    return HeatMap(
        "Removed share of each block and layer, in percent of its prunable parameters", "layer", columns, tuple(rows)
    )


def runs_by_layer(runs: Sequence[tuple[str, Run]]) -> HeatMap | None:
    """What each of several runs took from each layer."""
    num_layers = max((len(run.rates) for _, run in runs), default=0)
    if not num_layers:
        return None
    rows = tuple((name, tuple(_layer(run, layer, name) for layer in range(num_layers))) for name, run in runs)
    columns = tuple(str(layer) for layer in range(num_layers))
    return HeatMap("Removed share of each layer, in percent of its prunable parameters", "run", columns, rows)


def _block(run: Run, layer: int, kind: int) -> Cell:
    value = run.block_rates[layer].get(kind) if layer < len(run.block_rates) else None
    where = f"layer {layer}, {TABLE[kind].title}"
    if value is None:
        return Cell(None, f"{where}: not known")
    counts = ""
    if run.blocks is not None:
        block = next(block for block in run.blocks[layer] if block.kind == kind)
        counts = f", {int((~block.keep).sum()):,} of {block.width:,} {TABLE[kind].unit}"
    return Cell(value, f"{where}: {percent(value, 2)} removed{counts}", _frozen(run, layer))


def _layer(run: Run, layer: int, name: str = "") -> Cell:
    value = run.rates[layer] if layer < len(run.rates) else None
    where = f"{name}, layer {layer}" if name else f"layer {layer}"
    if value is None:
        return Cell(None, f"{where}: not known")
    extreme = layer in (run.extreme_layers or ())
    marks = " ".join(mark for mark in (_frozen(run, layer), "extreme" if extreme else "") if mark)
    return Cell(value, f"{where}: {percent(value, 2)} removed{', extreme' if extreme else ''}", marks)


def _frozen(run: Run, layer: int) -> str:
    return "frozen" if layer in run.frozen_layers else ""
