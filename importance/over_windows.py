"""One way over the windows, for everything that is measured on text.

A measurement hangs hooks into the model, sees a batch of windows pass, and adds what it saw to its sums where all of it
is finite. What every measurement shares is here: batches that fit into memory, even and odd windows, the guard against
NaN and Inf, progress, gradient statistics. Nothing here knows a criterion, or where the weights live: ``run`` does.

A layer's sums lie on the device that the layer is on. The host waits once a batch, for whether it was finite.

Where the model is resident, all layers see a batch before the next one comes. Where it is streamed, all windows pass a
layer before the next one is read (``layer_sweep``). Either way a layer's sums ``begin`` at zero with its weights at
hand, and are whole when it is time to ``finish`` them. Where several processes share the windows, each lets its own
pass, and a layer's sums are added up over all of them before they are whole.
"""

from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch

from core import ranks
from core.as_found import left_as_found
from core.batching import for_each_batch, is_out_of_memory
from core.engine import engine_of
from core.errors import UsageError
from core.groups import Architecture
from core.windows import TokenWindows
from importance.gradient_scale import GradientNorms, LayerGradients
from importance.passes import Batch
from importance.tally import NonFiniteGuard, Tally, tally_of_all

# What the loss is multiplied by, tried in turn until all that was seen is finite. Squares of gradients overflow float32
# from 2e19 on; float16 gradients do from 65,504 on, and vanish below 6e-8.
SCALES = (1.0, 2.0**-32, 2.0**-64)
SCALES_OF_FLOAT16 = (2.0**12, 2.0**4, 2.0**-4, 2.0**-12)
Key = tuple[int, int]  # layer and kind: a block


class TimeUpError(Exception):
    """The measurement was told that it takes too long; nothing of it is left."""


class Run(Protocol):
    """How a batch passes the model: ``Forward``, ``Backward``, or what compares variants of the model.

    by_layer: whether nothing but the layers' own passes is wanted, so that layers may come one at a time.
    goes_back: whether gradients are wanted.
    """

    @property
    def by_layer(self) -> bool: ...

    @property
    def goes_back(self) -> bool: ...

    def __call__(self, batch: Batch) -> torch.Tensor | None:
        """The loss, float (), where there is one."""

    def first_windows(self, seq_len: int) -> int:
        """How many windows of so many tokens to begin with."""

    def gives_way(self, error: RuntimeError) -> bool:
        """Whether a pass that failed so has something left to do without; it is given up now."""


class Measurement:
    """What a criterion adds to the way over the windows.

    For each of ``layers``: begin, before the first window comes, and finish, once all have passed. For each batch:
    start, the pass, seen, keep.
    """

    layers: Iterable[int] = ()  # those that it makes sums of
    sees = "activations"  # what is NaN or Inf, in the message
    norms: GradientNorms | None = None
    scales = False  # whether what is seen may be multiplied by Batch.scale (as gradients are), and keep divides by it
    repeatable = True  # False: hooks add to the sums by themselves; no batch but the first comes again or is left out

    def attach(self, handles: list[Any]) -> None:
        """Put the handles of all hooks into the list; they are removed at the end."""

    def begin(self, layer: int) -> None:
        """The layer's sums are zero from here on; its weights are at hand. May be called again, to begin anew."""

    def sums(self, layer: int | None) -> Iterable[torch.Tensor]:
        """The layer's sums over windows, in place and always in one order; None: those that belong to no layer."""
        return ()

    def finish(self, layer: int, tally: Tally) -> None:
        """The layer's sums are whole: reduce them to what is wanted of them. Its weights are at hand."""

    def start(self, batch: Batch) -> None:
        """Forget what was seen of a batch before, which may have ended half way."""

    def begin_again(self) -> None:
        """The first batch comes again: forget what hooks have added to the sums by themselves."""

    def seen(self) -> Iterable[tuple[int, torch.Tensor]]:
        """(layer, values of any shape) of the batch; where a value is NaN or Inf, nothing of the batch is kept."""
        return ()

    def keep(self, batch: Batch) -> None:
        """Add what was seen to the sums."""


