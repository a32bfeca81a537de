"""What a warm run need not do again: check the model's files, read and tokenise text, import the model's classes."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_models import CONFIGS
from workspace import Workspace, call, observe, write_model, write_text

from models.loading import check_model
from models.recalled import source_facts, source_from

ROOT = Path(__file__).resolve().parents[2]
DRY = ("--dry_run", "--run_evaluation", "none")


def outcome(run: Path, part: str) -> str:
    return str(json.loads((run / "run.json").read_text())["facts"]["cache"][part])


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_a_checked_model_comes_back_from_json(name: str, tmp_path: Path, word_tokenizer: None) -> None:
    source = check_model(str(write_model(tmp_path / "model", name)))
    found = source_from(json.loads(json.dumps(source_facts(source))))
    assert found == source
    assert found.config.to_dict() == source.config.to_dict()
    assert found.tokenizer.get_vocab() == source.tokenizer.get_vocab()


LARGE = ("transformers.modeling_utils", "transformers.models.llama.modeling_llama", "lm_eval", "datasets", "pandas")
WARM = """
import sys, run_global_pruning
code = run_global_pruning.main(sys.argv[1:])
print(code, [name for name in {large} if name in sys.modules])
"""


def test_a_warm_dry_run_imports_no_model(workspace: Workspace) -> None:
    arguments = [*workspace.base_arguments(), "--cache_dir", str(workspace.root / "cache"), "--dry_run"]
    code, _, error = call([*arguments, "--output", str(workspace.root / "cold")])
    assert code == 0, error
    arguments += ["--output", str(workspace.root / "warm"), "--pruning_ratio", "0.3"]
    python = [sys.executable, "-c", WARM.format(large=LARGE), *arguments]
    done = subprocess.run(python, cwd=ROOT, env=os.environ, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 []", done.stderr


def rewritten(path: Path) -> None:
    """The same size, another content and time."""
    text, seen = path.read_text(encoding="utf-8"), path.stat()
    path.write_text(text.replace("ba", "be"), encoding="utf-8")
    os.utime(path, ns=(seen.st_atime_ns, seen.st_mtime_ns + 1))


CHANGES: dict[str, tuple[Callable[[Path], Any], str, str]] = {
    "text": (lambda root: rewritten(root / "text.txt"), "hit", "miss"),
    "tokenizer": (lambda root: rewritten(root / "model" / "tokenizer_config.json"), "miss", "miss"),
    "a file more": (lambda root: (root / "model" / "notes.txt").write_text("mine"), "miss", "miss"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_changed_is_looked_at_again(change: str, tmp_path: Path) -> None:
    workspace = Workspace.make(tmp_path)
    arguments = [*DRY, "--cache_dir", str(tmp_path / "cache"), "--importance_method", "magnitude"]
    arguments += ["--run_evaluation", "ppl"]
    workspace.run("first", *arguments)
    act, model, windows = CHANGES[change]
    act(tmp_path)
    second = workspace.run("second", *arguments)
    assert (outcome(second, "model"), outcome(second, "windows")) == (model, windows)


def test_a_refused_model_is_not_remembered(tmp_path: Path) -> None:
    workspace = Workspace.make(tmp_path)
    arguments = [*workspace.base_arguments(), *DRY, "--cache_dir", str(tmp_path / "cache")]
    weights = workspace.model / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-8])
    code, _, error = call([*arguments, "--output", str(tmp_path / "refused")])
    assert code == 2
    assert "model.safetensors" in error
    weights.write_bytes(whole)
    workspace.run("taken", *DRY, "--cache_dir", str(tmp_path / "cache"))


def test_notes_are_said_again(tmp_path: Path) -> None:
    """A folder in which one file holds no text, and another text that is evaluated in part."""
    workspace = Workspace.make(tmp_path)
    folder = tmp_path / "texts"
    folder.mkdir()
    write_text(folder / "a.txt")
    (folder / "b.txt").write_text(" ")
    arguments = [*workspace.base_arguments(), *DRY, "--cache_dir", str(tmp_path / "cache"), "--dataset", str(folder)]
    said = []
    for name in ("cold", "warm"):
        code, _, error = call([*arguments, "--output", str(tmp_path / name)])
        assert code == 0, error
        said.append({line for line in error.splitlines() if line.startswith("note: ")})
    assert outcome(tmp_path / "warm", "windows") == "hit"
    assert said[0] == said[1] != set()
    assert observe(tmp_path / "cold") == observe(tmp_path / "warm")


def test_a_note_on_attention_is_of_the_configuration_at_hand(tmp_path: Path) -> None:
    """Of the same length in the file, and on whatever device: the note depends on nothing else."""
    workspace = Workspace.make(tmp_path)
    arguments = [*workspace.base_arguments(), *DRY, "--cache_dir", str(tmp_path / "cache")]
    config, said = workspace.model / "config.json", []
    values = json.loads(config.read_text())
    for number, asked in enumerate(("flash_attention_2", "flash_attention_3", "flash_attention_3")):
        if number < 2:
            config.write_text(json.dumps(values | {"attn_implementation": asked}))
        code, _, error = call([*arguments, "--output", str(tmp_path / f"run {number}")])
        assert code == 0, error
        said.append([line for line in error.splitlines() if "asks for" in line])
    assert [len(lines) for lines in said] == [1, 1, 1]
    assert "flash_attention_2" in said[0][0]
    assert "flash_attention_3" in said[1][0]
    assert said[2] == said[1]
    assert [outcome(tmp_path / f"run {number}", "model") for number in range(3)] == ["miss", "miss", "hit"]
