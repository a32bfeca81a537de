"""How far a model's token distribution is from its teacher's, for training and for judging.

With p the teacher's distribution of the next token and q the student's, at every position of every window,

    KL(p ‖ q) = Σ_v p_v (ln p_v - ln q_v)    nats per token;    its gradient for the student's logits is q - p

Both are computed in float32 over a few positions at a time, so beside the logits themselves there is one more tensor of
their size, the gradient.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from core import ranks
from core.as_found import evaluating
from core.batching import for_each_batch, values_at_once

CHUNK_VALUES = 1 << 22  # logits that are float32 at once on a CPU: 16 MiB, twice
BATCH_VALUES = 1 << 24  # logits of a batch that is judged on a CPU: 64 MiB in float32


def divergence(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """float32 (): mean KL over positions; logits (..., V) of any float dtype. Gradients reach the student's alone."""
    loss: torch.Tensor = _Divergence.apply(student.flatten(0, -2), teacher.flatten(0, -2))
    return loss


class _Divergence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        """The gradient is kept without the mean's 1/P, which could take it out of float16's range."""
        total, gradient = torch.zeros((), device=student.device), torch.empty_like(student)
        for rows in _chunks(student):
            p, q = (F.log_softmax(logits[rows].float(), -1) for logits in (teacher, student))
            total += F.kl_div(q, p, reduction="sum", log_target=True)
            gradient[rows] = (q.exp() - p.exp()).to(gradient.dtype)
        ctx.save_for_backward(gradient)
        return total / len(student)

    @staticmethod
    def backward(ctx: Any, upstream: torch.Tensor) -> tuple[torch.Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * (upstream / len(gradient)), None


class HeldOut(NamedTuple):
    """Means over the tokens of windows that training does not see, nats per token. kl: of the teacher from the model.
    nll: of the text itself under the model."""

    kl: float
    nll: float


@torch.no_grad()
def held_out(student: Any, teacher: Any, ids: np.ndarray) -> HeldOut:
    """ids: int64 (N, T), of which several processes take a share each. Both models are left as found. UsageError where
    a single window does not fit in memory."""
    sums = torch.zeros(2, dtype=torch.float64)
    share = ids[ranks.share(len(ids))]
    batch_size = max(1, values_at_once(BATCH_VALUES, student.device) // (ids.shape[1] * student.config.vocab_size))

    def step(batch: np.ndarray) -> None:
        rows = torch.from_numpy(batch).to(student.device)
        logits = student(input_ids=rows, use_cache=False).logits
        kl = divergence(logits, teacher(input_ids=rows, use_cache=False).logits)
        predicted = logits[:, :-1].flatten(0, 1)
        nll = F.cross_entropy(predicted.float(), rows[:, 1:].flatten())
        sums.add_(len(rows) * torch.stack([kl, nll]).to("cpu", torch.float64))

    with evaluating(student), evaluating(teacher):
        for_each_batch(share, step, None, "held-out windows", first=batch_size)
    ranks.add_up([sums], "held-out divergence")
    return HeldOut(*(sums / len(ids)).tolist())


def _chunks(logits: torch.Tensor) -> Iterator[slice]:
    """Positions of logits (P, V) that are worked on together."""
    step = max(1, values_at_once(CHUNK_VALUES, logits.device) // logits.shape[1])
    return (slice(start, start + step) for start in range(0, len(logits), step))
