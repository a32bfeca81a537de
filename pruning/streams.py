"""Hidden states of all windows, carried through a model one decoder layer at a time.

Between layers they rest on the CPU, (N, T, C) in the model's dtype; a batch of them visits the model's device. How a
layer is called (masks, positions, rotary tables, windows of attention) is recorded from the model's own forward, with
all layers bypassed, so nothing here knows a family.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch

from core.batching import TOKENS_A_BATCH, with_batch_that_fits
from core.families import Family
from core.layers import bypassed


class _Call(NamedTuple):
    """What the model passes to a layer beside the hidden states; windows are never padded, so only B matters."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class _ReachedError(Exception):
    """Ends a layer's forward at the module whose input was asked for."""


class LayerRunner:
    """Runs the layers of ``model`` on the windows ``ids`` (N, T). Call it without gradients.

    batch_size None starts like every measurement and halves when memory runs out, for the rest of the walk.
    """

    def __init__(self, model: Any, family: Family, ids: np.ndarray, batch_size: int | None = None) -> None:
        self.model = model
        self.layers = list(model.get_submodule(family.layers))
        self.pre_mlp_norm = family.pre_mlp_norm
        self.ids = torch.from_numpy(ids)
        self.fixed = batch_size is not None
        self.size = batch_size or max(1, TOKENS_A_BATCH // ids.shape[1])
        self.calls: dict[int, list[_Call]] = {}  # by B
        self.device = next(model.parameters()).device

    def embed(self) -> torch.Tensor:
        """(N, T, C): what the first layer receives."""
        parts: dict[int, torch.Tensor] = {}
        self.in_batches(lambda rows: parts.__setitem__(rows.start, self._record(rows)))
        return torch.cat([parts[start] for start in sorted(parts)])

    def in_batches(self, step: Callable[[slice], None], windows: range | None = None) -> None:
        """Call ``step`` with consecutive slices of these windows (all). One that runs out of memory is called again
        with fewer, so it must leave no trace."""
        start, stop = (0, len(self.ids)) if windows is None else (windows.start, windows.stop)
        while start < stop:
            attempt = partial(_first_rows, step, start, stop)
            _, self.size = with_batch_that_fits(attempt, self.size, fixed=self.fixed)
            start += self.size

    def run(self, index: int, hidden: torch.Tensor, rows: slice) -> torch.Tensor:
        """Layer ``index`` on hidden[rows]; the result stays on the device."""
        if rows.stop - rows.start not in self.calls:
            self._record(rows)
        call = self.calls[rows.stop - rows.start][index]
        output = self.layers[index](hidden[rows].to(self.device), *call.args, **call.kwargs)
        return output[0] if isinstance(output, tuple) else output

    def input_of(self, path: str, index: int, hidden: torch.Tensor, rows: slice) -> torch.Tensor:
        """What a module of layer ``index`` receives, (B, T, inputs) on the device; it and what follows do not run."""
        found: list[torch.Tensor] = []

        def stop(_module: Any, args: tuple[Any, ...]) -> None:
            found.append(args[0])
            raise _ReachedError

        handle = self.layers[index].get_submodule(path).register_forward_pre_hook(stop)
        try:
            self.run(index, hidden, rows)
        except _ReachedError:
            pass
        finally:
            handle.remove()
        return found[0]

    def between(self, index: int, hidden: torch.Tensor) -> torch.Tensor:
        """(N, T, C): the residual stream between attention and MLP of layer ``index``, which receives ``hidden``."""
        found = torch.empty_like(hidden)

        def step(rows: slice) -> None:
            found[rows] = self.input_of(self.pre_mlp_norm, index, hidden, rows).to(hidden.device)

        self.in_batches(step)
        return found

    def through(self, module: Any, values: torch.Tensor) -> torch.Tensor:
        """What a module that works token by token makes of values (N, T, C)."""
        found = torch.empty_like(values)

        def step(rows: slice) -> None:
            found[rows] = module(values[rows].to(self.device)).to(found.device)

        self.in_batches(step)
        return found

    def advance(
        self, index: int, hidden: torch.Tensor, outputs_of: Sequence[str] = (), inputs_of: Sequence[str] = ()
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Replace ``hidden`` by what layer ``index`` makes of it; returns outputs and inputs of modules that write and
        read the stream, each like hidden."""
        layer = self.layers[index]
        outputs = [(layer.get_submodule(path), torch.empty_like(hidden)) for path in outputs_of]
        inputs = [(layer.get_submodule(path), torch.empty_like(hidden)) for path in inputs_of]

        def step(rows: slice) -> None:
            handles = [module.register_forward_hook(partial(_keep_output, kept, rows)) for module, kept in outputs]
            handles += [module.register_forward_pre_hook(partial(_keep_input, kept, rows)) for module, kept in inputs]
            try:
                result = self.run(index, hidden, rows)
            finally:
                for handle in handles:
                    handle.remove()
            hidden[rows] = result.to(hidden.device)

        self.in_batches(step)
        return [kept for _, kept in outputs], [kept for _, kept in inputs]

    def _record(self, rows: slice) -> torch.Tensor:
        """Note how the model calls its layers for this many windows; returns their embeddings, on the CPU."""
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
        return hidden[0].cpu()


def _first_rows(step: Callable[[slice], None], start: int, stop: int, count: int) -> None:
    step(slice(start, min(start + count, stop)))


def _keep_output(kept: torch.Tensor, rows: slice, _module: Any, _args: Any, output: torch.Tensor) -> None:
    kept[rows] = output.to(kept.device)


def _keep_input(kept: torch.Tensor, rows: slice, _module: Any, args: tuple[Any, ...]) -> None:
    kept[rows] = args[0].to(kept.device)
