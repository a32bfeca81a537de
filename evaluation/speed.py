"""Size and speed of a model: parameters, bytes, and tokens a second with the KV cache."""

import time
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from core.as_found import evaluating

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def size(model: "PreTrainedModel", stored_as: torch.dtype | None = None) -> dict[str, int]:
    """Parameters and their bytes in a checkpoint; a tied weight counts once, buffers do not.

    stored_as: dtype of the checkpoint, where the model computes in another; None is each parameter's own.
    """
    parameters = list(model.parameters())  # yields a shared Parameter once
    return {
        "parameters": sum(p.numel() for p in parameters),
        "bytes": sum(p.numel() * (stored_as or p.dtype).itemsize for p in parameters),
    }


def latency(
    model: "PreTrainedModel", *, vocab_size: int, seq_len: int, new_tokens: int, repeats: int, seed: int
) -> dict[str, Any]:
    """Prefill and decode speed at batch 1, each the median of ``repeats`` runs after a warm-up.

    Prefill reads a random prompt of ``seq_len`` tokens in one pass; decode adds ``new_tokens`` greedily chosen
    tokens, one a pass, with the KV cache. peak_memory_bytes is the device's largest allocation during the runs,
    weights included (the device's peak counter starts anew); None on a CPU, where no allocator counts.
    """
    generator = torch.Generator().manual_seed(seed)
    prompt = torch.randint(vocab_size, (1, seq_len), generator=generator).to(model.device)
    on_gpu = model.device.type == "cuda"
    with evaluating(model):
        _generate(model, prompt, new_tokens)
        if on_gpu:
            torch.cuda.reset_peak_memory_stats(model.device)
        times_s = np.array([_generate(model, prompt, new_tokens) for _ in range(repeats)])
    prefill_s, decode_s = np.median(times_s, axis=0)
    return {
        "prefill_tokens_per_s": float(seq_len / prefill_s),
        "decode_tokens_per_s": float(new_tokens / decode_s),
        "peak_memory_bytes": torch.cuda.max_memory_allocated(model.device) if on_gpu else None,
        "prompt_tokens": seq_len,
        "new_tokens": new_tokens,
        "repeats": repeats,
        "device": torch.cuda.get_device_name(model.device) if on_gpu else model.device.type,
    }


def _generate(model: "PreTrainedModel", prompt: torch.Tensor, new_tokens: int) -> tuple[float, float]:
    """Seconds of one prefill and of ``new_tokens`` decode steps. prompt: int64 (1, T)."""
    start = _now_s(model)
    output = model(input_ids=prompt, use_cache=True, logits_to_keep=1)
    prefilled = _now_s(model)
    for _ in range(new_tokens):
        token = output.logits[:, -1:].argmax(-1)
        output = model(input_ids=token, past_key_values=output.past_key_values, use_cache=True)
    return prefilled - start, _now_s(model) - prefilled


def _now_s(model: "PreTrainedModel") -> float:
    """The clock once the device has finished what it was given."""
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
    return time.perf_counter()
