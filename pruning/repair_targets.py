"""What the output of a block is refitted to, and how much each token counts: ``--reconstruct_target``.

With y what the block's writing module gives in the dense model, h the stream before the block:

    stream   what brings the residual stream behind the block back to the dense model's: y + h_dense - h_pruned. Every
             block makes up for what those before it left. A token counts by 1 / mean(h^2), h the dense stream behind
             the block, because the norms that read the stream divide by it: without, a few tokens of huge norm (the
             first of a window) would decide alone
    dense    y, on the dense stream
    pruned   what the whole block gives on the pruned stream

Families that put a norm behind o_proj and down_proj (``Family.output_norms``) change the stream by gain · y / rms(y).
Towards ``stream`` what the stream lacks is divided by that scale, taken at the dense y, before it is added to y. Their
tokens count by 1 / mean(y^2) for every target, on top of the above: the norm divides by it.
"""

from typing import Any, NamedTuple

import torch


class Seen(NamedTuple):
    """Some windows of one block, (B, T, C) each.

    output: y. dense, pruned: the streams before the block; dense_behind: the dense one behind it. norm: the module
    between the block's output and the stream, or None.
    """

    output: torch.Tensor
    dense: torch.Tensor
    pruned: torch.Tensor
    dense_behind: torch.Tensor
    norm: Any


class Target:
    """The output of the block itself; ``needs_dense`` tells in which stream."""

    def __init__(self, *, needs_dense: bool) -> None:
        self.needs_dense = needs_dense

    def of(self, seen: Seen) -> torch.Tensor:
        """float32 (B, T, C)."""
        return seen.output.float()

    def token_weight(self, seen: Seen) -> torch.Tensor | None:
        """float32 (B, T, 1); None where every token counts 1."""
        return None if seen.norm is None else one_over_mean_square(seen.output)


class StreamTarget(Target):
    """Towards the dense model's residual stream."""

    def of(self, seen: Seen) -> torch.Tensor:
        lack = seen.dense.float() - seen.pruned.float()
        return seen.output.float() + (lack if seen.norm is None else before_norm(seen.norm, seen.output, lack))

    def token_weight(self, seen: Seen) -> torch.Tensor:
        of_output, weight = super().token_weight(seen), one_over_mean_square(seen.dense_behind)
        return weight if of_output is None else of_output * weight


TARGETS: dict[str, Target] = {
    "stream": StreamTarget(needs_dense=True),
    "dense": Target(needs_dense=True),
    "pruned": Target(needs_dense=False),
}


def before_norm(norm: Any, y: torch.Tensor, change: torch.Tensor) -> torch.Tensor:
    """What to add to y so that norm(y) moves by about ``change``: the norm's scale at y, inverted. float32 (N, T, C).

    RMSNorm gives gain * y / rms(y). A channel of small gain cannot be moved far, so the inverse of the gain is damped.
    """
    gain = norm(torch.ones_like(y[:1, :1])).float()
    inverse = gain / (gain.square() + 0.01 * gain.square().mean())
    return change * inverse * y.float().square().mean(-1, keepdim=True).sqrt()


def one_over_mean_square(values: torch.Tensor) -> torch.Tensor:
    """float32 (..., 1) for values (..., C); 0 where they are all but zero: nothing there can be refitted."""
    square = values.float().square().mean(-1, keepdim=True)
    return torch.where(square > 1e-20, square.reciprocal(), 0.0)
