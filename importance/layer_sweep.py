"""The way over the windows where layers come one after another: every window passes a layer while its weights are here.

A forward sweep takes all windows through the layers in turn. Where gradients are wanted it keeps the input of every
layer (of every k-th where they have no room; the others are computed again), the head gives the loss's gradient a few
rows at a time, and a reverse sweep runs each layer once more from its input, with gradients on, back from the stored
gradient of its output; only the gradient of its input is kept. A measurement's hooks see what they see in a model that
is resident, a layer at a time.

What turns out NaN or Inf is known to the layer that it turned up in when others have counted it already. So the sweep
begins again, and those windows come on another scale, then alone, then not at all, as they do in ``over_windows``.
Where several processes share the windows, they begin again together.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from math import ceil
from typing import Any

import numpy as np
import torch

from core import ranks
from core.as_found import left_as_found
from core.batching import is_out_of_memory
from core.carrier import Carrier, Stream
from core.determinism import only_deterministic
from core.engine import engine_of
from core.progress import tqdm
from core.windows import TokenWindows
from importance.gradient_scale import LayerGradients
from importance.over_windows import Found, Measurement, scales_for
from importance.passes import Batch, no_gradient_at_zeros
from importance.sums import IGNORED, sum_of_nll
from importance.tally import NonFiniteGuard, Tally, tally_of_all


class _AgainError(Exception):
    """Something of a batch was NaN or Inf; what becomes of its windows is decided, and all of them come again."""


class LayerSweep:
    """Iterating gives each layer whose sums are whole, its weights at hand, and the tally so far.

    A layer may come twice, where the sweep had to begin again: the later sums count.
    """

    def __init__(
        self,
        model: Any,
        windows: TokenWindows,
        run: Any,
        measurement: Measurement,
        batch_size: int | None,
        description: str,
    ) -> None:
        self.model, self.run, self.measurement, self.description = model, run, measurement, description
        self.family = engine_of(model).family
        mine = ranks.share(len(windows))
        self.first, self.carrier = mine.start, Carrier(model, self.family, windows.ids[mine], batch_size)
        if batch_size is None:
            self.carrier.size = run.first_windows(windows.seq_len)
        dtype = next(model.parameters()).dtype
        self.guard = NonFiniteGuard(len(windows), measurement, dtype)
        self.fates = _Fates(mine.start, len(self.carrier.ids), scales_for(dtype, measurement))
        self.gradients, self.again = LayerGradients(len(self.carrier.layers)), False
        self.head_rows = self.carrier.head_rows(model.config.get_text_config().vocab_size)

    def __iter__(self) -> Iterator[tuple[int | None, Tally]]:
        with left_as_found(self.model) as handles:
            self.measurement.attach(handles)
            while True:
                self.gradients, self.again = LayerGradients(len(self.carrier.layers)), False
                try:
                    yield from self._there_and_back() if self.run.goes_back else self._there()
                except _AgainError:
                    continue
                break
        ranks.add_up(self.measurement.sums(None), self.description)
        yield None, self.tally()

    def tally(self) -> Tally:
        """Of all processes."""
        return tally_of_all(self.fates.counts(), self.guard, self.gradients, self.description)

    # Forward alone

    @torch.no_grad()
    def _there(self) -> Iterator[tuple[int, Tally]]:
        carrier = self.carrier
        hidden = carrier.embed()
        for layer in self._visited(range(len(carrier.layers))):
            self.measurement.begin(layer)

            def step(rows: slice, layer: int = layer) -> None:
                batch = self._batch(rows)
                self.measurement.start(batch)
                output = carrier.call(layer, carrier.take(hidden, rows))
                self._count(layer, rows, batch)
                carrier.put(hidden, rows, output)

            self._in_batches(step)
            yield from self._whole(layer)

    # Forward and backward

    def _there_and_back(self) -> Iterator[tuple[int, Tally]]:
        inputs, gradient = self._inputs()
        self._loss(gradient)
        with no_gradient_at_zeros(self.model, self.family):
            for layer, is_wanted in self._way_back(inputs):
                if not is_wanted:
                    inputs.make(layer + 1)
                    continue
                self.measurement.begin(layer)
                self._in_batches(partial(self._back, layer, inputs.take(layer), gradient))
                yield from self._whole(layer)

    @torch.no_grad()
    def _inputs(self) -> "tuple[LayerInputs, Stream]":
        """What each layer receives, and the stream behind the last one."""
        carrier = self.carrier
        inputs = LayerInputs(carrier)
        hidden = carrier.embed(inputs.most)
        for layer in self._visited(range(len(carrier.layers))):
            hidden = inputs.keep(layer, hidden)
        return inputs, hidden

    def _way_back(self, inputs: "LayerInputs") -> Iterator[tuple[int, bool]]:
        """Layers to visit, and whether their gradients are wanted or only what they hand to the next."""
        order = inputs.way_back()
        yield from zip(self._visited([layer for layer, _ in order]), (wanted for _, wanted in order), strict=True)

    def _loss(self, hidden: Stream) -> None:
        """Replace the stream behind the last layer by the loss's gradient in it; windows without a finite loss are left
        out from here on."""

        def step(rows: slice) -> None:
            scale = self._batch(rows).scale
            values = self.carrier.take(hidden, rows).clone()  # the stream's own may be needed once more
            losses = [self._loss_of_window(window, rows.start + i, scale) for i, window in enumerate(values)]
            self.carrier.put(hidden, rows, values)
            for i in torch.stack(losses).isfinite().logical_not().cpu().nonzero().flatten().tolist():
                self.fates.left_out[rows.start + i] = True
                self.guard.skip([], loss_is_finite=False)

        with self.carrier.engine.keeping(self.model.get_output_embeddings()):
            self._in_batches(step)

    def _loss_of_window(self, window: torch.Tensor, number: int, scale: float) -> torch.Tensor:
        """float64 (): the loss of one window, on its device; window (T, C) becomes its gradient, some rows at a
        time."""
        targets = torch.full((len(window),), IGNORED, device=window.device)
        targets[:-1] = self.carrier.ids[number, 1:].to(window.device)
        total = torch.zeros((), dtype=torch.float64, device=window.device)
        for rows, wanted in zip(*(values.split(self.head_rows) for values in (window, targets)), strict=True):
            with torch.enable_grad():
                values = rows.detach().clone().requires_grad_()
                loss = sum_of_nll(self.carrier.logits(values), wanted)
                loss.backward(torch.full_like(loss, scale))
            total += loss.detach()
            rows.copy_(values.grad)
        return total

    def _back(self, layer: int, hidden: Stream, gradient: Stream, rows: slice) -> None:
        batch = self._batch(rows)
        values, arriving = (self.carrier.take(stream, rows) for stream in (hidden, gradient))
        try:
            leaving = self._through(layer, batch, values, arriving)
        except RuntimeError as error:
            may_come_again = self.measurement.repeatable or rows.start == 0
            if is_out_of_memory(error) or not may_come_again or not self.run.gives_way(error):
                raise
            if not self.measurement.repeatable:
                self.measurement.begin(layer)
            leaving = self._through(layer, batch, values, arriving)
        self._count(layer, rows, batch)
        if leaving is not None:
            self.carrier.put(gradient, rows, leaving)

    def _through(self, layer: int, batch: Batch, values: torch.Tensor, arriving: torch.Tensor) -> torch.Tensor | None:
        """The gradient of what the layer receives; None for the first layer, where nobody asks for it."""
        self.measurement.start(batch)
        with torch.enable_grad(), only_deterministic(self.carrier.device, self.run.deterministic):
            received = values.requires_grad_(layer > 0)
            output = self.carrier.call(layer, received)
            if output.requires_grad:  # else nothing is watched in the first layer
                output.backward(arriving)
        return received.grad

    # What is common to both

    def _visited(self, layers: Sequence[int]) -> Iterator[int]:
        carrier = self.carrier
        with tqdm(total=len(layers), desc=self.description, unit="layer", leave=False) as progress:
            for layer in carrier.visit(layers):
                yield layer
                progress.update()

    def _in_batches(self, step: Callable[[slice], None]) -> None:
        for windows in self.fates.together():
            self.carrier.in_batches(step, windows)

    def _batch(self, rows: slice) -> Batch:
        return Batch(self.carrier.ids[rows].numpy(), self.first + rows.start, self.fates.scale(rows.start))

    def _count(self, layer: int, rows: slice, batch: Batch) -> None:
        """Keep what was seen of a batch where all of it is finite."""
        found = Found.of(None, self.measurement)
        if found.is_finite:
            self.measurement.keep(batch)
            if found.norms is not None:
                mean, norm = (values / batch.scale for values in found.norms)
                self.gradients.add(mean, norm, slice(layer, layer + 1))
            self.measurement.start(batch)  # nothing of it is held any longer
            return
        self.again = True
        if not self.measurement.repeatable or self.fates.leaves_out(rows):
            self.guard.skip(found.bad_layers, loss_is_finite=True)

    def _whole(self, layer: int) -> Iterator[tuple[int, Tally]]:
        if any(ranks.gathered(self.again, self.description)):
            raise _AgainError
        if layer in self.measurement.layers:
            ranks.add_up(self.measurement.sums(layer), self.description)
            yield layer, self.tally()


class _Fates:
    """What was decided of each window: on which scale it comes, whether alone, and whether at all."""

    def __init__(self, first: int, num_windows: int, scales: tuple[float, ...]) -> None:
        """first: the number of the first of these windows among all."""
        self.first, self.scales = first, scales
        self.step = np.zeros(num_windows, dtype=np.int64)  # of the scales, the one at hand
        self.alone, self.left_out = np.zeros((2, num_windows), dtype=bool)

    def scale(self, window: int) -> float:
        return self.scales[self.step[window]]

    def counts(self) -> tuple[int, int]:
        """Windows that count, even and odd ones."""
        even, odd = (slice((half - self.first) % 2, None, 2) for half in (0, 1))
        return int((~self.left_out[even]).sum()), int((~self.left_out[odd]).sum())

    def together(self) -> Iterator[range]:
        """Neighbours that may share a batch."""
        start = 0
        for stop in range(1, len(self.step) + 1):
            if stop < len(self.step) and self._alike(start, stop):
                continue
            if not self.left_out[start]:
                yield range(start, stop)
            start = stop

    def _alike(self, one: int, other: int) -> bool:
        fates = ((int(self.step[i]), bool(self.left_out[i])) for i in (one, other))
        return len(set(fates)) == 1 and not (self.alone[one] or self.alone[other])

    def leaves_out(self, rows: slice) -> bool:
        """Something of these windows was NaN or Inf: another scale, else each alone; True where one is left out."""
        if self.step[rows.start] + 1 < len(self.scales):
            self.step[rows] += 1
            return False
        self.step[rows] = 0
        if rows.stop - rows.start > 1:
            self.alone[rows] = True
            return False
        self.left_out[rows] = True
        return True


class LayerInputs:
    """What each layer receives, of every k-th layer kept and of the others made again on the way back."""

    def __init__(self, carrier: Carrier) -> None:
        self.carrier, self.count = carrier, len(carrier.layers)
        self.kept: dict[int, Stream] = {}
        self.every = max(ranks.gathered(self.spacing(), "inputs kept"))  # all go the same way back

    @property
    def most(self) -> int:
        """Streams that exist at once, the one behind the last layer included."""
        return self._streams(self.every)

    def _streams(self, every: int) -> int:
        return ceil(self.count / every) + every

    def spacing(self) -> int:
        """The smallest k with which all that exists at once has room; where none has, the one that takes least."""
        hidden = self.carrier.model.config.get_text_config().hidden_size
        stream_bytes = self.carrier.ids.numel() * hidden * next(self.carrier.model.parameters()).element_size()
        spacings = range(1, self.count + 1)
        fitting = (k for k in spacings if self.carrier.engine.fits(self._streams(k) * stream_bytes))
        return next(fitting, min(spacings, key=self._streams))

    def keep(self, layer: int, hidden: Stream) -> Stream:
        """Keep ``hidden`` where it is wanted; the stream behind the layer, which is the same one where it is not."""
        if layer % self.every:
            self.carrier.advance(layer, hidden)
            return hidden
        self.kept[layer] = hidden
        behind = self.carrier.like(hidden)
        self.carrier.advance(layer, hidden, into=behind)
        return behind

    def way_back(self) -> list[tuple[int, bool]]:
        """Layers to visit, and whether for their gradients (True) or to make the next one's input (False)."""
        order = []
        for start in reversed(range(0, self.count, self.every)):
            stop = min(start + self.every, self.count)
            order += [(layer, False) for layer in range(start, stop - 1)]
            order += [(layer, True) for layer in reversed(range(start, stop))]
        return order

    @torch.no_grad()
    def make(self, layer: int) -> None:
        """The input of a layer that was not kept, from the one before it, which is being visited."""
        self.kept[layer] = self.carrier.like(self.kept[layer - 1])
        self.carrier.advance(layer - 1, self.kept[layer - 1], into=self.kept[layer])

    def take(self, layer: int) -> Stream:
        return self.kept.pop(layer)
