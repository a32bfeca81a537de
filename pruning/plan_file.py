"""A plan as a file: standard JSON, equal bytes for equal plans, read back only if it fits model and itself.

    schema_version  of this layout
    base            the architecture the plan was made for: model_type, hidden_size, total_params, layers[]
    request         pruning_ratio, ratio_of, budget_params
    achieved        of_total, of_prunable (fractions), removed_params, budget_gap_params, gap_reason
    removed_layers  layers removed whole
    layers[]        layer, num_kv_heads and intermediate_size after pruning, kept_kv_heads[], kept_channels[]; other
                    kinds of block by their keys in ``core/kinds.py``

Nothing in it varies between equal runs: no path, date or version of anything but the layout.
"""

import json
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from core.errors import PlanError
from core.files import write_json
from core.groups import Architecture
from core.names import RATIO_OF
from core.plan import SCHEMA_VERSION, PruningPlan
from pruning.budget import requested_params


def write_plan(path: Path, plan: PruningPlan) -> Path:
    return write_json(path, as_json(plan))


def read_plan(path: Path, architecture: Architecture) -> PruningPlan:
    """The plan in a file, for this model.

    PlanError, one line, if the file is missing, not JSON, of another schema version, made for another model,
    or does not add up: indices out of range or repeated, counts that disagree, an empty block in a layer that
    stays.
    """
    try:
        return from_json(_load(path), architecture)
    except _MisfitError as misfit:
        raise PlanError(f"plan {path}: {misfit}; give analysis/pruning_plan.json of a run on this model") from None


def as_json(plan: PruningPlan) -> dict[str, Any]:
    return {
        "schema_version": SCHEMA_VERSION,
        "base": _base(plan.architecture),
        "request": {
            "pruning_ratio": plan.requested_ratio,
            "ratio_of": plan.ratio_of,
            "budget_params": plan.budget_params,
        },
        "achieved": {
            "of_total": plan.achieved_of_total,
            "of_prunable": plan.achieved_of_prunable,
            "removed_params": plan.removed_params,
            "budget_gap_params": plan.budget_gap_params,
            "gap_reason": plan.gap_reason,
        },
        "removed_layers": list(plan.removed_layers),
        "layers": [_layer(plan, layer) for layer in range(plan.architecture.num_layers)],
    }


def from_json(value: dict[str, Any], architecture: Architecture) -> PruningPlan:
    if value.get("schema_version") != SCHEMA_VERSION:
        _misfit(f"schema version {value.get('schema_version')!r}, this program reads {SCHEMA_VERSION}")
    _compare_base(_field(value, "base", dict), architecture)
    request, achieved = _field(value, "request", dict), _field(value, "achieved", dict)
    keep = _keep(_field(value, "layers", list), architecture)
    removed_layers = _removed_layers(_field(value, "removed_layers", list), keep, architecture)
    plan = PruningPlan(
        architecture=architecture,
        keep=keep,
        removed_layers=removed_layers,
        requested_ratio=_field(request, "pruning_ratio", float),
        ratio_of=_field(request, "ratio_of", str),
        budget_params=_field(request, "budget_params", int),
        removed_params=_count_removed(keep, removed_layers, architecture),
        gap_reason=_field(achieved, "gap_reason", str),
    )
    _compare_counts(plan, achieved)
    return plan


class _MisfitError(Exception):
    """What is wrong with a plan; ``read_plan`` adds which file."""


def _misfit(reason: str) -> NoReturn:
    raise _MisfitError(reason)


def _base(architecture: Architecture) -> dict[str, Any]:
    return {
        "model_type": architecture.model_type,
        "hidden_size": architecture.hidden_size,
        "total_params": architecture.total_params,
        "layers": [layer.facts() for layer in architecture.layers],
    }


def _layer(plan: PruningPlan, layer: int) -> dict[str, Any]:
    kinds = [block.about for block in plan.architecture.layers[layer].blocks]
    kept = [plan.kept(layer, block.kind) for block in plan.architecture.layers[layer].blocks]
    widths = {kind.width_key: len(indices) for kind, indices in zip(kinds, kept, strict=True)}
    return {"layer": layer} | widths | {kind.kept_key: indices for kind, indices in zip(kinds, kept, strict=True)}


