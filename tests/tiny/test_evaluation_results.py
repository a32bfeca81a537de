"""Size, speed, one evaluation, and the file that compares two."""

import copy
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from core.files import write_json
from core.windows import TokenWindows
from evaluation import evaluate as module
from evaluation.evaluate import compare, evaluate, results
from evaluation.speed import latency, size


def tiny_model(tied: bool = False) -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=40,
        tie_word_embeddings=tied,
    )
    return LlamaForCausalLM(config).eval()


# A layer: q and o 16x16 each, k and v 8x16 each, three 24x16 matrices, two norms of 16.
LAYER_PARAMS = 2 * 256 + 2 * 128 + 3 * 384 + 2 * 16
EMBEDDING_PARAMS = 50 * 16


@pytest.mark.parametrize(("tied", "copies"), [(False, 2), (True, 1)])
def test_tied_weights_count_once(tied: bool, copies: int) -> None:
    expected = 2 * LAYER_PARAMS + 16 + copies * EMBEDDING_PARAMS
    assert size(tiny_model(tied)) == {"parameters": expected, "bytes": 4 * expected}


def test_bytes_follow_each_parameters_dtype() -> None:
    model = tiny_model().to(torch.bfloat16)
    model.lm_head.float()
    sizes = size(model)
    assert sizes["bytes"] == 2 * sizes["parameters"] + 2 * EMBEDDING_PARAMS


def test_latency_is_positive_and_leaves_the_model_as_found() -> None:
    model = tiny_model().train()
    result = latency(model, vocab_size=50, seq_len=20, new_tokens=5, repeats=3, seed=0)
    assert result["prefill_tokens_per_s"] > 0
    assert result["decode_tokens_per_s"] > 0
    assert (result["prompt_tokens"], result["new_tokens"], result["repeats"]) == (20, 5, 3)
    assert result["peak_memory_bytes"] is None  # on a CPU
    assert all(m.training for m in model.modules())


