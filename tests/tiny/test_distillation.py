"""Recovery by distillation: its loss, what it trains, what it leaves, and what a run and the API make of it.

Its steps are in ``test_distillation_steps.py``, its text in ``test_distillation_text.py``."""

import json
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from repairs import IDS, family, plan_for
from test_recovery_blocks import cut, state
from tiny_models import build
from workspace import Workspace, call

import global_pruning as gp
import pruning.recovery.distill as distill
from pruning.recovery.distill import DistilSettings, distil
from pruning.recovery.kl import divergence, held_out
from pruning.recovery.report import DistilReport
from pruning.recovery.trainer import Distiller

TRAIN, CHECK = IDS.numpy()[:18], IDS.numpy()[18:]
QUICK = ("--recover", "distill", "--recover_tokens", "2000", "--num_samples", "8")


def distilled(name: str, tokens: int = 3000, **options: Any) -> tuple[Any, Any, DistilReport]:
    """The model, the cut one before, and the same trained; and the report."""
    model = build(name)
    before = cut(model, plan_for(model))
    small = cut(model, plan_for(model))
    settings = DistilSettings(tokens, **{"step_tokens": 224} | options)
    return before, small, distil(small, model, family(model), TRAIN, CHECK, settings)


def changed(before: Any, after: Any) -> set[str]:
    return {name for name, tensor in after.state_dict().items() if not torch.equal(tensor, before.state_dict()[name])}


@pytest.mark.parametrize("chunk", [97, 1 << 22])
def test_the_divergence_and_its_gradient_are_torchs(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pruning.recovery.kl.CHUNK_VALUES", chunk)
    generator = torch.Generator().manual_seed(0)
    teacher, student = torch.randn(2, 2, 5, 97, generator=generator).unbind()
    student.requires_grad_(True)
    p, q = F.log_softmax(teacher, -1), F.log_softmax(student, -1)
    expected = (p.exp() * (p - q)).sum(-1).mean()
    (gradient,) = torch.autograd.grad(expected, student)
    found = divergence(student, teacher)
    (found_gradient,) = torch.autograd.grad(3 * found, student)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(found_gradient, 3 * gradient)


def test_layers_are_trained_and_the_rest_stays_the_dense_models() -> None:
    before, small, report = distilled("llama-biased-tied-mha")
    assert report.kept
    assert report.kl_after < report.kl_before
    model = build("llama-biased-tied-mha")
    assert report.kl_after == pytest.approx(held_out(small, model, CHECK).kl, rel=1e-5)
    names = changed(before, small)
    assert names
    assert all(name.startswith("model.layers.") for name in names)
    assert not any(parameter.requires_grad for parameter in small.parameters())
    assert len(report.losses) >= 10
    assert report.losses[-1][1] < report.losses[0][1]


def test_adapters_are_merged_and_leave_no_trace() -> None:
    before, small, report = distilled("phi3", lora=4)
    assert report.kept
    assert list(small.state_dict()) == list(before.state_dict())
    assert all("proj" in name for name in changed(before, small))
    assert not hasattr(small, "peft_config")


@pytest.mark.parametrize("lora", [None, 4])
def test_what_gains_nothing_is_undone(lora: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distill, "RATE", 500.0)
    monkeypatch.setattr(distill, "LORA_RATE", 5000.0)
    before, small, report = distilled("llama", tokens=700, lora=lora)
    assert not report.kept
    assert not changed(before, small)
    assert "undone" in report.line()


def test_the_same_seed_gives_the_same_weights_and_the_process_is_left_alone() -> None:
    model = build("qwen3")
    smaller = [cut(model, plan_for(model)) for _ in range(3)]
    environment, python, numpy_state = dict(os.environ), random.getstate(), str(np.random.get_state())  # noqa: NPY002
    torch_state = torch.get_rng_state()
    for small, seed in zip(smaller, (0, 0, 1), strict=True):
        distil(small, model, family(model), TRAIN, CHECK, DistilSettings(700, step_tokens=224, seed=seed))
    first, second, other = smaller
    assert not changed(first, second)
    assert changed(first, other)
    assert dict(os.environ) == environment
    assert random.getstate() == python
    assert str(np.random.get_state()) == numpy_state  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), torch_state)