def over_windows(
    model: Any,
    windows: TokenWindows,
    run: Run,
    measurement: Measurement,
    *,
    batch_size: int | None = None,
    description: str,
) -> Tally:
    """Let all windows pass, in order, and finish the measurement. The model is left as found, also after an exception.

    A batch with NaN or Inf comes again on other scales, then window by window, so that only its bad windows are left
    out. Raises NumericalError when more than RARE of the windows are, or one is and the measurement cannot leave it
    out; UsageError when memory does not suffice; TimeUpError where ``run`` did, in whichever process.
    """
    tally = Tally((0, 0), 0, None)
    for layer, tally in passing(model, windows, run, measurement, batch_size=batch_size, description=description):
        if layer is not None:
            measurement.finish(layer, tally)
    return tally


def passing(
    model: Any,
    windows: TokenWindows,
    run: Run,
    measurement: Measurement,
    *,
    batch_size: int | None = None,
    description: str,
) -> Iterator[tuple[int | None, Tally]]:
    """The same, layer by layer: each layer whose sums are whole, its weights at hand, and the tally so far.

    At the end comes None with the tally of all. A streamed layer may come twice: the later sums count.
    """
    if run.by_layer and engine_of(model).streams:
        from importance.layer_sweep import LayerSweep

        yield from LayerSweep(model, windows, run, measurement, batch_size, description)
        return
    mine, engine = ranks.share(len(windows)), engine_of(model)
    way = _Way(mine.start, len(windows), run, measurement, next(model.parameters()).dtype)
    first = run.first_windows(windows.seq_len)
    for layer in measurement.layers:
        measurement.begin(layer)
    with left_as_found(model) as handles:
        measurement.attach(handles)
        with suppress(TimeUpError):
            size = first if batch_size is None and engine.together else batch_size  # others cannot begin a sweep again
            for_each_batch(windows.ids[mine], way.step, size, description, first)
            way.in_time = engine.takes_part()
    if not all(ranks.gathered(way.in_time, description)):
        raise TimeUpError
    tally = tally_of_all((way.windows[0], way.windows[1]), way.guard, way.gradients, description)
    for number in (*measurement.layers, None):
        ranks.add_up(measurement.sums(number), description)
    yield from ((layer, tally) for layer in measurement.layers)
    yield None, tally


