"""``global-pruning verify FOLDER``: the proof of a finished run, made again from its base model and its records."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from workspace import Workspace, call, write_text

REPAIRED = ("--reconstruct", "least_squares")
RUNS = {
    "cut": (),
    "repaired": REPAIRED,
    "stock": ("--target", "stock", *REPAIRED),
    "low_memory": ("--low_memory", "--importance_method", "magnitude", "--run_evaluation", "none"),
    "layer gone": ("--epsilon", "0.5", "--pruning_ratio", "0.6", *REPAIRED),
    "remedied": ("--remedy", "auto", *REPAIRED),
}


@pytest.fixture(scope="module")
def repaired(workspace: Workspace) -> Path:
    return workspace.run("a repaired run", *REPAIRED)


@pytest.fixture
def copied(repaired: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(repaired, tmp_path / "run"))


def tamper(run: Path, name: str, by: float = 0.01) -> None:
    """Change one number of one tensor, in its last row."""
    path = run / "model" / "model.safetensors"
    tensors = load_file(path)
    tensors[name].view(-1)[-1] += by
    save_file(tensors, path, metadata={"format": "pt"})


@pytest.mark.parametrize("name", RUNS)
def test_a_finished_run_passes(name: str, workspace: Workspace) -> None:
    run = workspace.run(name, *RUNS[name])
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    code, out, error = call(["verify", str(run)])
    assert code == 0, error
    assert "FAILED" not in out
    assert "weights       passed  error 0.0e+00" in out  # a repair on the same machine is the same to the last bit
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_a_run_on_a_pruned_model_passes(workspace: Workspace, repaired: Path) -> None:
    run = workspace.run("twice", "--base_model", str(repaired / "model"), "--pruning_ratio", "0.2", *REPAIRED)
    assert call(["verify", str(run)])[0] == 0


def test_the_model_folder_will_do(repaired: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert call(["verify", str(repaired / "model")])[0] == 0
    monkeypatch.chdir(repaired / "model")
    assert call(["verify", "."])[0] == 0


@pytest.mark.parametrize(
    "member", ["self_attn.q_proj", "self_attn.o_proj", "mlp.down_proj", "post_attention_layernorm"]
)
def test_one_changed_number_is_found_and_its_layer_named(member: str, copied: Path) -> None:
    tamper(copied, f"model.layers.1.{member}.weight", 0.5)
    code, out, error = call(["verify", str(copied)])
    assert code == 4
    assert "FAILED" in out
    last = error.splitlines()[-1]
    assert last.startswith("error: verification failed at ")
    assert "layer 1" in last or "layers.1" in last


def test_a_number_that_no_window_reads_is_found_too(copied: Path) -> None:
    """A row of the embedding whose token is in no text: no output tells, the weights do."""
    path = copied / "model" / "model.safetensors"
    tensors = load_file(path)
    tensors["model.embed_tokens.weight"][0, 0] += 0.5  # <pad>
    save_file(tensors, path, metadata={"format": "pt"})
    code, out, error = call(["verify", str(copied)])
    assert code == 4
    assert "logits        passed" in out
    assert "model.embed_tokens.weight is not what the base model and the plan give" in error


def test_a_missing_tensor_and_broken_files_fail_in_one_line(copied: Path) -> None:
    path = copied / "model" / "model.safetensors"
    tensors = load_file(path)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, path, metadata={"format": "pt"})
    code, _, error = call(["verify", str(copied)])
    assert code == 4
    assert "model.layers.1.mlp.up_proj.weight" in error.splitlines()[-1]
    path.write_bytes(path.read_bytes()[:1000])
    code, _, error = call(["verify", str(copied)])
    assert code == 4
    assert "Traceback" not in error


def test_a_repair_of_another_machine_may_differ_by_rounding(copied: Path) -> None:
    """bfloat16 steps by 2^-8: a last bit here and there is another solver, a hundredth of the norm is not."""
    record = json.loads((copied / "run.json").read_text())
    record["environment"]["device_name"] = "another machine"
    (copied / "run.json").write_text(json.dumps(record))
    path = copied / "model" / "model.safetensors"
    tensors = load_file(path)
    name = "model.layers.1.self_attn.o_proj.weight"
    weight = tensors[name].float()
    nudged = weight.clone()
    nudged.view(-1)[::50] *= 1 + 2**-7
    save_file(tensors | {name: nudged.to(torch.bfloat16)}, path, metadata={"format": "pt"})
    code, out, error = call(["verify", str(copied)])
    assert code == 0, error
    assert "weights       passed  error 0.0e+00" not in out
    save_file(tensors | {name: (1.01 * weight).to(torch.bfloat16)}, path, metadata={"format": "pt"})
    assert call(["verify", str(copied)])[0] == 4
    save_file(tensors | {name: nudged.to(torch.bfloat16)}, path, metadata={"format": "pt"})
    tamper(copied, "model.norm.weight")  # what no repair touches is equal everywhere
    assert call(["verify", str(copied)])[0] == 4


def test_a_base_model_that_has_moved_is_named_anew(workspace: Workspace, copied: Path, tmp_path: Path) -> None:
    record = json.loads((copied / "run.json").read_text())
    record["asked"]["base_model"] = str(tmp_path / "gone")
    (copied / "run.json").write_text(json.dumps(record))
    code, out, error = call(["verify", str(copied)])
    assert (code, out, error.count("\n")) == (2, "", 1)
    assert str(tmp_path / "gone") in error
    assert call(["verify", str(copied), "--base_model", str(workspace.model)])[0] == 0


def test_another_text_than_the_repairs_is_said(copied: Path, tmp_path: Path) -> None:
    record = json.loads((copied / "run.json").read_text())
    record["asked"]["dataset"] = str(write_text(tmp_path / "another.txt", seed=7))
    (copied / "run.json").write_text(json.dumps(record))
    code, _, error = call(["verify", str(copied)])
    assert (code, error.count("\n")) == (2, 1)
    assert "is not the text that the run was repaired on" in error


@pytest.mark.parametrize("broken", ["no folder", "no run", "a file", "dry run", "no plan", "not JSON", "not a record"])
def test_what_is_no_finished_run_is_one_line(broken: str, workspace: Workspace, copied: Path, tmp_path: Path) -> None:
    folder = copied
    if broken == "no folder":
        folder = tmp_path / "nowhere"
    elif broken == "no run":
        folder = workspace.model
    elif broken == "a file":
        folder = workspace.text
    elif broken == "dry run":
        shutil.rmtree(copied / "model")
    elif broken == "no plan":
        (copied / "analysis" / "pruning_plan.json").unlink()
    else:
        (copied / "run.json").write_text("{" if broken == "not JSON" else "[]")
    code, out, error = call(["verify", str(folder)])
    assert (code, out, error.count("\n")) == (2, "", 1), error
    assert error.startswith("error: ")
    assert str(folder) in error
