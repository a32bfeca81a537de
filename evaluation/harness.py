"""Task accuracy through lm-eval, on a model and tokenizer that are already in memory.

lm-eval and datasets are imported inside the functions: only a run that names tasks pays for them.

``lm_eval.evaluate`` is called rather than ``simple_evaluate``: the latter also asks the hub about the model, runs
git in the current folder and lists the installed packages, for a report that is not used here.
"""

import copy
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.as_found import evaluating
from core.batching import with_batch_that_fits
from core.engine import engine_of
from core.errors import DataError
from evaluation.catalogue import load
from evaluation.quiet import quiet
from evaluation.seeding import seeded
from evaluation.shared_contexts import Score, scores_of, shared_contexts

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

FIRST_BATCH_SIZE = 16  # the first tried where none is given
ANSWERS_AT_ONCE = 4096
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
    bars: bool = True,
) -> dict[str, dict[str, Any]]:
    """Task -> {metric: value, metric_stderr: value, "num_items": n}; a group stands beside its tasks.

    A metric behind a filter other than the default is named ``metric,filter``. limit: only the first items of each
    task. bars: whether progress shows. batch_size None starts at FIRST_BATCH_SIZE and halves on out-of-memory. Model,
    tokenizer and random generators are left as found. Raises DataError where a task cannot be loaded (``check_tasks``
    finds that out earlier) or an item does not fit the model, UsageError where memory does not suffice.
    """
    attempt = partial(_evaluate, model, tokenizer, names, task_path, seed, limit)
    with evaluating(model), seeded(seed), quiet(bars=bars):
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

    loaded = load(names, task_path)
    for task in loaded["tasks"].values():
        if task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=seed)
    lm = _with_tokenizer(model, tokenizer, batch_size)
    try:
        return lm_eval.evaluate(
            lm=lm, task_dict=loaded, limit=limit, bootstrap_iters=BOOTSTRAP_ITERATIONS, log_samples=False
        )
    except AssertionError as error:  # what lm-eval says of an item that it cannot score
        said = next(iter(str(error).strip().splitlines()), "").removeprefix("Invalid configuration: ")
        why = said or f"its answer is empty, or longer than the model's context of {lm.max_length} tokens"
        raise DataError(f"an item of {', '.join(names)} cannot be scored: {why}; choose other --eval_tasks") from error


def _with_tokenizer(model: Any, tokenizer: Any, batch_size: int) -> Any:
    """lm-eval's view of a model, for tokenizers that lack the special tokens it counts on as well.

    A text of its own starts with BOS or EOS; without either, with ``starting_token``. Without EOS no text ends before
    its length is reached, and padding, whose value never matters, takes the starting token where nothing else is there.
    """
    from lm_eval.models import huggingface

    class AnyTokenizer(huggingface.HFLM):
        def tok_decode(self, tokens: Any, skip_special_tokens: bool = True) -> str:
            if tokens is None:  # asked for the text of EOS where there is none: one that no text holds
                return "\0"
            return super().tok_decode(tokens, skip_special_tokens=skip_special_tokens)

        def _loglikelihood_tokens(self, requests: Any, **how: Any) -> list[Score]:
            """lm-eval's, but contexts of several answers run once. Streamed weights, which are read again for every
            pass, are better off with fewer passes."""
            shared = [] if engine_of(model).streams else shared_contexts(requests, self.max_length)
            answers, total = scores_of(model, shared, batch_size, self.softmax_dtype), sum(map(len, shared))
            found = dict(huggingface.tqdm(answers, total=total, desc="answers", disable=total == 0))
            others = [place for place in range(len(requests)) if place not in found]
            alone = super()._loglikelihood_tokens([requests[place] for place in others], **how) if others else []
            found |= dict(zip(others, alone, strict=True))
            return [found[place] for place in range(len(requests))]

    tokenizer = copy.deepcopy(tokenizer)  # it may be given a padding token
    start = None
    if tokenizer.bos_token_id is None and tokenizer.eos_token_id is None:
        start = starting_token(tokenizer, model.config)
        if tokenizer.pad_token_id is None and tokenizer.unk_token_id is None:
            tokenizer.pad_token_id = start
    # "causal" spares lm-eval guessing the kind of a model class it does not know.
    return AnyTokenizer(
        pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=batch_size, prefix_token_id=start
    )


def starting_token(tokenizer: Any, config: Any) -> int:
    """What stands before a text where the tokenizer names nothing: the configuration's BOS or EOS, or a line's end."""
    size = min(len(tokenizer), config.vocab_size)
    for found in (getattr(config, "bos_token_id", None), getattr(config, "eos_token_id", None)):
        first = found[0] if isinstance(found, (list, tuple)) and found else found
        if isinstance(first, int) and 0 <= first < size:
            return first
    line_end = tokenizer("\n", add_special_tokens=False)["input_ids"]
    return int(line_end[-1]) if line_end else 0


def answer_lengths(task: Any, tokenizer: Any) -> Iterator[tuple[str, int]]:
    """(answer, its tokens) for every answer that a task has scored, each different one once."""
    task.build_all_requests()
    answers = list(dict.fromkeys(item.args[1] for item in task.instances if item.request_type == "loglikelihood"))
    for start in range(0, len(answers), ANSWERS_AT_ONCE):
        some = answers[start : start + ANSWERS_AT_ONCE]
        for answer, ids in zip(some, tokenizer(some, add_special_tokens=False)["input_ids"], strict=True):
            yield answer, len(ids)


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
