"""Hidden states of all windows, carried through a model one decoder layer at a time.

Between layers they rest on the model's device while they fit, else in memory of the CPU, pinned beside a GPU so that
copies wait for nobody, else in a file (``core/resting.py``). How a layer is called (masks, positions, rotary tables,
windows of attention) is recorded from the model's own forward, with all layers bypassed, and the way behind the last
layer is that forward too; so nothing here knows a family.
"""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch

from core.batching import TOKENS_A_BATCH, busy_tokens, values_at_once, with_batch_that_fits
from core.engine import engine_of
from core.families import IN, Family
from core.layers import bypassed
from core.resting import FileStream

Stream = torch.Tensor | FileStream  # (N, T, C)
HEAD_VALUES = 1 << 24  # logits that exist at once on a CPU: 64 MiB in float32


class _Call(NamedTuple):
    """What the model passes to a layer beside the hidden states; windows are never padded, so only B matters."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class Carrier:
    """Runs the layers of ``model`` on the windows ``ids`` (N, T), wherever its weights live.

    batch_size None starts with what keeps the device busy and halves when memory runs out, for the rest of the run.
    """

    def __init__(self, model: Any, family: Family, ids: np.ndarray, batch_size: int | None = None) -> None:
        self.model, self.family, self.engine = model, family, engine_of(model)
        self.layers = list(model.get_submodule(family.layers))
        self.ids = torch.from_numpy(ids)
        self.calls: dict[int, list[_Call]] = {}  # by B
        self.device = self.engine.device
        self.fixed = batch_size is not None
        self.size = batch_size or max(1, self._first_tokens() // ids.shape[1])

    def _first_tokens(self) -> int:
        if not self.layers:
            return TOKENS_A_BATCH
        writers = [self.layers[0].get_submodule(member.path) for member in self.family.members if member.axis == IN]
        return busy_tokens(self.device, max(module.in_features for module in writers))

    def visit(self, layers: Iterable[int] | None = None) -> Iterator[int]:
        """These layers in turn (all, from the first), the weights of each at hand while it is the one."""
        return self.engine.visit(range(len(self.layers)) if layers is None else layers)

    # Streams

    def embed(self, copies: int = 1) -> Stream:
        """(N, T, C): what the first layer receives, resting where this many streams of its size have room."""
        resting: list[Stream] = []

        def step(rows: slice) -> None:
            values = self._record(rows.stop - rows.start, input_ids=self.ids[rows].to(self.device))
            if not resting:
                resting.append(self._resting(values, copies))
            self.put(resting[0], rows, values)

        with self.engine.keeping(self.model.get_input_embeddings()):
            self.in_batches(step)
        if not resting:  # more processes than windows
            return torch.empty(*self.ids.shape, self.model.config.get_text_config().hidden_size, device=self.device)
        return resting[0]

    def like(self, hidden: Stream) -> Stream:
        """Another stream of the same size, of no values yet, resting where ``hidden`` does."""
        if isinstance(hidden, FileStream):
            return FileStream(hidden.folder, hidden.shape, hidden.dtype)
        return torch.empty_like(hidden, pin_memory=hidden.is_pinned())

    def copy_of(self, hidden: Stream) -> Stream:
        """Another stream like ``hidden``, resting where it does."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)  # copies to the CPU may still be under way
        copied = self.like(hidden)
        if isinstance(hidden, torch.Tensor) and isinstance(copied, torch.Tensor):
            return copied.copy_(hidden)
        for row in range(len(hidden)):
            copied[row : row + 1] = hidden[row : row + 1]
        return copied

    def away(self, hidden: Stream) -> Stream:
        """The same stream, resting off the device: in memory of the CPU, unless it lies in a file already."""
        if isinstance(hidden, FileStream) or hidden.device.type == "cpu":
            return hidden
        return torch.empty_like(hidden, device="cpu", pin_memory=True).copy_(hidden)

    def take(self, hidden: Stream, rows: slice) -> torch.Tensor:
        """hidden[rows] on the device."""
        return hidden[rows].to(self.device, non_blocking=True)

    def put(self, hidden: Stream, rows: slice, values: torch.Tensor) -> None:
        if isinstance(hidden, FileStream):
            hidden[rows] = values
        else:
            hidden[rows].copy_(values, non_blocking=True)

    def _resting(self, like: torch.Tensor, copies: int) -> Stream:
        """(N, T, C) for values such as ``like`` (B, T, C)."""
        shape = (len(self.ids), *like.shape[1:])
        needed = copies * self.ids.numel() * like[0, 0].nbytes
        here = self.engine.has_room(needed, self.device)
        folder = None if here else self.engine.scratch_for(needed)
        if folder is not None:
            return FileStream(folder, shape, like.dtype)
        on = self.device if here else "cpu"
        pinned = on == "cpu" and self.device.type == "cuda"
        return torch.empty(shape, dtype=like.dtype, device=on, pin_memory=pinned)

    # Windows

    def in_batches(self, step: Callable[[slice], None], windows: range | None = None) -> None:
        """Call ``step`` with consecutive slices of these windows (all). One that runs out of memory is called again
        with fewer, so it must leave no trace."""
        start, stop = (0, len(self.ids)) if windows is None else (windows.start, windows.stop)
        while start < stop:
            attempt = partial(_first_rows, step, start, stop)
            _, self.size = with_batch_that_fits(attempt, self.size, fixed=self.fixed)
            start += self.size

    def advance(self, index: int, hidden: Stream, into: Stream | None = None) -> None:
        """Replace ``hidden``, or the values of ``into``, by what layer ``index`` makes of it."""
        behind = hidden if into is None else into
        self.in_batches(lambda rows: self.put(behind, rows, self.call(index, self.take(hidden, rows))))

    def call(self, index: int, hidden: torch.Tensor) -> torch.Tensor:
        """Layer ``index`` on hidden (B, T, C)."""
        if len(hidden) not in self.calls:
            self._record(len(hidden), inputs_embeds=hidden)
        call = self.calls[len(hidden)][index]
        output = self.layers[index](hidden, *call.args, **call.kwargs)
        return output[0] if isinstance(output, tuple) else output

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """(R, V): what the model's norm and head make of hidden (R, C), the stream behind the last layer."""
        rows = hidden[None]
        with bypassed(self.layers, restart=rows):
            return self.model(inputs_embeds=rows.detach(), use_cache=False).logits[0]

    def head_rows(self, vocabulary: int) -> int:
        """Rows that ``logits`` should be asked for at once."""
        return max(1, values_at_once(HEAD_VALUES, self.device) // vocabulary)

    def _record(self, windows: int, **given: torch.Tensor) -> torch.Tensor:
        """Note how the model calls its layers for this many windows, given their tokens or any hidden states; returns
        what the first layer receives."""
        calls: list[_Call] = []
        hidden: list[torch.Tensor] = []

        def note(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            hidden.append(args[0])
            calls.append(_Call(args[1:], kwargs))

        body = self.model.get_submodule(self.family.layers.rpartition(".")[0])
        handles = [layer.register_forward_pre_hook(note, with_kwargs=True) for layer in self.layers]
        try:
            with bypassed(self.layers), torch.no_grad():
                body(**given, use_cache=False)
        finally:
            for handle in handles:
                handle.remove()
        self.calls[windows] = calls
        return hidden[0]


def _first_rows(step: Callable[[slice], None], start: int, stop: int, count: int) -> None:
    step(slice(start, min(start + count, stop)))
