"""Hidden states of all windows, carried through a model one decoder layer, or one block of it, at a time.

Between layers they rest on the model's device while they fit, else in memory of the CPU, pinned beside a GPU so that
copies wait for nobody. How a layer is called (masks, positions, rotary tables, windows of attention) is recorded from
the model's own forward, with all layers bypassed. A block alone is the layer's own forward too, ended behind attention
or begun there by an attention that adds nothing; so nothing here knows a family.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch

from core.batching import TOKENS_A_BATCH, busy_tokens, with_batch_that_fits
from core.families import IN, OUT, Family, Member
from core.groups import ATTENTION
from core.layers import bypassed
from core.memory import has_room


class Block(NamedTuple):
    """One block of layer number ``layer``: what reads the stream, what writes to it, and the norm behind the latter."""

    layer: int
    kind: int
    readers: tuple[Member, ...]
    writer: Member
    norm: Any


class BlockPass(NamedTuple):
    """What a block made of some windows, (B, T, ...) on the device: what its writing module received and gave, and the
    stream behind the block."""

    inputs: torch.Tensor
    output: torch.Tensor
    stream: torch.Tensor


class _Call(NamedTuple):
    """What the model passes to a layer beside the hidden states; windows are never padded, so only B matters."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class _ReachedError(Exception):
    """Ends a layer's forward at the module whose input was asked for."""


