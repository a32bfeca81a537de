"""Attention of few queries in half precision on a CPU, as a model that writes token by token has it.

torch's fused kernel goes through keys and values there one query of one head after the other, ten times slower than
two matrix products for all heads of a group, and slower than in float32.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

FEW = 16  # queries of a head


class FewQueriesOnCpu(TorchFunctionMode):
    """Inside, ``scaled_dot_product_attention`` of a few half-precision queries on a CPU is

        softmax(q kᵀ · scale + mask) v

    with scores and probabilities in the queries' dtype and the softmax in float32, as transformers' eager attention
    has it. Everything else runs as it does outside.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            return _attention(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """query (..., H, Q, D), key (..., G, T, D), value (..., G, T, E), H a multiple of G; (..., H, Q, E)."""
    few = query.device.type == "cpu" and query.dtype in (torch.bfloat16, torch.float16) and query.shape[-2] <= FEW
    grouped = enable_gqa and query.shape[-3] != key.shape[-3]
    if not few or is_causal or dropout_p or (grouped and (query.shape[-2] > 1 or attn_mask is not None)):
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )
    rows = query.reshape(*key.shape[:-2], -1, query.shape[-1]) if grouped else query  # a group's heads as its queries
    scores = (rows @ key.transpose(-1, -2)).float() * (query.shape[-1] ** -0.5 if scale is None else scale)
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -torch.inf) if attn_mask.dtype == torch.bool else scores + attn_mask
    found = scores.softmax(-1).to(value.dtype) @ value
    return found.reshape(*query.shape[:-1], value.shape[-1])
