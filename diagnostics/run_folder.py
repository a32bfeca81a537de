"""A run as its folder tells it, whatever is missing: finished or not, dry or not, of this version or an older one.

Nothing here fails over an absent key; a value of another type than expected counts as absent. Only a folder that
holds no run at all, or a file that is no JSON object, is refused.
"""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from core.errors import UsageError
from core.kinds import TABLE, Kind
from diagnostics.findings.quantities import TOLERANCE, extreme_threshold

SCHEMA_VERSION = 1  # of run.json, as this program writes it
FILES = {
    "record": "run.json",
    "diagnosis": "analysis/gradient_diagnosis.json",
    "comparison": "analysis/pruning_comparison.json",
    "plan": "analysis/pruning_plan.json",
    "evaluation": "evaluation/evaluation_results.json",
    "verification": "analysis/verification.json",
}


def at(value: Any, *path: str | int) -> Any:
    """The item below nested dicts and lists, None where any step is missing."""
    for step in path:
        if isinstance(value, dict):
            value = value.get(step)
        elif isinstance(value, list) and isinstance(step, int) and step < len(value):
            value = value[step]
        else:
            return None
    return value


def number(value: Any, *path: str | int) -> float | None:
    """``at``, where it is a finite number."""
    found = at(value, *path)
    fits = isinstance(found, (int, float)) and not isinstance(found, bool) and math.isfinite(found)
    return found if fits else None


def items(value: Any, *path: str | int) -> list[Any]:
    """``at``, where it is a list; else an empty one."""
    found = at(value, *path)
    return found if isinstance(found, list) else []


@dataclass(frozen=True)
class Block:
    """What one plan does to one block. width: groups it had. cost: parameters of one. keep: bool (width,).
    kind: position in ``core.kinds.TABLE``, None where nobody asks."""

    width: int
    cost: int
    keep: np.ndarray
    kind: int | None = None


