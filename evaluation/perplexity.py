"""Perplexity on held-out windows.

A window x_1 ... x_T gives T-1 predictions; its loss is NLL = Σ_{t=2..T} -ln p(x_t | x_1 ... x_{t-1}), in nats.
Over all windows:

    nll_nats_per_token = Σ NLL / (N·(T-1))        perplexity = exp(nll_nats_per_token)
    bits_per_byte      = Σ NLL / ln 2 / text_bytes

Each token's loss is computed in float32 whatever the model's dtype and summed in float64, so neither the batch size
nor the number of windows shows in the result.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F

from core import ranks
from core.as_found import evaluating
from core.batching import TOKENS_A_BATCH, with_batch_that_fits
from core.carrier import Carrier
from core.engine import engine_of
from core.errors import DataError
from core.progress import tqdm
from core.windows import TokenWindows

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BATCH_LOGITS_BYTES = 2**28  # the first batch tried is the largest whose logits take at most this much
CHUNK_LOGITS_BYTES = 2**26  # float32 log-probabilities that exist at once on top of the batch's own logits
CACHED_BYTES = 2**22  # the same on a CPU: what its caches hold
NOT_PREDICTED = -100
LARGEST_NLL = math.log(np.finfo(np.float64).max)  # beyond it exp overflows

# Called after each batch with the index of its first window, the last hidden states (B, T, C) and the logits (B, T, V):
# what else is to be known of a model is learnt in the same pass. A batch that did not fit in memory may come again.
Watch = Callable[[int, torch.Tensor, torch.Tensor], None]


def perplexity(
    model: "PreTrainedModel",
    windows: TokenWindows,
    *,
    batch_size: int | None,
    description: str,
    watch: Watch | None = None,
) -> dict[str, Any]:
    """Perplexity, nats per token and bits per byte of ``model`` on ``windows``.

    batch_size: windows a forward pass; None starts with what should fit and halves on out-of-memory.
    description: what the progress bar on stderr says. watch: sees every batch.
    The three measures are None where a window yields NaN or Inf (``invalid_windows`` counts those), bits_per_byte
    also where ``windows.text_bytes`` is None. num_tokens counts predicted tokens, N·(T-1).
    Raises DataError without a single prediction, UsageError where memory does not suffice. The model is left as
    found.
    """
    if len(windows) == 0 or windows.seq_len < 2:
        raise DataError(
            f"nothing to predict in {windows.dataset!r}: {len(windows)} windows of {windows.seq_len} tokens, "
            "and at least one window of two tokens is needed"
        )
    nll = window_nll(model, windows.ids, batch_size=batch_size, description=description, watch=watch)
    tokens = len(windows) * (windows.seq_len - 1)
    return {
        **_measures(nll, tokens, windows.text_bytes),
        "num_windows": len(windows),
        "num_tokens": tokens,
        "seq_len": windows.seq_len,
        "invalid_windows": int(np.count_nonzero(~np.isfinite(nll))),
        "source": windows.source,
    }


def _measures(nll: np.ndarray, tokens: int, text_bytes: int | None) -> dict[str, float | None]:
    """The three measures from the windows' losses, nll float64 (N,) in nats; all None if one of them is NaN or Inf."""
    if not np.isfinite(nll).all():
        return {"perplexity": None, "nll_nats_per_token": None, "bits_per_byte": None}
    total = math.fsum(nll)
    mean = total / tokens
    return {
        "perplexity": math.exp(mean) if mean < LARGEST_NLL else None,
        "nll_nats_per_token": mean,
        "bits_per_byte": total / math.log(2) / text_bytes if text_bytes else None,
    }


def window_nll(
    model: "PreTrainedModel",
    ids: np.ndarray,
    *,
    batch_size: int | None,
    description: str,
    watch: Watch | None = None,
) -> np.ndarray:
    """float64 (N,): NLL of each window of ``ids`` int64 (N, T), in nats; NaN or Inf where the model yields it.

    Of several processes each runs its share of the windows, and all of them get the losses of all.
    """
    mine = ranks.share(len(ids))
    found = own_window_nll(model, ids, mine, batch_size=batch_size, description=description, watch=watch)
    return np.concatenate(ranks.gathered(found, description))


def own_window_nll(
    model: "PreTrainedModel",
    ids: np.ndarray,
    mine: slice,
    *,
    batch_size: int | None,
    description: str,
    watch: Watch | None = None,
) -> np.ndarray:
    """The same of some consecutive windows, in this process alone."""
    if engine_of(model).streams:
        return _layer_by_layer(model, ids, mine, batch_size, description, watch)
    nll: list[torch.Tensor] = []
    size = batch_size or first_batch_size(model, ids.shape[1])
    done = mine.start
    bar = tqdm(total=mine.stop - mine.start, desc=description, unit="window", mininterval=1.0, leave=False)
    with evaluating(model), bar:
        while done < mine.stop:
            attempt = partial(_next_windows, model, ids[done : mine.stop], watch and partial(watch, done))
            values, size = with_batch_that_fits(attempt, size, fixed=batch_size is not None)
            nll.append(values)
            done += len(values)
            bar.update(len(values))
    return np.concatenate([np.empty(0), *(values.cpu().numpy() for values in nll)])


