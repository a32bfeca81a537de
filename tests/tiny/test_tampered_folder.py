"""A pruned folder that was tampered with: one clear line before weights load, never a weight that is made up."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_checkpoint import save
from tiny_models import build, random_plan
from workspace import Workspace, call, write_model

from core.errors import ModelError
from models.architecture import architecture_of
from models.family_table import family_of
from models.loading import check_model
from models.narrow import empty_narrow_model
from pruning.surgery import operate


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three layers; layer 1 keeps 3 of 4 KV heads, 6 query heads of 8 rows."""
    model, family = build("llama"), family_of("llama")
    plan = random_plan(architecture_of(model, family), seed=3)
    narrow = operate(model, empty_narrow_model(model, family, plan), family, plan)
    return save(narrow, tmp_path_factory.mktemp("sound") / "model")


def config_with(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        change(config)
        (folder / "config.json").write_text(json.dumps(config))

    return spoil


def widths(layer: str, **values: Any) -> Callable[[Path], None]:
    return config_with(lambda config: config["per_layer_config"][layer].update(values))


def tensors_with(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    return spoil


def fewer_layers(config: dict[str, Any]) -> None:
    config["num_hidden_layers"] = 2
    del config["per_layer_config"]["2"]


def without_shard(folder: Path) -> None:
    index = {"metadata": {}, "weight_map": {"model.norm.weight": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")


Q = "model.layers.1.self_attn.q_proj.weight"
# what was done -> words of the line
TAMPERED: dict[str, tuple[Callable[[Path], None], str]] = {
    "a missing layer": (
        config_with(lambda c: c["per_layer_config"].pop("1")),
        f"{re.escape(Q)} is 48 x 64 where the widths of layer 1 ask for 64 rows",
    ),
    "a layer too many": (
        config_with(lambda c: c["per_layer_config"].update({"3": c["per_layer_config"]["0"]})),
        "names layer 3.*last of 3 layers is 2",
    ),
    "a negative layer": (config_with(lambda c: c["per_layer_config"].update({"-1": {}})), "names layer -1"),
    "no table": (
        config_with(lambda c: c.pop("per_layer_config")),
        "widths of layer 0 ask for .*more like it",
    ),
    "a table of another kind": (
        config_with(lambda c: c.update(per_layer_config=[1, 2])),
        r"is \[1, 2\], not an object",
    ),
    "a layer of another kind": (config_with(lambda c: c["per_layer_config"].update({"1": 7})), "layer 1 is 7"),
    "a width that is missing": (
        config_with(lambda c: c["per_layer_config"]["1"].pop("intermediate_size")),
        "mlp.gate_proj.weight is .* where the widths of layer 1 ask for 24 rows",
    ),
    "a width of 0": (widths("1", num_key_value_heads=0), "num_key_value_heads of layer 1 is 0.*at least 1"),
    "a negative width": (widths("1", intermediate_size=-4), "intermediate_size of layer 1 is -4"),
    "half a head": (widths("1", num_attention_heads=6.0), "num_attention_heads of layer 1 is 6.0.*whole number"),
    "a text": (widths("1", num_attention_heads="6"), 'num_attention_heads of layer 1 is "6"'),
    "a truth": (widths("1", num_key_value_heads=True), "num_key_value_heads of layer 1 is true"),
    "heads that do not divide": (widths("1", num_attention_heads=7), "7 query heads.*no multiple of its 3 KV heads"),
    "more heads than tensors hold": (widths("1", num_attention_heads=9), f"{re.escape(Q)} is 48 x 64.*72 rows"),
    "channels without end": (widths("2", intermediate_size=10**30), "up_proj|gate_proj"),
    "no whole head": (config_with(lambda c: c.update(head_dim=0)), "head_dim is 0, not a whole number"),
    "a layer count of another kind": (config_with(lambda c: c.update(num_hidden_layers="3")), "num_hidden_layers is"),
    "a layer fewer": (config_with(fewer_layers), r"model\.layers\.2\..* is left over \(and \d+ more"),
    "another hidden size": (config_with(lambda c: c.update(hidden_size=56)), "64 where config.json asks for .*56"),
    "a hidden size of 0": (config_with(lambda c: c.update(hidden_size=0)), "asks for|cannot|can be built"),
    "a tensor that is missing": (tensors_with(lambda t: t.pop("model.norm.weight")), "model.norm.weight is missing"),
    "a member that is missing": (tensors_with(lambda t: t.pop(Q)), f"{re.escape(Q)} is missing"),
    "a tensor of another shape": (
        tensors_with(lambda t: t.update({"model.norm.weight": torch.ones(63)})),
        "model.norm.weight is 63 where config.json asks for 64",
    ),
    "a tensor too many": (tensors_with(lambda t: t.update(extra=torch.ones(2))), "extra is left over"),
    "a missing shard": (without_shard, "model-00002-of-00002.safetensors.*missing"),
}


@pytest.mark.parametrize("what", TAMPERED)
def test_a_tampered_folder_is_refused_in_one_line(sound: Path, tmp_path: Path, what: str) -> None:
    spoil, words = TAMPERED[what]
    folder = tmp_path / "model"
    shutil.copytree(sound, folder)
    spoil(folder)
    with pytest.raises(ModelError, match=words) as caught:
        check_model(str(folder))
    assert str(folder) in str(caught.value) or "config.json" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_sound_folder_is_taken(sound: Path) -> None:
    assert [layer.num_kv_heads for layer in check_model(str(sound)).architecture.layers][1] == 3


def test_another_peoples_folder_with_a_wrong_shape(tmp_path: Path) -> None:
    """A tied llama stores its embedding once, which is all of it."""
    folder = write_model(tmp_path / "model", "llama-biased-tied-mha")
    check_model(str(folder))
    config_with(lambda config: config.update(intermediate_size=20))(folder)
    with pytest.raises(ModelError, match=r"64 x 24 where config\.json asks for 64 x 20 \(and \d+ more like it\)"):
        check_model(str(folder))


def test_a_pruned_folder_is_pruned_again_and_ratios_count_from_its_size(workspace: Workspace) -> None:
    first = workspace.run("first", "--run_evaluation", "none")
    again = workspace.run("again", "--base_model", str(first / "model"), "--run_evaluation", "none")
    before, after = (json.loads((run / "analysis" / "pruning_comparison.json").read_text()) for run in (first, again))
    assert after["total_params"]["original"] == before["total_params"]["pruned"]
    for layer, earlier in zip(after["layers"], before["layers"], strict=True):
        assert layer["mlp"]["intermediate_size"]["original"] == earlier["mlp"]["intermediate_size"]["pruned"]
    removed = after["total_params"]["original"] - after["total_params"]["pruned"]
    assert 0.35 < removed / check_model(str(first / "model")).architecture.prunable_params <= 0.4
    final = check_model(str(again / "model"))
    assert final.architecture.total_params == after["total_params"]["pruned"]


def test_the_program_refuses_a_tampered_folder(workspace: Workspace) -> None:
    model = workspace.run("to-tamper", "--run_evaluation", "none") / "model"
    config_with(lambda config: config["per_layer_config"]["0"].update(intermediate_size=5))(model)
    output = workspace.root / "never"
    code, out, error = call([*workspace.base_arguments(), "--base_model", str(model), "--output", str(output)])
    assert (code, out) == (2, "")
    line = error.splitlines()[-1]
    assert line.startswith(f"error: {model}: model.layers.0.mlp.")
    assert "ask for 5" in line
    assert "[load model]" not in error
    assert not output.exists()
