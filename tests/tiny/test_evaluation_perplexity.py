"""Perplexity against an independent formula, and what must not show in it: batch size, memory, the model's mode."""

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from core.errors import DataError, UsageError
from core.windows import TokenWindows
from evaluation import perplexity as module
from evaluation.perplexity import perplexity, window_nll


@pytest.fixture
def model() -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=97,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.2,
    )
    return LlamaForCausalLM(config).eval()


def windows_of(count: int, tokens: int, text_bytes: int | None = None) -> TokenWindows:
    ids = np.random.default_rng(1).integers(0, 97, (count, tokens), dtype=np.int64)
    return TokenWindows(ids, "toy", "evaluation", "drawn at random", text_bytes)


def measure(model: Any, windows: TokenWindows, batch_size: int | None = None) -> dict[str, Any]:
    return perplexity(model, windows, batch_size=batch_size, description="test")


def test_equals_cross_entropy_over_all_predicted_tokens(model: Any) -> None:
    windows = windows_of(7, 12, text_bytes=200)
    ids = torch.from_numpy(windows.ids)
    with torch.no_grad():
        logits = model(ids).logits
    mean = F.cross_entropy(logits[:, :-1].flatten(0, 1).double(), ids[:, 1:].flatten()).item()

    result = measure(model, windows)

    assert result["nll_nats_per_token"] == pytest.approx(mean, abs=1e-6)
    assert result["perplexity"] == pytest.approx(math.exp(mean), rel=1e-6)
    assert result["bits_per_byte"] == pytest.approx(mean * 7 * 11 / math.log(2) / 200, rel=1e-6)
    assert (result["num_windows"], result["num_tokens"], result["seq_len"]) == (7, 7 * 11, 12)
    assert (result["invalid_windows"], result["source"]) == (0, "drawn at random")


@pytest.mark.parametrize("batch_size", [1, 2, 3, 7, 100])
def test_batch_size_does_not_show(model: Any, batch_size: int) -> None:
    windows = windows_of(7, 12)
    expected = measure(model, windows)["nll_nats_per_token"]
    assert measure(model, windows, batch_size)["nll_nats_per_token"] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("device", "seq_len", "windows"), [("cuda", 2048, 4), ("cuda", 512, 16), ("cpu", 512, 4), ("cpu", 4096, 1)]
)
def test_first_batches_are_what_logits_and_on_a_cpu_caches_have_room_for(
    device: str, seq_len: int, windows: int
) -> None:
    """2^28 bytes are 2 · 2^26 values of bfloat16: 4 · 2048 positions of 2^14 words; on a CPU 2048 tokens."""
    model = SimpleNamespace(config=SimpleNamespace(vocab_size=2**14), dtype=torch.bfloat16, device=torch.device(device))
    assert module.first_batch_size(model, seq_len) == windows


