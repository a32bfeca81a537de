"""Text written a token at a time, the keys and values of earlier tokens kept.

A pass of one token for each row is a few dozen small kernels a layer, and takes a GPU as long as the host needs to
launch them. So there it is captured once and replayed for every token (``core.graphs``): its keys and values lie in a
cache as long as the text will be, where a mask hides what has not been written yet.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from core.attending import attending, attends_by_torch
from core.batching import is_out_of_memory
from core.determinism import any_algorithm
from core.few_queries import few_queries_by_products
from core.graphs import Captured, worth_capturing
from core.products import window_products

GROUPED = "grouped_products"


class Writer:
    """Called with each row's next token, int64 (B,), it gives the logits of the one after it, (B, V), which its next
    call may overwrite. Without gradients, and with the same B every time."""

    captured = False  # then a token costs next to nothing to launch, and texts may as well be read by such calls

    def __init__(self, model: Any, cache: Any = None) -> None:
        self.model, self.cache = model, cache

    def __call__(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.after(tokens[:, None])

    def after(self, ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        """The same after several tokens at once, (B, T); the mask, (B, tokens so far), leaves out padding."""
        seen = self.model(
            input_ids=ids,
            attention_mask=attention_mask,
            past_key_values=self.cache,
            use_cache=True,
            **({"logits_to_keep": 1} if ids.shape[1] > 1 else {}),
        )
        self.cache = seen.past_key_values
        logits: torch.Tensor = seen.logits[:, -1]
        return logits


@contextmanager
def one_at_a_time(model: Any, rows: int, length: int) -> Iterator[Writer]:
    """Inside, what writes so many rows of at most so many tokens."""
    captured = _captured(model, rows, length) if worth_capturing(model.device) else None
    if captured is None:
        with few_queries_by_products(model):
            yield Writer(model)
        return
    try:
        yield captured
    finally:
        captured.close()


class CapturedWriter(Writer):
    captured = True

    def __init__(self, model: Any, cache: Any, rows: int) -> None:
        """RuntimeError where it cannot be captured, or memory does not suffice."""
        super().__init__(model, cache)
        self.tokens = torch.zeros(rows, 1, dtype=torch.int64, device=model.device)
        self.position = torch.zeros(1, 1, dtype=torch.int64, device=model.device)
        with torch.no_grad(), any_algorithm():
            self.graph = Captured(self._pass, model.device, self._warm_up)

    def __call__(self, tokens: torch.Tensor) -> torch.Tensor:
        self.tokens.copy_(tokens[:, None])
        self.graph.replay()
        return self.graph.result

    def close(self) -> None:
        """Give back the memory of graph and cache, which nothing else could use."""
        del self.graph, self.cache
        if self.tokens.is_cuda:
            torch.cuda.empty_cache()

    def _warm_up(self) -> None:
        self._pass()
        self.cache.reset()
        self.position.zero_()

    def _pass(self) -> torch.Tensor:
        seen = self.model(input_ids=self.tokens, position_ids=self.position, past_key_values=self.cache, use_cache=True)
        self.position.add_(1)
        logits: torch.Tensor = seen.logits[:, -1]
        return logits


def _captured(model: Any, rows: int, length: int) -> CapturedWriter | None:
    """None where this model cannot be captured: then nothing has changed. Memory that runs out is the caller's matter.

    The cache of a layer that attends to a window counts tokens on the host, so the window has to hold the whole text.
    """
    from transformers.cache_utils import StaticCache, StaticLayer, StaticSlidingWindowLayer
    from transformers.masking_utils import sdpa_mask

    if not attends_by_torch(model) or any(parameter.device != model.device for parameter in model.parameters()):
        return None
    cache = StaticCache(config=model.config, max_cache_len=length)
    kinds = (StaticLayer, StaticSlidingWindowLayer)
    if any(type(layer) not in kinds or layer.max_cache_len < length for layer in cache.layers):
        return None
    cache.layers = [StaticLayer(max_cache_len=length) for _ in cache.layers]
    try:
        with attending(GROUPED, _grouped, sdpa_mask, model):
            return CapturedWriter(model, cache, rows)
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
    del cache
    if model.device.type == "cuda":
        torch.cuda.empty_cache()
    return None


def _grouped(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """softmax(q kᵀ · scaling, where the mask is true) v, keys and values read once for all heads of a group.

    query (B, H, 1, D), key (B, G, T, D), value (B, G, T, E), mask bool (B or 1, 1, 1, T); (B, 1, H, E). Scores and
    softmax in float32.
    """
    batch, heads, _one, width = query.shape
    groups, length = key.shape[1:3]
    rows = query.reshape(batch * groups, heads // groups, width)
    scores = window_products(rows, key.reshape(batch * groups, length, width).mT)
    scores = scores.view(batch, groups, -1, length) * (width**-0.5 if scaling is None else scaling)
    if attention_mask is not None:
        scores = scores.masked_fill(~attention_mask, -torch.inf)
    found = scores.softmax(-1).to(value.dtype) @ value
    return found.reshape(batch, 1, heads, value.shape[-1]), None
