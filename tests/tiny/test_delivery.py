"""From the shell to a folder: what each target promises of the saved model, and what happens when a folder is wrong."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf_cases import Engine, quantised
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig
from workspace import Workspace, call

import run.deliver
from models.saving import save_checkpoint

MAGNITUDE = ("--importance_method", "magnitude", "--run_evaluation", "none")


def widths(folder: Path) -> list[tuple[int, int]]:
    """(KV heads, channels) of every layer, from the reports."""
    layers = json.loads((folder / "analysis" / "pruning_comparison.json").read_text())["layers"]
    return [
        (layer["attention"]["num_kv_heads"]["pruned"], layer["mlp"]["intermediate_size"]["pruned"]) for layer in layers
    ]


def proof(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "analysis" / "verification.json").read_text())
    return found


def test_stock_needs_no_remote_code_and_is_proved(workspace: Workspace) -> None:
    folder = workspace.run("stock", *MAGNITUDE, "--target", "stock")
    assert len(set(widths(folder))) == 1
    assert proof(folder)["passed"]
    model = AutoModelForCausalLM.from_pretrained(folder / "model")
    assert isinstance(model.config, (LlamaConfig, MistralConfig))
    assert not list((folder / "model").glob("*.py"))
    assert "trust_remote_code" not in (folder / "model" / "README.md").read_text()


def test_vllm_keeps_multiples_of_the_tensor_parallel_size(workspace: Workspace) -> None:
    folder = workspace.run("vllm", *MAGNITUDE, "--target", "vllm", "--tensor_parallel", "2")
    assert all(kv >= 2 and kv % 2 == 0 and channels % 2 == 0 for kv, channels in widths(folder))
    assert len(set(widths(folder))) > 1
    assert proof(folder)["passed"]


@pytest.mark.slow
def test_llama_cpp_plans_whole_blocks_and_the_engine_runs_them_at_four_bits(tmp_path: Path) -> None:
    """Rows of 32: every matrix becomes Q4_0, none stays f16 for want of a whole block."""
    gguf = pytest.importorskip("gguf")
    pytest.importorskip("xllamacpp")
    arguments = ["--base_model", "demo", *MAGNITUDE, "--target", "llama.cpp", "--export", "gguf"]
    code, _, error = call([*arguments, "--pruning_ratio", "0.2", "--output", str(tmp_path / "run")])
    assert code == 0, error
    assert "llama.cpp: MLP widths are multiples of 32" in error
    assert all(channels % 32 == 0 for _, channels in widths(tmp_path / "run"))
    four_bits = quantised(tmp_path / "run" / "model.gguf", "Q4_0")
    matrices = [tensor for tensor in gguf.GGUFReader(four_bits).tensors if len(tensor.shape) == 2]
    assert {tensor.tensor_type.name for tensor in matrices} == {"Q4_0"}
    assert len(Engine(four_bits).generate("The function returns", 8)) > 0


def test_a_folder_that_fails_its_proof_is_set_aside(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """One KV head's rows of one layer rolled by a head after saving: exit code 4, no finished run, model.failed."""

    def spoil(*arguments: Any) -> Path:
        folder = save_checkpoint(*arguments)
        path = next(folder.glob("*.safetensors"))
        tensors = load_file(path)
        name = "model.layers.1.self_attn.o_proj.weight"
        tensors[name] = torch.roll(tensors[name], 16, dims=1).contiguous()
        save_file(tensors, path, metadata={"format": "pt"})
        return folder

    monkeypatch.setattr(run.deliver, "save_checkpoint", spoil)
    output = workspace.root / "spoiled"
    code, out, error = call([*workspace.base_arguments(), "--output", str(output), *MAGNITUDE])
    assert code == 4
    assert out == ""
    assert error.splitlines()[-1].startswith("error: ")
    assert "layer 1" in error.splitlines()[-1]
    assert not (output / "model").exists()
    assert (output / "model.failed" / "config.json").is_file()
    assert not proof(output)["passed"]
    assert not (output / "run.json").exists()


def test_the_proof_is_left_out_on_request(workspace: Workspace) -> None:
    folder = workspace.run("unproved", *MAGNITUDE, "--no_verify")
    assert (folder / "model" / "config.json").is_file()
    assert not (folder / "analysis" / "verification.json").exists()
