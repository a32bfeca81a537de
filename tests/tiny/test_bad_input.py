"""Bad input: exit 2, one line that names value, bound and next step; nothing written, nothing overwritten."""

import json
import shlex
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from workspace import Workspace, call, write_model, write_text


@pytest.fixture(scope="module")
def plan_of_another_model(workspace: Workspace) -> Path:
    other = write_model(workspace.root / "another", "qwen3")
    run = workspace.run("another-run", "--base_model", str(other), "--dry_run", "--run_evaluation", "none")
    return run / "analysis" / "pruning_plan.json"


def refused(workspace: Workspace, *arguments: str, output: Path | None = None) -> str:
    """Run; assert exit code 2, one line, an untouched file system and no weights loaded; return the line."""
    output = output or workspace.root / "never" / "written"
    before = snapshot(workspace.root)
    code, out, error = call([*workspace.base_arguments(), "--output", str(output), *arguments])
    assert code == 2, error
    assert out == ""
    assert "Traceback" not in error
    lines = [line for line in error.splitlines() if not line.startswith("note: ")]
    stages = [line for line in lines if line.startswith("[")]
    assert "[load model]" not in stages
    lines = [line for line in lines if line not in stages and " parameters (" not in line]
    assert len(lines) == 1, error
    assert lines[0].startswith("error: ")
    assert snapshot(workspace.root) == before
    return lines[0]


def snapshot(root: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in root.rglob("*") if path.is_file()}


# (arguments, words that the line must hold)
WRONG_VALUES: list[tuple[list[str], list[str]]] = [
    (["--pruning_ratio", "0"], ["--pruning_ratio", "'0'", "(0, 1)"]),
    (["--pruning_ratio", "-0.1"], ["'-0.1'", "(0, 1)"]),
    (["--pruning_ratio", "1"], ["'1'", "(0, 1)"]),
    (["--pruning_ratio", "nan"], ["'nan'", "(0, 1)"]),
    (["--pruning_ratio", "much"], ["'much'", "(0, 1)"]),
    (["--importance_method", "guess"], ["guess", "taylor", "fisher"]),
    (["--norm_method", "rank"], ["rank", "log", "zscore"]),
    (["--ratio_of", "layers"], ["layers", "prunable"]),
    (["--dtype", "int8"], ["int8", "bfloat16"]),
    (["--temperature", "-1"], ["'-1'", "[0, inf)"]),
    (["--temperature", "inf"], ["'inf'", "[0, inf)"]),
    (["--temperature", "1", "--tau", "nan"], ["'nan'", "auto"]),
    (["--temperature", "1", "--tau", "-2"], ["-2", "auto"]),
    (["--clip_percentile_low", "95", "--clip_percentile_high", "5"], ["low 95", "high 5", "low < high"]),
    (["--clip_percentile_high", "101"], ["'101'", "[0, 100]"]),
    (["--max_block_ratio", "0"], ["'0'", "(0, 1]"]),
    (["--min_kv_heads", "0"], ["'0'", "[1, inf)"]),
    (["--round_to", "2.5"], ["'2.5'", "whole"]),
    (["--epsilon", "1"], ["'1'", "[0, 1)"]),
    (["--epsilon", "0.2", "--max_block_ratio", "0.5"], ["--epsilon 0.2", "--max_block_ratio 0.5"]),
    (["--num_samples", "0"], ["'0'", "[1, inf)"]),
    (["--seq_len", "1"], ["'1'", "[2, inf)"]),
    (["--seq_len", "129"], ["129", "128"]),
    (["--eval_seq_len", "4096"], ["--eval_seq_len 4096", "128"]),
    (["--seed", "-1"], ["'-1'"]),
    (["--batch_size", "0"], ["'0'"]),
    (["--run_evaluation", "ppl,beauty"], ["beauty", "tasks"]),
    (["--run_evaluation", "none,ppl"], ["none"]),
    (["--eval_tasks", "no_such_task"], ["no_such_task"]),
    (["--eval_task_path", "/no/such/folder", "--eval_tasks", "tiny_choice"], ["/no/such/folder"]),
    (["--unknown"], ["--unknown"]),
    (["--temp", "1"], ["--temp"]),
    (["--dataset", "no/such/file.txt"], ["no/such/file.txt", "pydoc"]),
    (["--base_model", "./no/such/folder"], ["./no/such/folder", "demo"]),
    (["--base_model", ""], ["--base_model is empty", "variable of the shell"]),
    (["--output", ""], ["--output is empty"]),
    (["--output="], ["--output is empty"]),
    (["--plan", "/no/such/plan.json"], ["/no/such/plan.json"]),
    ([" "], ["empty argument", "backslash"]),
    (["\t"], ["empty argument", "backslash"]),
    (["--device", "cuda:77"], ["cuda:77", "CUDA"]),
    (["--freeze_first_n_layers", "3"], ["0.4", "allow none to be removed", "freeze fewer"]),
]


@pytest.mark.parametrize(("arguments", "words"), WRONG_VALUES, ids=lambda value: " ".join(value)[:40])
def test_wrong_values(workspace: Workspace, arguments: list[str], words: list[str]) -> None:
    line = refused(workspace, *arguments)
    assert [word for word in words if word not in line] == []


