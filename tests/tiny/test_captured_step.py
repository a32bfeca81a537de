"""A training step on a GPU, where it is captured and replayed: what is learnt is the same."""

from pathlib import Path
from typing import Any

import pytest
import torch
from as_captured import Replayed, as_captured
from test_distillation import distilled
from tiny_models import build

from core.batching import TOKENS_A_BATCH
from pruning.recovery import captured_step, distill, trainer

__all__ = ["as_captured"]


def by_launches(**options: Any) -> Any:
    """The weights that training without a capture ends with."""
    with pytest.MonkeyPatch.context() as context:
        context.setattr(trainer, "launches_are_dear", lambda _device: False)
        return distilled(**options)


def assert_alike(small: Any, expected: Any) -> None:
    for values, others in zip(small.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(values, others, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["llama-biased-tied-mha", "mistral"])
@pytest.mark.parametrize("at_once", [TOKENS_A_BATCH, 56])
def test_a_replayed_step_learns_what_a_launched_one_learns(
    as_captured: type[Replayed], monkeypatch: pytest.MonkeyPatch, name: str, at_once: int
) -> None:
    """Also where a step has several passes, whose gradients are added up."""
    monkeypatch.setattr(distill, "TOKENS_A_BATCH", at_once)
    _, small, report = distilled(name)
    assert Replayed.captures == 1
    assert report.kept
    _, expected, other = by_launches(name=name)
    assert Replayed.captures == 1
    assert_alike(small, expected)
    assert report.kl_after == pytest.approx(other.kl_after, rel=1e-4)
    assert [step for step, _ in report.losses] == [step for step, _ in other.losses]
    assert [loss for _, loss in report.losses] == pytest.approx([loss for _, loss in other.losses], rel=1e-3)
    assert all(parameter.grad is None for parameter in small.parameters())


def test_adapters_too(as_captured: type[Replayed]) -> None:
    _, small, report = distilled("phi3", lora=4)
    assert Replayed.captures == 1
    assert report.kept
    assert_alike(small, by_launches(name="phi3", lora=4)[1])


@pytest.mark.parametrize("error", [RuntimeError("capturing"), torch.OutOfMemoryError("not that much")])
def test_what_cannot_be_captured_is_launched(
    as_captured: type[Replayed], monkeypatch: pytest.MonkeyPatch, error: RuntimeError
) -> None:
    def refuse(_work: Any, _device: Any, _warm_up: Any) -> Any:
        raise error

    monkeypatch.setattr(captured_step, "Captured", refuse)
    _, small, report = distilled("llama")
    assert report.kept
    assert_alike(small, by_launches(name="llama")[1])


def test_no_capture_where_weights_come_and_go_or_layers_are_computed_again(
    as_captured: type[Replayed], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    attempts: list[bool] = []
    distiller = distill.Distiller

    def watched(dense: Any, half: bool, recomputed: bool, *given: Any, **more: Any) -> Any:
        attempts.append(recomputed)
        if not recomputed:
            raise torch.OutOfMemoryError("not that much")
        return distiller(dense, half, recomputed, *given, **more)

    monkeypatch.setattr(distill, "Distiller", watched)
    assert distilled("llama")[2].kept
    assert attempts == [False, True]
    assert Replayed.captures == 0
    monkeypatch.undo()
    with pytest.MonkeyPatch.context() as context:
        context.setattr(trainer, "launches_are_dear", lambda _device: True)
        context.setattr(captured_step, "Captured", Replayed)
        given: dict[str, Any] = {
            "model": build("llama"),
            "args": trainer.arguments(torch.device("cpu"), False, tmp_path, ()),
        }
        assert trainer.Distiller(build("llama"), False, False, None, {}, **given).capturing
        assert not trainer.Distiller(build("llama").to("meta"), False, False, None, {}, **given).capturing
