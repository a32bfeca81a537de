"""What lies beside the weights and says that they are not all of the model: a line, or a note, never silence."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_tampered_folder import config_with
from tokenizers import AddedToken
from workspace import Workspace, call, word_tokenizer, write_model

from core.errors import ModelError
from models.loading import check_model
from models.tokenizers import load_tokenizer

CODE = {"AutoConfig": "configuration_x.XConfig", "AutoModelForCausalLM": "acme/x--modeling_x.XForCausalLM"}


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("dense") / "model")


@pytest.fixture
def folder(dense: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(dense, tmp_path / "model"))


def refusal(folder: Path, **options: Any) -> str:
    with pytest.raises(ModelError) as caught:
        check_model(str(folder), **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def write_adapter(folder: Path) -> None:
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "acme/base"}))
    (folder / "adapter_model.safetensors").write_bytes(b"")


def test_an_adapter_beside_weights_is_neither_attached_nor_left_out(folder: Path) -> None:
    write_adapter(folder)
    line = refusal(folder)
    assert "an adapter beside its weights (adapter_config.json, adapter_model.safetensors)" in line
    assert "merge_and_unload" in line


def test_an_adapter_without_a_model_names_the_model_to_merge_it_into(folder: Path) -> None:
    write_adapter(folder)
    (folder / "config.json").unlink()
    assert "holds an adapter for acme/base and no model" in refusal(folder)


def test_an_embedding_model_is_not_pruned_by_its_loss_on_text(folder: Path) -> None:
    (folder / "modules.json").write_text("[]")
    assert "embedding model of sentence-transformers (modules.json)" in refusal(folder)


def test_model_code_of_a_checkpoint_is_told_of_and_refused_where_it_is_trusted(folder: Path) -> None:
    config_with(lambda config: config.update(auto_map=CODE))(folder)
    (note,) = check_model(str(folder)).notes
    assert "configuration_x.XConfig, acme/x--modeling_x.XForCausalLM), which is not run" in note
    assert "leave out --trust_remote_code" in refusal(folder, trust_remote_code=True)
    config_with(lambda config: config.update(auto_map={"AutoTokenizer": ["tokenization_x.X", None]}))(folder)
    assert check_model(str(folder), trust_remote_code=True).notes == ()


@pytest.mark.parametrize(("asked", "notes"), [("flash_attention_2", 1), ("sdpa", 0), ("eager", 0), ("no_such", 1)])
def test_kernels_that_are_not_here_do_not_stop_a_model(folder: Path, asked: str, notes: int) -> None:
    config_with(lambda config: config.update(attn_implementation=asked))(folder)
    source = check_model(str(folder))
    assert len(source.notes) == notes
    assert (source.config._attn_implementation == "eager") == (asked == "eager")


def test_the_notes_are_printed(tmp_path: Path) -> None:
    workspace = Workspace.make(tmp_path)
    config_with(lambda config: config.update(auto_map=CODE))(workspace.model)
    out = str(tmp_path / "out")
    code, _, error = call([*workspace.base_arguments(), "--output", out, "--dry_run", "--run_evaluation", "none"])
    assert code == 0
    (note,) = [line for line in error.splitlines() if "which is not run" in line]
    assert note.startswith("note: ")


MULTIMODAL = {"model_type": "gemma3", "text_config": {"model_type": "gemma3_text"}}
CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "a vision model": (MULTIMODAL, r"more than text \(model_type 'gemma3', .*language model \(gemma3_text\) alone"),
    "quantised inside": ({"text_config": {"quantization_config": {"bits": 4}}}, "is quantised"),
    "compressed": ({"compression_config": {"format": "pack"}}, "is quantised"),
    "no family": ({"model_type": None}, "its model_type is null"),
    "an unknown rope": (
        {"rope_parameters": {"rope_type": "spiral", "rope_theta": 1e4}},
        "rope_type is 'spiral', which",
    ),
    "an unknown activation": ({"hidden_act": "swish2"}, "hidden_act is 'swish2', which this release"),
    "a text for a number": ({"hidden_size": "64"}, "'hidden_size'.* expected int, got str"),
}


@pytest.mark.parametrize("what", CONFIGS)
def test_a_configuration_that_cannot_be_used_is_one_line_with_the_reason(folder: Path, what: str) -> None:
    values, words = CONFIGS[what]
    config_with(lambda config: config.update(values))(folder)
    with pytest.raises(ModelError, match=words) as caught:
        check_model(str(folder))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["bos", "eos", "pad"])
def test_a_special_token_beyond_the_embedding(folder: Path, kind: str) -> None:
    """97 rows, 94 tokens, 4 ordinary ones, of which the last is the text's affair; the next has the id 98."""
    words = word_tokenizer()
    words.add_tokens([f"ordinary{number}" for number in range(4)])
    words.save_pretrained(folder)
    check_model(str(folder))
    words.add_special_tokens({f"{kind}_token": AddedToken("<new>")})
    words.save_pretrained(folder)
    line = refusal(folder)
    assert f"its {kind}_token (<new>) the id 98, and the embedding has 97 rows" in line
    assert "resize_token_embeddings(99)" in line