def test_a_ratio_beyond_the_floors_names_the_largest_and_a_command_that_works(workspace: Workspace) -> None:
    """A tiny model is mostly embeddings: 0.9 of all parameters cannot go, and the advice must run."""
    line = refused(workspace, "--ratio_of", "total", "--pruning_ratio", "0.9")
    advice = line[line.index("--pruning_ratio", len("error: --pruning_ratio")) :].split(" or ")[0].rstrip(".")
    advice = advice.split(",")[0].split(";")[0]
    workspace.run("advised", *shlex.split(advice), "--dry_run", "--run_evaluation", "none")


def empty_folder(folder: Path) -> str:
    shutil.rmtree(folder)
    folder.mkdir()
    return "is empty"


def without_config(folder: Path) -> str:
    (folder / "config.json").unlink()
    return "config.json"


def broken_config(folder: Path) -> str:
    (folder / "config.json").write_text("{")
    return "config.json"


def unsupported_family(folder: Path) -> str:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "gpt2"}))
    return "gemma2, gemma3_text, llama, mistral, phi3, qwen2, qwen3"


def pickle_only(folder: Path) -> str:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    return "pytorch_model.bin"


def truncated(folder: Path) -> str:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])
    return "truncated"


def truncated_inside_its_header(folder: Path) -> str:
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", 10_000) + b"{")
    return "truncated"


def missing_shard(folder: Path) -> str:
    index = {"metadata": {}, "weight_map": {"model.norm.weight": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return "model-00002-of-00002.safetensors"


def without_tokenizer(folder: Path) -> str:
    for path in folder.glob("*token*"):
        path.unlink()
    return "tokenizer"


def quantised(folder: Path) -> str:
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (folder / "config.json").write_text(json.dumps(config))
    return "quantised"


BREAKS: list[Callable[[Path], str]] = [
    empty_folder,
    without_config,
    broken_config,
    unsupported_family,
    pickle_only,
    truncated,
    truncated_inside_its_header,
    missing_shard,
    without_tokenizer,
    quantised,
]


@pytest.mark.parametrize("spoil", BREAKS)
def test_broken_model_folders(workspace: Workspace, tmp_path: Path, spoil: Callable[[Path], str]) -> None:
    folder = tmp_path / "model"
    shutil.copytree(workspace.model, folder)
    word = spoil(folder)
    assert word in refused(workspace, "--base_model", str(folder))


def test_a_model_that_is_a_file(workspace: Workspace) -> None:
    assert "is a file" in refused(workspace, "--base_model", str(workspace.text))


@pytest.mark.parametrize(
    ("content", "word"),
    [(b"", "empty"), (bytes(range(256)) * 40, "binary"), (b"ba be bi\n\nbo bu\n", "16")],
    ids=["empty", "binary", "shorter than one window"],
)
def test_broken_datasets(workspace: Workspace, tmp_path: Path, content: bytes, word: str) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(content)
    line = refused(workspace, "--dataset", str(path))
    assert str(path) in line
    assert word in line.lower()


def test_weights_that_do_not_fit_their_config_are_never_made_up(workspace: Workspace, tmp_path: Path) -> None:
    """Found only when weights load, and still one line: nothing is initialised at random in silence."""
    folder = tmp_path / "model"
    shutil.copytree(workspace.model, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 4}))
    output = tmp_path / "out"
    code, _, error = call([*workspace.base_arguments(), "--base_model", str(folder), "--output", str(output)])
    assert code == 2
    line = error.splitlines()[-1]
    assert line.startswith("error: ")
    assert "missing" in line
    assert not output.exists()


def test_an_output_that_is_not_empty(workspace: Workspace, tmp_path: Path) -> None:
    kept = tmp_path / "kept.txt"
    kept.write_text("mine")
    assert "--overwrite" in refused(workspace, output=tmp_path)
    assert kept.read_text() == "mine"


def test_outputs_that_cannot_be_written(workspace: Workspace) -> None:
    assert "is a file" in refused(workspace, output=workspace.text)
    assert "cannot be written" in refused(workspace, output=workspace.text / "below")
    assert not (workspace.root / "never").exists()


def test_a_plan_made_for_another_model(workspace: Workspace, plan_of_another_model: Path) -> None:
    line = refused(workspace, "--plan", str(plan_of_another_model))
    assert "qwen3" in line
    assert "llama" in line


def test_a_text_is_no_plan(workspace: Workspace) -> None:
    assert "JSON" in refused(workspace, "--plan", str(workspace.text))


def test_a_failed_run_keeps_the_results_it_was_to_overwrite(workspace: Workspace, tmp_path: Path) -> None:
    run = workspace.run("to-keep", "--dry_run", "--run_evaluation", "none")
    short = write_text(tmp_path / "short.txt", paragraphs=1)
    before = snapshot(run)
    line = refused(workspace, "--overwrite", "--seq_len", "128", "--dataset", str(short), output=run)
    assert "128" in line
    assert snapshot(run) == before