def _layer_by_layer(
    model: Any, ids: np.ndarray, mine: slice, batch_size: int | None, description: str, watch: Watch | None
) -> np.ndarray:
    """The same where layers come one at a time: all windows pass one before the next is read, then the head, some rows
    of a window at a time. A watch is given a window's logits together."""
    carrier = Carrier(model, engine_of(model).family, ids[mine], batch_size)
    rows_at_once = carrier.head_rows(model.config.vocab_size)
    targets = F.pad(carrier.ids[:, 1:], (0, 1), value=NOT_PREDICTED)
    nll: dict[int, torch.Tensor] = {}

    def loss(number: int, window: torch.Tensor) -> None:
        wanted, total, logits = targets[number].to(window.device), [], []
        with _last_states(model) as states:
            for part, x in zip(window.split(rows_at_once), wanted.split(rows_at_once), strict=True):
                found = carrier.logits(part)
                total.append(_token_nll(found, x).sum())
                logits += [found] * (watch is not None)
        nll[number] = torch.stack(total).sum()
        if watch is not None:
            watch(mine.start + number, torch.cat(states, 1), torch.cat(logits)[None])

    def losses(rows: slice) -> None:
        for number, window in enumerate(carrier.take(hidden, rows), rows.start):
            loss(number, window)

    with evaluating(model):
        hidden = carrier.embed()
        for layer in tqdm(carrier.visit(), total=len(carrier.layers), desc=description, unit="layer", leave=False):
            carrier.advance(layer, hidden)
        with carrier.engine.keeping(model.get_output_embeddings()):
            carrier.in_batches(losses)
    return np.array([float(nll[number]) for number in range(len(carrier.ids))])


def first_batch_size(model: "PreTrainedModel", seq_len: int) -> int:
    """The largest power of two whose logits, in the model's dtype, take at most BATCH_LOGITS_BYTES; at least 1.

    On a CPU no more than TOKENS_A_BATCH tokens: its caches no longer hold what more of them pass from layer to layer.
    """
    window_bytes = seq_len * model.config.vocab_size * model.dtype.itemsize
    windows = BATCH_LOGITS_BYTES // window_bytes
    if model.device.type == "cpu":
        windows = min(windows, TOKENS_A_BATCH // seq_len)
    return 2 ** int(math.log2(max(1, windows)))


def _next_windows(
    model: "PreTrainedModel",
    ids: np.ndarray,
    watch: Callable[[torch.Tensor, torch.Tensor], None] | None,
    size: int,
) -> torch.Tensor:
    """float64 (B,) on the model's device: NLL of the first ``size`` windows of ``ids``, B fewer where fewer are left.

    Nothing here waits for the device; a watch may.
    """
    batch = torch.from_numpy(ids[:size]).to(model.device, non_blocking=True)
    targets = F.pad(batch[:, 1:], (0, 1), value=NOT_PREDICTED)  # the last position predicts nothing
    if watch is None:
        logits = model(input_ids=batch, use_cache=False).logits
    else:
        with _last_states(model) as states:
            logits = model(input_ids=batch, use_cache=False).logits
        watch(states[0], logits)
    return _token_nll(logits.flatten(0, 1), targets.flatten()).view(batch.shape).sum(1)


@contextmanager
def _last_states(model: "PreTrainedModel") -> Iterator[list[torch.Tensor]]:
    """A list that holds what the head was given, (B, T, C), once the model has run inside."""
    states: list[torch.Tensor] = []
    hook = model.get_output_embeddings().register_forward_pre_hook(lambda _, given: states.append(given[0]))
    try:
        yield states
    finally:
        hook.remove()


def _token_nll(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """float64 (P,): -ln p of each target, 0 where it is NOT_PREDICTED. logits (P, V) of any float dtype, int64 (P,).

    In float32 over a few positions at a time: 2048 positions of a vocabulary of 256,000 would be 2 GB more than the
    model's own logits.
    """
    chunk = positions_at_once(logits.device, logits.shape[-1])
    pairs = zip(logits.split(chunk), targets.split(chunk), strict=True)
    losses = [F.nll_loss(F.log_softmax(z, -1, dtype=torch.float32), x, reduction="none") for z, x in pairs]
    return torch.cat(losses).double()


def positions_at_once(device: torch.device, vocabulary: int) -> int:
    """How many positions' float32 log-probabilities are made at a time."""
    return max(1, (CACHED_BYTES if device.type == "cpu" else CHUNK_LOGITS_BYTES) // (4 * vocabulary))