@dataclass(frozen=True)
class Run:
    """The JSON files of a folder; an empty dict stands for a file that is not there."""

    folder: Path
    record: dict[str, Any] = field(default_factory=dict)
    diagnosis: dict[str, Any] = field(default_factory=dict)
    comparison: dict[str, Any] = field(default_factory=dict)
    plan: dict[str, Any] = field(default_factory=dict)
    evaluation: dict[str, Any] = field(default_factory=dict)
    verification: dict[str, Any] = field(default_factory=dict)

    def option(self, name: str) -> Any:
        """An option as resolved, None where run.json does not tell."""
        return at(self.record, "options", name)

    # Size

    @property
    def parameters(self) -> tuple[float | None, float | None]:
        """(dense, pruned); what was planned, where no model was made."""
        counts = [number(self.comparison, "total_params", side) for side in ("original", "pruned")]
        total, removed = number(self.plan, "base", "total_params"), number(self.plan, "achieved", "removed_params")
        if counts[1] is None and total is not None and removed is not None:
            counts = [total, total - removed]
        return counts[0], counts[1]

    @property
    def of_total(self) -> float | None:
        """Removed / all parameters."""
        dense, pruned = self.parameters
        return (dense - pruned) / dense if dense and pruned is not None else None

    @property
    def of_prunable(self) -> float | None:
        """Removed / prunable parameters."""
        told = number(self.comparison, "budget", "achieved_of_prunable")
        return told if told is not None else number(self.plan, "achieved", "of_prunable")

    # Layers

    @cached_property
    def blocks(self) -> tuple[tuple[Block, ...], ...] | None:
        """The plan's blocks by layer, ascending by kind; None where there is no readable plan."""
        shapes, layers = items(self.plan, "base", "layers"), items(self.plan, "layers")
        if not shapes or len(shapes) != len(layers):
            return None
        try:
            return tuple(_blocks(shape, layer) for shape, layer in zip(shapes, layers, strict=True))
        except (LookupError, TypeError, ValueError):
            return None

    @cached_property
    def block_rates(self) -> tuple[dict[int, float | None], ...]:
        """Removed fraction of each block's parameters, by layer, then kind."""
        if self.blocks is not None:
            return tuple(
                {block.kind: _removed(block) for block in row if block.kind is not None} for row in self.blocks
            )
        rows = items(self.comparison, "layers")
        return tuple(
            {code: number(row, kind.name, "reduction_ratio") for code, kind in enumerate(TABLE) if at(row, kind.name)}
            for row in rows
        )

    @property
    def kinds(self) -> tuple[int, ...]:
        """The kinds of block that some layer has, ascending."""
        rows = items(self.diagnosis, "layers")
        named = {code for code, kind in enumerate(TABLE) for row in rows if f"prior_{kind.name}" in row}
        return tuple(sorted({kind for row in self.block_rates for kind in row} | named))

    @cached_property
    def rates(self) -> tuple[float | None, ...]:
        """Removed / original prunable parameters by layer, from the diagnosis, else from the plan."""
        told = [number(row, "pruning_rate") for row in items(self.diagnosis, "layers")]
        if told:
            return tuple(told)
        return tuple(_layer_rate(row) for row in self.blocks or ())

    @property
    def threshold(self) -> float | None:
        """Layers that lose more than this fraction are extreme."""
        told = number(self.diagnosis, "extreme_threshold")
        return told if told is not None or self.of_prunable is None else extreme_threshold(self.of_prunable)

    @property
    def extreme_layers(self) -> tuple[int, ...] | None:
        told = at(self.diagnosis, "extreme_pruning_layers")
        if isinstance(told, list):
            return tuple(int(layer) for row in told if (layer := number(row, "layer_idx")) is not None)
        rates = [rate for rate in self.rates if rate is not None]
        if self.threshold is None or not rates or len(rates) < len(self.rates):
            return None
        return tuple(layer for layer, rate in enumerate(rates) if rate > self.threshold + TOLERANCE)

    @property
    def frozen_layers(self) -> frozenset[int]:
        """From the diagnosis, else from the options."""
        rows = items(self.diagnosis, "layers")
        if rows:
            return frozenset(layer for layer, row in enumerate(rows) if at(row, "frozen") is True)
        first, last = (int(number(self.option(f"freeze_{end}_n_layers")) or 0) for end in ("first", "last"))
        return frozenset([*range(first), *range(len(self.rates) - last, len(self.rates))])

    @property
    def spread(self) -> float | None:
        """Largest minus smallest rate over the layers that are not frozen."""
        told = number(self.diagnosis, "rate_spread")
        open_rates = [
            rate for layer, rate in enumerate(self.rates) if rate is not None and layer not in self.frozen_layers
        ]
        return told if told is not None or not open_rates else max(open_rates) - min(open_rates)

    # Cost

    @property
    def recovery(self) -> tuple[str, ...] | None:
        """What trained the model after the cut (``blocks``, ``distill``), in this order; None where nobody tells."""
        told = self.option("recover")
        return tuple(str(step) for step in told if step != "none") if isinstance(told, list) else None

    @property
    def on_the_way(self) -> dict[str, dict[str, float | None]]:
        """Dataset -> perplexity ``cut`` and nothing else, then ``repaired``, then ``recovered``; None for a step that
        was not taken, or not measured."""
        cut, before, last = (self.perplexity(side) for side in ("before_repair", "before_recovery", "pruned"))
        found = {}
        for name in dict.fromkeys([*cut, *before, *last]):
            behind = before.get(name) if self.recovery else last.get(name)  # cut and repaired, not yet recovered
            found[name] = {
                "cut": cut.get(name, behind),
                "repaired": behind if name in cut else None,
                "recovered": last.get(name) if self.recovery else None,
            }
        return found

    def perplexity(self, side: str) -> dict[str, float]:
        """Perplexity by dataset of ``dense``, ``pruned``, or of the latter ``before_repair`` or ``before_recovery``;
        only what was measured and is finite."""
        found = at(self.evaluation, side, "perplexity")
        values = {name: number(found, name, "perplexity") for name in (found if isinstance(found, dict) else {})}
        return {name: value for name, value in values.items() if value is not None}

    @property
    def distance(self) -> dict[str, tuple[float, float]]:
        """Dataset -> (KL from the dense model in nats per token, top-1 agreement with it) of the pruned model."""
        found = at(self.evaluation, "pruned", "distance")
        pairs = {
            name: (number(found, name, "kl_nats_per_token"), number(found, name, "top1_agreement"))
            for name in (found if isinstance(found, dict) else {})
        }
        return {name: (kl, same) for name, (kl, same) in pairs.items() if kl is not None and same is not None}

    def generation(self, side: str) -> dict[str, float]:
        """``greedy repeated_4grams`` ... -> value, of what ``dense`` or ``pruned`` wrote."""
        found = at(self.evaluation, side, "generation")
        keys = [(way, key) for way in ("greedy", "sampled") for key in ("repeated_4grams", "ended", "length")]
        values = {f"{way} {key}": number(found, way, key) for way, key in keys}
        return {name: value for name, value in values.items() if value is not None}

    def tasks(self, side: str) -> dict[str, tuple[float, float | None]]:
        """``task metric`` -> (value, standard error or None)."""
        return dict(_metrics(at(self.evaluation, side, "tasks")))


