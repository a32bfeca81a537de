"""Export to GGUF without an engine: what the file says, what is refused, what a user is told."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf_cases import CONFIGS, SHARED, build, pruned, save, tokenizer
from safetensors.torch import load_file, save_file
from tokenizers import normalizers
from transformers import LlamaConfig

from cli.gguf import main
from core.errors import ModelError, UsageError
from core.groups import Architecture, LayerShape
from models.gguf import export_gguf
from models.gguf.gguf_tensors import halves_to_pairs
from models.gguf.row_order import quantisation_notes
from models.loading import check_model, load_model

gguf = pytest.importorskip("gguf")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save(pruned(build(CONFIGS["llama"]())), tmp_path / "model")


def fields(path: Path) -> dict[str, Any]:
    return {name: field.contents() for name, field in gguf.GGUFReader(path).fields.items()}


def test_q_and_k_rows_go_from_halves_to_pairs() -> None:
    """Two heads of 4 rows: 0 1 | 2 3 becomes 0 2 1 3, in a bias as in a weight."""
    rows = torch.arange(8)
    assert halves_to_pairs(rows, 2).tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
    assert halves_to_pairs(torch.stack([rows, rows + 10], dim=1), 2)[:, 1].tolist() == [10, 12, 11, 13, 14, 16, 15, 17]


def test_the_file_holds_the_widths_of_every_layer_and_the_weights(folder: Path) -> None:
    path = export_gguf(folder, outtype="f32").path
    assert path == folder / "model-f32.gguf"
    found, stored = fields(path), load_file(folder / "model.safetensors")
    layers = json.loads((folder / "config.json").read_text())["per_layer_config"].values()
    assert found["general.architecture"] == "deci"
    assert found["deci.attention.head_count"] == [layer["num_attention_heads"] for layer in layers]
    assert found["deci.attention.head_count_kv"] == [layer["num_key_value_heads"] for layer in layers]
    assert found["deci.feed_forward_length"] == [layer["intermediate_size"] for layer in layers]
    assert len({layer["intermediate_size"] for layer in layers}) > 1
    for key in ("attention.key_length", "attention.value_length", "rope.dimension_count"):
        assert found[f"deci.{key}"] == 16
    assert (found["deci.rope.freq_base"], found["deci.context_length"], found["deci.block_count"]) == (5000.0, 128, 3)
    assert (found["tokenizer.ggml.model"], found["tokenizer.ggml.pre"]) == ("gpt2", "gpt-2")
    assert (found["tokenizer.ggml.bos_token_id"], found["tokenizer.ggml.eos_token_id"]) == (0, 1)
    assert found["tokenizer.ggml.token_type"][:3] == [3, 3, 1]
    tensors = {tensor.name: tensor.data for tensor in gguf.GGUFReader(path).tensors}
    assert np.array_equal(tensors["blk.2.ffn_down.weight"], stored["model.layers.2.mlp.down_proj.weight"])
    assert np.array_equal(tensors["blk.0.attn_v.weight"], stored["model.layers.0.self_attn.v_proj.weight"])
    assert sum(data.size for data in tensors.values()) == sum(tensor.numel() for tensor in stored.values())


def test_the_same_folder_gives_the_same_bytes_and_a_failed_export_leaves_none(folder: Path) -> None:
    first = export_gguf(folder, outtype="bf16")
    before = first.path.read_bytes()
    assert export_gguf(folder, outtype="bf16").path.read_bytes() == before
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.2.mlp.up_proj.weight"][0, 0] = 1e6
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"ffn_up\.weight has values that float16 cannot hold .* export bf16 or f32"):
        export_gguf(folder, outtype="f16")
    assert [path.name for path in folder.glob("*.gguf")] == ["model-bf16.gguf"]
    assert not list(folder.glob(".*"))


def test_a_sharded_checkpoint_and_a_dense_one_are_exported_too(tmp_path: Path) -> None:
    model, words = build(CONFIGS["llama-tied-biased"]()), tokenizer()
    for name, shard_size in (("whole", "1GB"), ("model", "100KB")):
        model.save_pretrained(tmp_path / name / "model", max_shard_size=shard_size)
        words.save_pretrained(tmp_path / name / "model")
    assert len(list((tmp_path / "model" / "model").glob("*.safetensors"))) > 1
    whole, sharded = (export_gguf(tmp_path / name / "model").path for name in ("whole", "model"))
    assert whole.read_bytes() == sharded.read_bytes()


def test_openelm_stacks_q_k_and_v(tmp_path: Path) -> None:
    folder = save(pruned(build(CONFIGS["qwen3"]())), tmp_path / "model")
    exported = export_gguf(folder, tmp_path / "elsewhere.gguf", "f32")
    stored = load_file(folder / "model.safetensors")
    tensors = {tensor.name: tensor.data for tensor in gguf.GGUFReader(exported.path).tensors}
    assert exported.arch == "openelm"
    assert "output.weight" not in tensors
    parts = [stored[f"model.layers.1.self_attn.{name}_proj.weight"] for name in "qkv"]
    assert np.array_equal(tensors["blk.1.attn_qkv.weight"], torch.cat(parts))


def test_composing_accents_is_a_note_and_unused_rows_get_tokens(tmp_path: Path) -> None:
    words = tokenizer()
    words.backend_tokenizer.normalizer = normalizers.NFC()
    folder = save(pruned(build(LlamaConfig(**SHARED | {"vocab_size": 640}))), tmp_path / "model", words)
    exported = export_gguf(folder)
    assert "composes accents (NFC)" in exported.notes[0]
    found = fields(exported.path)
    assert len(found["tokenizer.ggml.tokens"]) == 640
    assert found["tokenizer.ggml.token_type"][600:] == [5] * 40


def test_rows_that_quantised_types_cannot_take_are_told() -> None:
    """Rows: C = 512 everywhere, F = 256, 320 (10 blocks of 32), 300 in ffn_down, H*D = 512, 384, 512 in attn_output."""
    shapes = [(8, 256), (6, 320), (8, 300)]
    layers = tuple(LayerShape(heads, 2, 64, channels, 1, 1) for heads, channels in shapes)
    notes = quantisation_notes(Architecture("llama", 512, 1, layers), "f16")
    assert len(notes) == 2
    assert notes[0].startswith("rows that are no multiple of 32: ffn_down in 1 of 3 layers. llama-quantize stops")
    assert "multiple of 256: ffn_down in 2 of 3 layers, attn_output in 1 of 3 layers." in notes[1]
    assert quantisation_notes(Architecture("llama", 512, 1, layers[:1]), "f16") == []
    stays = quantisation_notes(Architecture("llama", 512, 1, layers), "q8_0")
    assert stays == ["rows that are no multiple of 32 stay f16: ffn_down in 1 of 3 layers"]


def test_q8_0_keeps_odd_rows_in_f16(folder: Path) -> None:
    tensors = gguf.GGUFReader(export_gguf(folder, outtype="q8_0").path).tensors
    for tensor in tensors:
        columns = int(tensor.shape[0])
        expected = "F32" if len(tensor.shape) == 1 else "F16" if columns % 32 else "Q8_0"
        assert tensor.tensor_type.name == expected, tensor.name


def test_the_command_line(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(folder), "--outfile", str(tmp_path / "out.gguf"), "--outtype", "f32"]) == 0
    printed = capsys.readouterr()
    assert printed.out.startswith(f"{tmp_path / 'out.gguf'}: deci, 30 tensors, f32, ")
    assert "note: rows that are no multiple of 32" in printed.out
    assert main([str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"error: {tmp_path} has no config.json; give the folder of a saved checkpoint\n"
    with pytest.raises(UsageError, match="outtype q2_k is not one of f32, f16, bf16, q8_0"):
        export_gguf(folder, outtype="q2_k")


def test_a_folder_that_transformers_saved_again_gives_the_same_file(folder: Path, tmp_path: Path) -> None:
    """Only widths that differ from the global ones are named in it, and the weights are in shards."""
    again = tmp_path / "again" / "model"
    source = check_model(str(folder))
    load_model(source, torch.device("cpu"), torch.float32).save_pretrained(again, max_shard_size="100KB")
    source.tokenizer.save_pretrained(again)
    assert len(list(again.glob("*.safetensors"))) > 1
    assert export_gguf(again).path.read_bytes() == export_gguf(folder).path.read_bytes()
