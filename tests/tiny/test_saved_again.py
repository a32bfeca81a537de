"""A pruned folder after what people do to it: loaded, changed, saved by transformers, in shards, in another dtype."""

import json
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch
from test_checkpoint import pruned, save
from test_tampered_folder import config_with
from tiny_models import CONFIGS, build, token_ids

from core.errors import ModelError
from models.architecture import architecture_of
from models.family_table import family_of
from models.loading import ModelSource, check_model, load_model, open_weights
from models.stored import layer_shapes

CPU = torch.device("cpu")
IDS = token_ids()


def loaded(source: ModelSource, dtype: torch.dtype = torch.float32) -> Any:
    return load_model(source, CPU, dtype)


def saved_again(folder: Path, again: Path, **options: Any) -> ModelSource:
    """What every training script ends with."""
    source = check_model(str(folder))
    model = loaded(source, source.stored_dtype)
    model.save_pretrained(again, **options)
    source.tokenizer.save_pretrained(again)
    return check_model(str(again))


@pytest.mark.usefixtures("word_tokenizer")
@pytest.mark.parametrize("name", CONFIGS)
def test_every_family_survives_being_saved_by_transformers(tmp_path: Path, name: str) -> None:
    removed = (1,) if sorted(CONFIGS).index(name) % 2 else ()
    model = pruned(build(name), removed_layers=removed)
    source = saved_again(save(model, tmp_path / "first"), tmp_path / "again", max_shard_size="20KB")
    assert (tmp_path / "again" / "model.safetensors.index.json").exists()
    assert source.architecture == architecture_of(model, family_of(source.family.model_type))
    again = loaded(source)
    assert torch.equal(again(IDS).logits, model(IDS).logits)
    state = again.state_dict()
    assert all(torch.equal(tensor, state[key]) for key, tensor in open_weights(source, None)[1].items())
    twice = check_model(str(save(pruned(again), tmp_path / "twice")))
    assert twice.architecture.total_params < source.architecture.total_params


def test_another_dtype_is_kept(tmp_path: Path) -> None:
    folder = save(pruned(build("llama")), tmp_path / "first", torch.bfloat16)
    assert saved_again(folder, tmp_path / "again").stored_dtype == torch.bfloat16
    config_with(lambda config: config.pop("dtype"))(tmp_path / "again")
    assert check_model(str(tmp_path / "again")).stored_dtype == torch.bfloat16


def config(**values: Any) -> dict[str, Any]:
    sizes = {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 9}
    return {"model_type": "pruned_llama", "hidden_size": 32, "num_hidden_layers": 12} | sizes | values


def test_only_what_differs_is_written_and_layers_may_be_numbered_with_two_digits() -> None:
    """4 heads of 8 values fill a hidden size of 32; transformers pads numbers so that they sort."""
    sparse = {"00": {"intermediate_size": 5}, "11": {"num_attention_heads": 2, "num_key_value_heads": 1}}
    shapes = layer_shapes(config(per_layer_config=sparse))
    assert {shape.head_dim for shape in shapes} == {8}
    assert [shape.intermediate_size for shape in shapes] == [5] + [9] * 11
    assert [(shape.num_heads, shape.num_kv_heads) for shape in shapes] == [(4, 2)] * 11 + [(2, 1)]
    assert layer_shapes(config()) == layer_shapes(config(per_layer_config={})) == [shapes[5]] * 12


@pytest.mark.parametrize("key", ["12", "-1", "first"])
def test_a_layer_that_is_not_there(key: str) -> None:
    with pytest.raises(ModelError, match=f"names layer {key}, and the last of 12 layers is 11"):
        layer_shapes(config(per_layer_config={key: {}}))


def test_a_head_size_that_is_the_default_may_be_left_out(tmp_path: Path) -> None:
    model = pruned(build("llama"))
    folder = save(model, tmp_path / "model")
    config_with(lambda values: values.pop("head_dim"))(folder)
    assert torch.equal(loaded(check_model(str(folder)))(IDS).logits, model(IDS).logits)


def in_a_hub_cache(folder: Path, cache: Path, name: str) -> Path:
    """The files of ``folder`` as a hub id that has been downloaded; returns the snapshot."""
    home = cache / f"models--{name.replace('/', '--')}"
    snapshot = home / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text("a" * 40)
    for path in folder.iterdir():
        (snapshot / path.name).symlink_to(path)
    return snapshot


def test_a_hub_id_is_taken_and_refused_like_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Our own copy of the classes is used, so no remote code is trusted; the folder's Python must not run."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    model = pruned(build("llama"))
    folder = save(model, tmp_path / "model")
    for file in folder.glob("*.py"):
        file.write_text("raise SystemExit")
    in_a_hub_cache(folder, tmp_path / "hub", "acme/pruned")
    source = check_model("acme/pruned")
    assert (source.path, source.name) == ("acme/pruned", "pruned")
    assert torch.equal(loaded(source)(IDS).logits, model(IDS).logits)
    assert json.loads((source.folder / "config.json").read_text())["model_type"] == "pruned_llama"
    (folder / "adapter_config.json").write_text("{}")
    in_a_hub_cache(folder, tmp_path / "hub", "acme/tuned")
    with pytest.raises(ModelError, match="acme/tuned holds an adapter beside its weights"):
        check_model("acme/tuned")
    with pytest.raises(ModelError, match=r"cannot read the configuration of acme/nothing.*--base_model demo"):
        check_model("acme/nothing")
