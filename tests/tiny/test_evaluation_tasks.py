"""lm-eval tasks: found, refused kindly, and scored as a hand would score them."""

import copy
import json
import random
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from core import hub
from core.errors import DataError, UsageError
from core.names import DEFAULT_TASK
from evaluation import catalogue, harness
from evaluation.catalogue import check_tasks
from evaluation.harness import run_tasks
from evaluation.quiet import quiet
from evaluation.seeding import seeded

ROOT = Path(__file__).parents[2]
ITEMS: list[dict[str, Any]] = [
    {"context": "The cat", "choices": ["sat", "flew home"], "answer": 0},
    {"context": "A list", "choices": ["is mutable", "barks", "rains"], "answer": 0},
    {"context": "Water", "choices": ["x", "boils", "reads"], "answer": 1},
    {"context": "To be", "choices": ["or not to be", "q"], "answer": 0},
    {"context": "One two", "choices": ["zz", "three"], "answer": 1},
]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """One token a byte; no padding token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {"<s>": 0} | {symbol: index for index, symbol in enumerate(alphabet, 1)}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="<s>")


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=257,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.3,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture
def task_folder(tmp_path: Path) -> Path:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("\n".join(json.dumps(item) for item in ITEMS), encoding="utf-8")
    (tmp_path / "toy.yaml").write_text(
        f"""task: toy_choice
dataset_path: json
dataset_kwargs:
  data_files:
    test: {rows}
  cache_dir: {tmp_path / "cache"}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{context}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
metric_list:
  - metric: acc
  - metric: acc_norm
""",
        encoding="utf-8",
    )
    return tmp_path


def log_likelihood(model: Any, tokenizer: Any, context: str, choice: str) -> float:
    """ln p(" " + choice | context), in nats."""
    ids = tokenizer(f"{context} {choice}", return_tensors="pt").input_ids
    start = len(tokenizer(context).input_ids)
    with torch.no_grad():
        log_p = model(ids).logits[0].double().log_softmax(-1)
    return float(sum(log_p[t - 1, ids[0, t]] for t in range(start, ids.shape[1])))


def by_hand(model: Any, tokenizer: Any) -> dict[str, float]:
    """acc: the likeliest choice is the answer. acc_norm: the likeliest a character."""
    correct = {"acc": 0, "acc_norm": 0}
    for item in ITEMS:
        context, choices, answer = item["context"], item["choices"], item["answer"]
        scores = np.array([log_likelihood(model, tokenizer, context, c) for c in choices])
        lengths = np.array([len(c) for c in choices])
        correct["acc"] += int(scores.argmax()) == answer
        correct["acc_norm"] += int((scores / lengths).argmax()) == answer
    return {metric: count / len(ITEMS) for metric, count in correct.items()}


def test_scored_as_by_hand(model: Any, tokenizer: Any, task_folder: Path) -> None:
    expected = by_hand(model, tokenizer)
    assert 0 < expected["acc"] < 1 or 0 < expected["acc_norm"] < 1  # otherwise this would show little

    results = run_tasks(model, tokenizer, ["toy_choice"], task_folder, batch_size=None, seed=0)

    assert list(results) == ["toy_choice"]
    assert results["toy_choice"]["num_items"] == 5
    for metric, p in expected.items():
        assert results["toy_choice"][metric] == pytest.approx(p)
        assert results["toy_choice"][f"{metric}_stderr"] == pytest.approx((p * (1 - p) / 4) ** 0.5)


class CustomConfig(LlamaConfig):
    model_type = "of_no_release_of_transformers"


class CustomLM(LlamaForCausalLM):
    config_class = CustomConfig


def test_class_that_transformers_does_not_know(model: Any, tokenizer: Any, task_folder: Path) -> None:
    settings = {key: value for key, value in model.config.to_dict().items() if key != "model_type"}
    custom = CustomLM(CustomConfig(**settings)).eval()
    custom.load_state_dict(model.state_dict())
    results = [run_tasks(m, tokenizer, ["toy_choice"], task_folder, batch_size=4, seed=0) for m in (model, custom)]
    assert results[0] == results[1]


def test_batch_size_and_seed_do_not_show(model: Any, tokenizer: Any, task_folder: Path) -> None:
    runs = [
        run_tasks(model, tokenizer, ["toy_choice"], task_folder, batch_size=size, seed=seed)
        for size, seed in ((1, 0), (4, 1))
    ]
    assert runs[0] == runs[1]


def test_limit_takes_the_first_items(model: Any, tokenizer: Any, task_folder: Path) -> None:
    results = run_tasks(model, tokenizer, ["toy_choice"], task_folder, batch_size=2, seed=0, limit=2)
    assert results["toy_choice"]["num_items"] == 2


def test_batch_is_halved_until_it_fits(
    model: Any, tokenizer: Any, task_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = run_tasks(model, tokenizer, ["toy_choice"], task_folder, batch_size=1, seed=0)
    forward = model.forward

    def limited(input_ids: torch.Tensor, **options: Any) -> Any:
        if len(input_ids) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(input_ids=input_ids, **options)

    monkeypatch.setattr(model, "forward", limited)
    assert run_tasks(model, tokenizer, ["toy_choice"], task_folder, batch_size=None, seed=0) == expected
    with pytest.raises(UsageError, match="--batch_size 8 does not fit"):
        run_tasks(model, tokenizer, ["toy_choice"], task_folder, batch_size=8, seed=0)


def draws() -> list[float]:
    """One number from each global generator."""
    return [random.random(), float(np.random.rand()), float(torch.rand(()))]  # noqa: NPY002


def test_everything_is_left_as_found(
    model: Any, tokenizer: Any, task_folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    import lm_eval.models.huggingface
    from tqdm import tqdm

    training = copy.deepcopy(model).train()
    with seeded(1):
        expected = draws()
    with seeded(1):
        run_tasks(training, tokenizer, ["toy_choice"], task_folder, batch_size=2, seed=3)
        assert draws() == expected

    assert all(module.training for module in training.modules())
    assert tokenizer.pad_token is None
    assert lm_eval.models.huggingface.tqdm is tqdm
    output = capfd.readouterr()
    assert output.out == ""
    assert "WARNING" not in output.err
    assert "pretrained" not in output.err  # the first of lm-eval's remarks on a model that is already in memory


def test_checked_task_is_accepted(task_folder: Path) -> None:
    check_tasks(["toy_choice"], task_folder)


@pytest.fixture
def without_default_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spare a test the several seconds that reading lm-eval's own tasks takes."""
    read = catalogue.manager_of
    monkeypatch.setattr(catalogue, "manager_of", lambda folders, defaults: read(folders, False))


