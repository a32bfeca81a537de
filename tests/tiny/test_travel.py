"""Files that lie beside a model's weights travel with it; what belongs to the dense model alone stays behind."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import build, random_plan
from transformers import AutoTokenizer
from workspace import word_tokenizer

from core.errors import OutputError
from models.architecture import architecture_of
from models.family_table import family_of
from models.narrow import empty_narrow_model
from models.saving import GENERATION, checkpoint_bytes, save_checkpoint
from models.stock import save_stock_checkpoint
from models.travel import carry_files, dense_folder, travelling_files
from pruning.surgery import operate

TRAVEL = ["LICENSE", "LICENSE-2.0", "NOTICE", "USE_POLICY.md", "COPYING", "terms.pdf", "tokenizer.model"]
TRAVEL += ["tokenizer.json", "special_tokens_map.json", "merges.txt", "vocab.json", "generation_config.json"]
TRAVEL += ["chat_template.jinja", "tekken.json", "qwen.tiktoken", "additional_chat_templates/tool_use.jinja"]
STAY = [
    "README.md",
    "config.json",
    "params.json",
    "model.safetensors",
    "model.safetensors.index.json",
    "x.bin",
    "x.pth",
]
STAY += ["x.gguf", "x.onnx", "x.pkl", "modeling_x.py", ".env", ".git/HEAD", "original/LICENSE", "trainer_state.json"]
STAY += ["data.jsonl", "requirements.txt"]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    for name in (*TRAVEL, *STAY):
        path = tmp_path / "base" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"content of {name}")
    return tmp_path / "base"


def test_what_is_neither_weights_nor_code_travels(base: Path, tmp_path: Path) -> None:
    assert [str(path) for path in travelling_files(base)] == sorted(TRAVEL)
    (tmp_path / "model").mkdir()
    carry_files(base, tmp_path / "model")
    for name in TRAVEL:
        assert (tmp_path / "model" / name).read_bytes() == (base / name).read_bytes()
    assert carry_files(None, tmp_path / "model") == []


def test_a_link_that_leaves_the_folder_stays_behind(base: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("mine")
    (base / "notes.txt").symlink_to(tmp_path / "secret.txt")
    assert Path("notes.txt") not in travelling_files(base)


def test_the_files_of_a_hub_snapshot_are_links_and_travel(tmp_path: Path) -> None:
    """models--owner--name/snapshots/<commit>/LICENSE -> ../../blobs/<hash>."""
    repository = tmp_path / "models--some--model"
    (repository / "blobs").mkdir(parents=True)
    (repository / "snapshots" / "abc").mkdir(parents=True)
    (repository / "blobs" / "0123").write_text("terms")
    (repository / "snapshots" / "abc" / "LICENSE").symlink_to("../../blobs/0123")
    assert travelling_files(repository / "snapshots" / "abc") == [Path("LICENSE")]


def test_an_enormous_document_stays_behind(base: Path) -> None:
    with (base / "book.txt").open("wb") as file:
        file.truncate(17 * 2**20)
    assert Path("book.txt") not in travelling_files(base)


def test_a_folder_is_its_own_place_and_nothing_has_none(base: Path) -> None:
    assert dense_folder(str(base)) == base
    assert dense_folder("/no/such/folder") is None


def narrow(generation: dict[str, Any] | None = None) -> Any:
    model = build("llama")
    model.generation_config.update(**(generation or {}))
    family = family_of("llama")
    plan = random_plan(architecture_of(model, family), 3)
    return operate(model, empty_narrow_model(model, family, plan), family, plan)


def dense_files(folder: Path, **config: Any) -> Path:
    """A word tokenizer with two chat templates, written by transformers, its config then edited; None removes a key."""
    tokenizer = word_tokenizer()
    tokenizer.chat_template = {"default": "D{{messages}}", "tool_use": "T{{messages}}"}
    tokenizer.save_pretrained(folder)
    values = json.loads((folder / "tokenizer_config.json").read_text()) | config
    kept = {key: value for key, value in values.items() if value is not None}
    (folder / "tokenizer_config.json").write_text(json.dumps(kept))
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    return folder


def saved(tokenizer: Any, folder: Path, base: Path | None, model: Any = None) -> Path:
    return save_checkpoint(model or narrow(), family_of("llama"), tokenizer, folder, torch.float32, base=base)


def test_the_tokenizer_keeps_the_dense_folders_bytes(tmp_path: Path) -> None:
    base = dense_files(tmp_path / "base", tokenizer_class="PreTrainedTokenizerFast", backend=None)
    folder = saved(AutoTokenizer.from_pretrained(base), tmp_path / "model", base)
    for name in ("tokenizer.json", "tokenizer_config.json", "additional_chat_templates/tool_use.jinja"):
        assert (folder / name).read_bytes() == (base / name).read_bytes()


def test_a_class_that_only_the_dense_type_implied_is_written_down(tmp_path: Path) -> None:
    """tokenizer_config.json may name no class; the type of the pruned model implies none."""
    base = dense_files(tmp_path / "base", tokenizer_class=None)
    tokenizer = AutoTokenizer.from_pretrained(base)
    folder = saved(tokenizer, tmp_path / "model", base)
    again = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    assert again("ba be <s> bi").input_ids == tokenizer("ba be <s> bi").input_ids
    assert again.chat_template == tokenizer.chat_template


def test_a_tokenizer_that_was_changed_is_written_anew(tmp_path: Path) -> None:
    base = dense_files(tmp_path / "base")
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_tokens(["bazoo"])
    folder = saved(tokenizer, tmp_path / "model", base)
    again = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    assert again("ba bazoo").input_ids == tokenizer("ba bazoo").input_ids


def test_without_dense_files_every_release_knows_the_class(tmp_path: Path) -> None:
    config = json.loads((saved(word_tokenizer(), tmp_path / "model", None) / "tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert not {"is_local", "local_files_only", "backend"} & config.keys()


def test_generation_values_that_do_nothing_end_no_run(tmp_path: Path) -> None:
    folder = saved(word_tokenizer(), tmp_path / "model", None, narrow({"do_sample": False, "temperature": 0.3}))
    assert json.loads((folder / GENERATION).read_text())["temperature"] == 0.3
    base = dense_files(tmp_path / "base")
    (base / GENERATION).write_text('{"temperature": 0.25,\n"do_sample": false}')
    assert (saved(word_tokenizer(), tmp_path / "other", base) / GENERATION).read_text() == (
        base / GENERATION
    ).read_text()


def test_generation_values_in_config_json_end_no_run(tmp_path: Path) -> None:
    """Checkpoints from before generation_config.json keep them there; save_pretrained refuses to."""
    model = narrow()
    model.config.temperature = 0.7
    folder = saved(word_tokenizer(), tmp_path / "model", None, model)
    assert json.loads((folder / "config.json").read_text())["temperature"] == 0.7


def test_folders_can_be_entered(tmp_path: Path) -> None:
    """A folder without x keeps its files from everybody but root."""
    base, before = dense_files(tmp_path / "base"), os.umask(0o022)
    try:
        folder = saved(AutoTokenizer.from_pretrained(base), tmp_path / "model", base)
    finally:
        os.umask(before)
    modes = {path.stat().st_mode & 0o777 for path in folder.rglob("*") if path.is_file()}
    assert (folder / "additional_chat_templates").stat().st_mode & 0o777 == 0o755
    assert modes == {0o644}


def test_a_full_disk_says_what_is_needed_and_what_is_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_args: Any, **_kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("models.saving.write_tensors", full)
    with pytest.raises(OutputError, match=r"needs [\d,]+ bytes.*[\d,]+ are free") as caught:
        saved(word_tokenizer(), tmp_path / "model", None)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_known_by_the_words_of_rust_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_args: Any, **_kwargs: Any) -> None:
        raise Exception("No space left on device (os error 28)")

    monkeypatch.setattr("models.saving.save_tokenizer", full)
    with pytest.raises(OutputError, match="full"):
        save_stock_checkpoint(build("llama"), word_tokenizer(), tmp_path / "model", torch.float32)


def test_the_estimate_is_an_upper_bound_of_what_is_written(tmp_path: Path) -> None:
    model = build("llama")
    shape = architecture_of(model, family_of("llama"))
    folder = save_stock_checkpoint(model, word_tokenizer(), tmp_path / "model", torch.bfloat16)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    assert shape.total_params * 2 < size <= checkpoint_bytes(shape, torch.bfloat16)
