"""The models that the benchmarks prune: small, trained, of other families and shapes than the embedded one."""

import json
import math
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from calibration import evaluation_windows
from evaluation.perplexity import window_nll
from tools.demo_recipe import SHAPES

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "benchmarks" / "models"
MODELS = sorted(path.parent.name for path in FOLDER.glob("*/config.json"))


def test_every_shape_but_the_embedded_one_is_here() -> None:
    assert set(MODELS) == set(SHAPES) - {"demo"}


@pytest.mark.parametrize("name", MODELS)
def test_a_folder_is_small_and_what_its_recipe_says(name: str) -> None:
    files = {file.name: file.stat().st_size for file in (FOLDER / name).iterdir()}
    assert files["model.safetensors"] <= 6_000_000
    assert {Path(file).suffix for file in files} == {".json", ".md", ".safetensors"}
    config = json.loads((FOLDER / name / "config.json").read_text(encoding="utf-8"))
    assert {key: config[key] for key in SHAPES[name]} == SHAPES[name]
    assert config["dtype"] == "bfloat16"
    assert 1 < config["num_key_value_heads"] < config["num_attention_heads"]
    tokenizer = "tokenizer.json"
    assert (FOLDER / name / tokenizer).read_bytes() == (ROOT / "models" / "demo" / tokenizer).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_it_is_trained(name: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(FOLDER / name, dtype=torch.float32).eval()
    windows = evaluation_windows("pydoc", AutoTokenizer.from_pretrained(FOLDER / name), 256, 24, "pydoc")
    assert windows.text_bytes is not None
    nats = window_nll(model, windows.ids, batch_size=8, description=name).sum()
    assert nats / math.log(2) / windows.text_bytes <= 3.0
