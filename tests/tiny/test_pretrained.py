"""The checkpoint that benchmarks take from a GGUF file: what is written is what the file holds."""

from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter, TokenType
from gguf.quants import dequantize, quantize
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.pretrained import convert, pretrained

HIDDEN, HEADS, CHANNELS, VOCABULARY = 64, 2, 96, 260
TENSORS = {
    "token_embd.weight": (VOCABULARY, HIDDEN),
    "output_norm.weight": (HIDDEN,),
    "blk.0.attn_norm.weight": (HIDDEN,),
    "blk.0.ffn_norm.weight": (HIDDEN,),
    **{f"blk.0.attn_{name}.weight": (HIDDEN, HIDDEN) for name in ("q", "k", "v", "output")},
    **{f"blk.0.ffn_{name}.weight": (CHANNELS, HIDDEN) for name in ("gate", "up")},
    "blk.0.ffn_down.weight": (HIDDEN, CHANNELS),
}


def write_gguf(path: Path) -> None:
    """One layer of a Llama with tied embeddings, Q4_1 but for its norms, and a tokenizer of single bytes."""
    rng = np.random.default_rng(0)
    writer = GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_context_length(128)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(CHANNELS)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(VOCABULARY)
    special = ["<unk>", "<s>", "</s>", "<pad>"]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([*special, "ab", *map(chr, range(33, 288))])
    writer.add_token_types([TokenType.CONTROL] * len(special) + [TokenType.NORMAL] * 256)
    writer.add_token_merges(["a b"])
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(3)
    writer.add_chat_template("{{ messages[0]['content'] }}")
    for name, shape in TENSORS.items():
        values = rng.normal(0, 0.1, shape).astype(np.float32)
        if len(shape) == 1:
            writer.add_tensor(name, values)
        else:
            packed = quantize(values, GGMLQuantizationType.Q4_1)
            writer.add_tensor(name, packed, raw_dtype=GGMLQuantizationType.Q4_1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_the_checkpoint_holds_what_the_gguf_file_does(tmp_path: Path) -> None:
    write_gguf(tmp_path / "model.gguf")
    convert(tmp_path / "model.gguf", tmp_path / "again")
    read = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="model.gguf", dtype=torch.float32)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "again")
    held, saved = read.state_dict(), again.state_dict()
    assert list(held) == list(saved)
    assert all(torch.equal(held[name].bfloat16(), saved[name]) for name in held)
    embeddings = dequantize(GGUFReader(tmp_path / "model.gguf").tensors[0].data, GGMLQuantizationType.Q4_1)
    assert torch.equal(torch.from_numpy(embeddings).bfloat16(), again.get_input_embeddings().weight)
    assert again.dtype == torch.bfloat16
    assert not hasattr(again.config, "quantization_config")
    assert (again.generation_config.bos_token_id, again.generation_config.eos_token_id) == (1, 2)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "again")
    assert tokenizer.convert_ids_to_tokens(tokenizer("Yes</s>").input_ids) == ["Y", "e", "s", "</s>"]
    assert tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False) == "Hi"


def test_a_folder_that_is_there_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert pretrained(tmp_path) == tmp_path
    (tmp_path / "config.json").rename(tmp_path / "other.json")
    with pytest.raises(SystemExit, match="holds no checkpoint"):
        pretrained(tmp_path)
