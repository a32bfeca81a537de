"""The sharded engine: a model whose weights lie with several processes, each holding a part of every tensor.

FSDP2 (``torch.distributed.fsdp.fully_shard``) keeps the parts and brings them together: a layer that is visited has all
of its weights for as long as the visit lasts, while the next one is on its way; embeddings and head have theirs inside
``keeping``. What is small (norms outside the layers) each process holds whole.

FSDP is given a module that holds a layer and is never called itself. So none of its hooks run: a layer computes with
plain tensors, gradients stay the process's own, and nothing but a visit exchanges weights. All processes make the same
visits in the same order, and meet before each exchange (``core.ranks``).

Weights are read by the first process, a tensor at a time, and dealt out. Those that change go back into the parts, each
process taking its own; the first one also keeps them whole in a file, for what it does alone: saving and proof read
tensors from there and from the checkpoint, and exchange nothing.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from core import ranks
from models.away import WeightsAway

ALONG = (Shard(0),)  # rows are dealt out


class ShardedWeights(WeightsAway):
    """``model`` runs with the weights of ``tensors``, of which each process holds a part.

    All processes make it at once, and the tensors of the first are asked for. On the others ``tensors`` are as they
    were given: what changed the first has. Raises LostRankError where another process has ended.
    """

    together = True

    def __init__(self, *given: Any, **more: Any) -> None:
        """As ``WeightsAway``."""
        super().__init__(*given, **more)
        self._mesh = init_device_mesh(self.device.type, (ranks.count(),))
        # Any: what ``fully_shard`` turns into modules of another class
        self._layers: list[Any] = [_Together(layer) for layer in self.model.get_submodule(self.family.layers)]
        embeddings, head = self.model.get_input_embeddings(), self.model.get_output_embeddings()
        tied = embeddings.weight is head.weight
        self._ends: dict[Any, Any] = {embeddings: _Together(embeddings, head) if tied else _Together(embeddings)}
        self._ends[head] = self._ends[embeddings] if tied else _Together(head)
        self._whole: set[Any] = set()  # embeddings and head while they are at hand
        self._parts: dict[tuple[nn.Module, str], DTensor] = {}
        self._before: dict[tuple[nn.Module, str], torch.Tensor] | None = None
        for together in (*self._layers, *dict.fromkeys(self._ends.values())):
            self._deal_out(together)
        for module in self._modules.values():
            for name, parameter in module._parameters.items():
                if parameter is not None and (module, name) not in self._parts:
                    module._parameters[name] = nn.Parameter(self._tensor(module, name), requires_grad=False)

    def visit(self, layers: Iterable[int]) -> Iterator[int]:
        order = list(layers)
        coming = self._ask_for(order, 0)
        for place, layer in enumerate(order):
            following = None
            try:
                assert coming is not None
                with ranks.while_all_are_here():
                    coming.wait()
                following = self._ask_for(order, place + 1)
                yield layer
            except BaseException:
                if following is not None:  # what is on its way cannot be called back
                    with suppress(RuntimeError):
                        following.wait()
                        self._layers[order[place + 1]].reshard()
                raise
            finally:
                self._layers[layer].reshard()
            coming = following

    @contextmanager
    def keeping(self, module: Any) -> Iterator[None]:
        together = self._ends[module]
        if together in self._whole:
            yield
            return
        with ranks.meeting(self._paths[module]):
            together.unshard()
        self._whole.add(together)
        try:
            yield
        finally:
            self._whole.remove(together)
            together.reshard()

    at_hand = keeping

    def begins_sweep(self, *, is_late: bool = False) -> bool:
        return any(late for _, late in ranks.gathered((True, is_late), "another sweep"))

    def takes_part(self) -> bool:
        while True:
            sweeps, late = zip(*ranks.gathered((False, False), "another sweep"), strict=True)
            if any(late) or not any(sweeps):
                return not any(late)
            with self.keeping(self.model.get_input_embeddings()):
                pass
            for _ in self.visit(range(len(self._layers))):
                pass
            with self.keeping(self.model.get_output_embeddings()):
                pass

    @torch.no_grad()
    def changed(self, modules: Iterable[Any]) -> None:
        for module in modules:
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    # a copy: FSDP cannot take back memory that a file was written from, which numpy has seen
                    kept = parameter.to(self._keeps_in or parameter.dtype, copy=True)
                    self._replace(module, name, kept.to(parameter.dtype))
                    if ranks.is_first():
                        self.tensors.replace(self._source(module, name), kept)

    @contextmanager
    def restoring(self, parameters: Iterable[Any]) -> Iterator[None]:
        before, self._before = self._before, {}
        try:
            with self.tensors.restored():
                yield
        finally:
            for key, values in self._before.items():
                self._parts[key].to_local().copy_(values)
            self._before = before

    def let_go(self) -> None:
        for part in self._parts.values():
            part.to_local().untyped_storage().resize_(0)

    def _ask_for(self, order: list[int], place: int) -> Any:
        """What waits for the weights of a layer, which are on their way; None behind the last one."""
        if place >= len(order):
            return None
        with ranks.meeting(f"layer {order[place]}"):
            return self._layers[order[place]].unshard(async_op=True)

    # Parts

    @torch.no_grad()
    def _deal_out(self, together: "_Together") -> None:
        """From the meta device into the parts; a tied tensor once."""
        buffers = [(module, dict(module._buffers)) for module in together.modules()]
        fully_shard(together, mesh=self._mesh)
        together.to_empty(device=self.device)
        for module, values in buffers:
            module._buffers.update(values)
        dealt: dict[str, Any] = {}
        for module in together.modules():
            for name, parameter in module._parameters.items():
                if parameter is None:
                    continue
                source = self._source(module, name)
                is_new = source not in dealt
                module._parameters[name] = self._parts[module, name] = dealt.setdefault(source, parameter)
                if is_new:
                    self._replace(module, name, self._tensor(module, name))

    def _tensor(self, module: nn.Module, name: str) -> torch.Tensor:
        """Of the first process, on every one: whole, on the device, in the dtype that the module computes in."""
        parameter, source = module._parameters[name], self._source(module, name)
        assert parameter is not None
        if ranks.is_first():
            tensor = self.tensors[source].to(self.device).to(parameter.dtype)
            self._check(source, tensor)
        else:
            tensor = torch.empty(parameter.shape, dtype=parameter.dtype, device=self.device)
        ranks.send([tensor], 0, source)
        return tensor

    def _replace(self, module: nn.Module, name: str, values: torch.Tensor) -> None:
        """Each process takes its part of values that all of them have."""
        part = self._parts[module, name].to_local()
        if self._before is not None:
            self._before.setdefault((module, name), part.to("cpu", copy=True))
        part.copy_(distribute_tensor(values, self._mesh, ALONG, src_data_rank=None).to_local())


class _Together(nn.Module):
    """Modules whose weights come together. It is never called."""

    def __init__(self, *modules: nn.Module) -> None:
        super().__init__()
        for number, module in enumerate(modules):
            self.add_module(str(number), module)
