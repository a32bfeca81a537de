"""The supported families. Adding one is adding a row here and a line in tests/support/tiny_models.py."""

from typing import Any

from core.errors import ModelError
from core.families import IN, OUT, Family, Member

PRUNED_PREFIX = "pruned_"  # model_type of our own checkpoints: pruned_llama, ...

SEPARATE = (
    Member("self_attn.q_proj", OUT, ("query",)),
    Member("self_attn.k_proj", OUT, ("kv",)),
    Member("self_attn.v_proj", OUT, ("kv",)),
    Member("self_attn.o_proj", IN, ("query",)),
    Member("mlp.gate_proj", OUT, ("channel",)),
    Member("mlp.up_proj", OUT, ("channel",)),
    Member("mlp.down_proj", IN, ("channel",)),
)
FUSED = (
    Member("self_attn.qkv_proj", OUT, ("query", "kv", "kv")),
    Member("self_attn.o_proj", IN, ("query",)),
    Member("mlp.gate_up_proj", OUT, ("channel", "channel")),
    Member("mlp.down_proj", IN, ("channel",)),
)
GEMMA: dict[str, Any] = {
    "pre_mlp_norm": "pre_feedforward_layernorm",
    "output_norms": ("post_attention_layernorm", "post_feedforward_layernorm"),
}

_ROWS = (
    Family("llama", "Llama", "LlamaConfig", "LlamaModel", SEPARATE),
    Family("mistral", "Mistral", "MistralConfig", "MistralModel", SEPARATE),
    Family("qwen2", "Qwen2", "Qwen2Config", "Qwen2Model", SEPARATE),
    Family("qwen3", "Qwen3", "Qwen3Config", "Qwen3Model", SEPARATE),
    Family("gemma2", "Gemma2", "Gemma2Config", "Gemma2Model", SEPARATE, **GEMMA),
    Family("gemma3_text", "Gemma3", "Gemma3TextConfig", "Gemma3TextModel", SEPARATE, **GEMMA),
    Family("phi3", "Phi3", "Phi3Config", "Phi3Model", FUSED),
)
FAMILIES: dict[str, Family] = {row.model_type: row for row in _ROWS}


def family_of(model_type: str) -> Family:
    """The row for a ``model_type``; checkpoints this tool wrote (``pruned_llama``) belong to their base family.

    Raises ModelError with the supported list.
    """
    family = FAMILIES.get(model_type.removeprefix(PRUNED_PREFIX))
    if family is None:
        supported = ", ".join(sorted(FAMILIES))
        raise ModelError(f"model_type '{model_type}' is not supported; choose a model of one of: {supported}")
    return family
