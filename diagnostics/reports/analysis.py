"""The files of ``analysis/``: diagnosis, comparison of widths and parameters, summary by layer, groups."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from core.files import write_atomically, write_json, write_text
from core.groups import Block, LayerShape
from core.kinds import TABLE
from core.measured import Importance
from core.plan import PruningPlan
from diagnostics.findings.diagnosis import Diagnosis
from diagnostics.findings.quantities import Scores
from diagnostics.wording import percent


def write_reports(
    analysis_folder: Path,
    diagnosis: Diagnosis,
    plan: PruningPlan,
    importance: Importance | None,
    scores: Scores | None,
) -> list[Path]:
    """Write the four files, each atomically, and return their paths."""
    return [
        write_json(analysis_folder / "gradient_diagnosis.json", diagnosis.to_json()),
        write_json(analysis_folder / "pruning_comparison.json", comparison(plan)),
        write_text(analysis_folder / "pruning_summary_by_layer.txt", summary_by_layer(diagnosis, plan)),
        write_groups(analysis_folder / "groups.parquet", plan, importance, scores),
    ]


def comparison(plan: PruningPlan) -> dict[str, Any]:
    """Parameters and widths of every original layer before and after; same keys, same order in every run."""
    layers = plan.architecture.layers
    pruned = [plan.pruned_shape(layer) for layer in range(len(layers))]
    left = sum(shape.total_params for shape in pruned if shape is not None)
    total = plan.architecture.total_params
    return {
        "total_params": _change(total, total - plan.removed_params),
        "layer_params": _change(plan.architecture.layer_params, left),
        "budget": budget(plan),
        "layers": [_layer(i, before, after) for i, (before, after) in enumerate(zip(layers, pruned, strict=True))],
    }


def budget(plan: PruningPlan) -> dict[str, Any]:
    """What was asked for and what became of it, over total and over prunable parameters."""
    return {
        "requested_ratio": plan.requested_ratio,
        "ratio_of": plan.ratio_of,
        "requested_of_total": requested(plan, "total"),
        "requested_of_prunable": requested(plan, "prunable"),
        "achieved_of_total": plan.achieved_of_total,
        "achieved_of_prunable": plan.achieved_of_prunable,
        "budget_params": plan.budget_params,
        "removed_params": plan.removed_params,
        "budget_gap_params": plan.budget_gap_params,
        "gap_reason": plan.gap_reason,
    }


def requested(plan: PruningPlan, ratio_of: str) -> float:
    """The ratio as asked where it was asked over ``ratio_of``, else budget / that number of parameters."""
    if ratio_of == plan.ratio_of:
        return plan.requested_ratio
    whole = plan.architecture.total_params if ratio_of == "total" else plan.architecture.prunable_params
    return plan.budget_params / whole


def _layer(layer: int, before: LayerShape, after: LayerShape | None) -> dict[str, Any]:
    blocks = {block.about.name: _block(block, after.block(block.kind) if after else None) for block in before.blocks}
    total = _change(before.total_params, after.total_params if after else 0)
    return {"layer_idx": layer, "total": total} | blocks | {"is_zero_layer": after is None}


def _block(before: Block, after: Block | None) -> dict[str, Any]:
    """Parameters, and each of the block's widths by its own key."""
    left = after.counts if after else {}
    widths = {key: _pair(count, left.get(key, 0)) for key, count in before.counts.items()}
    return _change(before.total_params, after.total_params if after else 0) | widths


def _pair(original: int, pruned: int) -> dict[str, int]:
    return {"original": original, "pruned": pruned}


def _change(original: int, pruned: int) -> dict[str, Any]:
    reduced = original - pruned
    return {
        **_pair(original, pruned),
        "reduced": reduced,
        "reduction_ratio": reduced / original if original else 0.0,
    }


