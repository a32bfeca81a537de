"""Refit what is left of a linear layer to what the whole one gave: ridge regression from sums over tokens.

A block lost columns of W (o_proj or down_proj); k are the inputs that are left, W_k and b what would be kept, y the
output to reach. What the output lacks is r = y - W_k k - b, and with K, R the matrices of all tokens

    W_hat = W_k + R K^T (K K^T + λ I)^-1  =  (Y K^T + λ W_k) (K K^T + λ I)^-1    (b = 0)

so the ridge pulls towards the weights there were: λ → ∞ changes nothing. λ is relative to the mean diagonal of K K^T.
Where the module has a bias it is refitted too and not penalised: K and R are then centred, and the bias moves by
mean(r) - (W_hat - W_k) mean(k). After OSSCAR (arXiv:2403.12983) and SlimGPT (arXiv:2412.18110).

Projections that read the stream (q, k, v, gate, up) lose no column, but their inputs k are no longer the x of the dense
model. Their target is W x, so r = W (x - k); three (n, n) sums serve all of them.
"""

from dataclasses import dataclass
from itertools import chain

import torch

from core import ranks
from pruning.moments import Moments

KEPT_GAIN = 0.99


def refit(moments: Moments, ridge: float, *, intercept: bool) -> tuple[torch.Tensor, torch.Tensor | None] | None:
    """(change of the weight (C, n), change of the bias (C,) or None), float64; None where no input carries anything.

    ridge: λ over the mean diagonal of K K^T. Cholesky in float64; None too where rounding left it no definite matrix.
    """
    gram, cross = moments.gram.clone(), moments.cross
    if intercept:
        gram.addr_(moments.inputs, moments.inputs, alpha=-1 / moments.tokens)
        cross = cross - torch.outer(moments.lack, moments.inputs) / moments.tokens
    scale = float(gram.diagonal().mean())
    if not scale > 0:
        return None
    gram.diagonal().add_(ridge * scale)
    factor, failed = torch.linalg.cholesky_ex(gram)
    del gram  # as large as the factor, of which the solver makes a copy
    if int(failed):
        return None
    change = torch.cholesky_solve(cross.T, factor).T
    shift = (moments.lack - change @ moments.inputs) / moments.tokens if intercept else None
    return change, shift


@dataclass(frozen=True)
class Choice:
    """weight (C, n) and bias (C,) to keep, in the dtype they came in; ridge is None where they are those given.

    error_before, error_after: on held-out tokens, Σ ‖y - output‖² / Σ ‖y‖².
    """

    weight: torch.Tensor
    bias: torch.Tensor | None
    ridge: float | None
    error_before: float
    error_after: float


def choose(
    fit: Moments,
    check: Moments,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    *,
    ridges: tuple[float, ...],
    stored_dtype: torch.dtype | None = None,
) -> Choice:
    """Refit on ``fit`` with every ridge; keep the largest that gains KEPT_GAIN of what the best does on ``check``.

    Nothing changes where no ridge lowers the held-out error. The best ridge fits its own kind of text so closely that
    other text loses; a larger one that gains nearly as much stays nearer to the weights there were. Of several
    processes each solves some of the ridges.

    weight (C, n): W_k, bias (C,): b, which ``fit`` and ``check`` were taken with. The errors are those of weights
    rounded to stored_dtype, the one they will be saved in (None: their own).
    """
    before = check.error()
    unchanged = Choice(weight, bias, None, before, before)
    tried = {
        number: choice
        for number, ridge in enumerate(ridges)
        if ranks.has(number)
        and (choice := _refitted(fit, check, unchanged, ridge, stored_dtype)) is not None
        and choice.error_after < before
    }
    mine = {number: (choice.error_before, choice.error_after) for number, choice in tried.items()}
    errors = dict(chain.from_iterable(part.items() for part in ranks.gathered(mine, "errors of ridges")))
    gains = {number: before - after for number, (before, after) in errors.items()}
    if not gains:
        return unchanged
    enough = KEPT_GAIN * max(gains.values())
    taken = max((number for number, gain in gains.items() if gain >= enough), key=lambda number: ridges[number])
    if taken not in tried:
        empty = weight.new_empty(weight.shape), None if bias is None else bias.new_empty(bias.shape)
        tried[taken] = Choice(*empty, ridges[taken], *errors[taken])
    choice = tried[taken]
    ranks.send([choice.weight] if choice.bias is None else [choice.weight, choice.bias], taken, "refitted weights")
    return choice


def _refitted(
    fit: Moments, check: Moments, unchanged: Choice, ridge: float, stored_dtype: torch.dtype | None
) -> Choice | None:
    """With one ridge; None where it cannot be solved."""
    weight, bias = unchanged.weight, unchanged.bias
    solved = refit(fit, ridge, intercept=bias is not None)
    if solved is None:
        return None
    change, shift = solved
    new_weight = _rounded(weight.double() + change, weight.dtype, stored_dtype)
    new_bias = None if bias is None or shift is None else _rounded(bias.double() + shift, bias.dtype, stored_dtype)
    moved = None if bias is None or new_bias is None else new_bias.double() - bias.double()
    after = check.error(new_weight.double() - weight.double(), moved)
    return Choice(new_weight, new_bias, ridge, unchanged.error_before, after)


def _rounded(exact: torch.Tensor, dtype: torch.dtype, stored_dtype: torch.dtype | None) -> torch.Tensor:
    return exact.to(stored_dtype or dtype).to(dtype)
