"""The model card of a pruned folder: README.md with the metadata that the hub reads, for whoever finds the folder."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData, metadata_load, try_to_load_from_cache

from core.groups import ATTENTION, MLP
from core.plan import PruningPlan

INHERITED = ("license", "license_name", "license_link", "language")
LOADING = """```python
from transformers import AutoModelForCausalLM, AutoTokenizer

name = "{name}"  # this folder, or its name on a hub
model = AutoModelForCausalLM.from_pretrained(name{trust})
tokenizer = AutoTokenizer.from_pretrained(name{trust})
```"""
OWN_CODE = (
    "Layers differ in their numbers of heads and channels, so the folder brings two short Python files that build the "
    "family's own layers with them; that is what `trust_remote_code=True` allows. `config.json` holds every layer's "
    "widths under `per_layer_config`."
)
FAMILY_CODE = "All layers have the same widths, so this is a checkpoint of the family's own class: no remote code."


def inherited_metadata(base_model: str) -> dict[str, Any]:
    """License and language that the base model's own card declares; of a hub id, from what is already downloaded.

    Nothing is invented: without a card, or with one that cannot be read, there is no license to inherit.
    """
    card: Any = Path(base_model).expanduser() / "README.md"
    if not card.is_file():
        try:
            card = try_to_load_from_cache(base_model, "README.md")
        except ValueError:  # a path, not a hub id
            return {}
    try:
        found = metadata_load(card) if isinstance(card, (str, Path)) else None
    except Exception:  # front matter of strangers: a YAML error of any kind
        return {}
    return {key: found[key] for key in INHERITED if key in found} if isinstance(found, dict) else {}


def model_card(
    plan: PruningPlan,
    *,
    base_model: str,
    criterion: str | None,
    transforms: Mapping[str, Any],
    calibration: str,
    stored_dtype: str,
    dense: Mapping[str, Any] | None = None,
    pruned: Mapping[str, Any] | None = None,
    repair: str = "",
    inherited: Mapping[str, Any] | None = None,
    ships_code: bool = True,
) -> str:
    """README.md: what was removed, how, with what result, and how to load it.

    base_model: hub id, folder (its name is given, never its path) or ``demo``. criterion: None for a replayed plan.
    transforms: option -> value of what acted on the scores, empty for none. calibration: one sentence on the text,
    empty where none was read. dense, pruned: the two halves of evaluation_results.json, None where not measured.
    repair: one sentence on how the weights that stayed were refitted, empty where they were not.
    inherited: ``inherited_metadata``. ships_code: False where the family's own class loads the folder.
    """
    shown = _shown_name(base_model)
    after, before = plan.pruned_architecture, plan.architecture
    name = f"{shown.split('/')[-1]}-pruned"
    parts = [
        f"---\n{_metadata(plan, shown, inherited or {}, ships_code)}\n---\n",
        f"# {name}\n",
        f"`{shown}` with {plan.removed_params:,} of its {before.total_params:,} parameters removed "
        f"({plan.achieved_of_total:.1%}; {after.total_params:,} remain, stored in {stored_dtype}). KV groups (one KV "
        "head with its query heads) and MLP channels really left the weight matrices; nothing is masked or sparse.\n",
        f"## How to load it\n\n{LOADING.format(name=name, trust=', trust_remote_code=True' if ships_code else '')}\n",
        f"{OWN_CODE if ships_code else FAMILY_CODE}\n",
        "## How it was pruned\n\n" + "\n".join(_method(plan, criterion, transforms, calibration, repair)) + "\n",
        f"## Result\n\n{_results(dense, pruned)}\n",
        f"## Layers\n\n{_layers(plan)}\n",
    ]
    return "\n".join(parts)


def _shown_name(base_model: str) -> str:
    path = Path(base_model).expanduser()
    is_folder = path.is_dir() or path.is_absolute() or base_model.startswith((".", "~"))
    return path.resolve().name if is_folder else base_model


def _metadata(plan: PruningPlan, base_model: str, inherited: Mapping[str, Any], ships_code: bool) -> str:
    tags = ["pruned", "structured-pruning", plan.architecture.model_type] + ["custom_code"] * ships_code
    data = ModelCardData(
        **dict(inherited),
        base_model=base_model,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=tags,
    )
    return data.to_yaml().strip()


def _method(
    plan: PruningPlan, criterion: str | None, transforms: Mapping[str, Any], calibration: str, repair: str
) -> list[str]:
    asked = f"{plan.requested_ratio:.1%} of {'all' if plan.ratio_of == 'total' else 'prunable'} parameters"
    acted = ", ".join(f"`{option}` {value}" for option, value in transforms.items())
    decision = [
        f"- criterion: `{criterion}`, all KV groups and MLP channels of the model ranked together",
        f"- score transforms: {acted or 'none'}",
    ]
    lines = [
        *(decision if criterion else ["- decision: a saved plan, replayed"]),
        f"- requested: {asked}; achieved: {plan.achieved_of_total:.2%} of all, {plan.achieved_of_prunable:.2%} of "
        "prunable parameters",
    ]
    if plan.removed_layers:
        lines.append(f"- layers removed whole: {', '.join(map(str, plan.removed_layers))}")
    if repair:
        lines.append(f"- repair: {repair}")
    if calibration:
        lines.append(f"- calibration: {calibration}")
    return lines


def _results(dense: Mapping[str, Any] | None, pruned: Mapping[str, Any] | None) -> str:
    rows = list(_measures(dense, pruned)) if dense and pruned else []
    if not rows:
        return "Nothing was measured after pruning; measure before use."
    table = "\n".join(f"| {what} | {before} | {after} |" for what, before, after in rows)
    return f"| measure | before | after |\n|---|---:|---:|\n{table}"


def _measures(dense: Mapping[str, Any], pruned: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    rows = [
        (what, f"{dense[what]:,}", f"{pruned[what]:,}")
        for what in ("parameters", "bytes")
        if what in dense and what in pruned
    ]
    for name, after in pruned.get("perplexity", {}).items():
        before = dense["perplexity"][name]
        label = f"perplexity on {Path(name).name}"
        rows.append((label, _figure(before["perplexity"]), _figure(after["perplexity"])))
    for task, metrics in pruned.get("tasks", {}).items():
        for metric, value in metrics.items():
            if metric != "num_items" and "_stderr" not in metric:
                rows.append((f"{task} {metric}", _figure(dense["tasks"][task][metric]), _figure(value)))
    if dense.get("latency") and pruned.get("latency"):
        for what in ("prefill_tokens_per_s", "decode_tokens_per_s"):
            rows.append((what, _figure(dense["latency"][what]), _figure(pruned["latency"][what])))
    return rows


def _figure(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.4g}"


def _layers(plan: PruningPlan) -> str:
    """A row an original layer: KV heads and channels, kept / original."""
    rows = ["| layer | now | KV heads | query heads | MLP channels | removed |", "|---:|---:|---:|---:|---:|---:|"]
    position = {layer: new for new, layer in enumerate(plan.remaining_layers)}
    for layer, (shape, rate) in enumerate(zip(plan.architecture.layers, plan.layer_rates(), strict=True)):
        kv_heads, channels = len(plan.kept(layer, ATTENTION)), len(plan.kept(layer, MLP))
        heads = kv_heads * (shape.num_heads // shape.num_kv_heads)
        rows.append(
            f"| {layer} | {position.get(layer, 'removed')} | {kv_heads} of {shape.num_kv_heads} "
            f"| {heads} of {shape.num_heads} | {channels} of {shape.intermediate_size} | {rate:.1%} |"
        )
    return "\n".join(rows)
