"""Recovery as a stage of a run and of the API: what it writes, what it says, with what it combines."""

import json
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from workspace import Workspace, call

import global_pruning as gp
import run.recover
from cli.options import parse_options
from pruning.recovery.blocks import BlockSettings, BlockwiseRecovery
from run.option_rules import idle_notes

RECOVER = ("--reconstruct", "least_squares", "--recover", "blocks", "--num_samples", "24")


@pytest.fixture(autouse=True, scope="module")
def quick() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run.recover, "BlockSettings", partial(BlockSettings, steps=10, check_every=5))
        yield


@pytest.fixture(scope="module")
def told(workspace: Workspace) -> tuple[Path, str, str]:
    """A finished run, and what it said on stdout and stderr."""
    output = workspace.root / "recovered"
    code, out, error = call([*workspace.base_arguments(), *RECOVER, "--output", str(output)])
    assert code == 0, error
    return output, out, error


@pytest.fixture(scope="module")
def finished(told: tuple[Path, str, str]) -> Path:
    return told[0]


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def test_a_run_tells_what_it_recovered(told: tuple[Path, str, str], workspace: Workspace) -> None:
    output, out, error = told
    report = read(output / "analysis" / "recovery.json")["blocks"]
    assert report["num_recovered"] == sum(block["recovered"] for block in report["blocks"]) > 0
    assert [report[f"windows_{part}"] for part in ("fitted", "shuffled", "held_out")] == [18, 36, 6]
    assert f"recovered {report['num_recovered']} of {len(report['blocks'])} blocks (held-out error −" in error
    assert "against the recovered model in memory" in error
    proof = read(output / "analysis" / "verification.json")
    assert proof["compared_with"] == "the recovered model in memory"
    assert proof["checks"][0]["name"] == "surgery"
    assert proof["passed"]
    facts = read(output / "run.json")["facts"]["recovery"]["blocks"]
    assert facts["blocks_recovered"] == report["num_recovered"]
    assert "- recovery: " in (output / "model" / "README.md").read_text()
    results = read(output / "evaluation" / "evaluation_results.json")
    stages = [results[part]["perplexity"] for part in ("dense", "before_repair", "before_recovery", "pruned")]
    assert len({perplexity[str(workspace.text)]["perplexity"] for perplexity in stages}) == 4
    assert "before recovery" in out
    assert "before recovery" in (output / "report.html").read_text()


def test_what_is_saved_is_the_recovered_model(finished: Path, workspace: Workspace) -> None:
    repaired = workspace.run("repaired", *RECOVER, "--recover", "none")
    assert not (repaired / "analysis" / "recovery.json").exists()
    assert "compared_with" in read(repaired / "analysis" / "verification.json")
    before, after = (load_file(folder / "model" / "model.safetensors") for folder in (repaired, finished))
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[name], tensor) for name, tensor in after.items())


def test_a_model_is_recovered_without_a_repair_and_from_a_replayed_plan(finished: Path, workspace: Workspace) -> None:
    plan = str(finished / "analysis" / "pruning_plan.json")
    output = workspace.run("replayed", *RECOVER, "--reconstruct", "none", "--plan", plan)
    assert read(output / "analysis" / "recovery.json")["blocks"]["num_recovered"] > 0
    assert not (output / "analysis" / "reconstruction.json").exists()
    assert read(output / "run.json")["windows"]["calibration"]["num_windows"] == 24


def test_float16_weights_that_stream_are_recovered(finished: Path, workspace: Workspace) -> None:
    plan = str(finished / "analysis" / "pruning_plan.json")
    how = ("--reconstruct", "none", "--plan", plan, "--dtype", "float16", "--engine", "streamed")
    output = workspace.run("streamed", *RECOVER, *how, "--run_evaluation", "none")
    assert read(output / "analysis" / "verification.json")["passed"]


def test_verify_knows_recovered_weights_by_their_checksums(finished: Path, tmp_path: Path) -> None:
    code, out, error = call(["verify", str(finished)])
    assert code == 0, error
    assert "weights       passed" in out
    assert "against the weights in its files, which were trained after the cut" in out
    copied = Path(shutil.copytree(finished, tmp_path / "run"))
    path = copied / "model" / "model.safetensors"
    tensors = load_file(path)
    tensors["model.layers.1.self_attn.o_proj.weight"][0, 0] += 0.5
    save_file(tensors, path, metadata={"format": "pt"})
    code, out, error = call(["verify", str(copied)])
    assert code == 4
    assert "model/model.safetensors is not the file that the run wrote" in error


def test_the_api_recovers_what_it_cut(workspace: Workspace) -> None:
    session = gp.open(workspace.model, dataset=workspace.text, num_samples=24, seq_len=16, say=gp.silent)
    plan = session.plan(session.score("magnitude"), ratio=0.4, ratio_of="prunable")
    small = session.prune(plan)
    before = {name: tensor.clone() for name, tensor in small.state_dict().items()}
    assert session.recover(small, plan) is small
    assert any(not torch.equal(tensor, before[name]) for name, tensor in small.state_dict().items())
    session.save(small, workspace.root / "by api")
    with pytest.raises(gp.ModelError, match="takes the model that prune"):
        session.recover(session.model, plan)
    with pytest.raises(gp.UsageError, match="recover"):
        session.recover(small, plan, "layers")
    unread = gp.open(workspace.model, dataset=None)
    with pytest.raises(gp.DataError, match=r"recover\(\) reads text"):
        unread.recover(unread.prune(plan), plan)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--recover", "blocks", "--num_samples", "1", "--reconstruct", "none"], "--num_samples 1 is too few"),
        (["--recover", "layers"], "'layers' is not a list with commas of blocks"),
    ],
)
def test_what_cannot_be_recovered_is_refused_in_one_line(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parse_options(["--base_model", "demo", *arguments])
    error = capsys.readouterr().err
    assert words in error
    assert len(error.splitlines()) == 1


def test_options_that_cannot_act_are_named() -> None:
    def notes(*arguments: str) -> list[str]:
        command = parse_options(["--base_model", "demo", *arguments])
        return idle_notes(command.settings, command.given)

    assert notes("--recover", "blocks", "--dry_run") == ["--recover has no effect with --dry_run, which prunes nothing"]
    replay = ("--plan", "p.json", "--reconstruct", "none", "--num_samples", "9")
    assert notes(*replay, "--recover", "blocks", "--reconstruct_text", "calibration") == []
    assert notes(*replay) == ["--num_samples has no effect with --plan, which holds the decision already"]


def test_an_interrupted_recovery_leaves_the_earlier_run_as_it_was(
    finished: Path, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(BlockwiseRecovery, "layer", interrupted)
    before = (finished / "run.json").read_bytes()
    arguments = [*workspace.base_arguments(), *RECOVER, "--output", str(finished), "--overwrite"]
    assert call(arguments)[0] == 130
    assert (finished / "run.json").read_bytes() == before
    assert [path.name for path in finished.iterdir() if path.name.startswith(".")] == []
