"""Tokens drawn from what a model expects. torch is imported where it is used."""

import warnings
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def drawn_tokens(logits: "torch.Tensor", chances: "torch.Tensor") -> "torch.Tensor":
    """int64 (B,): the token whose stretch of the cumulative distribution holds the chance, at temperature 1; -1 where
    logits are not finite.

    logits: (B, V) of any float dtype. chances: float64 (B,) in [0, 1). Summed in float64, as V is large; a chance that
    belongs to its row makes the draw independent of the batch, but for rounding.
    """
    import torch

    probabilities = torch.softmax(logits.double(), dim=-1)
    with warnings.catch_warnings():
        # On a GPU sums of float64 in another order: they differ by less than a uniform number can fall between.
        warnings.filterwarnings("ignore", message="cumsum_cuda_kernel does not have a deterministic implementation")
        cumulative = probabilities.cumsum(-1)
    place = torch.searchsorted(cumulative, (chances * cumulative[:, -1])[:, None], right=True)[:, 0]
    return torch.where(logits.isfinite().all(-1), place.clamp(max=logits.shape[-1] - 1), -1)
