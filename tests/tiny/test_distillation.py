"""Recovery by distillation: its loss, what it trains, what it leaves, and what a run and the API make of it."""

import json
import math
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
from calibration import training_windows
from core.errors import DataError
from core.sources import Source
from pruning.recovery.distill import DistilSettings, NoRoom, distil, rate_of
from pruning.recovery.kl import divergence, held_out
from pruning.recovery.report import DistilReport
from pruning.recovery.trainer import Distiller
from run.distillation_windows import Divided, distillation_windows, divided, times_read
from run.self_windows import written_to_distil

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
    monkeypatch.setattr("pruning.recovery.precision.WIDE", wide)
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
    monkeypatch.setattr("pruning.recovery.precision.WIDE", 32)
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


@pytest.mark.parametrize("most", [2, 0])
def test_windows_are_judged_by_as_many_at_once_as_fit(most: int) -> None:
    model = build("llama")
    small = cut(model, plan_for(model))
    expected, seen = held_out(small, model, CHECK), []

    def short_of_memory(_module: Any, _inputs: Any, named: dict[str, Any]) -> None:
        seen.append(len(named["input_ids"]))
        if seen[-1] > most:
            raise torch.OutOfMemoryError("for the test")

    small.register_forward_pre_hook(short_of_memory, with_kwargs=True)
    if most:
        found = held_out(small, model, CHECK)
        assert found == pytest.approx(expected, rel=1e-5)
    else:
        with pytest.raises(NoRoom, match="a held-out window does not fit in memory: use a shorter --seq_len"):
            distil(small, model, family(model), TRAIN, CHECK, DistilSettings(700))
    assert max(seen) > 2
    assert min(seen) == 1  # 6, 3, 1


@pytest.mark.parametrize(
    ("large", "attempts"),
    [
        (distill.LARGE_STEP, [(16, False), (16, True), (8, True), (4, True)]),
        (8 * TRAIN.shape[1], [(16, False), (8, False), (8, True), (4, True)]),
        (4 * TRAIN.shape[1], [(16, False), (8, False), (4, False)]),
    ],
)
def test_memory_that_does_not_suffice_means_smaller_passes_and_the_same_step(
    monkeypatch: pytest.MonkeyPatch, large: int, attempts: list[tuple[int, bool]]
) -> None:
    """Where steps are large, smaller passes come before activations that are computed again, which costs a pass."""
    monkeypatch.setattr(distill, "LARGE_STEP", large)
    whole = distilled("llama", 700)[1]
    tried: list[tuple[int, bool]] = []
    trained = distill._trained

    def short_of_memory(*given: Any) -> Any:
        at_once, recompute = given[6:8]
        tried.append((at_once, recompute))
        if at_once > 4:
            given[0].model.layers[0].mlp.down_proj.weight.zero_()  # what an attempt leaves is put back
            raise torch.OutOfMemoryError("for the test")
        return trained(*given)

    monkeypatch.setattr(distill, "_trained", short_of_memory)
    small = distilled("llama", 700)[1]
    assert tried == attempts
    assert all(torch.allclose(tensor, state(whole)[name], atol=1e-4) for name, tensor in small.state_dict().items())


@pytest.mark.parametrize("large", [1, distill.LARGE_STEP])
def test_a_window_that_does_not_fit_ends_the_attempts(monkeypatch: pytest.MonkeyPatch, large: int) -> None:
    tried: list[tuple[int, bool]] = []

    def short_of_memory(*given: Any) -> Any:
        tried.append(given[6:8])
        raise torch.OutOfMemoryError("for the test")

    monkeypatch.setattr(distill, "LARGE_STEP", large)
    monkeypatch.setattr(distill, "_trained", short_of_memory)
    with pytest.raises(NoRoom, match="with a single window"):
        distilled("llama", 700)
    assert tried[0] == (16, False)
    assert tried[-1] == (1, True)
    assert len(tried) == 6