@pytest.mark.usefixtures("without_default_tasks")
def test_unknown_task_names_close_ones(task_folder: Path) -> None:
    with pytest.raises(UsageError, match=r"unknown task 'toy_choise'.*did you mean toy_choice"):
        check_tasks(["toy_choise"], task_folder)
    with pytest.raises(UsageError, match=r"unknown task 'xyzzy'.*pydoc_cloze"):
        check_tasks(["toy_choice", "xyzzy"], task_folder)


@pytest.mark.slow
def test_default_tasks_of_lm_eval_are_known() -> None:
    with pytest.raises(UsageError, match=r"unknown task 'hellaswagg'.*hellaswag"):
        check_tasks(["hellaswagg"], None)


def test_missing_task_folder(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--eval_task_path .*nowhere' is not a folder"):
        check_tasks(["toy_choice"], tmp_path / "nowhere")


def test_missing_data_of_a_task(task_folder: Path) -> None:
    (task_folder / "rows.jsonl").unlink()
    with pytest.raises(DataError, match=r"toy_choice cannot be loaded: .*rows\.jsonl"):
        check_tasks(["toy_choice"], task_folder)


def test_answer_longer_than_the_context(model: Any, tokenizer: Any, task_folder: Path) -> None:
    item = {"context": "A", "choices": ["short", "x" * 64], "answer": 0}  # with the space before it, 65 tokens
    (task_folder / "rows.jsonl").write_text(json.dumps(item), encoding="utf-8")
    with pytest.raises(DataError, match=r"an item of toy_choice cannot be scored: .* context of 64 tokens"):
        run_tasks(model, tokenizer, ["toy_choice"], task_folder, batch_size=2, seed=0)


def test_single_item_has_no_standard_error(model: Any, tokenizer: Any, task_folder: Path) -> None:
    results = run_tasks(model, tokenizer, ["toy_choice"], task_folder, batch_size=2, seed=0, limit=1)
    assert results["toy_choice"]["num_items"] == 1
    assert "acc_stderr" not in results["toy_choice"]


def test_embedded_task_loads_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with quiet():
        (task,) = catalogue.load([DEFAULT_TASK], None)["tasks"].values()
    assert len(task.eval_docs) >= 200


def test_task_that_runs_generated_code_is_refused(task_folder: Path) -> None:
    path = task_folder / "toy.yaml"
    path.write_text(path.read_text(encoding="utf-8") + "unsafe_code: true\n", encoding="utf-8")
    with pytest.raises(UsageError, match="'toy_choice' runs generated code"):
        check_tasks(["toy_choice"], task_folder)


def test_without_network_a_hub_task_fails_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    class HubTask:
        """A manager whose one task has its data on the hub."""

        def load(self, names: list[str]) -> Any:
            return datasets.load_dataset("nobody/nothing-of-this-name")

    monkeypatch.setattr(catalogue, "manager_for", lambda names, path: (HubTask(), False))
    monkeypatch.setattr(hub, "is_reachable", lambda url: False)
    with pytest.raises(DataError, match=r"data of hub_task is not cached and cannot be downloaded.*pydoc_cloze"):
        catalogue.load(["hub_task"], None)


@pytest.mark.parametrize("reachable", [True, False])
def test_offline_only_while_the_hub_is_out_of_reach(monkeypatch: pytest.MonkeyPatch, reachable: bool) -> None:
    import datasets.config
    import huggingface_hub

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "is_reachable", lambda url: reachable)
    with hub.offline_if_unreachable():
        assert huggingface_hub.constants.is_offline_mode() is not reachable
        assert datasets.config.HF_HUB_OFFLINE is not reachable
    assert not huggingface_hub.constants.is_offline_mode()
    assert not datasets.config.HF_HUB_OFFLINE


def test_reachable_is_what_accepts_a_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        assert hub.is_reachable(url)
    assert not hub.is_reachable(url)
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.invalid:3128")
    assert hub.is_reachable(url)


def test_group_has_the_items_of_its_tasks() -> None:
    groups = {"all": ["verbal", "sums"], "verbal": ["rhymes", "riddles"]}
    assert harness._tasks_of("all", groups) == ["rhymes", "riddles", "sums"]
    assert harness._tasks_of("sums", groups) == ["sums"]


def test_metrics_lose_the_default_filter_only() -> None:
    entry = {"alias": "toy", "sample_len": 3, "acc,none": 0.5, "acc_stderr,none": "N/A", "exact_match,strict": 1}
    assert harness._metrics(entry) == {"acc": 0.5, "exact_match,strict": 1.0}


def test_importing_evaluation_leaves_lm_eval_and_datasets_alone() -> None:
    code = "import sys, evaluation.evaluate; print(sorted({'lm_eval', 'datasets'} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert run.stdout.strip() == "[]"
