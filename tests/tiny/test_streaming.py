"""What is read, cut and written tensor by tensor equals, byte for byte, what a model in memory gives."""

import json
import weakref
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from stored_checkpoints import CPU, SHARD, content, in_memory, stored, streamed
from tiny_models import CONFIGS, build, random_plan, token_ids

from importance.from_disk import streamed_magnitude
from importance.magnitude import magnitude_importance
from models.loading import check_model, load_model, open_weights
from models.tensors import INDEX, SINGLE, TensorSpec, specs_of, write_tensors
from pruning.pruned_tensors import fate_of

pytestmark = pytest.mark.usefixtures("word_tokenizer")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_streamed_magnitude_is_the_models(tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    source = stored(tmp_path / "dense", name, dtype)
    expected = magnitude_importance(load_model(source, CPU, torch.float32), source.family, source.architecture)
    actual = streamed_magnitude(open_weights(source, None)[1], source.family, source.architecture)
    assert actual.criterion == "magnitude"
    np.testing.assert_array_equal(actual.values, expected.values)


def test_magnitude_in_blocks_of_rows_is_the_sum_over_all(llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 3 rows of 64 instead of one: 24 channels and 32 query rows are no multiples of it."""
    family, architecture = check_family(llama)
    expected = magnitude_importance(llama, family, architecture).values
    monkeypatch.setattr("importance.magnitude.BLOCK_VALUES", 3 * 64)
    np.testing.assert_allclose(magnitude_importance(llama, family, architecture).values, expected, rtol=1e-6)


def check_family(model: Any) -> tuple[Any, Any]:
    from models.architecture import architecture_of
    from models.family_table import family_of

    family = family_of(model.config.model_type)
    return family, architecture_of(model, family)


class Case(NamedTuple):
    dtype: torch.dtype
    removed_layers: tuple[int, ...]
    shards_in: str
    shards_out: str


CASES = {
    "bfloat16, shards in and out": Case(torch.bfloat16, (), "10KB", "7KB"),
    "float32, a layer goes": Case(torch.float32, (1,), SHARD, "5GB"),
    "float16, the first layer goes, one file in": Case(torch.float16, (0,), "5GB", "20KB"),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_the_streamed_folder_is_the_one_surgery_in_memory_saves(tmp_path: Path, name: str, case: Case) -> None:
    source = stored(tmp_path / "dense", name, case.dtype, case.shards_in)
    plan = random_plan(source.architecture, seed=3, removed_layers=case.removed_layers)
    expected = content(in_memory(source, plan, tmp_path / "memory", case.shards_out))
    folder = streamed(source, plan, tmp_path / "streamed", case.shards_out)
    actual = content(folder)
    assert actual.keys() == expected.keys()
    for file in expected:
        assert actual[file] == expected[file], file
    assert (SINGLE in actual) == (case.shards_out == "5GB")
    assert ((tmp_path / "dense" / INDEX).exists()) == (case.shards_in != "5GB")
    reread = check_model(str(folder))
    assert reread.architecture == plan.pruned_architecture
    assert reread.stored_dtype == case.dtype
    load_model(reread, CPU, torch.float32)(token_ids())
    again = random_plan(reread.architecture, seed=4)  # what was pruned can be pruned again, its own widths counting
    first = content(in_memory(reread, again, tmp_path / "memory-again", case.shards_out))
    assert content(streamed(reread, again, tmp_path / "streamed-again", case.shards_out)) == first


def test_asking_for_a_dtype_rounds_as_loading_in_it_does(tmp_path: Path) -> None:
    source = stored(tmp_path / "dense", "qwen2")
    plan = random_plan(source.architecture)
    expected = content(in_memory(source, plan, tmp_path / "memory", SHARD, torch.bfloat16))
    assert content(streamed(source, plan, tmp_path / "streamed", SHARD, torch.bfloat16)) == expected
    model = load_model(source, CPU, torch.bfloat16)
    values = streamed_magnitude(open_weights(source, torch.bfloat16)[1], source.family, source.architecture).values
    np.testing.assert_array_equal(values, magnitude_importance(model, source.family, source.architecture).values)


def test_without_generation_config_the_one_of_the_configuration_is_saved(tmp_path: Path) -> None:
    source = stored(tmp_path / "dense", "llama")
    (tmp_path / "dense" / "generation_config.json").unlink()
    plan = random_plan(source.architecture)
    expected = content(in_memory(source, plan, tmp_path / "memory", SHARD))
    assert content(streamed(source, plan, tmp_path / "streamed", SHARD)) == expected


def test_fates_by_name(llama: Any) -> None:
    family, architecture = check_family(llama)
    plan = random_plan(architecture, removed_layers=(1,))
    assert fate_of("model.layers.1.mlp.up_proj.weight", family, plan) is None
    assert fate_of("model.norm.weight", family, plan) == ("model.norm.weight", None, None)
    norm = fate_of("model.layers.2.input_layernorm.weight", family, plan)
    assert norm == ("model.layers.1.input_layernorm.weight", 2, None)
    bias = fate_of("model.layers.2.self_attn.q_proj.bias", family, plan)
    assert bias is not None
    assert bias.name == "model.layers.1.self_attn.q_proj.bias"
    assert bias.member is family.members[0]


# The writer against the library's.


def test_one_file_has_the_bytes_that_the_library_writes(tmp_path: Path) -> None:
    """Dtypes of every width, names out of order, an odd number of bytes, a scalar, nothing at all."""
    tensors = {
        "b": torch.arange(6, dtype=torch.bfloat16).reshape(2, 3),
        "a": torch.arange(3, dtype=torch.int8),
        "ü": torch.randn(5, 1).double(),
        "scalar": torch.tensor(2.5),
        "c": torch.randn(3, 4).T.contiguous(),
        "empty": torch.zeros(0, 4),
        "flag": torch.tensor([True, False]),
    }
    specs = {name: TensorSpec(tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    write_tensors(tmp_path, specs, tensors)
    save_file(tensors, tmp_path / "expected.safetensors", metadata={"format": "pt"})
    assert (tmp_path / SINGLE).read_bytes() == (tmp_path / "expected.safetensors").read_bytes()
    with safe_open(tmp_path / SINGLE, "pt") as file:
        assert set(file.keys()) == set(tensors)
        for name, tensor in tensors.items():
            assert torch.equal(file.get_tensor(name), tensor)


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_shards_and_index_are_those_of_save_pretrained(tmp_path: Path, name: str) -> None:
    model = build(name).bfloat16()
    model.save_pretrained(tmp_path / "expected", max_shard_size="9KB")
    (tmp_path / "actual").mkdir()
    metadata = {"total_parameters": model.num_parameters()}
    write_tensors(tmp_path / "actual", specs_of(model, torch.bfloat16), model.state_dict(), "9KB", metadata)
    expected, actual = content(tmp_path / "expected"), content(tmp_path / "actual")
    assert actual == {file: data for file, data in expected.items() if "safetensors" in file}
    index = json.loads(actual[INDEX])
    assert index["metadata"]["total_size"] == sum(2 * tensor.numel() for tensor in model.parameters())
    assert set(actual) == {INDEX, *index["weight_map"].values()}


def test_a_tensor_of_another_shape_than_promised_is_a_bug_not_a_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"w has shape \(3,\)"):
        write_tensors(tmp_path, {"w": TensorSpec(torch.float32, (2,))}, {"w": torch.zeros(3)})


# Memory.


def test_no_more_than_one_stored_tensor_is_alive_and_each_is_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted where bytes enter: an array that np.fromfile returned lives as long as a tensor or view upon it."""
    source = stored(tmp_path / "dense", "llama-biased-tied-mha", torch.bfloat16)
    plan = random_plan(source.architecture)
    alive: set[int] = set()
    largest, reads = 0, 0
    read_file = np.fromfile

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal largest, reads
        array = read_file(*args, **kwargs)
        reads += 1
        alive.add(reads)
        largest = max(largest, len(alive))
        weakref.finalize(array, alive.discard, reads)
        return array

    monkeypatch.setattr(np, "fromfile", counted)
    _, tensors = open_weights(source, None)
    assert reads == 0
    streamed_magnitude(tensors, source.family, source.architecture)
    assert largest <= 2  # a weight and its bias
    assert reads == source.architecture.num_layers * (7 + 7)  # of every member, o_proj's and down_proj's bias too
    largest = reads = 0
    streamed(source, plan, tmp_path / "model", SHARD)
    assert largest == 1
    assert reads == len(tensors)