def test_latency_is_the_median_of_the_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Warm-up 100 s and 100 s, which does not count; prefill 1, 4, 2 s and decode 10, 5, 20 s, medians 2 and 10."""
    seconds = [(100.0, 100.0), (1.0, 10.0), (4.0, 5.0), (2.0, 20.0)]
    moments = iter([moment for prefill, decode in seconds for moment in (0.0, prefill, prefill + decode)])
    monkeypatch.setattr("evaluation.speed.time", SimpleNamespace(perf_counter=lambda: next(moments)))
    result = latency(tiny_model(), vocab_size=50, seq_len=20, new_tokens=5, repeats=3, seed=0)
    assert (result["prefill_tokens_per_s"], result["decode_tokens_per_s"]) == (10.0, 0.5)


def test_latency_decodes_what_greedy_generation_does() -> None:
    """The tokens that pass through the model are the prompt, then those of ``generate``."""
    model, seen = tiny_model(), []
    model.model.embed_tokens.register_forward_pre_hook(lambda _, args: seen.append(args[0][0].tolist()))
    latency(model, vocab_size=50, seq_len=6, new_tokens=4, repeats=1, seed=7)
    prompt, steps = seen[5], [token for (token,) in seen[6:]]  # the first five passes are the warm-up

    model.generation_config.eos_token_id = None
    generated = model.generate(torch.tensor([prompt]), max_new_tokens=4, do_sample=False, pad_token_id=0)
    assert steps == generated[0, 6:].tolist()


def toy_windows(seed: int) -> TokenWindows:
    ids = np.random.default_rng(seed).integers(0, 50, (3, 8), dtype=np.int64)
    return TokenWindows(ids, "toy", "evaluation", "drawn at random", 60)


def run(model: Any, measures: set[str], **options: Any) -> dict[str, Any]:
    windows = {"one": toy_windows(1), "two": toy_windows(2)}
    defaults: dict[str, Any] = {"task_names": [], "task_path": None, "batch_size": None, "seed": 0, "label": "dense"}
    return evaluate(model, None, windows, measures=measures, **(defaults | options))


def test_only_what_was_asked_for_is_measured() -> None:
    model = tiny_model()
    assert run(model, set()) == {
        **size(model),
        "perplexity": {},
        "distance": {},
        "tasks": {},
        "generation": None,
        "latency": None,
    }
    assert list(run(model, {"ppl"})["perplexity"]) == ["one", "two"]


def test_speed_stays_inside_a_short_context() -> None:
    result = run(tiny_model(), {"speed"})["latency"]
    assert (result["prompt_tokens"], result["new_tokens"]) == (20, 20)  # of 40 positions


@pytest.mark.parametrize(("named", "run_names"), [([], ["pydoc_cloze"]), (["toy"], ["toy"])])
def test_tasks_default_to_the_one_that_needs_no_network(
    monkeypatch: pytest.MonkeyPatch, named: list[str], run_names: list[str]
) -> None:
    monkeypatch.setattr(module, "run_tasks", lambda model, tokenizer, names, path, **_: {name: {} for name in names})
    assert list(run(tiny_model(), {"tasks"}, task_names=named)["tasks"]) == run_names


DENSE = {
    "parameters": 1000,
    "bytes": 4000,
    "perplexity": {"pydoc": {"perplexity": 10.0, "nll_nats_per_token": math.log(10)}},
    "tasks": {"cloze": {"acc": 0.5, "acc_stderr": 0.1, "num_items": 20}},
    "generation": {
        "greedy": {"repeated_4grams": 0.25, "ended": 0.5, "length": 64.0},
        "sampled": {"repeated_4grams": 0.0, "ended": None, "length": 64.0},
    },
    "latency": {"prefill_tokens_per_s": 100.0, "decode_tokens_per_s": 10.0},
}
PRUNED = {
    "parameters": 800,
    "bytes": 3000,
    "perplexity": {"pydoc": {"perplexity": 15.0, "nll_nats_per_token": math.log(15)}},
    "tasks": {"cloze": {"acc": 0.375, "acc_stderr": 0.1, "num_items": 20}},
    "generation": {
        "greedy": {"repeated_4grams": 0.5, "ended": None, "length": 56.0},
        "sampled": {"repeated_4grams": 0.0, "ended": None, "length": 64.0},
    },
    "latency": {"prefill_tokens_per_s": 150.0, "decode_tokens_per_s": 11.0},
}


def test_change_worked_by_hand() -> None:
    change = compare(DENSE, PRUNED)
    assert change["perplexity"]["pydoc"].pop("nll_difference_nats_per_token") == pytest.approx(math.log(1.5))
    assert change == {
        "parameter_ratio": 0.8,
        "byte_ratio": 0.75,
        "perplexity": {"pydoc": {"ratio": 1.5}},
        "tasks": {"cloze": {"acc": -0.125}},
        "generation": {
            "greedy": {"repeated_4grams": 0.25, "ended": None, "length": -8.0},
            "sampled": {"repeated_4grams": 0.0, "ended": None, "length": 0.0},
            "texts": {},
        },
        "latency": {"prefill_tokens_per_s": 1.5, "decode_tokens_per_s": 1.1},
    }


def test_change_of_what_is_unknown_is_unknown() -> None:
    broken: dict[str, Any] = copy.deepcopy(PRUNED)
    broken["perplexity"]["pydoc"] = {"perplexity": None, "nll_nats_per_token": None}
    broken["latency"] = None
    change = compare(DENSE, broken)
    assert change["perplexity"]["pydoc"] == {"ratio": None, "nll_difference_nats_per_token": None}
    assert change["latency"] is None


def test_results_of_two_models_are_written(tmp_path: Path) -> None:
    dense, pruned = run(tiny_model(), {"ppl"}), run(tiny_model(tied=True), {"ppl"})

    path = write_json(tmp_path / "evaluation" / "evaluation_results.json", results(dense, pruned))

    written = json.loads(path.read_text(encoding="utf-8"), parse_constant=lambda name: pytest.fail(name))
    assert list(written) == ["dense", "pruned", "before_repair", "before_recovery", "change", "findings"]
    assert written["dense"] == dense
    assert written["change"]["parameter_ratio"] == pruned["parameters"] / dense["parameters"]
    assert written["before_repair"] is None
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_results_before_surgery_have_a_dense_half_only() -> None:
    found = results(run(tiny_model(), set()), None)
    assert (found["pruned"], found["change"]) == (None, None)


def test_a_perplexity_that_is_null_comes_with_a_finding() -> None:
    found = {"perplexity": None, "nll_nats_per_token": None, "invalid_windows": 2, "num_windows": 5}
    good = found | {"perplexity": 3.0, "nll_nats_per_token": 1.1, "invalid_windows": 0}
    dense = {"parameters": 2, "bytes": 4, "perplexity": {"text": good}, "tasks": {}, "latency": None}
    bad = dense | {"perplexity": {"text": found}}
    (finding,) = results(dense, bad)["findings"]
    assert "pruned" in finding
    assert "2 of 5 windows" in finding
    assert results(dense, None)["findings"] == []
    (finding,) = results(dense, dense, {"perplexity": {"text": found}})["findings"]
    assert finding.startswith("before repair: ")
