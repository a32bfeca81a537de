"""``--low_memory`` and runs that choose it by themselves: the same plan and the same folder, without the model."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from workspace import Workspace, call, write_model

from core import memory
from run import engine_choice
from run.complete import complete
from run_global_pruning import run

DATA_FREE = ["--importance_method", "magnitude", "--run_evaluation", "none"]


def files(folder: Path) -> dict[str, bytes]:
    paths = [*(folder / "model").iterdir(), folder / "analysis" / "pruning_plan.json"]
    # The card says how a plan came about, measured or replayed.
    return {path.name: path.read_bytes() for path in paths if path.name != "README.md"}


def streamed(folder: Path) -> bool:
    return bool(json.loads((folder / "run.json").read_text())["facts"]["streamed"])


@pytest.mark.parametrize("dtype", ["auto", "float16"])
@pytest.mark.parametrize("name", ["llama", "phi3", "gemma3_text"])
def test_the_same_plan_and_folder_as_with_the_model_in_memory(workspace: Workspace, name: str, dtype: str) -> None:
    source = workspace.root / f"dense-{name}"
    if not source.exists():
        write_model(source, name)
    arguments = [*DATA_FREE, "--base_model", str(source), "--max_shard_size", "20kb", "--dtype", dtype]
    expected = workspace.run(f"memory-{name}-{dtype}", *arguments)
    actual = workspace.run(f"streamed-{name}-{dtype}", *arguments, "--low_memory")
    assert (streamed(expected), streamed(actual)) == (False, True)
    assert files(actual) == files(expected)
    assert len(list((actual / "model").glob("model-*-of-*.safetensors"))) > 1
    plan = str(expected / "analysis" / "pruning_plan.json")
    replayed = workspace.run(
        f"replayed-{name}-{dtype}", *arguments[4:], "--run_evaluation", "none", "--plan", plan, "--low_memory"
    )
    assert files(replayed) == files(expected)


def test_a_model_over_half_of_the_free_memory_is_streamed_unasked(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tiny llama takes 4 bytes a parameter in float32, whatever its file holds."""
    record = json.loads((workspace.root / "model" / "config.json").read_text())
    assert record["dtype"] == "bfloat16"
    ample = workspace.run("ample", *DATA_FREE)
    params = json.loads((ample / "analysis" / "pruning_plan.json").read_text())["base"]["total_params"]
    for name, free, expected in [("enough", 8 * params, False), ("short", 8 * params - 1, True), ("?", None, False)]:
        monkeypatch.setattr(engine_choice, "free_bytes", lambda _device, free=free: free)
        run = workspace.run(f"free-{name}", *DATA_FREE)
        assert streamed(run) == expected
        assert files(run) == files(ample)
    monkeypatch.setattr(engine_choice, "free_bytes", lambda _device: 1)
    dry = workspace.run("dry", *DATA_FREE, "--dry_run")
    assert streamed(dry)
    assert not (dry / "model").exists()


def test_the_default_text_is_read_alone_where_the_model_has_to_be_streamed(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As for a run that names no text; the hub's is stood in for by a file."""
    asked = {"base_model": str(workspace.model), "importance_method": "fisher", "num_samples": 4, "seq_len": 16}
    asked |= {"output": workspace.root / "default-text", "run_evaluation": "ppl", "eval_samples": 4, "eval_seq_len": 16}
    alone = complete(asked | {"dataset": str(workspace.text)})
    settings = replace(complete(asked | {"dataset": f"{workspace.text},self"}), if_streamed=alone)
    monkeypatch.setattr(engine_choice, "free_bytes", lambda _device: 1)
    result = run(settings)
    assert streamed(result.path)
    record = json.loads((result.path / "run.json").read_text())
    assert record["options"]["dataset"] == str(workspace.text)
    assert set(record["windows"]) == {"calibration", f"evaluation {workspace.text}", "evaluation pydoc"}
    assert f"{workspace.text} alone calibrates" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([*DATA_FREE, "--engine", "resident"], "--engine is resident"),
        (["--run_evaluation", "ppl,tasks"], "--run_evaluation tasks needs the whole model"),
        (["--scratch", "/nowhere/at/all"], "--scratch /nowhere/at/all is not a folder"),
        (["--scratch", "/proc"], "--scratch /proc takes no file"),
        ([*DATA_FREE, "--max_shard_size", "0GB"], "'0GB'"),
        ([*DATA_FREE, "--max_shard_size", "5 gigabytes"], "200MB"),
    ],
)
def test_what_cannot_be_combined_is_one_line(workspace: Workspace, arguments: list[str], words: str) -> None:
    output = workspace.root / "never"
    code, _, error = call([*workspace.base_arguments(), "--output", str(output), "--low_memory", *arguments])
    assert code == 2
    assert len(error.splitlines()) == 1
    assert words in error
    assert not output.exists()


def test_free_memory_knows_the_limit_of_a_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    meminfo = tmp_path / "meminfo"
    monkeypatch.setattr(memory, "MEMINFO", meminfo)
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    assert memory.free_bytes() is None
    meminfo.write_text("MemTotal:  9000 kB\nMemAvailable:  8000 kB\n")
    assert memory.free_bytes() == 8000 * 1024
    (tmp_path / "memory.stat").write_text("anon 1000000\nfile 5000000\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.free_bytes() == 8000 * 1024
    (tmp_path / "memory.max").write_text("3000000\n")
    assert memory.free_bytes() == 2_000_000
