"""The model card of a pruned folder: README.md with the metadata that the hub reads, for whoever finds the folder."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

from huggingface_hub import ModelCardData, metadata_load
from huggingface_hub.utils import validate_repo_id

from core.groups import ATTENTION, MLP
from core.plan import PruningPlan
from models.travel import travelling_files

INHERITED = ("license", "license_name", "license_link", "language")
LOADING = """```python
from transformers import AutoModelForCausalLM, AutoTokenizer

name = "{name}"  # this folder, or its name on a hub
model = AutoModelForCausalLM.from_pretrained(name{trust})
tokenizer = AutoTokenizer.from_pretrained(name{trust})
```"""
OWN_CODE = (
    "The layers differ in their numbers of heads and channels. Two short Python files in the folder build the "
    "family's own layers with these numbers; `trust_remote_code=True` allows them to run. `config.json` holds every "
    "layer's widths under `per_layer_config`."
)
FAMILY_CODE = "All layers have the same widths, so the family's own class loads this checkpoint without remote code."


def inherited_metadata(base: Path | None) -> dict[str, Any]:
    """License and language that the base model's own card, in the folder ``base``, declares.

    Nothing is invented: without a card, or with one that cannot be read, there is no license to inherit. A link to a
    file is kept where that file travels too; links to pages are kept as they are.
    """
    if base is None or not (base / "README.md").is_file():
        return {}
    try:
        found = metadata_load(base / "README.md")
    except Exception:  # front matter of strangers: a YAML error of any kind
        return {}
    if not isinstance(found, dict):
        return {}
    inherited = {key: found[key] for key in INHERITED if found.get(key)}
    link = str(inherited.get("license_link", ""))
    if link and "://" not in link and Path(link) not in travelling_files(base):
        del inherited["license_link"]
    return inherited


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
    datasets: Sequence[str] = (),
    repair: str = "",
    recovery: str = "",
    travelled: Sequence[str] = (),
    inherited: Mapping[str, Any] | None = None,
    ships_code: bool = True,
) -> str:
    """README.md: what was removed, how, with what result, and how to load it.

    base_model: hub id, folder or ``demo``. The metadata names a hub id only: of anything else a hub would know
    nothing, and the text gives a folder's name, never its path. criterion: None for a replayed plan.
    transforms: option -> value of what acted on the scores, empty for none. calibration: one sentence on the text,
    empty where none was read. dense, pruned: the two halves of evaluation_results.json, None where not measured.
    datasets: where the calibration text came from, as it was asked for; a path is cut to its last part. repair: one
    sentence on how the weights that stayed were refitted, empty where they were not; recovery: on how they were
    trained after the cut. travelled: files that came along from the base model. inherited: ``inherited_metadata``.
    ships_code: False where the family's own class loads the folder.
    """
    shown = _shown_name(base_model)
    after, before = plan.pruned_architecture, plan.architecture
    name = f"{shown.split('/')[-1]}-pruned"
    parts = [
        f"---\n{_metadata(plan, base_model, inherited or {}, ships_code)}\n---\n",
        f"# {name}\n",
        f"`{shown}` with {plan.removed_params:,} of its {before.total_params:,} parameters removed "
        f"({plan.achieved_of_total:.1%}; {after.total_params:,} remain, stored in {stored_dtype}). KV groups (one KV "
        "head with its query heads) and MLP channels were cut from the weight matrices; nothing is masked or sparse.\n",
        f"## How to load it\n\n{LOADING.format(name=name, trust=', trust_remote_code=True' if ships_code else '')}\n",
        f"{OWN_CODE if ships_code else FAMILY_CODE}\n",
        "## How it was pruned\n\n"
        + "\n".join(_method(plan, criterion, transforms, calibration, datasets, repair, recovery))
        + "\n",
        f"## Result\n\n{_results(dense, pruned)}\n",
        f"## Layers\n\n{_layers(plan)}\n",
    ]
    if travelled:
        parts.append(f"## Files of the base model\n\nCopied unchanged: {', '.join(travelled)}.\n")
    return "\n".join(parts)


def _shown_name(base_model: str) -> str:
    return Path(base_model).expanduser().resolve().name if _is_folder(base_model) else base_model


def _is_folder(base_model: str) -> bool:
    path = Path(base_model).expanduser()
    return path.is_dir() or path.is_absolute() or base_model.startswith((".", "~")) or "\\" in base_model


def _hub_id(base_model: str) -> str | None:
    """The name where a hub can know it: owner/model, in letters that it allows."""
    if _is_folder(base_model) or base_model.count("/") != 1:
        return None
    try:
        validate_repo_id(base_model)
    except ValueError:
        return None
    return base_model


def without_paths(sentence: str, datasets: Sequence[str] = ()) -> str:
    """A sentence with each of ``datasets`` that is a path, and any absolute path, cut to the last part.

    ``paragraphs of /home/me/my data/text.txt outside …`` becomes ``paragraphs of text.txt outside …``.
    """
    for dataset in filter(_is_path, datasets):
        path = Path(dataset).expanduser()
        for known in sorted({dataset, str(path), str(path.resolve())}, key=len, reverse=True):
            sentence = sentence.replace(known, path.name)
    return _PATH.sub(lambda found: PurePath(found[0].replace("\\", "/")).name, sentence)


# From the start of a word: /, ~/, ./, ../ or C:\ and what follows up to a space or a mark. Not the / of a URL or a/b.
_PATH = re.compile(r"(?<![\w/:.~\-])(?:~|\.{1,2}|[A-Za-z]:)?[/\\][^\s,;:'\"()]+")


def labels_of(names: Sequence[str]) -> dict[str, str]:
    """Dataset -> what the card calls it: a file's own name, and as many of its folders as tell two of a name apart.

    Where folders of other disks would have to be told, a number does it: ``test.txt (1)``.
    """
    short = {name: Path(name).name if _is_path(name) else name for name in names}
    labels = {}
    for name, label in short.items():
        alike = [other for other, known in short.items() if known == label]
        parents = [Path(other).parent.name for other in alike]
        if len(alike) == 1:
            labels[name] = label
        elif len(set(parents)) == len(alike) and all(parents):
            labels[name] = f"{Path(name).parent.name}/{label}"
        else:
            labels[name] = f"{label} ({alike.index(name) + 1})"
    return labels


def _is_path(name: str) -> bool:
    path = Path(name).expanduser()
    return path.is_absolute() or name.startswith((".", "~")) or path.exists()


def _metadata(plan: PruningPlan, base_model: str, inherited: Mapping[str, Any], ships_code: bool) -> str:
    tags = ["pruned", "structured-pruning", plan.architecture.model_type] + ["custom_code"] * ships_code
    data = ModelCardData(
        **dict(inherited),
        base_model=_hub_id(base_model),
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=tags,
    )
    return data.to_yaml().strip()


def _method(
    plan: PruningPlan,
    criterion: str | None,
    transforms: Mapping[str, Any],
    calibration: str,
    datasets: Sequence[str],
    repair: str,
    recovery: str,
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
        lines.append(f"- layers removed entirely: {', '.join(map(str, plan.removed_layers))}")
    if repair:
        lines.append(f"- repair: {repair}")
    if recovery:
        lines.append(f"- recovery: {recovery}")
    if calibration:
        lines.append(f"- calibration: {without_paths(calibration, datasets)}")
    return lines


def _results(dense: Mapping[str, Any] | None, pruned: Mapping[str, Any] | None) -> str:
    rows = list(_measures(dense, pruned)) if dense and pruned else []
    if not rows:
        return "Nothing was measured after pruning. Measure the model before you use it."
    table = "\n".join(f"| {what} | {before} | {after} |" for what, before, after in rows)
    return f"| measure | before | after |\n|---|---:|---:|\n{table}"


def _measures(dense: Mapping[str, Any], pruned: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    rows = [
        (what, f"{dense[what]:,}", f"{pruned[what]:,}")
        for what in ("parameters", "bytes")
        if what in dense and what in pruned
    ]
    labels = labels_of(list(pruned.get("perplexity", {})))
    for name, after in pruned.get("perplexity", {}).items():
        before = dense["perplexity"][name]
        rows.append((f"perplexity on {labels[name]}", _figure(before["perplexity"]), _figure(after["perplexity"])))
        found = pruned.get("distance", {}).get(name)
        if found:
            kl, same = found["kl_nats_per_token"], found["top1_agreement"]
            rows.append((f"KL from the dense model on {labels[name]}, nats/token", "", _figure(kl)))
            rows.append((f"same likeliest token as the dense model on {labels[name]}", "", _share(same)))
    for task, metrics in pruned.get("tasks", {}).items():
        for metric, value in metrics.items():
            if metric != "num_items" and "_stderr" not in metric:
                rows.append((f"{task} {metric}", _figure(dense["tasks"][task][metric]), _figure(value)))
    rows += _writing(dense.get("generation") or {}, pruned.get("generation") or {})
    if dense.get("latency") and pruned.get("latency"):
        for what in ("prefill_tokens_per_s", "decode_tokens_per_s"):
            rows.append((what, _figure(dense["latency"][what]), _figure(pruned["latency"][what])))
    return rows


def _figure(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.4g}"


def _writing(dense: Mapping[str, Any], pruned: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """How much both models repeat themselves."""
    ways = [way for way in ("greedy", "sampled") if way in dense and way in pruned]
    key = "repeated_4grams"
    return [(f"4-grams repeated in {way} text", _share(dense[way][key]), _share(pruned[way][key])) for way in ways]


def _share(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.1%}"


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
