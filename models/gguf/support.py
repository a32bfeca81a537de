"""What GGUF can express: which architecture a checkpoint becomes, and why another is refused. No gguf package here.

Exactness is the rule. Whatever the engine would compute differently from transformers, at any position within the
model's context, is a reason to refuse; each reason is one row of ``_obstacles``.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from core.errors import ModelError
from models.family_table import PRUNED_PREFIX
from models.loading import ModelSource

DECI, OPENELM = "deci", "openelm"
ARCHES = {"llama": DECI, "mistral": DECI, "qwen2": DECI, "qwen3": OPENELM}
NO_ARCH = {
    "gemma2": "no GGUF architecture has both widths per layer and gemma's norms, soft-capping and sliding window",
    "gemma3_text": "no GGUF architecture has both widths per layer and gemma's norms and sliding window",
    "phi3": "no GGUF architecture has both widths per layer and phi3's rotary and sliding-window settings",
}
# Rope kinds that scale fixed frequencies; openelm takes no frequency factors, so only a common factor.
ROPE_KINDS = {DECI: ("default", "linear", "llama3", "yarn"), OPENELM: ("default", "linear")}


def arch_of(source: ModelSource) -> str:
    """The GGUF architecture of a checkpoint. Raises ModelError with every obstacle in one line."""
    model_type = source.family.model_type
    if model_type not in ARCHES:
        raise _refusal(source, NO_ARCH.get(model_type, "no GGUF architecture is known for it"))
    arch = ARCHES[model_type]
    obstacles = list(_obstacles(source, arch))
    if obstacles:
        raise _refusal(source, "; ".join(obstacles))
    return arch


def _refusal(source: ModelSource, reason: str) -> ModelError:
    return ModelError(f"{source.path} ({source.family.model_type}) cannot be exported to GGUF: {reason}")


def _obstacles(source: ModelSource, arch: str) -> Iterator[str]:
    config = source.config
    if arch == OPENELM and not config.tie_word_embeddings:
        yield "openelm, the only architecture with query and key norms and widths per layer, needs tied embeddings"
    if has_qkv_bias(source) and arch == OPENELM:
        yield "openelm has no attention biases"
    if config.hidden_act != "silu":
        yield f"the engine's MLP uses silu, this one {config.hidden_act}"
    window = active_window(config)
    if window is not None:
        yield (
            f"sliding window of {window} tokens within a context of {source.context}, and {arch} attends to everything;"
            f" with max_position_embeddings of {window} or less in config.json the window never acts"
        )
    yield from _rope_obstacles(source, arch)


def _rope_obstacles(source: ModelSource, arch: str) -> Iterator[str]:
    rope = source.config.rope_parameters
    kind = rope.get("rope_type", "default")
    if kind not in ROPE_KINDS[arch]:
        yield f"rope scaling '{kind}' cannot be written ({arch} takes {', '.join(ROPE_KINDS[arch])})"
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        yield f"only {rope['partial_rotary_factor']:.0%} of a head is rotated, and {arch} rotates all of it"
    head_dim = source.architecture.layers[0].head_dim
    if head_dim % 2:
        yield f"heads of {head_dim} values cannot be rotated in pairs"


def rope_factors(source: ModelSource) -> tuple[torch.Tensor, float] | None:
    """What each plain frequency is divided by, float32 (D/2,), and the factor on cosines and sines.

    The frequencies are those that transformers computes, so every kind that fixes them beforehand is written alike;
    None for the kinds that need no such table.
    """
    rope, head_dim = source.config.rope_parameters, source.architecture.layers[0].head_dim
    if rope.get("rope_type", "default") in ROPE_KINDS[OPENELM]:
        return None
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaled, factor = ROPE_INIT_FUNCTIONS[rope["rope_type"]](source.config, torch.device("cpu"))
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim
    plain = rope["rope_theta"] ** -exponents
    return (plain / scaled.double()).float(), float(factor)


def has_qkv_bias(source: ModelSource) -> bool:
    """Whether q, k and v have biases: always in qwen2, never in mistral, by configuration elsewhere."""
    model_type = source.family.model_type
    return model_type == "qwen2" or (model_type in ("llama", "qwen3") and bool(source.config.attention_bias))


def has_output_bias(source: ModelSource) -> bool:
    """Whether o_proj has one."""
    return source.family.model_type in ("llama", "qwen3") and bool(source.config.attention_bias)


def active_window(config: Any) -> int | None:
    """The sliding window in tokens, where some position of the context would meet it."""
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    if window is None or (kinds is not None and "sliding_attention" not in kinds):
        return None
    return int(window) if config.max_position_embeddings > window else None


def refuse_empty_blocks(folder: Path) -> None:
    """Refuse empty blocks before anything is built: the engine drops them wrongly or not at all.

    A feed-forward length of 0 makes it skip the layer's attention as well, silently; a model whose first layer has
    no heads does not load. Reads config.json only. Raises ModelError.
    """
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        layers = config.get("per_layer_config") or {}
        empty = [f"layer {layer}: {name} 0" for layer in layers for name, width in layers[layer].items() if width == 0]
        pruned = str(config.get("model_type", "")).startswith(PRUNED_PREFIX)
    except (OSError, ValueError, AttributeError, TypeError):
        return  # a broken or missing configuration is reported by check_model
    if pruned and empty:
        raise ModelError(
            f"{folder} cannot be exported to GGUF: llama.cpp miscomputes empty blocks ({'; '.join(empty[:3])}); "
            "prune with a floor of 1 group or more, or remove whole layers"
        )
