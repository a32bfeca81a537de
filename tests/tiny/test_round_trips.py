"""Saved folders of every family, handled as folders from the hub are: see ``round_trips.py`` for what is checked."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from pruned_folders import prune_and_save
from round_trips import CHECKS, SkippedError
from tiny_models import CONFIGS
from transformers import AutoConfig
from workspace import Workspace


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("pruned")
    return {name: prune_and_save(root, name) for name in CONFIGS}


SLOW = ("torch.compile",)


@pytest.mark.filterwarnings(
    "ignore:.(gradient_checkpointing_enable|is_gradient_checkpointing).:FutureWarning"
)  # until v6
@pytest.mark.parametrize(
    "check", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in CHECKS]
)
@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_round_trip(folders: dict[str, Path], name: str, check: str) -> None:
    try:
        CHECKS[check](folders[name])
    except SkippedError as reason:
        pytest.skip(str(reason))


@pytest.mark.slow
def test_lm_evals_own_command_line_takes_the_folder(tmp_path: Path) -> None:
    workspace = Workspace.make(tmp_path)
    model = workspace.run("run", "--run_evaluation", "none") / "model"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "lm_eval", "--model", "hf", "--tasks", "tiny_choice", "--device", "cpu"),
            *("--model_args", f"pretrained={model},trust_remote_code=True,dtype=float32"),
            *("--include_path", str(workspace.task_folder), "--output_path", str(tmp_path / "scores")),
        ],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (scores,) = (tmp_path / "scores").rglob("results_*.json")
    assert 0 <= json.loads(scores.read_text())["results"]["tiny_choice"]["acc,none"] <= 1


def test_the_config_gives_every_layer_its_widths_by_number(folders: dict[str, Path]) -> None:
    """What engines that size layers one by one read (vLLM's Transformers backend): per_layer_config[int]."""
    stored = json.loads((folders["qwen3"] / "config.json").read_text())
    config = AutoConfig.from_pretrained(folders["qwen3"], trust_remote_code=True)
    assert config.is_heterogeneous
    assert {"num_attention_heads", "num_key_value_heads", "intermediate_size"} <= set(config.per_layer_attributes)
    for layer in range(config.num_hidden_layers):
        for name, width in stored["per_layer_config"][str(layer)].items():
            assert getattr(config.per_layer_config[layer], name) == width