def test_training_windows_share_no_token_with_those_that_judge(workspace: Workspace) -> None:
    tokenizer = build_tokenizer(workspace)
    train, check = training_windows(str(workspace.text), tokenizer, 1000, 16, 16, 0)
    assert len(check) == 16
    assert 100 < len(train) < 1000
    rows = {tuple(row) for row in train.ids}
    assert len(rows) == len(train)
    assert not rows & {tuple(row) for row in check.ids}
    few, held = training_windows(str(workspace.text), tokenizer, 5, 16, 16, 0)
    assert (len(few), len(held)) == (5, 16)
    with pytest.raises(DataError, match="training needs two windows of 2000 tokens"):
        training_windows(str(workspace.text), tokenizer, 5, 16, 2000, 0)


def build_tokenizer(workspace: Workspace) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(workspace.model)


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


def test_every_text_that_calibrates_is_distilled_on_by_its_share(workspace: Workspace) -> None:
    """The model writes anew what it is to learn from and be judged by, and each of its windows is read four times."""
    session = gp.open(workspace.model, dataset=f"{workspace.text},self", num_samples=16, seq_len=16, say=gp.silent)
    session.score("taylor")
    inner = session._inner
    train, check = distillation_windows(inner, 16 * 60)
    own = [tuple(row) for row in written_to_distil(inner, 8 + 8)]
    assert [tuple(row) for row in train[-30:]] == (own[:8] * 4)[:30]
    assert [tuple(row) for row in check[-8:]] == own[8:]
    assert len(check) == 16
    assert not {tuple(row) for row in train} & {tuple(row) for row in check}
    assert inner.written is not None
    assert not {tuple(row) for row in inner.written.ids} & set(own)


def test_a_short_text_keeps_its_share_and_is_read_again() -> None:
    sources = (Source("short", 0.5), Source("long", 0.5))
    lengths = {"short": 3, "long": 100}

    def read(name: str, count: int, held: int) -> Divided:
        first = 1000 * (name == "long")
        return np.arange(first, first + min(count, lengths[name]))[:, None], np.full((held, 1), -1)

    train, check = divided(sources, 20 * 8, 8, read, lambda count: np.empty((count, 1)), 4)
    assert train[:, 0].tolist() == [0, 1, 2, 0, 1, 2, 0, 1, 2, 0, *range(1000, 1010)]
    assert len(check) == 16
    alone, _ = divided(sources[:1], 20 * 8, 8, read, lambda count: np.empty((count, 1)), 4)
    assert alone[:, 0].tolist() == [0, 1, 2]


def test_own_text_fills_up_what_a_short_text_cannot_give() -> None:
    """It is read for four times at most, and the rest of its share is written."""
    sources = tuple(Source(name, 1 / 3) for name in ("short", "self", "long"))

    def read(name: str, count: int, held: int) -> Divided:
        first = 1000 * (name == "long")
        return np.arange(first, first + min(count, 100 if first else 3))[:, None], np.full((held, 1), -1)

    train, check = divided(sources, 60 * 8, 8, read, lambda count: np.arange(2000, 2000 + count)[:, None], 4)
    short, own, long = np.split(train[:, 0], [12, 40])
    assert (short.tolist(), long.tolist()) == ([0, 1, 2] * 4, [*range(1000, 1020)])
    assert own.tolist() == [*range(2000, 2007)] * 4  # 20 of its own share, 8 of the other's
    assert not set(own) & set(check[:, 0])
    assert len(check) == 16


def test_own_text_is_read_once_where_writing_costs_little() -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda", 1)
    assert [times_read(cpu, 10**8), times_read(gpu, 10**8), times_read(gpu, 7 * 10**9)] == [4, 1, 4]
    train, check = divided(
        (Source("self", 1.0),), 40, 8, lambda *_: (np.empty(0), np.empty(0)), lambda count: np.arange(count)[:, None], 1
    )
    assert (train[:, 0].tolist(), check[:, 0].tolist()) == ([*range(5)], [*range(5, 21)])