class LayerRunner:
    """Runs the layers of ``model`` on the windows ``ids`` (N, T). Call it without gradients.

    batch_size None starts with what keeps the device busy and halves when memory runs out, for the rest of the run.
    """

    def __init__(self, model: Any, family: Family, ids: np.ndarray, batch_size: int | None = None) -> None:
        self.model, self.family = model, family
        self.layers = list(model.get_submodule(family.layers))
        self.ids = torch.from_numpy(ids)
        self.calls: dict[int, list[_Call]] = {}  # by B
        self.device = next(model.parameters()).device
        self.fixed = batch_size is not None
        self.size = batch_size or max(1, self._first_tokens() // ids.shape[1])

    def _first_tokens(self) -> int:
        if not self.layers:
            return TOKENS_A_BATCH
        writers = [self.layers[0].get_submodule(member.path) for member in self.family.members if member.axis == IN]
        return busy_tokens(self.device, max(module.in_features for module in writers))

    def blocks(self, index: int) -> list[Block]:
        """Of layer ``index``, attention first."""
        layer, family = self.layers[index], self.family
        norms = (None, None) if family.output_norms is None else map(layer.get_submodule, family.output_norms)
        writers = [member for member in family.members if member.axis == IN]
        return [
            Block(index, writer.kind, _readers(family, writer.kind), writer, norm)
            for writer, norm in zip(writers, norms, strict=True)
        ]

    def embed(self, copies: int = 1) -> torch.Tensor:
        """(N, T, C): what the first layer receives, resting where this many streams of its size have room."""
        resting: list[torch.Tensor] = []

        def step(rows: slice) -> None:
            values = self._record(rows)
            if not resting:
                resting.append(self._resting(values, copies))
            self.put(resting[0], rows, values)

        self.in_batches(step)
        return resting[0]

    def copy_of(self, hidden: torch.Tensor) -> torch.Tensor:
        """Another stream like ``hidden``, resting where it does."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)  # copies to the CPU may still be under way
        return torch.empty_like(hidden, pin_memory=hidden.is_pinned()).copy_(hidden)

    def room_for(self, width: int) -> torch.Tensor | None:
        """(N, T, width) on the device for what would be computed twice otherwise; None where it has no room."""
        shape, dtype = (*self.ids.shape, width), next(self.layers[0].parameters()).dtype
        needed = self.ids.numel() * width * dtype.itemsize
        return torch.empty(shape, dtype=dtype, device=self.device) if has_room(needed, self.device) else None

    def take(self, hidden: torch.Tensor, rows: slice) -> torch.Tensor:
        """hidden[rows] on the device."""
        return hidden[rows].to(self.device, non_blocking=True)

    def put(self, hidden: torch.Tensor, rows: slice, values: torch.Tensor) -> None:
        hidden[rows].copy_(values, non_blocking=True)

    def in_batches(self, step: Callable[[slice], None], windows: range | None = None) -> None:
        """Call ``step`` with consecutive slices of these windows (all). One that runs out of memory is called again
        with fewer, so it must leave no trace."""
        start, stop = (0, len(self.ids)) if windows is None else (windows.start, windows.stop)
        while start < stop:
            attempt = partial(_first_rows, step, start, stop)
            _, self.size = with_batch_that_fits(attempt, self.size, fixed=self.fixed)
            start += self.size

    def advance(self, index: int, hidden: torch.Tensor) -> None:
        """Replace ``hidden`` by what layer ``index`` makes of it."""
        self.in_batches(lambda rows: self.put(hidden, rows, self._call(index, self.take(hidden, rows))))

    def advance_block(self, block: Block, hidden: torch.Tensor) -> None:
        """Replace ``hidden``, the stream before ``block``, by the one behind it."""
        self.in_batches(lambda rows: self.put(hidden, rows, self.through(block, self.take(hidden, rows)).stream))

    def read(self, block: Block, before: torch.Tensor) -> torch.Tensor:
        """What the block's projections read of ``before`` (B, T, C), the stream before it."""
        with self._alone(block):
            return self._input_of(block.layer, block.readers[0].path, before)

    def inputs(self, block: Block, before: torch.Tensor) -> torch.Tensor:
        """What the block's writing module receives, (B, T, inputs); it does not run."""
        with self._alone(block):
            return self._input_of(block.layer, block.writer.path, before)

    def through(self, block: Block, before: torch.Tensor) -> BlockPass:
        """The whole block on ``before`` (B, T, C), the stream before it."""
        seen: list[torch.Tensor] = []
        writer = self.layers[block.layer].get_submodule(block.writer.path)
        handle = writer.register_forward_hook(lambda _module, args, output: seen.extend((args[0], output)))
        try:
            with self._alone(block):
                if block.kind == ATTENTION:
                    stream = self._input_of(block.layer, self.family.pre_mlp_norm, before)
                else:
                    stream = self._call(block.layer, before)
        finally:
            handle.remove()
        return BlockPass(seen[0], seen[1], stream)

    def behind(self, block: Block, before: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        """The stream behind the block, where ``output`` is what its writing module gives; both (B, T, C)."""
        return before + (output if block.norm is None else block.norm(output))

    def _alone(self, block: Block) -> AbstractContextManager[None]:
        """Inside, the MLP block receives the layer's input as it is."""
        attention = self.layers[block.layer].get_submodule(self.family.attention)
        return nullcontext() if block.kind == ATTENTION else _replaced(attention, _nothing)

    def _input_of(self, index: int, path: str, hidden: torch.Tensor) -> torch.Tensor:
        """What a module of layer ``index`` receives; it and what follows do not run."""
        found: list[torch.Tensor] = []

        def stop(_module: Any, args: tuple[Any, ...]) -> None:
            found.append(args[0])
            raise _ReachedError

        handle = self.layers[index].get_submodule(path).register_forward_pre_hook(stop)
        try:
            with suppress(_ReachedError):
                self._call(index, hidden)
        finally:
            handle.remove()
        return found[0]

    def _call(self, index: int, hidden: torch.Tensor) -> torch.Tensor:
        """Layer ``index`` on hidden (B, T, C)."""
        if len(hidden) not in self.calls:
            self._record(slice(0, len(hidden)))
        call = self.calls[len(hidden)][index]
        output = self.layers[index](hidden, *call.args, **call.kwargs)
        return output[0] if isinstance(output, tuple) else output

    def _record(self, rows: slice) -> torch.Tensor:
        """Note how the model calls its layers for this many windows; returns their embeddings."""
        calls: list[_Call] = []
        hidden: list[torch.Tensor] = []

        def note(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            hidden.append(args[0])
            calls.append(_Call(args[1:], kwargs))

        handles = [layer.register_forward_pre_hook(note, with_kwargs=True) for layer in self.layers]
        try:
            with bypassed(self.layers):
                self.model(input_ids=self.ids[rows].to(self.device), use_cache=False, logits_to_keep=1)
        finally:
            for handle in handles:
                handle.remove()
        self.calls[rows.stop - rows.start] = calls
        return hidden[0]

    def _resting(self, like: torch.Tensor, copies: int) -> torch.Tensor:
        """(N, T, C) for values such as ``like`` (B, T, C)."""
        shape = (len(self.ids), *like.shape[1:])
        on = self.device if has_room(copies * self.ids.numel() * like[0, 0].nbytes, self.device) else "cpu"
        pinned = on == "cpu" and self.device.type == "cuda"
        return torch.empty(shape, dtype=like.dtype, device=on, pin_memory=pinned)


def _readers(family: Family, kind: int) -> tuple[Member, ...]:
    return tuple(member for member in family.members if member.axis == OUT and member.kind == kind)


def _first_rows(step: Callable[[slice], None], start: int, stop: int, count: int) -> None:
    step(slice(start, min(start + count, stop)))


@contextmanager
def _replaced(module: Any, forward: Callable[..., Any]) -> Iterator[None]:
    """Inside, ``module`` computes ``forward``; afterwards whatever it computed before, wrappers of others included."""
    before = module.__dict__.get("forward")
    module.forward = forward
    try:
        yield
    finally:
        del module.__dict__["forward"]
        if before is not None:
            module.forward = before


def _nothing(hidden_states: torch.Tensor, *_args: Any, **_kwargs: Any) -> tuple[torch.Tensor, None]:
    """An attention that adds nothing to the stream: (1, 1, C), which every token shares."""
    return torch.zeros_like(hidden_states[:1, :1]), None