def test_chunk_of_positions_does_not_show(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    windows = windows_of(3, 12)
    expected = window_nll(model, windows.ids, batch_size=2, description="test")
    for positions in (1, 5, 24):  # one chunk a position; a last chunk of four; one chunk a batch of two windows
        monkeypatch.setattr(module, "CACHED_BYTES", positions * 97 * 4)
        chunked = window_nll(model, windows.ids, batch_size=2, description="test")
        np.testing.assert_allclose(chunked, expected, rtol=1e-12)


def test_half_precision_logits_are_reduced_in_float32(model: Any) -> None:
    windows = windows_of(4, 12)
    half = model.to(torch.bfloat16)
    ids = torch.from_numpy(windows.ids)
    with torch.no_grad():
        logits = half(ids).logits
    expected = F.cross_entropy(logits[:, :-1].flatten(0, 1).double(), ids[:, 1:].flatten()).item()
    assert measure(half, windows, 4)["nll_nats_per_token"] == pytest.approx(expected, rel=1e-6)


def test_without_text_bytes_there_are_no_bits_per_byte(model: Any) -> None:
    assert measure(model, windows_of(2, 5))["bits_per_byte"] is None


def test_windows_that_yield_nan_are_counted_and_the_measures_unknown(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    windows = windows_of(5, 6, text_bytes=99)
    windows.ids[:] = np.where(windows.ids == 13, 14, windows.ids)
    windows.ids[[1, 3], 2] = 13  # token 13 breaks the two windows that hold it
    with torch.no_grad():
        model.model.embed_tokens.weight[13] = torch.nan

    result = measure(model, windows, 2)

    assert result["invalid_windows"] == 2
    assert [result[key] for key in ("perplexity", "nll_nats_per_token", "bits_per_byte")] == [None] * 3


def test_perplexity_too_large_for_a_float_is_unknown_and_its_nll_known() -> None:
    vocabulary = torch.zeros(1, 3, 4)
    vocabulary[..., 0] = 2000.0  # token 1 then costs 2000 nats
    model = torch.nn.Module()
    model.forward = lambda input_ids, use_cache: SimpleNamespace(logits=vocabulary)
    model.config = SimpleNamespace(vocab_size=4)  # type: ignore[assignment]
    model.dtype, model.device = torch.float32, torch.device("cpu")  # type: ignore[assignment]
    windows = TokenWindows(np.ones((1, 3), dtype=np.int64), "toy", "evaluation", "ones")

    result = measure(model, windows)

    assert (result["perplexity"], result["nll_nats_per_token"]) == (None, 2000.0)


@pytest.mark.parametrize(("count", "tokens"), [(0, 12), (3, 1)])
def test_nothing_to_predict_is_an_error(model: Any, count: int, tokens: int) -> None:
    with pytest.raises(DataError, match=f"{count} windows of {tokens} tokens"):
        measure(model, windows_of(count, tokens))


def limit_memory(model: Any, monkeypatch: pytest.MonkeyPatch, largest: int) -> list[int]:
    """Make ``model`` run out of memory above ``largest`` windows; the batches it saw are in the returned list."""
    forward, seen = model.forward, []

    def limited(input_ids: torch.Tensor, **options: Any) -> Any:
        seen.append(len(input_ids))
        if len(input_ids) > largest:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(input_ids=input_ids, **options)

    monkeypatch.setattr(model, "forward", limited)
    return seen


def test_batch_is_halved_until_it_fits_and_stays_there(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    windows = windows_of(11, 12)
    expected = measure(model, windows, 1)
    monkeypatch.setattr(module, "BATCH_LOGITS_BYTES", 8 * 12 * 97 * 4)  # room for 8 windows
    seen = limit_memory(model, monkeypatch, largest=3)

    result = measure(model, windows)

    assert seen == [8, 4, 2, 2, 2, 2, 2, 1]  # 8 and 4 do not fit; then 5 pairs and the eleventh
    assert result["nll_nats_per_token"] == pytest.approx(expected["nll_nats_per_token"], abs=1e-6)


def test_batch_size_that_was_asked_for_is_not_changed(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    limit_memory(model, monkeypatch, largest=3)
    with pytest.raises(UsageError, match="--batch_size 4 does not fit"):
        measure(model, windows_of(8, 12), 4)


def test_single_window_that_does_not_fit(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    limit_memory(model, monkeypatch, largest=0)
    with pytest.raises(UsageError, match="--eval_seq_len"):
        measure(model, windows_of(8, 12))


@pytest.mark.parametrize("fails", [False, True])
def test_model_is_left_as_found(model: Any, monkeypatch: pytest.MonkeyPatch, fails: bool) -> None:
    model.train()
    model.model.layers[0].mlp.eval()  # a mode of its own, which train() or eval() on the whole would lose
    model.config.use_cache = True
    flags = [m.training for m in model.modules()]
    assert len(set(flags)) == 2

    if fails:
        monkeypatch.setattr(model.lm_head, "forward", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            measure(model, windows_of(2, 5))
    else:
        measure(model, windows_of(2, 5))

    assert [m.training for m in model.modules()] == flags
    assert model.config.use_cache is True
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert torch.is_grad_enabled()
