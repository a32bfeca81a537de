"""Attention of few queries in half precision on a CPU, as a model that writes token by token has it.

torch's fused kernel goes through keys and values there one query of one head after the other: several times slower
than two matrix products for all heads of a group, and slower than in float32.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

FEW = 16  # queries of a head


def few_queries_by_products(model: Any) -> AbstractContextManager[Any]:
    """Inside, ``model`` attends by ``FewQueriesOnCpu`` where that helps it; elsewhere nothing changes."""
    half = model.dtype in (torch.bfloat16, torch.float16)
    return FewQueriesOnCpu() if half and model.device.type == "cpu" else nullcontext()


class FewQueriesOnCpu(TorchFunctionMode):
    """Inside, ``scaled_dot_product_attention`` of a few half-precision queries on a CPU is

        softmax(q kᵀ · scale + mask) v

    with scores and softmax in float32 and probabilities rounded to the values' dtype, as torch's kernel has it; a query
    that may attend to nothing gives 0. Everything else runs as it does outside, a little slower, since every call of
    torch passes through here.
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
    """query (B, H, Q, D), key (B, G, T, D), value (B, G, T, E), H a multiple of G; (B, H, Q, E)."""
    grouped = enable_gqa and query.shape[1] != key.shape[1]
    if (
        not _takes(query, key, value)
        or (attn_mask is not None and attn_mask.dtype not in (torch.bool, query.dtype))
        or (is_causal or dropout_p)
        or (grouped and (query.shape[2] > 1 or attn_mask is not None))
    ):
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )
    rows = query.reshape(*key.shape[:2], -1, query.shape[-1]) if grouped else query  # a group's heads as its queries
    scores = (rows.float() @ key.float().mT) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if attn_mask is None:
        probabilities = scores.softmax(-1)
    else:
        scores = scores.masked_fill(~attn_mask, -torch.inf) if attn_mask.dtype == torch.bool else scores + attn_mask
        blind = (scores == -torch.inf).all(-1, keepdim=True)
        probabilities = scores.softmax(-1).masked_fill(blind, 0.0)
    found = probabilities.to(value.dtype) @ value
    return found.reshape(*query.shape[:3], value.shape[-1])


def _takes(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> bool:
    """Whether these are few half-precision queries on a CPU, of as many texts as there are keys for."""
    return (
        query.device.type == "cpu"
        and query.dtype in (torch.bfloat16, torch.float16)
        and query.ndim == key.ndim == value.ndim == 4
        and 0 < query.shape[2] <= FEW
        and 0 < len(query) == len(key) == len(value)
        and key.shape[1] == value.shape[1]
    )
