"""How a distillation divides its tokens into steps, at which rate, in which memory, and how far its weights go."""

import math
from typing import Any

import pytest
import torch
from repairs import family, plan_for
from test_distillation import CHECK, TRAIN, distilled
from test_recovery_blocks import cut, state
from tiny_models import build

import pruning.recovery.distill as distill
from pruning.recovery.distill import DistilSettings, NoRoom, distil, rate_of
from pruning.recovery.kl import held_out


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