def test_half_precision_trains_masters_and_keeps_its_dtype() -> None:
    model = build("llama").to(torch.bfloat16)
    plan = plan_for(model)
    before, small = cut(model, plan), cut(model, plan)
    report = distil(small, model, family(model), TRAIN, CHECK, DistilSettings(2000, step_tokens=224))
    assert report.kept
    assert changed(before, small)
    assert {parameter.dtype for parameter in small.parameters()} == {torch.bfloat16}
    assert "forward" not in vars(small)  # no autocast is left around it
    assert small(input_ids=IDS[:1]).logits.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("instruction", "stored", "wide", "halves"),
    [
        ("avx512_bf16", torch.bfloat16, 32, True),
        ("amx_bf16", torch.float16, 32, True),
        ("avx512_bf16", torch.float32, 32, False),
        ("avx512_bf16", torch.bfloat16, 4096, False),
        ("avx512_f", torch.bfloat16, 32, False),
    ],
)
def test_a_cpu_multiplies_bfloat16_where_it_can_and_float32_is_not_asked_for(
    instruction: str, stored: torch.dtype, wide: int, halves: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {instruction: True}, raising=False)
    monkeypatch.setattr("core.precision.WIDE", wide)
    model = build("llama")
    small = cut(model, plan_for(model))
    seen: dict[str, set[torch.dtype]] = {"student": set(), "teacher": set()}
    for name, watched in (("student", small), ("teacher", model)):
        projection = watched.model.layers[0].mlp.down_proj
        projection.register_forward_hook(lambda _module, _inputs, output, name=name: seen[name].add(output.dtype))
    settings = DistilSettings(2000, step_tokens=224, stored_dtype=stored)
    report = distil(small, model, family(model), TRAIN, CHECK, settings)
    judged_and_trained = {torch.float32, torch.bfloat16} if halves else {torch.float32}
    assert seen == {"student": judged_and_trained, "teacher": judged_and_trained}
    assert report.kept
    assert {parameter.dtype for parameter in small.parameters()} == {torch.float32}


@pytest.mark.parametrize("computed", [torch.bfloat16, torch.float32], ids=str)
def test_what_is_tried_again_multiplies_as_before(computed: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """accelerate wraps a model once, and leaves a mark on it."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True}, raising=False)
    monkeypatch.setattr("core.precision.WIDE", 32)
    loss, attempts = Distiller.compute_loss, []

    def short_of_memory_once(self: Any, model: Any, *given: Any, **how: Any) -> Any:
        attempts.append(model)
        if len(attempts) == 1:
            raise torch.OutOfMemoryError("for the test")
        return loss(self, model, *given, **how)

    model = build("llama").to(computed)
    small = cut(model, plan_for(model))
    settings = DistilSettings(2000, step_tokens=224, stored_dtype=torch.bfloat16)
    seen: list[torch.dtype] = []
    projection = small.model.layers[0].mlp.down_proj
    projection.register_forward_hook(
        lambda _module, _inputs, output: seen.append(output.dtype) if torch.is_grad_enabled() else None
    )
    monkeypatch.setattr(Distiller, "compute_loss", short_of_memory_once)
    for _ in range(2):
        seen.clear()
        report = distil(small, model, family(model), TRAIN, CHECK, settings)
        assert set(seen) == {torch.bfloat16}
        assert report.products == "bfloat16"
    assert "_is_accelerate_prepared" not in vars(small)
    assert not any(module._forward_hooks for module in small.modules() if module is not projection)


def test_a_run_tells_what_it_distilled(workspace: Workspace) -> None:
    output = workspace.root / "run"
    code, _, error = call([*workspace.base_arguments(), *QUICK, "--output", str(output)])
    assert code == 0, error
    report = json.loads((output / "analysis" / "recovery.json").read_text())
    assert report["blocks"] is None
    assert report["distill"]["tokens"] == 2000
    facts = json.loads((output / "run.json").read_text())["facts"]["recovery"]
    assert facts["distill"]["kl_after"] == report["distill"]["kl_after"]
    assert "held-out divergence from the dense model" in error
    assert "against the recovered model in memory" in error
    assert "- recovery: " in (output / "model" / "README.md").read_text()
    assert json.loads((output / "analysis" / "verification.json").read_text())["passed"]


def test_the_api_distils(workspace: Workspace) -> None:
    session = gp.open(workspace.model, dataset=workspace.text, num_samples=8, seq_len=16, say=gp.silent)
    plan = session.plan(session.score("magnitude"), ratio=0.4, ratio_of="prunable")
    small = session.prune(plan)
    before = state(small)
    assert session.recover(small, plan, "distill", tokens=20_000) is small
    assert any(not torch.equal(tensor, before[name]) for name, tensor in small.state_dict().items())


@pytest.mark.parametrize(
    ("missing", "arguments", "words"),
    [
        ("accelerate", [], "--recover distill needs accelerate: pip install accelerate"),
        ("peft", ["--recover_lora", "4"], "--recover_lora needs peft: pip install peft"),
        ("", ["--report_to", "paper"], "--report_to paper is none of "),
    ],
)
def test_what_is_missing_is_said_before_anything_is_measured(
    missing: str, arguments: list[str], words: str, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {"accelerate", "peft"} - {missing}
    monkeypatch.setattr("pruning.recovery.packages.find_spec", lambda name: name in found or None)
    output = workspace.root / "missing"
    code, _, error = call([*workspace.base_arguments(), *QUICK, "--output", str(output), *arguments])
    assert code == 2
    assert error.splitlines()[-1].startswith(f"error: {words}")
    assert not Path(output).exists()
