"""The loss of many variants of one model that differ from it in a single layer.

The dense pass of a batch keeps the input of every layer. A variant that changes layer l starts from there, so a variant
of each of the L layers costs about half of L passes. Where layers come one at a time, the streams of all variants ride
along with the dense one: each batch takes one sweep.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch

from core.carrier import Carrier
from core.engine import engine_of
from core.families import Family
from core.layers import bypassed
from importance.over_windows import Key, TimeUpError
from importance.sums import IGNORED, targets_nll, token_nll

# Inside, the layer computes what the variant does; None: what the layer receives goes past it.
Inside = Callable[[], AbstractContextManager[None]]
Variants = Sequence[tuple[Key, Inside | None]]  # key: of a result, the layer's number first; ascending by layer


class PrefixedLoss:
    """Use it inside ``left_as_found`` and without gradients.

    is_late: asked before every sweep, of layers that come one at a time; TimeUpError where it says so, in whichever of
    the processes that sweep together.
    """

    def __init__(self, model: Any, family: Family, is_late: Callable[[], bool] | None = None) -> None:
        self.model, self.family, self.engine = model, family, engine_of(model)
        self.is_late = is_late or (lambda: False)
        self.layers = list(model.get_submodule(family.layers))

    def of(self, ids: torch.Tensor, variants: Variants) -> tuple[torch.Tensor, dict[Key, torch.Tensor]]:
        """Summed NLL of the model as it is and of every variant, nats, float64 () each on the device: the host need not
        wait. ids int64 (B, T)."""
        return self._riding(ids, variants) if self.engine.streams else self._from_inputs(ids, variants)

    def _from_inputs(self, ids: torch.Tensor, variants: Variants) -> tuple[torch.Tensor, dict[Key, torch.Tensor]]:
        inputs: list[torch.Tensor] = []
        handles = [
            layer.register_forward_pre_hook(lambda _module, args: inputs.append(args[0])) for layer in self.layers
        ]
        try:
            dense = self._nll(ids)
        finally:
            for handle in handles:
                handle.remove()
        found = {}
        for key, inside in variants:
            before = self.layers[: key[0] + (inside is None)]
            if inside is None:
                with bypassed(before, restart=inputs[key[0]]):
                    found[key] = self._nll(ids)
            else:
                with bypassed(before, restart=inputs[key[0]]), inside():
                    found[key] = self._nll(ids)
        return dense, found

    def _nll(self, ids: torch.Tensor) -> torch.Tensor:
        return token_nll(self.model(input_ids=ids, use_cache=False).logits, ids).double().sum()

    def _riding(self, ids: torch.Tensor, variants: Variants) -> tuple[torch.Tensor, dict[Key, torch.Tensor]]:
        if self.engine.begins_sweep(is_late=self.is_late()):
            raise TimeUpError
        carrier = Carrier(self.model, self.family, ids.cpu().numpy(), len(ids))
        hidden = carrier.take(carrier.embed(), slice(None))
        streams: dict[Key, torch.Tensor] = {}
        for layer in carrier.visit():
            for key, stream in streams.items():
                streams[key] = carrier.call(layer, stream)
            for key, inside in variants:
                if key[0] == layer:
                    streams[key] = hidden
                    if inside is not None:
                        with inside():
                            streams[key] = carrier.call(layer, hidden)
            hidden = carrier.call(layer, hidden)
        with self.engine.keeping(self.model.get_output_embeddings()):
            return self._behind(carrier, hidden), {key: self._behind(carrier, streams[key]) for key in streams}

    def _behind(self, carrier: Carrier, hidden: torch.Tensor) -> torch.Tensor:
        """The loss of a stream behind the last layer, (B, T, C)."""
        targets = torch.full_like(carrier.ids, IGNORED)
        targets[:, :-1] = carrier.ids[:, 1:]
        rows = carrier.head_rows(self.model.config.get_text_config().vocab_size)
        pairs = zip(hidden.flatten(0, 1).split(rows), targets.flatten().to(hidden.device).split(rows), strict=True)
        return torch.stack([targets_nll(carrier.logits(part), x).double().sum() for part, x in pairs]).sum()
