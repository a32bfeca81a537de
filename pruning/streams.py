"""Hidden states of all windows, carried through a model one decoder layer (``core/carrier.py``), or one block of it,
at a time.

A block alone is the layer's own forward, ended behind attention or begun there by an attention that adds nothing; so
nothing here knows a family.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Any, NamedTuple

import torch

from core.carrier import Carrier, Stream
from core.families import IN, OUT, Family, Member
from core.groups import ATTENTION


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


class _ReachedError(Exception):
    """Ends a layer's forward at the module whose input was asked for."""


class LayerRunner(Carrier):
    """Runs layers, and blocks alone. Call it without gradients."""

    def blocks(self, index: int) -> list[Block]:
        """Of layer ``index``, attention first."""
        layer, family = self.layers[index], self.family
        norms = (None, None) if family.output_norms is None else map(layer.get_submodule, family.output_norms)
        writers = [member for member in family.members if member.axis == IN]
        return [
            Block(index, writer.kind, _readers(family, writer.kind), writer, norm)
            for writer, norm in zip(writers, norms, strict=True)
        ]

    def room_for(self, width: int, beside: int = 0) -> torch.Tensor | None:
        """(N, T, width) on the device for what would be computed twice otherwise; None where it has no room, ``beside``
        bytes being needed for other things."""
        shape, dtype = (*self.ids.shape, width), next(self.layers[0].parameters()).dtype
        needed = self.ids.numel() * width * dtype.itemsize
        if not self.engine.has_room(needed, self.device, beside):
            return None
        return torch.empty(shape, dtype=dtype, device=self.device)

    def advance_block(self, block: Block, hidden: Stream) -> None:
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
                    stream = self.call(block.layer, before)
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
                self.call(index, hidden)
        finally:
            handle.remove()
        return found[0]


def _readers(family: Family, kind: int) -> tuple[Member, ...]:
    return tuple(member for member in family.members if member.axis == OUT and member.kind == kind)


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