class _Way:
    """Where the walk is: the windows that passed, from number ``start`` on, and those that count."""

    def __init__(self, start: int, num_windows: int, run: Run, measurement: Measurement, dtype: torch.dtype) -> None:
        self.run, self.measurement = run, measurement
        self.guard = NonFiniteGuard(num_windows, measurement, dtype)
        self.scales = scales_for(dtype, measurement)
        self.start = self.passed = start
        self.windows, self.in_time = [0, 0], False
        norms = measurement.norms
        self.gradients = LayerGradients(norms.num_layers) if norms is not None else None

    def step(self, ids: np.ndarray) -> None:
        self._admit(Batch(ids, self.passed))
        self.passed += len(ids)

    def _admit(self, batch: Batch) -> None:
        batch, found = self._in_range(batch)
        if found.is_finite:
            self._keep(batch, found)
        elif len(batch) > 1 and self.measurement.repeatable:
            self._one_by_one(batch)
        else:
            self.guard.skip(found.bad_layers, found.loss_is_finite)
        self.measurement.start(batch)  # nothing of it is held any longer

    def _in_range(self, batch: Batch) -> "tuple[Batch, Found]":
        """The batch on the first scale on which all is finite, or on the last one; another scale mends no loss."""
        for scale in self.scales if self.measurement.repeatable else self.scales[:1]:
            batch = replace(batch, scale=scale)
            found = Found.of(self._pass(batch), self.measurement)
            if found.is_finite or not found.loss_is_finite:
                break
        return batch, found

    def _one_by_one(self, batch: Batch) -> None:
        try:
            for window in batch.windows():
                self._admit(window)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            # Some windows count already: the batch cannot come again in smaller pieces.
            raise UsageError("one window does not fit in memory: name a shorter --seq_len") from None

    def _pass(self, batch: Batch) -> torch.Tensor | None:
        """What fails is tried again without what the pass can do without; a batch that does not fit comes in pieces
        first."""
        self.measurement.start(batch)
        try:
            return self.run(batch)
        except RuntimeError as error:
            full = is_out_of_memory(error)
            if (full and len(batch) > 1) or not self.run.gives_way(error):
                raise
            if not (self.measurement.repeatable or batch.first == self.start):
                if full:
                    raise UsageError(
                        "a window does not fit in memory beside the sum of gradients: name a shorter --seq_len"
                    ) from None
                raise
        # Outside the handler, where the traceback would still hold the tensors that filled the memory.
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if batch.first == self.start:
            self.measurement.begin_again()
        return self._pass(batch)

    def _keep(self, batch: Batch, found: "Found") -> None:
        self.measurement.keep(batch)
        for number in range(batch.first, batch.first + len(batch)):
            self.windows[number % 2] += 1
        if self.gradients is not None and found.norms is not None:
            mean, norm = found.norms
            self.gradients.add(mean / batch.scale, norm / batch.scale)


def scales_for(dtype: torch.dtype, measurement: Measurement) -> tuple[float, ...]:
    """What to multiply the loss by, in turn, in a model that computes in ``dtype``."""
    if not measurement.scales:
        return (1.0,)
    return SCALES_OF_FLOAT16 if dtype == torch.float16 else SCALES


@dataclass(frozen=True)
class Found:
    """What the host is told of a batch. norms: mean |g| and L2 norm, each float64 (B, L)."""

    loss_is_finite: bool
    bad_layers: list[int]
    norms: tuple[np.ndarray, np.ndarray] | None

    @property
    def is_finite(self) -> bool:
        return self.loss_is_finite and not self.bad_layers

    @staticmethod
    def of(loss: torch.Tensor | None, measurement: Measurement) -> "Found":
        seen = [(layer, values.sum(dtype=torch.float64)[None]) for layer, values in measurement.seen()]
        tensors = [] if loss is None else [loss.double()[None]]
        norms = measurement.norms
        statistics = norms.tensors() if norms is not None else []
        rows = on_host([*tensors, *(total for _, total in seen), *statistics])
        finite = [bool(np.isfinite(row).all()) for row in rows]
        bad = {layer for (layer, _), fine in zip(seen, finite[len(tensors) :], strict=False) if not fine}
        read = norms.read(rows[len(tensors) + len(seen) :]) if norms is not None and statistics else None
        if read is not None:
            bad.update(np.flatnonzero(~np.isfinite(np.concatenate(read)).all(0)).tolist())
        return Found(all(finite[: len(tensors)]), sorted(bad), read)


def on_host(tensors: list[torch.Tensor]) -> list[np.ndarray]:
    """float64 (n,) each, in one copy that waits; tensors on other devices are sent to that of the first."""
    if not tensors:
        return []
    device = tensors[0].device
    flat = torch.cat([tensor.to(device, torch.float64, non_blocking=True) for tensor in tensors]).cpu().numpy()
    return np.split(flat, np.cumsum([len(tensor) for tensor in tensors])[:-1])


def by_group(architecture: Architecture, blocks: dict[Key, torch.Tensor]) -> np.ndarray:
    """float64 (G,) from one tensor (K or F,) a block; 0 in blocks that are missing."""
    values = np.zeros(len(architecture.groups))
    for (layer, kind), block in blocks.items():
        values[architecture.groups.rows(layer, kind)] = block.cpu().numpy()
    return values
