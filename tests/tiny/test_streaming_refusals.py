"""Folders that are not what they should be, and writing that does not come to its end: a line, nothing lost."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from stored_checkpoints import CPU, SHARD, content, stored, streamed
from tiny_models import build, random_plan

from core.errors import ModelError, OutputError
from models.loading import ModelSource, check_model, load_model, open_weights
from models.tensors import INDEX, SINGLE, StoredTensors

pytestmark = pytest.mark.usefixtures("word_tokenizer")


def drop_shard(folder: Path) -> str:
    (folder / "model-00002-of-00014.safetensors").unlink()
    return "model-00002-of-00014.safetensors"


def drop_tensor(folder: Path) -> str:
    change(folder, lambda tensors: tensors.pop("model.layers.1.mlp.up_proj.weight"))
    return "model.layers.1.mlp.up_proj.weight"


def drop_many(folder: Path) -> str:
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"] = {"lm_head.weight": index["weight_map"]["lm_head.weight"]}
    (folder / INDEX).write_text(json.dumps(index))
    return "and 26 more"


def cut_tensor(folder: Path) -> str:
    name = "model.layers.1.mlp.up_proj.weight"
    change(folder, lambda tensors: tensors.update({name: tensors[name][:5].contiguous()}))
    return f"{name} has shape (5, 64), its config.json needs (24, 64)"


def cut_file(folder: Path) -> str:
    path = folder / "model-00003-of-00014.safetensors"
    path.write_bytes(path.read_bytes()[:-7])
    return "truncated"


def scribble_index(folder: Path) -> str:
    (folder / INDEX).write_text('{"weight_map": ["model.safetensors"]}')
    return "is not an index"


def no_weights(folder: Path) -> str:
    (folder / INDEX).unlink()
    return f"neither {SINGLE} nor {INDEX}"


def odd_dtype(folder: Path) -> str:
    path = folder / "model-00003-of-00014.safetensors"
    path.write_bytes(path.read_bytes().replace(b'"F32"', b'"X32"'))
    return "X32"


def overlapping(folder: Path) -> str:
    path = folder / "model-00003-of-00014.safetensors"
    path.write_bytes(path.read_bytes().replace(b"[0,", b"[4,"))
    return "is not the size of"


def change(folder: Path, edit: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    """Merge the shards into one file, edited."""
    tensors: dict[str, torch.Tensor] = {}
    for path in folder.glob("*.safetensors"):
        tensors |= load_file(path)
        path.unlink()
    (folder / INDEX).unlink(missing_ok=True)
    edit(tensors)
    save_file(tensors, folder / SINGLE)


SPOILERS = [
    drop_shard,
    drop_tensor,
    drop_many,
    cut_tensor,
    cut_file,
    scribble_index,
    no_weights,
    odd_dtype,
    overlapping,
]


@pytest.mark.parametrize("spoil", SPOILERS)
def test_a_broken_folder_is_one_line(tmp_path: Path, spoil: Callable[[Path], str]) -> None:
    source = stored(tmp_path, "llama")
    word = spoil(tmp_path)
    with pytest.raises(ModelError) as caught:
        open_weights(source, None)
    assert word in str(caught.value)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_cut_while_it_is_read_is_one_line(tmp_path: Path) -> None:
    _, tensors = open_weights(stored(tmp_path, "llama"), None)
    entry = tensors.stored["lm_head.weight"]
    entry.path.write_bytes(entry.path.read_bytes()[: entry.start + 10])
    with pytest.raises(ModelError, match="ends before its tensors do"):
        tensors["lm_head.weight"]


def same_as_loaded(source: ModelSource, tensors: StoredTensors) -> bool:
    model = load_model(source, CPU, torch.float32).state_dict()
    return all(torch.equal(tensor, model[name]) for name, tensor in tensors.items())


def test_a_tied_weight_under_its_other_name_and_twice(tmp_path: Path) -> None:
    source = stored(tmp_path, "gemma2")
    embedding, head = "model.embed_tokens.weight", "lm_head.weight"
    change(tmp_path, lambda tensors: tensors.update({head: tensors[embedding].clone()}))
    twice = open_weights(source, None)[1]
    assert head not in twice
    assert same_as_loaded(source, twice)
    change(tmp_path, lambda tensors: tensors.pop(embedding))
    assert same_as_loaded(source, open_weights(source, None)[1])
    change(tmp_path, lambda tensors: tensors.update({embedding: tensors[head] + 1}))
    with pytest.raises(ModelError, match=f"ties {embedding} and {head}, which differ"):
        open_weights(source, None)
    with pytest.raises(ModelError, match=f"ties {embedding} and {head}, which differ"):
        check_model(str(tmp_path))


def test_names_without_the_prefix_of_the_base_model(tmp_path: Path) -> None:
    """What ``AutoModel.save_pretrained`` writes; with tied embeddings nothing is missing from it."""
    source = stored(tmp_path, "gemma2")
    expected = dict(open_weights(source, None)[1])
    (tmp_path / INDEX).unlink()
    for path in tmp_path.glob("*.safetensors"):
        path.unlink()
    build("gemma2").model.save_pretrained(tmp_path)
    source = check_model(str(tmp_path))
    tensors = open_weights(source, None)[1]
    assert all(torch.equal(tensor, expected[name]) for name, tensor in tensors.items())
    assert same_as_loaded(source, tensors)


# Writing that does not come to its end.


def test_an_interrupted_write_leaves_the_earlier_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = stored(tmp_path / "dense", "llama")
    plan = random_plan(source.architecture)
    folder = streamed(source, plan, tmp_path / "out" / "model", SHARD)
    before = content(folder)
    calls = 0

    def interrupted(*_args: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 9:
            raise KeyboardInterrupt
        return read(*_args)

    read = StoredTensors.__getitem__
    monkeypatch.setattr(StoredTensors, "__getitem__", interrupted)
    with pytest.raises(KeyboardInterrupt):
        streamed(source, plan, folder, SHARD)
    assert calls == 9
    assert content(folder) == before
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


def test_a_disk_without_room_is_one_line_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = stored(tmp_path / "dense", "llama")
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage)
    with pytest.raises(OutputError, match="the disk has 1,000 left"):
        streamed(source, random_plan(source.architecture), tmp_path / "out" / "model", SHARD)
    assert list((tmp_path / "out").iterdir()) == []