def summary_by_layer(diagnosis: Diagnosis, plan: PruningPlan) -> str:
    """A row a layer, beginning ``Layer N `` with one space: ``grep "Layer 2 "`` finds exactly that row."""
    columns = [f"{TABLE[kind].name}: {TABLE[kind].unit}" for kind in plan.architecture.kinds]
    header = ["Layer", "rate", *columns, "parameters", "importance/param", "flag"]
    rows = [header, *(_summary_row(diagnosis, plan, layer) for layer in range(plan.architecture.num_layers))]
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    lines = ["  ".join(_aligned(row, widths)).rstrip() for row in rows]
    return "\n".join([*_summary_head(diagnosis, plan), "", *lines]) + "\n"


def _summary_head(diagnosis: Diagnosis, plan: PruningPlan) -> list[str]:
    extreme = len(diagnosis.extreme_layers)
    return [
        f"Removed {plan.removed_params:,} of {plan.architecture.total_params:,} parameters: "
        f"{percent(plan.achieved_of_total, 2)} of all, "
        f"{percent(plan.achieved_of_prunable, 2)} of the prunable ones.",
        "rate: removed / original prunable parameters of the layer. importance/param: mean over its parameters.",
        f"EXTREME: rate above {percent(diagnosis.threshold)}; {extreme} such layer{'' if extreme == 1 else 's'}.",
    ]


def _summary_row(diagnosis: Diagnosis, plan: PruningPlan, layer: int) -> list[str]:
    m = diagnosis.measured
    before, after = plan.architecture.layers[layer], plan.pruned_shape(layer)
    mean = m.importance_mean[layer]
    flags = {
        "EXTREME": layer in diagnosis.extreme_layers,
        "REMOVED": after is None,
        "FROZEN": bool(m.frozen_layers[layer]),
    }
    return [
        f"Layer {layer}",
        percent(m.rate[layer]),
        *(_widths(before, after, kind) for kind in plan.architecture.kinds),
        f"{before.total_params:,} → {after.total_params if after else 0:,}",
        f"{mean:.3e}" if np.isfinite(mean) else "-",
        " ".join(flag for flag, holds in flags.items() if holds),
    ]


def _widths(before: LayerShape, after: LayerShape | None, kind: int) -> str:
    if not before.has(kind):
        return "-"
    return f"{before.block(kind).width:,} → {after.block(kind).width if after else 0:,}"


def _aligned(row: Sequence[str], widths: Sequence[int]) -> list[str]:
    """First and last column to the left, numbers to the right."""
    last = len(row) - 1
    return [t.ljust(w) if i in (0, last) else t.rjust(w) for i, (t, w) in enumerate(zip(row, widths, strict=True))]


def write_groups(path: Path, plan: PruningPlan, importance: Importance | None, scores: Scores | None) -> Path:
    """Every group in the order of the table. score is what was ranked; unmeasured columns are null."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    groups = plan.groups
    unknown = pa.nulls(len(groups), pa.float64())
    names = [kind.name for kind in TABLE[: max(groups.kinds) + 1]]
    table = pa.table(
        {
            "layer": _column(groups.layer, pa.int32()),
            "kind": pa.DictionaryArray.from_arrays(_column(groups.kind, pa.int8()), _texts(names)),
            "index": _column(groups.index, pa.int32()),
            "importance": _column(importance.values, pa.float64()) if importance else unknown,
            "cost": _column(groups.cost, pa.int64()),
            "score": _column(scores.score, pa.float64()) if scores else unknown,
            "kept": _column(plan.keep, pa.int8()).cast(pa.bool_()),
        }
    )
    return write_atomically(path, lambda temporary: pq.write_table(table, temporary, compression="zstd"))


# pyarrow.array would import pandas first, only to ask whether the values are its own. These are made of their bytes.


def _column(values: np.ndarray, kind: Any) -> Any:
    import pyarrow as pa

    values = np.ascontiguousarray(values, dtype=kind.to_pandas_dtype())
    return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(values)])


def _texts(values: Sequence[str]) -> Any:
    import pyarrow as pa

    encoded = [value.encode() for value in values]
    ends = np.cumsum([0, *map(len, encoded)], dtype=np.int32)
    return pa.StringArray.from_buffers(len(values), pa.py_buffer(ends), pa.py_buffer(b"".join(encoded)))
