"""Everything that is measured on one model, and what changed between the dense and the pruned one."""

from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from core import ranks
from core.names import DEFAULT_TASK
from core.windows import TokenWindows
from evaluation.distance import Distance
from evaluation.generation import WAYS, generation_health
from evaluation.harness import run_tasks
from evaluation.perplexity import Watch, perplexity
from evaluation.speed import latency, size

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PROMPT_TOKENS, NEW_TOKENS, REPEATS = 512, 64, 5  # of the speed measure; fewer where the model's context is shorter


def evaluate(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    windows_by_name: dict[str, TokenWindows],
    *,
    task_names: list[str],
    task_path: str | Path | None,
    measures: Set[str],
    batch_size: int | None,
    seed: int,
    label: str,
    stored_as: torch.dtype | None = None,
    watches: Mapping[str, Watch] | None = None,
    beginnings: Mapping[str, TokenWindows] | None = None,
    chat: Sequence[Sequence[int]] = (),
) -> dict[str, Any]:
    """{"parameters", "bytes", "perplexity": {dataset: ...}, "distance": {dataset: ...}, "tasks": {task: ...},
    "generation": {...} or None, "latency": {...} or None}.

    measures: any of MEASURES; what is left out is empty, or None for generation and latency. "tasks" without names runs
    the task that needs no network. label: says on progress bars which model this is. stored_as: dtype that bytes are
    counted in. watches: by dataset, what sees its batches; of a ``Distance`` the result is told. beginnings: held-out
    texts that "generation" continues, by dataset. chat: instructions that it answers, as token ids. The model is left
    as found.
    """
    result: dict[str, Any] = size(model, stored_as) | nothing_measured()
    if "ppl" in measures:
        result |= on_texts(model, windows_by_name, batch_size=batch_size, label=label, watches=watches or {})
    if not ranks.is_first():  # of several processes one does the rest, and the others wait for what comes next
        return result
    if "tasks" in measures:
        names = task_names or [DEFAULT_TASK]
        result["tasks"] = run_tasks(model, tokenizer, names, task_path, batch_size=batch_size, seed=seed)
    if "generation" in measures:
        assert beginnings, "generation continues a text"
        result["generation"] = generation_health(
            model, tokenizer, beginnings, chat=chat, batch_size=batch_size, seed=seed, label=label
        )
    if "speed" in measures:
        result["latency"] = _latency(model, seed)
    return result


def nothing_measured() -> dict[str, Any]:
    return {"perplexity": {}, "distance": {}, "tasks": {}, "generation": None, "latency": None}


def on_texts(
    model: "PreTrainedModel",
    windows_by_name: Mapping[str, TokenWindows],
    *,
    batch_size: int | None,
    label: str,
    watches: Mapping[str, Watch],
) -> dict[str, Any]:
    """{"perplexity": {dataset: ...}, "distance": {dataset: ...}}, both from one pass over each text."""
    perplexities = {
        name: perplexity(
            model,
            windows,
            batch_size=batch_size,
            description=f"{label}: perplexity on {name}",
            watch=watches.get(name),
        )
        for name, windows in windows_by_name.items()
    }
    distances = {name: watch.result() for name, watch in watches.items() if isinstance(watch, Distance)}
    return {"perplexity": perplexities, "distance": distances}


def compare(dense: dict[str, Any], pruned: dict[str, Any]) -> dict[str, Any]:
    """What became of ``dense``: ratios are pruned / dense, differences pruned - dense; None where either is unknown.

    {"parameter_ratio", "byte_ratio", "perplexity": {dataset: {"ratio", "nll_difference_nats_per_token"}},
    "tasks": {task: {metric: difference}}, "generation": {way: {measure: difference}, "texts": {name:
    the same}} or None, "latency": {measure: ratio} or None}.
    """
    speeds = ("prefill_tokens_per_s", "decode_tokens_per_s")
    both_timed = dense["latency"] and pruned["latency"]
    return {
        "parameter_ratio": pruned["parameters"] / dense["parameters"],
        "byte_ratio": pruned["bytes"] / dense["bytes"],
        "perplexity": {
            name: _perplexity_change(dense["perplexity"][name], after) for name, after in pruned["perplexity"].items()
        },
        "tasks": {
            name: {
                metric: _difference(value, dense["tasks"][name][metric])
                for metric, value in after.items()
                if metric != "num_items" and "_stderr" not in metric
            }
            for name, after in pruned["tasks"].items()
        },
        "generation": _generation_change(dense.get("generation"), pruned.get("generation")),
        "latency": {s: pruned["latency"][s] / dense["latency"][s] for s in speeds} if both_timed else None,
    }


def _generation_change(before: dict[str, Any] | None, after: dict[str, Any] | None) -> dict[str, Any] | None:
    if not before or not after:
        return None
    texts = {
        name: _ways_change(before["texts"][name], found)
        for name, found in after.get("texts", {}).items()
        if name in before.get("texts", {})
    }
    return _ways_change(before, after) | {"texts": texts}


def _ways_change(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    measures = ("repeated_4grams", "ended", "length")
    return {way: {name: _difference(after[way][name], before[way][name]) for name in measures} for way in WAYS}


def _perplexity_change(before: dict[str, Any], after: dict[str, Any]) -> dict[str, float | None]:
    nll = "nll_nats_per_token"
    return {
        "ratio": _ratio(after["perplexity"], before["perplexity"]),
        "nll_difference_nats_per_token": _difference(after[nll], before[nll]),
    }


def results(
    dense: dict[str, Any],
    pruned: dict[str, Any] | None,
    before_repair: dict[str, Any] | None = None,
    before_recovery: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """{"dense", "pruned", "before_repair", "before_recovery", "change", "findings"}, the content of
    ``evaluation_results.json``.

    pruned and change are None where nothing was pruned. before_repair: {"perplexity": ...} of the pruned model without
    its repair, None without one; before_recovery: of the cut model before it was trained. findings: a sentence for
    each perplexity that is None.
    """
    change = None if pruned is None else compare(dense, pruned)
    parts = {"dense": dense, "pruned": pruned, "before_repair": before_repair, "before_recovery": before_recovery}
    found = [sentence for label, part in parts.items() if part for sentence in not_finite(part, label)]
    return parts | {"change": change, "findings": found}


def not_finite(result: dict[str, Any], label: str) -> list[str]:
    """A sentence for each dataset on which a model's loss was NaN or Inf, or its perplexity too large for a number."""
    return [
        f"{label.replace('_', ' ')}: the perplexity on {name} is not finite ({found['invalid_windows']} of "
        f"{found['num_windows']} windows yield NaN or Inf); try --dtype float32, or remove less"
        for name, found in result["perplexity"].items()
        if found["perplexity"] is None
    ]


def _latency(model: "PreTrainedModel", seed: int) -> dict[str, Any]:
    context = getattr(model.config, "max_position_embeddings", PROMPT_TOKENS + NEW_TOKENS)
    new_tokens = min(NEW_TOKENS, context // 2)
    prompt_tokens = min(PROMPT_TOKENS, context - new_tokens)
    return latency(
        model,
        vocab_size=model.config.vocab_size,
        seq_len=prompt_tokens,
        new_tokens=new_tokens,
        repeats=REPEATS,
        seed=seed,
    )


def _ratio(after: float | None, before: float | None) -> float | None:
    return after / before if after is not None and before else None


def _difference(after: float | None, before: float | None) -> float | None:
    return after - before if after is not None and before is not None else None