def make_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def link_to_nothing(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


def latin(path: Path) -> None:
    path.write_bytes(b'{"model_type": "\xe9"}')


UNREADABLE: list[tuple[str, Callable[[Path], None], str]] = [
    ("model.safetensors", make_folder, "Is a directory"),
    ("model.safetensors", link_to_nothing, "model.safetensors is a link to a missing file"),
    ("config.json", make_folder, "Is a directory"),
    ("config.json", link_to_nothing, "has no config.json"),
    ("config.json", latin, "utf-8"),
]


@pytest.mark.parametrize(("file", "spoil", "words"), UNREADABLE)
def test_files_that_cannot_be_read(folder: Path, file: str, spoil: Callable[[Path], None], words: str) -> None:
    spoil(folder / file)
    line = refusal(folder)
    assert words in line
    assert str(folder) in line


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_files_that_may_not_be_read(folder: Path, file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root may read everything, so the refusal of the system is played."""
    plain = Path.open

    def deny(path: Path, *arguments: Any, **options: Any) -> Any:
        if path.name == file:
            raise PermissionError(13, "Permission denied", str(path))
        return plain(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", deny)
    assert "Permission denied" in refusal(folder)


def test_weights_under_another_name_are_named(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "consolidated.safetensors")
    assert "from_pretrained does not read consolidated.safetensors" in refusal(folder)


def test_a_single_file_beside_an_index_is_told_of(folder: Path) -> None:
    (folder / "shard.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    index = {"metadata": {}, "weight_map": {"model.norm.weight": "shard.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (note,) = check_model(str(folder)).notes
    assert "the first is read" in note


def test_a_sentencepiece_model_alone_is_a_tokenizer(tmp_path: Path) -> None:
    sentencepiece = pytest.importorskip("sentencepiece")
    text = tmp_path / "text.txt"
    text.write_text("\n".join(f"ba be {word} bo" for word in ("bi", "bu", "da", "de") * 20))
    folder = write_model(tmp_path / "model")
    (folder / "tokenizer.json").unlink()
    sentencepiece.SentencePieceTrainer.train(
        input=str(text), model_prefix=str(folder / "tokenizer"), vocab_size=24, model_type="bpe", minloglevel=2
    )
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer"}')
    tokenizer = load_tokenizer(str(folder), None, False)
    assert tokenizer.decode(tokenizer("ba bu")["input_ids"], skip_special_tokens=True).strip() == "ba bu"
    (folder / "tokenizer.model").write_bytes(b"junk")
    with pytest.raises(ModelError, match=r"its tokenizer\.model is not a complete SentencePiece model"):
        load_tokenizer(str(folder), None, False)


def test_the_packages_that_a_sentencepiece_model_wants_are_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "tokenizer.json").rename(folder / "tokenizer.model")
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer"}')
    monkeypatch.setattr("models.tokenizers.SENTENCEPIECE", ("no_such_package",))
    assert "pip install sentencepiece protobuf" in refusal(folder)


def test_a_folder_without_any_tokenizer_says_so(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    assert "it has none of tokenizer.json, tokenizer.model, vocab.json" in refusal(folder)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("content", [b"", b'{"model": ', b"version https://git-lfs.github.com/spec/v1\n"])
def test_a_tokenizer_file_that_is_no_json_is_named(tmp_path: Path, name: str, content: bytes) -> None:
    folder = write_model(tmp_path / "model")
    (folder / name).write_bytes(content)
    with pytest.raises(ModelError, match=f"its {name} is not complete JSON; download it again"):
        check_model(str(folder))
