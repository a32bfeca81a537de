"""Tasks are rehearsed with the real tokenizer and an empty model: what would fail after an hour fails at once."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from workspace import Workspace, call

from core.errors import DataError
from evaluation.fit import EmptyModel, check_fit
from evaluation.harness import run_tasks, starting_token

CONTEXT = 64
CONFIG = LlamaConfig(
    vocab_size=257,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=1,
    max_position_embeddings=CONTEXT,
)


def byte_tokenizer(**special: str) -> Any:
    """One token a byte, and <s>; which of them are special is the caller's choice."""
    vocabulary = {"<s>": 0} | {symbol: i for i, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()), 1)}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return PreTrainedTokenizerFast(tokenizer_object=backend, **special)


def write_task(folder: Path, name: str, rows: list[dict[str, Any]], **settings: Any) -> str:
    data = folder / f"{name}.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(data)}}, "test_split": "test"}
    (folder / f"{name}.yaml").write_text(json.dumps({"task": name, **source, **settings}))  # JSON is YAML
    return name


def choice(folder: Path, answers: list[str]) -> str:
    rows = [{"question": "Water", "choices": ["boils", answer], "answer": 0} for answer in answers]
    texts = {"doc_to_text": "{{question}}", "doc_to_choice": "{{choices}}", "doc_to_target": "answer"}
    metrics = [{"metric": "acc"}]
    return write_task(folder, "fit_choice", rows, output_type="multiple_choice", **texts, metric_list=metrics)


def written(folder: Path, new_tokens: int) -> str:
    texts = {"doc_to_text": "{{question}}", "doc_to_target": "{{answer}}"}
    how = {"until": ["\n\n"], "max_gen_toks": new_tokens}
    rows, metrics = [{"question": "Water", "answer": "boils"}] * 2, [{"metric": "exact_match"}]
    kind = "generate_until"
    return write_task(
        folder, "fit_written", rows, output_type=kind, generation_kwargs=how, **texts, metric_list=metrics
    )


def rolling(folder: Path) -> str:
    texts, metrics = {"doc_to_text": "", "doc_to_target": "{{text}}"}, [{"metric": "word_perplexity"}]
    rows, kind = [{"text": "Water boils"}] * 2, "loglikelihood_rolling"
    return write_task(folder, "fit_rolling", rows, output_type=kind, **texts, metric_list=metrics)


@pytest.mark.parametrize("special", [{}, {"bos_token": "<s>"}, {"eos_token": "<s>"}], ids=["none", "bos", "eos"])
def test_every_kind_of_task_runs_with_the_special_tokens_there_are(tmp_path: Path, special: dict[str, str]) -> None:
    names = [choice(tmp_path, ["x"] * 3), written(tmp_path, 8), rolling(tmp_path)]
    tokenizer = byte_tokenizer(**special)
    check_fit(names, tmp_path, tokenizer, CONFIG)
    torch.manual_seed(0)
    model = LlamaForCausalLM(CONFIG).eval()
    results = run_tasks(model, tokenizer, names, tmp_path, batch_size=2, seed=0)
    assert [results[name]["num_items"] for name in names] == [3, 2, 2]
    assert tokenizer.pad_token is None  # left as found


def test_an_answer_beyond_the_context_is_found_in_any_item(tmp_path: Path) -> None:
    """Four items fit; the answer of the fifth, a space and 70 letters, does not."""
    name = choice(tmp_path, ["x", "x", "x", "x", "y" * 70])
    with pytest.raises(DataError, match=r"fit_choice cannot be scored: the answer ' y+' is 71 tokens long.*64 tokens"):
        check_fit([name], tmp_path, byte_tokenizer(), CONFIG)


def test_a_text_longer_than_the_context_is_found(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"fit_written.*\(100\).*\(64\)") as caught:
        check_fit([written(tmp_path, 100)], tmp_path, byte_tokenizer(), CONFIG)
    assert "\n" not in str(caught.value)


def test_a_missing_metric_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_args: Any, **_kwargs: Any) -> None:
        raise ModuleNotFoundError("No module named 'sacrebleu'", name="sacrebleu")

    monkeypatch.setattr("evaluation.fit.run_tasks", missing)
    with pytest.raises(DataError, match="package sacrebleu is missing"):
        check_fit([choice(tmp_path, ["x"])], tmp_path, byte_tokenizer(), CONFIG)


def test_ids_beyond_the_embedding_are_found(tmp_path: Path) -> None:
    small = LlamaConfig(**CONFIG.to_dict() | {"vocab_size": 60})
    with pytest.raises(DataError, match="beyond the model's vocabulary of 60"):
        check_fit([choice(tmp_path, ["x"])], tmp_path, byte_tokenizer(), small)


def test_the_starting_token_is_the_configurations_or_a_line_end() -> None:
    tokenizer = byte_tokenizer()
    line_end = tokenizer("\n")["input_ids"][0]
    for bos, eos, expected in [(5, 6, 5), (None, [7, 8], 7), (999, 6, 6), (None, None, line_end)]:
        config = LlamaConfig(**CONFIG.to_dict() | {"bos_token_id": bos, "eos_token_id": eos})
        assert starting_token(tokenizer, config) == expected


def test_the_empty_model_knows_nothing() -> None:
    logits = EmptyModel(CONFIG)(torch.ones(2, 3, dtype=torch.long)).logits
    assert logits.shape == (2, 3, 257)
    assert not logits.any()


def test_a_run_asks_before_it_loads_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = Workspace.make(tmp_path)
    name = written(workspace.task_folder, 10_000)
    monkeypatch.setattr("run.session.load_model", lambda *_: pytest.fail("weights were loaded"))
    asked = ["--run_evaluation", "tasks", "--eval_tasks", name, "--eval_task_path", str(workspace.task_folder)]
    code, _, error = call([*workspace.base_arguments(), "--output", str(tmp_path / "out"), *asked])
    assert code == 2
    assert error.splitlines()[-1].startswith(f"error: an item of {name} cannot be scored")
