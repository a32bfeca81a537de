"""What cannot be exported to GGUF exactly is refused, in one line that says why."""

import errno
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gguf_cases import CONFIGS, SHARED, build, edit, pruned, save, tokenizer
from tiny_models import build as build_any
from tokenizers import normalizers, pre_tokenizers, processors
from transformers import LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

from core.errors import ModelError, OutputError, UsageError
from models.gguf import check_gguf, export_gguf
from models.loading import check_model

pytest.importorskip("gguf")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save(pruned(build(CONFIGS["llama"]())), tmp_path / "model")


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "untied qwen3": (lambda: Qwen3Config(**SHARED, tie_word_embeddings=False), "needs tied embeddings"),
    "biased qwen3": (
        lambda: Qwen3Config(**SHARED, tie_word_embeddings=True, attention_bias=True),
        "openelm has no attention biases",
    ),
    "qwen3 with yarn": (
        lambda: Qwen3Config(
            **SHARED,
            tie_word_embeddings=True,
            rope_parameters={"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0},
        ),
        r"rope scaling 'yarn' cannot be written \(openelm takes default, linear\)",
    ),
    "mistral with a window": (
        lambda: MistralConfig(**SHARED, sliding_window=64),
        "sliding window of 64 tokens within a context of 128",
    ),
    "qwen2 with a window": (
        lambda: Qwen2Config(**SHARED, use_sliding_window=True, sliding_window=64, max_window_layers=2),
        "sliding window of 64 tokens within a context of 128",
    ),
    "dynamic rope": (
        lambda: LlamaConfig(**SHARED, rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}),
        "rope scaling 'dynamic' cannot be written",
    ),
    "gelu": (lambda: LlamaConfig(**SHARED, hidden_act="gelu"), "uses silu, this one gelu"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_the_engine_would_compute_differently_is_refused(name: str, tmp_path: Path) -> None:
    config, reason = REFUSED[name]
    folder = save(pruned(build(config())), tmp_path / "model")
    with pytest.raises(ModelError, match=reason) as raised:
        export_gguf(folder)
    assert "\n" not in str(raised.value)
    with pytest.raises(ModelError, match=reason):
        check_gguf(check_model(str(folder)))
    assert not list(folder.glob("*.gguf"))


@pytest.mark.parametrize("family", ["gemma2", "gemma3_text", "phi3"])
def test_families_without_an_architecture_are_refused(family: str, tmp_path: Path) -> None:
    folder = save(pruned(build_any(family)), tmp_path / "model")
    with pytest.raises(ModelError, match=rf"\({family}\) cannot be exported to GGUF: no GGUF architecture has both"):
        export_gguf(folder)


@pytest.mark.parametrize("width", ["intermediate_size", "num_key_value_heads"])
def test_empty_blocks_are_refused(width: str, folder: Path) -> None:
    layers = json.loads((folder / "config.json").read_text())["per_layer_config"]
    layers["1"][width] = 0
    edit(folder, per_layer_config=layers)
    with pytest.raises(ModelError, match=f"miscomputes empty blocks .layer 1: {width} 0.; prune with a floor"):
        export_gguf(folder)


def test_a_part_of_the_head_that_is_not_rotated_is_refused(folder: Path) -> None:
    edit(folder, rope_parameters={"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5})
    with pytest.raises(ModelError, match="only 50% of a head is rotated, and deci rotates all of it"):
        export_gguf(folder)


def test_a_checkpoint_that_is_not_its_configurations_is_refused(tmp_path: Path) -> None:
    folder = save(build(CONFIGS["llama"]()), tmp_path / "model")
    for change, reason in (
        ({"intermediate_size": 95}, r"layers\.0\.mlp"),
        ({"attention_bias": True}, r"model\.layers\.0\.self_attn\.q_proj\.bias is missing"),
        ({"num_hidden_layers": 3}, r"model\.layers\.3\..* is left over .*config\.json names 3 layers"),
    ):
        config = (folder / "config.json").read_text()
        edit(folder, **change)
        with pytest.raises(ModelError, match=reason):
            export_gguf(folder)
        (folder / "config.json").write_text(config)
    assert not list(folder.glob("*.gguf"))


def prefix_space(words: Any) -> None:
    words.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)


def unknown_split(words: Any) -> None:
    words.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Punctuation(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )


def no_bytes(words: Any) -> None:
    words.backend_tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()


def lowercase(words: Any) -> None:
    words.backend_tokenizer.normalizer = normalizers.Lowercase()


def two_in_front(words: Any) -> None:
    words.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|begin|> <|begin|> $A", special_tokens=[("<|begin|>", 0)]
    )


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (prefix_space, "puts a space before every text"),
        (unknown_split, "splits text by 'Punctuation then gpt2', none of the known ways"),
        (no_bytes, "is not byte-level BPE"),
        (lowercase, r"normalises text \(Lowercase\)"),
        (two_in_front, r"turns 'a' into \[0, 0, \d+\]"),
    ],
)
def test_a_tokenizer_the_engine_lacks_is_refused(change: Callable[[Any], None], reason: str, tmp_path: Path) -> None:
    words = tokenizer()
    change(words)
    folder = save(pruned(build(CONFIGS["llama"]())), tmp_path / "model", words)
    with pytest.raises(ModelError, match=f"its tokenizer {reason}"):
        export_gguf(folder)


def test_a_missing_package_is_one_line_too(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(UsageError, match=r"needs the package gguf: pip install gguf"):
        export_gguf(folder)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError("8192 requested and 1696 written"), "No space left on device"),  # numpy's way to say so
        (OSError(errno.EROFS, "Read-only"), "Read-only file system"),
    ],
)
def test_a_file_that_cannot_be_written_is_named(
    folder: Path, tmp_path: Path, error: OSError, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr("gguf.GGUFWriter.write_tensor_data", fail)
    target = tmp_path / "out" / "model.gguf"
    with pytest.raises(OutputError, match=rf"model\.gguf cannot be written \({reason}\); "):
        export_gguf(folder, target)
    assert not list(target.parent.iterdir())
