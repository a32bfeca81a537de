"""How far a pruned model's predictions are from the dense model's, token by token; no labels are needed.

With p the dense model's distribution over the next token, q the pruned one's:

    KL(dense ‖ pruned) = Σ_v p_v (ln p_v - ln q_v), in nats, mean over tokens
    top-1 agreement    = share of tokens where both models' likeliest token is the same

The dense model is gone when the pruned one runs. What is kept of it are its last hidden states, C values a token, and
its head, from which its logits are computed again, all of them and exactly: V values a token would be up to a hundred
times as many. So that memory stays bounded, whole windows of DISTANCE_TOKENS in all are compared, spread evenly over
the text.
"""

import math
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F

from core import ranks
from core.engine import engine_of
from core.windows import TokenWindows
from evaluation.perplexity import own_window_nll, positions_at_once

if TYPE_CHECKING:
    from transformers import PreTrainedModel

DISTANCE_TOKENS = 2**14  # a text; the standard error of KL, a few hundredths of it, is measured and told


@dataclass(frozen=True)
class Head:
    """From last hidden states to logits, as the model computes them; a copy that no later training changes.

    weight (V, C) and bias (V,), in the model's dtype. cap: logits are ``cap · tanh(logits / cap)``, None: as they are.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None
    cap: float | None

    @staticmethod
    def of(model: "PreTrainedModel") -> "Head":
        linear: Any = model.get_output_embeddings()
        with engine_of(model).at_hand(linear):
            bias = getattr(linear, "bias", None)
            return Head(
                linear.weight.detach().to("cpu", copy=True),
                None if bias is None else bias.detach().to("cpu", copy=True),
                getattr(model.config.get_text_config(), "final_logit_softcapping", None),
            )

    def to(self, device: torch.device) -> "Head":
        return Head(self.weight.to(device), None if self.bias is None else self.bias.to(device), self.cap)

    def logits(self, states: torch.Tensor) -> torch.Tensor:
        """(P, V) of states (P, C)."""
        logits = F.linear(states, self.weight, self.bias)
        return logits if self.cap is None else self.cap * torch.tanh(logits / self.cap)


class DenseStates:
    """The dense model's last hidden states in the windows of a text that are compared: a watch of ``window_nll``.

    rows: int64 (R,), which windows, ascending. states: (R, T-1, C) on the CPU in the model's dtype, filled as the
    model runs. here: which of them this process fills, of several that share the windows.
    """

    def __init__(self, windows: TokenWindows, head: Head) -> None:
        self.rows, self.head = compared_rows(windows), head
        shape = (len(self.rows), windows.seq_len - 1, head.weight.shape[1])
        self.states = torch.empty(shape, dtype=head.weight.dtype)
        mine = ranks.share(len(windows))
        self.here = slice(*np.searchsorted(self.rows, [mine.start, mine.stop]).tolist())

    def __call__(self, first: int, states: torch.Tensor, logits: torch.Tensor) -> None:
        for place, row in _within(self.rows, first, len(states)):
            self.states[place] = states[row, :-1]

    def fill(self, model: "PreTrainedModel", windows: TokenWindows, batch_size: int | None, description: str) -> None:
        """Run the model on these windows alone, where nothing else asks for its loss."""

        def watch(first: int, states: torch.Tensor, logits: torch.Tensor) -> None:
            self.states[first : first + len(states)] = states[:, :-1]

        own_window_nll(
            model, windows.ids[self.rows], self.here, batch_size=batch_size, description=description, watch=watch
        )


class Distance:
    """Another model's distance from the dense one: a watch of ``window_nll`` over the same windows."""

    def __init__(self, dense: DenseStates) -> None:
        self.dense = dense
        self._found: dict[int, torch.Tensor] = {}  # by place: mean KL and agreement, on the model's device
        self._head: Head | None = None

    def __call__(self, first: int, states: torch.Tensor, logits: torch.Tensor) -> None:
        for place, row in _within(self.dense.rows, first, len(logits)):
            head = self._head_on(logits.device)
            dense = self.dense.states[place].to(logits.device)
            self._found[place] = torch.stack(token_distances(head, dense, logits[row, :-1])).mean(1)

    def result(self) -> dict[str, Any]:
        """{"kl_nats_per_token", "kl_standard_error", "top1_agreement", "num_windows", "num_tokens"}.

        The error is that of the mean over windows, None for one window. The first three are None where the model
        yields NaN or Inf.
        """
        missing = torch.full((2,), math.nan, dtype=torch.float64)
        places = range(len(self.dense.rows))[self.dense.here]
        mine = [self._found.get(place, missing).cpu() for place in places]
        divergence, agreement = torch.stack(list(chain.from_iterable(ranks.gathered(mine, "distance")))).T
        windows = len(divergence)
        finite = bool(divergence.isfinite().all())
        error = float(divergence.std()) / math.sqrt(windows) if finite and windows > 1 else None
        return {
            "kl_nats_per_token": float(divergence.mean()) if finite else None,
            "kl_standard_error": error,
            "top1_agreement": float(agreement.mean()) if finite else None,
            "num_windows": windows,
            "num_tokens": windows * self.dense.states.shape[1],
        }

    def _head_on(self, device: torch.device) -> Head:
        if self._head is None:
            self._head = self.dense.head.to(device)
        return self._head


def compared_rows(windows: TokenWindows) -> np.ndarray:
    """int64 (R,): windows of DISTANCE_TOKENS in all, at least one, spread evenly over the text."""
    count = min(len(windows), max(1, DISTANCE_TOKENS // windows.seq_len))
    return np.arange(count, dtype=np.int64) * len(windows) // count


def token_distances(head: Head, dense: torch.Tensor, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """float64 (P,): KL in nats, and 1 where both likeliest tokens are the same.

    dense: (P, C), the dense model's last hidden states. logits: (P, V) of the other model. In float32 over a few
    positions at a time, like the loss itself.
    """
    size = positions_at_once(logits.device, logits.shape[-1])
    pairs = zip(dense.split(size), logits.split(size), strict=True)
    parts = [_distances(head.logits(states).float(), other.float()) for states, other in pairs]
    return torch.cat([kl for kl, _ in parts]).double(), torch.cat([same for _, same in parts]).double()


def _distances(dense: torch.Tensor, other: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Σ_v p_v (z_v - y_v) - lse(z) + lse(y) of logits z (dense) and y, (P, V), without a matrix of log-probabilities.

    Never below 0, whatever rounding says.
    """
    p = torch.softmax(dense, dim=-1)
    same = dense.argmax(-1) == other.argmax(-1)
    norms = torch.logsumexp(other, -1) - torch.logsumexp(dense, -1)
    return (torch.linalg.vecdot(p, dense - other) + norms).clamp(min=0), same


def _within(rows: np.ndarray, first: int, count: int) -> list[tuple[int, int]]:
    """(place in rows, place in the batch) of the windows that a batch of ``count`` from ``first`` on holds."""
    places = np.flatnonzero((rows >= first) & (rows < first + count))
    return [(int(place), int(rows[place]) - first) for place in places]
