"""The real engine loads our GGUF files and computes what transformers computes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf_cases import (
    CASES,
    CONFIGS,
    PRE_TOKENIZERS,
    SHARED,
    TEXTS,
    Engine,
    build,
    pruned,
    quantised,
    save,
    tokenizer,
    worst_difference,
)
from tiny_models import plan_keeping
from transformers import AutoTokenizer, LlamaConfig

from core.groups import MLP
from models.architecture import architecture_of
from models.checkpoint_files import DEMO
from models.family_table import family_of
from models.gguf import export_gguf
from models.gguf.vocabulary import INEXACT
from models.loading import check_model, load_model

pytest.importorskip("gguf")
pytest.importorskip("xllamacpp")
IDS = [0, *np.random.default_rng(0).integers(2, 600, 99).tolist()]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    model = pruned(build(CONFIGS["llama"]()))
    return model, save(model, tmp_path_factory.mktemp("gguf") / "model")


@pytest.mark.parametrize("name", CONFIGS)
def test_the_engine_computes_the_logits_of_transformers(name: str, tmp_path: Path) -> None:
    """Other widths in every layer, a layer gone. With keys and values in float32 only rounding is left."""
    model = pruned(build(CONFIGS[name]()))
    path = export_gguf(save(model, tmp_path / "model"), outtype="f32").path
    exact, usual = worst_difference(path, model, IDS), worst_difference(path, model, IDS, cache="f16")
    print(f"{name}: {exact:.1e} with an f32 cache, {usual:.1e} with f16")
    assert exact <= 1e-5
    assert usual <= 5e-3


# Whatever the weights, the engine rounds the inputs of f16 (bf16) matrices to f16 (bf16): 2**-11 (2**-8) relative.
@pytest.mark.parametrize(("outtype", "bound"), [("f16", 0.01), ("bf16", 0.1), ("q8_0", 0.2)])
def test_smaller_types_load_and_stay_close(outtype: str, bound: float, llama: tuple[Any, Path]) -> None:
    model, folder = llama
    difference = worst_difference(export_gguf(folder, outtype=outtype).path, model, IDS)
    print(f"{outtype}: {difference:.1e}")
    assert 1e-5 < difference <= bound


def test_greedy_text_is_that_of_transformers(llama: tuple[Any, Path]) -> None:
    model, folder = llama
    words = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    engine = Engine(export_gguf(folder, outtype="f32").path)
    for text in TEXTS[:3]:
        ids = words(text, return_tensors="pt")
        generated = model.generate(**ids, max_new_tokens=20, do_sample=False)[0, ids["input_ids"].shape[1] :].tolist()
        assert engine.generate(text, 20) == [i for i in generated if i != words.eos_token_id]


@pytest.mark.parametrize(("kind", "bound"), [("Q8_0", 0.2), ("Q4_0", 2.0), ("Q4_K", 2.0), ("Q6_K", 0.5)])
def test_quantised_with_the_engines_own_quantiser(kind: str, bound: float, tmp_path: Path) -> None:
    """Layers of 2 and 4 KV groups, 256 and 512 channels: every row is a multiple of 256, as K-quants want."""
    wide = {"hidden_size": 256, "intermediate_size": 512, "head_dim": 64, "num_hidden_layers": 2}
    model = build(LlamaConfig(**SHARED | wide), std=0.05)
    architecture = architecture_of(model, family_of("llama"))
    keep = np.ones(len(architecture.groups), dtype=bool)
    keep[:2] = False  # half the KV groups of layer 0
    keep[architecture.groups.rows(1, MLP)] = np.arange(512) % 2 == 0
    model = pruned(model, plan_keeping(architecture, keep))
    exported = export_gguf(save(model, tmp_path / "model"), outtype="f32")
    assert exported.notes == ()
    difference = worst_difference(quantised(exported.path, kind), model, IDS)
    print(f"{kind}: {difference:.2f}")
    assert difference <= bound


@pytest.mark.parametrize("pre", PRE_TOKENIZERS)
def test_text_becomes_the_same_tokens(pre: str, tmp_path: Path) -> None:
    folder = save(build(LlamaConfig(**SHARED | {"num_hidden_layers": 1})), tmp_path / "model", tokenizer(pre))
    words, engine = AutoTokenizer.from_pretrained(folder), Engine(export_gguf(folder).path)
    for text in TEXTS:
        if not (text == CASES and pre in INEXACT):
            assert engine.tokenize(text) == words(text)["input_ids"], text
            assert engine.tokenize(text, special=False) == words(text, add_special_tokens=False)["input_ids"]


def test_bos_is_added_only_where_the_tokenizer_adds_it_and_chats_follow_the_template(tmp_path: Path) -> None:
    words = tokenizer("qwen2", add_bos=False)
    words.chat_template = "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    folder = save(pruned(build(CONFIGS["qwen2"]())), tmp_path / "model", words)
    engine = Engine(export_gguf(folder).path)
    assert engine.tokenize("Hello") == words("Hello")["input_ids"]
    chat = [{"role": "user", "content": "Hi there"}]
    assert engine.post("/apply-template", {"messages": chat})["prompt"] == words.apply_chat_template(
        chat, tokenize=False
    )


@pytest.mark.slow
@pytest.mark.skipif(not (DEMO / "model.safetensors").exists(), reason="the embedded model is not trained yet")
@pytest.mark.parametrize(("outtype", "bound"), [("f32", 1e-5), ("f16", 5e-3), ("q8_0", 0.5)])
def test_the_demo_model_pruned_unevenly(outtype: str, bound: float, tmp_path: Path) -> None:
    source = check_model("demo")
    model = pruned(load_model(source, torch.device("cpu"), torch.float32))
    folder = save(model, tmp_path / "model", source.tokenizer, torch.bfloat16)
    exported = export_gguf(folder, outtype=outtype)
    text = "The function returns a list of strings. If the argument is not an integer, a TypeError is raised: "
    ids = source.tokenizer(text)["input_ids"]
    difference = worst_difference(exported.path, model, ids)
    print(f"demo, {outtype}: {difference:.1e}")
    assert difference <= bound
    engine = Engine(exported.path)
    assert [engine.tokenize(line) for line in TEXTS] == [source.tokenizer(line)["input_ids"] for line in TEXTS]
    if outtype == "f32":
        with torch.no_grad():
            greedy = model.generate(torch.tensor([ids]), max_new_tokens=24, do_sample=False)[0, len(ids) :].tolist()
        assert engine.generate(text, 24) == [i for i in greedy if i != source.tokenizer.eos_token_id]
        four_bits = quantised(exported.path, "Q4_0")
        coarse = worst_difference(four_bits, model, ids)
        print(f"demo, Q4_0: {coarse:.2f}, {four_bits.stat().st_size / exported.size_bytes:.0%} of the f32 file")
        assert coarse <= 5.0
        assert len(Engine(four_bits).generate(text, 24)) > 0
