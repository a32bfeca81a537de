"""Task accuracy through lm-eval, on a model and tokenizer that are already in memory.

lm-eval and datasets are imported inside the functions: only a run that names tasks pays for them.

``lm_eval.evaluate`` is called rather than ``simple_evaluate``: the latter also asks the hub about the model, runs
git in the current folder and lists the installed packages, for a report that is not used here.
"""

import copy
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.batching import with_batch_that_fits
from core.errors import DataError
from evaluation.catalogue import load
from evaluation.measuring import as_found, seeded
from evaluation.quiet import quiet

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

FIRST_BATCH_SIZE = 16  # the first tried where none is given
BOOTSTRAP_ITERATIONS = 1000  # for metrics without a closed-form standard error; accuracies have one


def run_tasks(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    names: list[str],
    task_path: str | Path | None,
    *,
    batch_size: int | None,
    seed: int,
    limit: int | None = None,
) -> dict[str, dict[str, Any]]:
    """Task -> {metric: value, metric_stderr: value, "num_items": n}; a group stands beside its tasks.

    A metric behind a filter other than the default is named ``metric,filter``. limit: only the first items of each
    task. batch_size None starts at FIRST_BATCH_SIZE and halves on out-of-memory. Model, tokenizer and random
    generators are left as found. Raises DataError where a task cannot be loaded (``check_tasks`` finds that out
    earlier) or an item does not fit the model, UsageError where memory does not suffice.
    """
    attempt = partial(_evaluate, model, tokenizer, names, task_path, seed, limit)
    with as_found(model), seeded(seed), quiet():
        first = batch_size or FIRST_BATCH_SIZE
        results, _ = with_batch_that_fits(attempt, first, fixed=batch_size is not None)
    entries = {}
    for name, entry in results["results"].items():
        tasks = _tasks_of(name, results.get("group_subtasks", {}))
        items = sum(results["n-samples"][task]["effective"] for task in tasks)
        entries[name] = _metrics(entry) | {"num_items": items}
    return entries


def _evaluate(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    names: list[str],
    task_path: str | Path | None,
    seed: int,
    limit: int | None,
    batch_size: int,
) -> dict[str, Any]:
    """lm-eval's own result dictionary."""
    import lm_eval
    from lm_eval.models.huggingface import HFLM

    loaded = load(names, task_path)
    for task in loaded["tasks"].values():
        if task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=seed)
    # A copy, because lm-eval may give the tokenizer a padding token. "causal" spares it guessing the kind of a model
    # class it does not know.
    lm = HFLM(pretrained=model, tokenizer=copy.deepcopy(tokenizer), backend="causal", batch_size=batch_size)
    try:
        return lm_eval.evaluate(
            lm=lm, task_dict=loaded, limit=limit, bootstrap_iters=BOOTSTRAP_ITERATIONS, log_samples=False
        )
    except AssertionError as error:  # what lm-eval says of an item that it cannot score
        raise DataError(
            f"an item of {', '.join(names)} cannot be scored: its answer is empty, or longer than "
            f"the model's context of {lm.max_length} tokens"
        ) from error


def _metrics(entry: dict[str, Any]) -> dict[str, float]:
    """{"acc,none": 0.5, "acc_stderr,none": 0.1, "alias": ...} -> {"acc": 0.5, "acc_stderr": 0.1}."""
    return {
        key.removesuffix(",none"): float(value)
        for key, value in entry.items()
        if "," in key and isinstance(value, (int, float))
    }


def _tasks_of(name: str, groups: dict[str, list[str]]) -> list[str]:
    """The tasks inside a group, at any depth; a task is its own only one."""
    members = groups.get(name)
    return [task for member in members for task in _tasks_of(member, groups)] if members else [name]
