"""Tiny models of every family, built from a configuration: no network, H != K, every weight drawn large."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    Qwen2Config,
    Qwen3Config,
)

from core.groups import Architecture
from core.plan import PruningPlan
from core.windows import TokenWindows

SHARED: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "attention_dropout": 0.0,
}
WINDOWED = {"sliding_window": 6, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
ROPE = {"rope_type": "default", "rope_theta": 5000.0}
# Names are model_type, plus what is special about a variant.
CONFIGS: dict[str, Callable[[], Any]] = {
    "llama": lambda: LlamaConfig(**SHARED, rope_parameters=ROPE),
    "llama-biased-tied-mha": lambda: LlamaConfig(
        **SHARED | {"num_key_value_heads": 8}, attention_bias=True, mlp_bias=True, tie_word_embeddings=True
    ),
    "llama-head_dim": lambda: LlamaConfig(**SHARED | {"head_dim": 20}),
    "llama-mqa": lambda: LlamaConfig(**SHARED | {"num_key_value_heads": 1}),
    "mistral": lambda: MistralConfig(**SHARED, sliding_window=6),
    "qwen2": lambda: Qwen2Config(**SHARED, **WINDOWED, use_sliding_window=True),
    "qwen3": lambda: Qwen3Config(**SHARED),
    "gemma2": lambda: Gemma2Config(**SHARED, **WINDOWED),
    "gemma3_text": lambda: Gemma3TextConfig(**SHARED, **WINDOWED),
    "phi3": lambda: Phi3Config(**SHARED, resid_pdrop=0.0),
}


def build(name: str, seed: int = 0, std: float = 0.25) -> Any:
    """A model of CONFIGS in eval mode, float32, every parameter (norms and biases too) drawn from N(0, std)."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(CONFIGS[name]()).float().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, std)
    return model.requires_grad_(False)


def token_ids(rows: int = 2, length: int = 12, seed: int = 0, vocabulary: int = 97) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, vocabulary, (rows, length), generator=generator)


def windows_of(ids: torch.Tensor) -> TokenWindows:
    return TokenWindows(ids.numpy(), "random", "calibration", "random ids")


def plan_keeping(architecture: Architecture, keep: np.ndarray, removed_layers: tuple[int, ...] = ()) -> PruningPlan:
    """A plan from a keep mask, its counts taken from the architecture."""
    groups = architecture.groups
    keep = keep.copy()
    removed = sum(architecture.layers[layer].total_params for layer in removed_layers)
    for layer in removed_layers:
        keep[groups.layer == layer] = False
    partly = ~keep & ~np.isin(groups.layer, removed_layers)
    removed += int(groups.cost[partly].sum())
    return PruningPlan(architecture, keep, removed_layers, 0.5, "prunable", removed, removed, "")


def random_plan(architecture: Architecture, seed: int = 0, removed_layers: tuple[int, ...] = ()) -> PruningPlan:
    """Keep about 60 % of every block, at least one group of it."""
    rng = np.random.default_rng(seed)
    keep = rng.random(len(architecture.groups)) < 0.6
    for start, end in zip(architecture.groups.block_start[:-1], architecture.groups.block_start[1:], strict=True):
        keep[rng.integers(start, end)] = True
    return plan_keeping(architecture, keep, removed_layers)