def test_the_model_writes_for_a_distillation_what_calibration_could_not_divide(workspace: Workspace) -> None:
    session = gp.open(workspace.model, dataset="self", num_samples=1, seq_len=16, say=gp.silent)
    session.score("taylor")
    train, check = distillation_windows(session._inner, 16 * 6)
    assert (len(train), len(check)) == (6, 16)


@pytest.mark.parametrize(("tokens", "a_step"), [(1_000, 1024), (500_000, 1024), (2_000_000, 2000), (10**8, 8192)])
def test_a_small_budget_takes_many_small_steps(tokens: int, a_step: int) -> None:
    assert DistilSettings(tokens).a_step == a_step
    assert DistilSettings(tokens, step_tokens=7).a_step == 7


@pytest.mark.parametrize("lora", [None, 8])
def test_what_lost_little_is_trained_gently(lora: int | None) -> None:
    """A quarter of the divergence is half as far away; from FAR on, and where nothing tells, the rate is the whole."""
    whole = rate_of(64, distill.FAR, lora)
    assert whole == (distill.RATE if lora is None else distill.LORA_RATE) / 64
    assert rate_of(64, distill.FAR / 4, lora) == pytest.approx(whole / 2)
    assert rate_of(128, distill.FAR / 100, lora) == pytest.approx(whole / 20)
    assert [rate_of(64, kl, lora) for kl in (9.0, 0.0, float("nan"))] == [whole] * 3


def test_large_steps_are_longer_ones() -> None:
    """Twice the tokens, √2 of the rate; steps up to LARGE_STEP are all alike, and so are those beyond the largest."""
    usual = rate_of(64, 1.0, None)
    assert [rate_of(64, 1.0, None, tokens) for tokens in (1, 1024, distill.LARGE_STEP)] == [usual] * 3
    assert rate_of(64, 1.0, None, 2 * distill.LARGE_STEP) == pytest.approx(math.sqrt(2) * usual)
    assert rate_of(64, 1.0, None, 9 * distill.LARGE_STEP) == rate_of(64, 1.0, None, distill.STEP_TOKENS[1])


def test_the_rate_is_that_of_the_step_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which is smaller than the one asked for where the text has no more windows."""
    monkeypatch.setattr(distill, "LARGE_STEP", 2 * TRAIN.shape[1])
    monkeypatch.setattr(distill, "STEP_TOKENS", (1, 10**6))
    model = build("llama")
    for windows, asked in ((3, 8), (16, 8)):
        settings = DistilSettings(700, step_tokens=asked * TRAIN.shape[1])
        report = distil(cut(model, plan_for(model)), model, family(model), TRAIN[:windows], CHECK, settings)
        taken = min(windows, asked) * TRAIN.shape[1]
        assert report.step_tokens == taken
        usual = rate_of(model.config.hidden_size, report.kl_before, None, distill.LARGE_STEP)
        assert report.rate == pytest.approx(usual * math.sqrt(taken / distill.LARGE_STEP))


def test_the_rate_is_that_of_the_divergence_before(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []
    make = distill.arguments

    def watched(*given: Any, **how: Any) -> Any:
        asked.append(how["learning_rate"])
        return make(*given, **how)

    monkeypatch.setattr(distill, "arguments", watched)
    report = distilled("llama", 700)[2]
    assert asked == [report.rate]
    assert report.rate == rate_of(build("llama").config.hidden_size, report.kl_before, None)
    assert report.kl_before < distill.FAR


def test_weights_go_as_far_as_held_out_divergence_falls(monkeypatch: pytest.MonkeyPatch) -> None:
    """At a rate under which the whole way is too far, part of it is kept, and it is the part that is told."""
    monkeypatch.setattr(distill, "RATE", 1.0)
    model = build("llama")
    before, small = cut(model, plan_for(model)), cut(model, plan_for(model))
    report = distil(small, model, family(model), TRAIN, CHECK, DistilSettings(3000, step_tokens=224))
    assert (report.kept, 0 < report.share < 1) == (True, True)
    assert report.kl_after < report.kl_before == held_out(before, model, CHECK).kl
    assert report.kl_after == held_out(small, model, CHECK).kl
