"""Second moments at o_proj and down_proj: of what goes in, and of the loss's gradient at what comes out.

    H = E_t[x_t x_t^T]        g_d = E_t[(dL/dy_td)^2]

x is the input and y the output of ``o_proj`` or ``down_proj``, t runs over all tokens of all windows, and L is the
NLL summed over the sequence. H (x) diag(g) is K-FAC's approximation of the loss's curvature in the weight (Martens and
Grosse 2015, arXiv:1503.05671), outputs taken as independent and gradients those of the true targets. Weights are
frozen: no weight gradient is formed.

H takes 4 n^2 bytes, 0.8 GB for 14,336 channels, so layers are measured in as many passes as the memory for them asks:
on a GPU half of what is free, elsewhere a share of the weights. Of a streamed model one layer's are held at a time.
Where one pass can hold them twice, windows 0, 2,
4, ... and the others are summed apart, each half in a set of its own.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from core import ranks, symmetric
from core.batching import TOKENS_A_BATCH, is_out_of_memory
from core.engine import engine_of
from core.errors import UsageError
from core.families import Family
from core.groups import ATTENTION, MLP, Architecture, LayerShape
from core.measured import GRADIENTS_OF_OUTPUTS, GradientStatistics
from core.memory import RESTING_SHARE, bytes_text, free_gpu_bytes, gpu_capacity
from core.products import HALF, half_product, multiplies_halves
from core.progress import tqdm
from core.windows import TokenWindows
from importance.gradient_scale import GradientNorms
from importance.over_windows import Key, Measurement, passing
from importance.passes import Backward, Batch
from importance.reductions import column_squares, window_norms
from importance.sums import output_projections
from importance.tally import Tally

LEAST_BYTES = 1 << 30


@dataclass(frozen=True)
class LayerMoments:
    """Of one layer, by kind (attention, mlp): inputs float32 (n, n), H; outputs float64 (C,), g.

    halves: the same from the even and from the odd windows, empty where the meter has none.
    """

    layer: int
    inputs: tuple[torch.Tensor, torch.Tensor]
    outputs: tuple[torch.Tensor, torch.Tensor]
    halves: tuple["LayerMoments", ...] = ()


class MomentMeter:
    """Measures the moments of all layers, a few at a time, and the gradient statistics on the way."""

    def __init__(
        self,
        model: Any,
        family: Family,
        architecture: Architecture,
        windows: TokenWindows,
        *,
        batch_size: int | None = None,
        most_bytes: int | None = None,
        halves: bool = False,
    ) -> None:
        """most_bytes: of moments that are held at once; None: on a GPU half of what is free, elsewhere half the
        weights' bytes, at least 1 GiB.

        halves: hold the moments of both halves of the windows, unless one pass cannot hold those of all layers. That
        shows in rounding, so on a GPU it follows from what the card has beside the weights, not from what is free.
        """
        self.model, self.family, self.architecture, self.windows = model, family, architecture, windows
        self.batch_size = batch_size
        self.parameter = next(model.parameters())
        held = sum(n + architecture.hidden_size for layer in architecture.layers for n in inputs_of(layer))
        self.run = Backward(model, family, architecture, held=held)
        self.engine = engine_of(model)
        self.most_bytes = most_bytes or self._most_bytes(free_gpu_bytes(self.engine.device))
        capacity = gpu_capacity(self.engine.device)
        for_all = most_bytes or self._most_bytes(None if capacity is None else capacity - self._weights)
        self.statistics = np.zeros((4, architecture.num_layers))
        self.windows_used, self.windows_skipped = len(windows), 0
        self.counts = [0, 0]  # windows that count, even ones and odd ones
        at_once = max if self.engine.streams else sum
        self.sets = 2 if halves and at_once(self._bytes(sets=2)) <= for_all else 1
        # Several processes measure the same layers at once, as the one with the least memory can.
        self.most_bytes, self.sets = map(min, zip(*ranks.gathered((self.most_bytes, self.sets), "memory"), strict=True))

    @property
    def has_halves(self) -> bool:
        """Whether each half is held and had a window; known once the moments have been measured."""
        return self.sets == 2 and min(self.counts) > 0

    @property
    def _weights(self) -> int:
        """Bytes of those that are held all the while."""
        if self.engine.streams and not self.engine.together:
            return 0
        weights = self.architecture.total_params * self.parameter.element_size()
        return weights // ranks.count() if self.engine.together else weights

    def _most_bytes(self, gpu: int | None) -> int:
        """gpu: bytes there are on a GPU; None elsewhere."""
        return max(LEAST_BYTES, self._weights // 2) if gpu is None else int(RESTING_SHARE * gpu)

    def _bytes(self, sets: int) -> list[int]:
        """By layer."""
        windows = self.batch_size or self.run.first_windows(self.windows.seq_len)
        tokens = max(TOKENS_A_BATCH, windows * self.windows.seq_len)
        hidden, element = self.architecture.hidden_size, self.parameter.element_size()
        return [layer_bytes(shape, hidden, tokens, element, sets) for shape in self.architecture.layers]

    def passes(self) -> list[range]:
        """Layers by pass: consecutive ones, as many as fit into most_bytes, but one at least. Streamed layers come one
        at a time in a single pass."""
        if self.engine.streams:
            return [range(self.architecture.num_layers)]
        found: list[range] = []
        left = 0
        for layer, needed in enumerate(ranks.from_first(self._bytes(self.sets), "bytes of moments")):
            if not found or needed > left:
                found.append(range(layer, layer))
                left = self.most_bytes
            found[-1] = range(found[-1].start, layer + 1)
            left -= needed
        return found

    def __iter__(self) -> Iterator[LayerMoments]:
        """The moments of each layer in turn. Between two of them the model is as found.

        Raises NumericalError when more than 5 % of the windows yield NaN or Inf,
        UsageError when memory does not suffice.
        """
        passes = self.passes()
        for number, layers in enumerate(passes, 1):
            of = f" pass {number} of {len(passes)}" if len(passes) > 1 else ""
            yield from self._measure(layers, f"importance (obs){of}")

    def _measure(self, layers: range, description: str) -> Iterator[LayerMoments]:
        sums = _Sums(self.model, self.family, self.architecture, layers, self.sets)
        size = self.batch_size
        finished = passing(self.model, self.windows, self.run, sums, batch_size=size, description=description)
        with tqdm(total=len(layers), desc=f"{description} solving", unit="layer", leave=False) as progress:
            for layer, tally in finished:
                if layer is not None:
                    self._note(layer, tally)
                    yield sums.take(layer, [count * self.windows.seq_len for count in self.counts])
                    progress.update()

    def _note(self, layer: int, tally: Tally) -> None:
        gradients = tally.gradients
        assert gradients is not None
        found = np.stack([gradients.mean, gradients.norm, gradients.min, gradients.max])
        self.statistics[:, layer] = found[:, layer]
        self.counts = list(tally.windows)
        self.windows_used = min(self.windows_used, tally.used)
        self.windows_skipped = max(self.windows_skipped, tally.skipped)

    def gradient_statistics(self) -> GradientStatistics:
        """Of the gradients at the outputs, complete once all layers have been measured."""
        mean, norm, low, high = self.statistics
        return GradientStatistics(mean, norm, low, high, GRADIENTS_OF_OUTPUTS)


def inputs_of(shape: LayerShape) -> tuple[int, int]:
    """n by kind: H*D inputs of o_proj, F of down_proj."""
    return shape.num_heads * shape.head_dim, shape.intermediate_size


def layer_bytes(shape: LayerShape, hidden_size: int, tokens: int, element_size: int, sets: int = 1) -> int:
    """What so many sets of a layer's moments take, with the inputs and gradients of a batch of so many tokens."""
    return sum(4 * sets * n * n + tokens * element_size * (n + hidden_size) for n in inputs_of(shape))


