"""The embedded model: it is small, it is trained, and it would miss what is taken from it at random."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from calibration import evaluation_windows
from calibration.paragraphs import normalised
from calibration.pydoc import pydoc_corpus
from core.windows import TokenWindows

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "models" / "demo"
ITEMS = ROOT / "evaluation" / "tasks" / "pydoc_cloze" / "items.jsonl"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def tokenizer():  # type: ignore[no-untyped-def]
    return AutoTokenizer.from_pretrained(FOLDER)


@pytest.fixture
def model():  # type: ignore[no-untyped-def]
    return AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def windows(tokenizer) -> TokenWindows:  # type: ignore[no-untyped-def]
    return evaluation_windows("pydoc", tokenizer, 512, 12, "pydoc")


@torch.no_grad()
def nats(model: torch.nn.Module, windows: TokenWindows) -> float:
    """Sum of the negative log-likelihood over all predicted tokens."""
    total = 0.0
    for row in torch.from_numpy(windows.ids).split(4):
        logits = model(input_ids=row).logits[:, :-1].flatten(0, 1)
        total += float(torch.nn.functional.cross_entropy(logits, row[:, 1:].flatten(), reduction="sum"))
    return total


def test_the_folder_is_small_and_holds_safetensors_only() -> None:
    files = [file for file in FOLDER.rglob("*") if file.is_file() and "__pycache__" not in file.parts]
    assert sum(file.stat().st_size for file in files) <= 12_000_000
    assert not [file.name for file in files if file.suffix in {".bin", ".pt", ".pth", ".pkl"}]


def test_it_has_grouped_queries_and_is_kept_in_bfloat16() -> None:
    config = json.loads((FOLDER / "config.json").read_text(encoding="utf-8"))
    assert config["num_hidden_layers"] >= 8
    assert 1 < config["num_key_value_heads"] < config["num_attention_heads"]
    assert config["dtype"] == "bfloat16"


def test_a_text_begins_with_bos_and_survives_the_tokenizer(tokenizer) -> None:  # type: ignore[no-untyped-def]
    text = "def f(x):\n\treturn  'é €'  # two blanks"
    ids = tokenizer(text)["input_ids"]
    assert ids[0] == tokenizer.bos_token_id
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_it_is_trained(model, windows) -> None:  # type: ignore[no-untyped-def]
    assert windows.text_bytes is not None
    assert nats(model, windows) / math.log(2) / windows.text_bytes <= 2.4


def test_it_would_miss_what_is_taken_at_random(model, windows) -> None:  # type: ignore[no-untyped-def]
    """30 % of the KV groups and channels of every layer, silenced by their columns: perplexity grows by 10 %."""
    dense = nats(model, windows)
    rng = np.random.default_rng(0)
    config = model.config
    per_group = config.num_attention_heads // config.num_key_value_heads * config.head_dim
    with torch.no_grad():
        for layer in model.model.layers:
            channels = rng.permutation(config.intermediate_size)[: round(0.3 * config.intermediate_size)]
            layer.mlp.down_proj.weight[:, torch.from_numpy(channels)] = 0
            if rng.random() < 0.3 * config.num_key_value_heads:  # 1 group of 3 in 9 layers of 10
                first = int(rng.integers(config.num_key_value_heads)) * per_group
                layer.self_attn.o_proj.weight[:, first : first + per_group] = 0
    predicted = windows.ids[:, 1:].size
    assert math.exp((nats(model, windows) - dense) / predicted) >= 1.1


def test_the_items_of_the_task_come_from_held_out_text() -> None:
    items = [json.loads(line) for line in ITEMS.read_text(encoding="utf-8").splitlines()]
    assert len(items) >= 200
    for item in items:
        assert len(set(item["choices"])) == 4
    assert min(np.bincount([item["answer"] for item in items], minlength=4)) >= len(items) / 8
    passages = [f"{item['context']} {item['choices'][item['answer']]}" for item in items]
    corpus = pydoc_corpus()
    seen = normalised("\n\n".join(corpus.calibration))
    held_out = normalised("\n\n".join(corpus.evaluation))
    assert not [passage for passage in passages if passage in seen]
    # Another Python than the one the items were taken from may have reworded some of them.
    assert sum(passage in held_out for passage in passages) >= 0.7 * len(passages)
