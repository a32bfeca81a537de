"""Text on a GPU, where a pass of one token is captured and replayed: what is written is the same."""

from typing import Any

import numpy as np
import pytest
import torch
from as_captured import Replayed, as_captured
from test_evaluation_generation import health, windows_of
from test_self_text import rows
from test_surgery import architecture, pruned
from tiny_models import CONFIGS, build, random_plan

from core import one_at_a_time as module
from core.one_at_a_time import one_at_a_time

__all__ = ["as_captured"]
WINDOW = 6  # tokens that a layer attends to, where it does not attend to all


@torch.no_grad()
def logits_of(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """(T, B, V): after every token of ids (B, T)."""
    with one_at_a_time(model, len(ids), ids.shape[1]) as write:
        return torch.stack([write(tokens).clone() for tokens in ids.T])


def captured(model: Any, length: int = 4) -> bool:
    with one_at_a_time(model, 1, length) as write:
        return write.captured


@pytest.mark.parametrize("length", [WINDOW, 2 * WINDOW])
def test_a_replayed_pass_gives_what_a_whole_pass_gives(
    as_captured: type[Replayed], family_model: Any, length: int
) -> None:
    ids = torch.from_numpy(np.random.default_rng(0).integers(4, 97, (3, length)))
    kind = family_model.config._attn_implementation
    found = logits_of(family_model, ids)
    with torch.no_grad():
        expected = family_model(input_ids=ids, use_cache=False).logits.transpose(0, 1)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert family_model.config._attn_implementation == kind


def test_families_are_captured_where_torch_attends_and_windows_hold_the_text(as_captured: type[Replayed]) -> None:
    models = {name: build(name) for name in CONFIGS}
    attending = {name for name, model in models.items() if model.config._attn_implementation == "sdpa"}
    assert {name for name, model in models.items() if captured(model, WINDOW)} == attending
    whole = {name for name in attending if not getattr(models[name].config, "sliding_window", None)}
    assert {name for name, model in models.items() if captured(model, WINDOW + 1)} == whole
    assert "llama" in whole
    assert "mistral" in attending - whole


def test_a_pruned_model_is_captured(as_captured: type[Replayed]) -> None:
    ids = torch.from_numpy(np.random.default_rng(0).integers(4, 97, (2, 9)))
    model = build("llama")
    model = pruned(model, random_plan(architecture(model), seed=3, removed_layers=(1,)))
    assert captured(model)
    with torch.no_grad():
        expected = model(input_ids=ids, use_cache=False).logits.transpose(0, 1)
    torch.testing.assert_close(logits_of(model, ids), expected, rtol=1e-4, atol=1e-5)


def test_the_same_text_is_written(as_captured: type[Replayed], llama: Any) -> None:
    found = rows(llama, count=5, batch_size=2)
    assert Replayed.captures == 3
    with pytest.MonkeyPatch.context() as context:
        context.setattr(module, "worth_capturing", lambda _device: False)
        assert np.array_equal(rows(llama, count=5), found)
    assert Replayed.captures == 3


def test_the_same_follows_prompts_of_any_length(as_captured: type[Replayed]) -> None:
    model, windows = build("llama", std=0.15), windows_of(np.random.default_rng(1).integers(4, 97, (3, 20)))
    how: dict[str, Any] = {"chat": [(5, 6, 7), (8, 9, 10, 11, 12)], "batch_size": 5}
    found = health(model, windows, **how)
    assert Replayed.captures > 0
    with pytest.MonkeyPatch.context() as context:
        context.setattr(module, "worth_capturing", lambda _device: False)
        assert health(model, windows, **how) == found


@pytest.mark.parametrize("reason", ["attention", "weights away", "refused"])
def test_where_it_cannot_be_captured_tokens_are_passed(
    as_captured: type[Replayed], monkeypatch: pytest.MonkeyPatch, llama: Any, reason: str
) -> None:
    def refuse(_work: Any, _device: Any, _warm_up: Any) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing")

    ids = torch.from_numpy(np.random.default_rng(0).integers(4, 97, (2, 5)))
    expected = llama(input_ids=ids, use_cache=False).logits.transpose(0, 1)
    if reason == "attention":
        llama.set_attn_implementation("eager")
    elif reason == "refused":
        monkeypatch.setattr(module, "Captured", refuse)
    else:
        monkeypatch.setattr(type(llama), "device", torch.device("meta"))
    kind = llama.config._attn_implementation
    assert not captured(llama)
    torch.testing.assert_close(logits_of(llama, ids), expected, rtol=1e-4, atol=1e-5)
    assert llama.config._attn_implementation == kind


def test_memory_that_runs_out_is_told(as_captured: type[Replayed], monkeypatch: pytest.MonkeyPatch, llama: Any) -> None:
    def crowded(_work: Any, _device: Any, _warm_up: Any) -> Any:
        raise torch.OutOfMemoryError("not that much")

    monkeypatch.setattr(module, "Captured", crowded)
    with pytest.raises(torch.OutOfMemoryError), one_at_a_time(llama, 1, 4):
        pass
    assert llama.config._attn_implementation == "sdpa"