class _Sums(Measurement):
    """Hooks that keep the inputs and output gradients of one batch, and the moments of those that were kept.

    With two sets, window i of all adds to set i % 2; the first dimension of the sums is the set.
    """

    sees, scales = "gradients", True

    def __init__(self, model: Any, family: Family, architecture: Architecture, layers: range, sets: int) -> None:
        self.sets = sets
        self.modules = {
            (layer, member.kind): module
            for layer, member, module in output_projections(model, family)
            if layer in layers
        }
        self.norms: GradientNorms = GradientNorms(architecture.num_layers, GRADIENTS_OF_OUTPUTS)
        self.pending: dict[Key, tuple[torch.Tensor, torch.Tensor]] = {}
        self.inputs: dict[Key, torch.Tensor] = {}
        self.outputs: dict[Key, torch.Tensor] = {}
        self.layers, self.architecture = layers, architecture

    def begin(self, layer: int) -> None:
        """UsageError where the layer's sums do not fit in memory."""
        shape = self.architecture.layers[layer]
        with enough_memory(self.architecture, range(layer, layer + 1)):
            for kind, n in enumerate(inputs_of(shape)):
                device = self.modules[layer, kind].weight.device
                self.inputs[layer, kind] = torch.zeros(self.sets, n, n, device=device)
                self.outputs[layer, kind] = torch.zeros(
                    self.sets, self.architecture.hidden_size, dtype=torch.float64, device=device
                )

    def attach(self, handles: list[Any]) -> None:
        for key, module in self.modules.items():
            handles.append(
                module.register_forward_hook(lambda _module, args, output, key=key: self._watch(key, args[0], output))
            )

    def _watch(self, key: Key, inputs: torch.Tensor, output: torch.Tensor) -> torch.Tensor | None:
        if not torch.is_grad_enabled():  # first half of a checkpointed layer; the recomputation comes with gradients
            return None
        # Weights are frozen, so gradients start at the first output that asks for one: nothing before it is computed.
        watched = output if output.requires_grad else output.detach().requires_grad_()
        values = inputs.detach()  # a hook that held ``inputs`` would keep the graph alive
        watched.register_hook(lambda gradient: self._hold(key, values, gradient))
        return watched

    def _hold(self, key: Key, inputs: torch.Tensor, gradient: torch.Tensor) -> None:
        self.pending[key] = inputs, gradient
        self.norms.add(key[0], *window_norms(gradient), gradient[0].numel())

    def start(self, batch: Batch) -> None:
        self.pending.clear()
        self.norms.start()

    def keep(self, batch: Batch) -> None:
        """Add the batch: x x^T in float32, products and sums; squares of gradients in float32, sums in float64."""
        try:
            for key, (inputs, gradient) in self.pending.items():
                for number in range(self.sets):
                    of_set = batch.half(number) if self.sets > 1 else slice(None)
                    rows = inputs[of_set].flatten(0, 1)
                    if multiplies_halves(rows.device) and rows.dtype in HALF:
                        self.inputs[key][number] += half_product(rows.T, rows)
                    else:
                        rows = rows.float()
                        symmetric.add_upper(self.inputs[key][number], rows, rows)  # in place: no second matrix
                    self.outputs[key][number].add_(column_squares(gradient[of_set]), alpha=batch.scale**-2)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            # Part of the batch has been added: it cannot come again in smaller pieces.
            raise UsageError("the second moments do not fit in memory: use a smaller --batch_size") from None

    def sums(self, layer: int | None) -> Iterable[torch.Tensor]:
        return (sums[key] for sums in (self.inputs, self.outputs) for key in sorted(sums) if key[0] == layer)

    def take(self, layer: int, tokens: list[int]) -> LayerMoments:
        """Hand a layer's moments over, as means; they are no longer held here. tokens: of even and of odd windows."""
        inputs, outputs = (
            [sums.pop((layer, kind)) for kind in (ATTENTION, MLP)] for sums in (self.inputs, self.outputs)
        )
        # A single set is used up; of two, the whole is a third tensor of their size.
        together = [[sums.sum(0) if self.sets > 1 else sums[0] for sums in kinds] for kinds in (inputs, outputs)]
        found = _means(layer, together[0], together[1], max(sum(tokens), 1))
        if self.sets == 1 or not min(tokens):
            return found
        halves = [
            _means(layer, [sums[i] for sums in inputs], [sums[i] for sums in outputs], tokens[i]) for i in range(2)
        ]
        return replace(found, halves=tuple(halves))


def _means(layer: int, inputs: list[torch.Tensor], outputs: list[torch.Tensor], tokens: int) -> LayerMoments:
    """From sums by kind, in place: no second matrix of that size."""
    attention, mlp = (
        (symmetric.mirror(inputs[kind].div_(tokens)), outputs[kind].div_(tokens)) for kind in (ATTENTION, MLP)
    )
    return LayerMoments(layer, (attention[0], mlp[0]), (attention[1], mlp[1]))


@contextmanager
def enough_memory(architecture: Architecture, layers: range) -> Iterator[None]:
    """UsageError in place of an allocator's complaint: what was needed, and what needs less."""
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        width = max(max(inputs_of(architecture.layers[layer])) for layer in layers)
        raise UsageError(
            f"obs does not fit in memory: layer {layers.start} has {width:,} inputs, whose moments take "
            f"{bytes_text(4 * width**2)} and six times that again while they are solved; "
            "try --device cpu or --importance_method fisher"
        ) from None
