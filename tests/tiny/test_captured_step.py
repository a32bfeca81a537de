"""A training step on a GPU, where it is captured and replayed: what is learnt is the same."""

import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from as_captured import Replayed, as_captured
from test_distillation import distilled
from tiny_models import build

from core.batching import TOKENS_A_BATCH
from pruning.recovery import captured_step, distill, trainer

__all__ = ["as_captured"]


def by_launches(**options: Any) -> Any:
    """The weights that training without a capture ends with."""
    with pytest.MonkeyPatch.context() as context:
        context.setattr(trainer, "worth_capturing", lambda _device: False)
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


def test_layers_that_compute_again_are_launched(as_captured: type[Replayed], monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_no_capture_of_what_is_not_the_same_every_time(as_captured: type[Replayed], tmp_path: Path) -> None:
    def captures(student: Any, teacher: Any, processes: int = 1, **of_args: Any) -> bool:
        args = trainer.arguments(torch.device("cpu"), False, tmp_path, ())
        args.__dict__.update(of_args)
        with trainer.surroundings_kept(torch.device("cpu")), pytest.MonkeyPatch.context() as context:
            context.setattr(trainer, "ranks", SimpleNamespace(count=lambda: processes))
            context.setattr(torch.amp.GradScaler, "__init__", lambda *_, **__: None)
            made = trainer.Distiller(teacher, False, False, None, {}, model=student, args=args)
        return bool(made.capturing)

    model = build("llama")
    assert captures(build("llama"), model)
    assert not captures(build("llama"), build("llama").to("meta"))
    assert not captures(build("llama"), build("gemma2"))  # whose attention is not torch's
    assert not captures(build("llama"), model, processes=2)
    assert not captures(build("llama"), model, fp16=True)


@pytest.mark.parametrize(("name", "masked"), [("llama", False), ("mistral", True)])
def test_only_layers_that_attend_to_part_of_a_window_have_a_mask(
    as_captured: type[Replayed], monkeypatch: pytest.MonkeyPatch, name: str, masked: bool
) -> None:
    found: set[tuple[bool, bool]] = set()
    attend = F.scaled_dot_product_attention

    def watched(*given: Any, **more: Any) -> Any:
        found.add((more["attn_mask"] is not None, more["is_causal"]))
        return attend(*given, **more)

    monkeypatch.setattr(F, "scaled_dot_product_attention", watched)
    monkeypatch.setattr(distill, "held_out", lambda *_: distill.HeldOut(1.0, 1.0))
    distilled(name)
    assert Replayed.captures == 1
    assert found == {(masked, not masked)}


def test_the_optimiser_has_room_left(as_captured: type[Replayed], monkeypatch: pytest.MonkeyPatch) -> None:
    """While a step is captured, as much memory is held as the first step will take."""
    held: list[Any] = []  # weak references: whether anybody else keeps them
    found: list[list[torch.Size]] = []
    made, empty = trainer.CapturedStep, torch.empty_like

    def noted(values: torch.Tensor, *given: Any, **more: Any) -> torch.Tensor:
        tensor = empty(values, *given, **more)
        held.append(weakref.ref(tensor))
        return tensor

    def watched(loss_of: Any, models: Any, parameters: Any, ids: torch.Tensor) -> Any:
        kept = [tensor for tensor in (reference() for reference in held) if tensor is not None]
        found.append([tensor.shape for tensor in kept])
        assert found[-1] == [values.shape for values in parameters for _ in range(2)]
        return made(loss_of, models, parameters, ids)

    monkeypatch.setattr(trainer, "CapturedStep", watched)
    monkeypatch.setattr(torch, "empty_like", noted)
    distilled("llama")
    assert len(found) == 1