def _load(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        _misfit(f"cannot be read ({error.strerror})")
    except (ValueError, RecursionError) as error:  # broken JSON and broken UTF-8 are both ValueErrors
        _misfit(f"is not JSON ({error})")
    if not isinstance(value, dict):
        _misfit("is not a JSON object")
    return value


def _field(value: Any, name: str, kind: type) -> Any:
    """value[name], of exactly that type (JSON's true is no number)."""
    item = value.get(name) if isinstance(value, dict) else None
    if type(item) is not kind:
        _misfit(f"{name} is missing or not of type {kind.__name__}")
    return item


def _compare_base(base: dict[str, Any], architecture: Architecture) -> None:
    here = _base(architecture)
    for name in ("model_type", "hidden_size", "total_params"):
        _compare(name, base.get(name), here[name])
    layers = _field(base, "layers", list)
    _compare("number of layers", len(layers), architecture.num_layers)
    for index, (there, shape) in enumerate(zip(layers, here["layers"], strict=True)):
        for name, fact in shape.items():
            value = there.get(name) if isinstance(there, dict) else None
            _compare(f"layer {index} {name}", value, fact)


def _compare(name: str, there: Any, here: Any) -> None:
    if there != here:
        _misfit(f"made for another model: {name} is {there!r} in the plan, {here!r} in this model")


def _keep(layers: list[Any], architecture: Architecture) -> np.ndarray:
    """bool (G,) from the kept indices of every block."""
    keep = np.zeros(len(architecture.groups), dtype=bool)
    if [_field(layer, "layer", int) for layer in layers] != list(range(architecture.num_layers)):
        _misfit(f"layers are not 0 to {architecture.num_layers - 1} in order")
    for index, (layer, shape) in enumerate(zip(layers, architecture.layers, strict=True)):
        for block in shape.blocks:
            count, name = block.about.width_key, block.about.kept_key
            kept = _indices(_field(layer, name, list), block.width, f"layer {index} {name}")
            if _field(layer, count, int) != len(kept):
                _misfit(f"layer {index} {count} is {layer[count]}, but {name} holds {len(kept)}")
            keep[architecture.groups.rows(index, block.kind)][kept] = True
    return keep


def _indices(values: list[Any], width: int, name: str) -> np.ndarray:
    """int64: whole numbers below width, ascending, each once."""
    if not all(type(value) is int and 0 <= value < width for value in values):
        _misfit(f"{name} holds something other than whole numbers from 0 to {width - 1}")
    indices = np.array(values, dtype=np.int64)
    if not (np.diff(indices) > 0).all():
        _misfit(f"{name} is not ascending, or holds an index twice")
    return indices


def _removed_layers(values: list[Any], keep: np.ndarray, architecture: Architecture) -> tuple[int, ...]:
    """The layers removed whole; exactly their blocks are empty, and at least one layer stays."""
    removed = _indices(values, architecture.num_layers, "removed_layers").tolist()
    if len(removed) == architecture.num_layers:
        _misfit("removed_layers names every layer")
    for layer, shape in enumerate(architecture.layers):
        for block in shape.blocks:
            name, kept = block.about.kept_key, int(keep[architecture.groups.rows(layer, block.kind)].sum())
            if layer in removed and kept:
                _misfit(f"layer {layer} is in removed_layers, but {name} holds {kept}")
            if layer not in removed and not kept and block.width:
                _misfit(f"layer {layer} {name} is empty, but the layer is not in removed_layers")
    return tuple(removed)


def _count_removed(keep: np.ndarray, removed_layers: tuple[int, ...], architecture: Architecture) -> int:
    """Parameters that leave: the groups not kept, and of removed layers all the rest too."""
    shapes = [architecture.layers[layer] for layer in removed_layers]
    ungrouped = sum(shape.total_params - shape.prunable_params for shape in shapes)
    return int(np.sum(architecture.groups.cost[~keep])) + ungrouped


def _compare_counts(plan: PruningPlan, achieved: dict[str, Any]) -> None:
    if plan.ratio_of not in RATIO_OF or not 0 < plan.requested_ratio < 1:
        _misfit(f"requests {plan.requested_ratio} of {plan.ratio_of!r}")
    budget = requested_params(plan.architecture, plan.requested_ratio, plan.ratio_of)
    for name, stated, counted in (
        ("budget_params", plan.budget_params, budget),
        ("removed_params", _field(achieved, "removed_params", int), plan.removed_params),
        ("budget_gap_params", _field(achieved, "budget_gap_params", int), plan.budget_gap_params),
    ):
        if stated != counted:
            _misfit(f"{name} is {stated}, but the plan adds up to {counted}")
    if plan.budget_gap_params < 0:
        _misfit(f"removes {plan.removed_params} parameters, above its budget of {budget}")