def _metrics(tasks: Any) -> Iterator[tuple[str, tuple[float, float | None]]]:
    for task, metrics in (tasks if isinstance(tasks, dict) else {}).items():
        for metric in metrics if isinstance(metrics, dict) else ():
            value = number(metrics, metric)
            if value is not None and metric != "num_items" and "_stderr" not in metric:
                yield f"{task} {metric}", (value, number(metrics, f"{metric}_stderr"))


def _blocks(shape: dict[str, Any], layer: dict[str, Any]) -> tuple[Block, ...]:
    """A layer's blocks, of the kinds that the plan speaks of. LookupError where one lacks a key, or there is none."""
    told = [
        (code, kind)
        for code, kind in enumerate(TABLE)
        if kind.cost_key in shape or kind.width_key in shape or kind.kept_key in layer
    ]
    if not told:
        raise LookupError("a layer without blocks")
    return tuple(_block(shape, layer, code, kind) for code, kind in told)


def _block(shape: dict[str, Any], layer: dict[str, Any], code: int, kind: Kind) -> Block:
    width, kept, cost = int(shape[kind.width_key]), layer[kind.kept_key], int(shape[kind.cost_key])
    keep = np.zeros(width, dtype=bool)
    keep[np.array(kept, dtype=np.int64)] = True
    return Block(width, cost, keep, code)


def _removed(block: Block) -> float | None:
    return float(np.mean(~block.keep)) if block.width else None


def _layer_rate(row: Sequence[Block]) -> float | None:
    original = sum(block.width * block.cost for block in row)
    removed = sum(int((~block.keep).sum()) * block.cost for block in row)
    return removed / original if original else None


def read_run(folder: Path) -> Run:
    """The run in a folder. UsageError, one line, if there is none, or one of its files is no JSON object."""
    if not folder.is_dir():
        reason = "is a file" if folder.exists() else "does not exist"
        raise UsageError(f"{folder} {reason}; give a folder that a run wrote with --output")
    found = {name: _read(folder / path) for name, path in FILES.items() if (folder / path).is_file()}
    if not {"diagnosis", "comparison", "plan"} & set(found):
        raise UsageError(
            f"{folder} holds no run (no {FILES['comparison']}); give a folder that a run wrote with --output"
        )
    return Run(folder, **found)


def _read(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not JSON ({error}); run again, or leave this folder out") from error
    if not isinstance(value, dict):
        raise UsageError(f"{path} is not a JSON object; run again, or leave this folder out")
    return value
