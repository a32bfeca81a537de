"""The residual stream, layer by layer: what o_proj and down_proj get once the layers before them are pruned."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import torch

from core.families import IN, Family, Member, member_rows
from core.groups import Architecture

WINDOWS_A_BATCH = 8


class _Reached(Exception):
    pass


class Stream:
    """Calibration windows on their way through the decoder; ``advance`` moves them past a layer as it is by then."""

    def __init__(self, model: Any, family: Family, ids: np.ndarray) -> None:
        """ids: int64 (N, T); all batches have one size, so masks and positions of the first serve all."""
        size = next(size for size in range(WINDOWS_A_BATCH, 0, -1) if len(ids) % size == 0)
        batches = torch.from_numpy(ids).to(model.device).split(size)
        self.layers = list(model.get_submodule(family.layers))
        self.calls = _arguments(model, self.layers, batches[0])
        self.hidden = [_first_input(model, self.layers[0], batch) for batch in batches]

    @torch.no_grad()
    def gram(self, layer: int, path: str) -> torch.Tensor:
        """X^T X of a module's inputs X (tokens, in), float64 (in, in); products float32 a batch, summed in float64."""
        total: Any = 0.0
        for hidden in self.hidden:
            x = self._input(layer, path, hidden).flatten(0, 1).float()
            total = total + (x.T @ x).double()
        return torch.as_tensor(total)

    @torch.no_grad()
    def advance(self, layer: int) -> None:
        for number, hidden in enumerate(self.hidden):
            output = self.layers[layer](hidden, **self.calls[layer])
            self.hidden[number] = output[0] if isinstance(output, tuple) else output

    def _input(self, layer: int, path: str, hidden: torch.Tensor) -> torch.Tensor:
        """The layer runs no further than the module."""
        module = self.layers[layer].get_submodule(path)
        return _caught(module, lambda: self.layers[layer](hidden, **self.calls[layer]))


def _caught(module: Any, run: Any) -> torch.Tensor:
    caught: list[torch.Tensor] = []

    def catch(_module: Any, args: tuple[Any, ...]) -> None:
        caught.append(args[0])
        raise _Reached

    handle = module.register_forward_pre_hook(catch)
    try:
        with suppress(_Reached):
            run()
    finally:
        handle.remove()
    return caught[0]


@torch.no_grad()
def _first_input(model: Any, layer: Any, ids: torch.Tensor) -> torch.Tensor:
    return _caught(layer, lambda: model(input_ids=ids, use_cache=False))


@torch.no_grad()
def _arguments(model: Any, layers: list[Any], ids: torch.Tensor) -> list[dict[str, Any]]:
    """What the model hands each layer beside the hidden states: masks, positions, rotary tables."""
    calls: list[dict[str, Any]] = []
    handles = [
        layer.register_forward_pre_hook(lambda _m, _args, kwargs: calls.append(kwargs), with_kwargs=True)
        for layer in layers
    ]
    try:
        model(input_ids=ids, use_cache=False, logits_to_keep=1)
    finally:
        for handle in handles:
            handle.remove()
    return calls


@torch.no_grad()
def input_moments(model: Any, family: Family, ids: np.ndarray) -> dict[tuple[int, int], tuple[np.ndarray, np.ndarray]]:
    """(layer, kind) -> mean and sample variance, over all tokens, of each input feature of o_proj or down_proj.

    The dense model's. Sums of values and squares are float64; both float64 (in,).
    """
    sums: dict[tuple[int, int], torch.Tensor] = {}

    def add(key: tuple[int, int], args: tuple[Any, ...]) -> None:
        x = args[0].flatten(0, 1).double()
        found = torch.stack([x.sum(0), x.square().sum(0)])
        sums[key] = sums[key] + found if key in sums else found

    handles = []
    try:
        for index, layer in enumerate(model.get_submodule(family.layers)):
            for kind, member in enumerate(output_members(family)):
                module = layer.get_submodule(member.path)
                handles.append(module.register_forward_pre_hook(lambda _m, args, key=(index, kind): add(key, args)))
        for batch in torch.from_numpy(ids).to(model.device).split(WINDOWS_A_BATCH):
            model(input_ids=batch, use_cache=False, logits_to_keep=1)
    finally:
        for handle in handles:
            handle.remove()
    n, moments = ids.size, {}
    for key, total in sums.items():
        values, squares = total.cpu().numpy()
        mean = values / n
        moments[key] = mean, (squares - n * mean**2).clip(0) / (n - 1)
    return moments


def output_members(family: Family) -> tuple[Member, Member]:
    """The members whose input columns are groups, by kind: ``o_proj``, ``down_proj``."""
    attention, mlp = sorted((m for m in family.members if m.axis == IN), key=lambda m: m.kind)
    return attention, mlp


@contextmanager
def layers_restored(model: Any, family: Family) -> Iterator[None]:
    """Inside, parameters of the decoder layers may be changed, and biases added to members; on exit all is as before.

    What lies outside the layers (embeddings, last norm, head) no method touches.
    """
    layers = model.get_submodule(family.layers)
    modules = [layer.get_submodule(member.path) for layer in layers for member in family.members]
    biases = [module.bias for module in modules]
    before = [(parameter, parameter.detach().clone()) for parameter in layers.parameters()]
    try:
        with torch.no_grad():
            yield
    finally:
        for module, bias in zip(modules, biases, strict=True):
            module.bias = bias
        with torch.no_grad():
            for parameter, values in before:
                parameter.copy_(values)


@torch.no_grad()
def silence(model: Any, family: Family, architecture: Architecture, keep: np.ndarray) -> None:
    """Zero the columns of removed groups, as if surgery had cut them; a layer without any group adds nothing at all."""
    for index, layer in enumerate(model.get_submodule(family.layers)):
        whole = not keep[architecture.groups.layer == index].any()
        for member in output_members(family):
            module = layer.get_submodule(member.path)
            gone = ~feature_mask(member, architecture, index, keep)
            module.weight[:, gone.to(module.weight.device)] = 0.0
            if whole and module.bias is not None:
                module.bias.zero_()


def feature_mask(member: Member, architecture: Architecture, layer: int, keep: np.ndarray) -> torch.Tensor:
    """bool (in,), on the CPU: the input features of one output member that belong to kept groups."""
    shape = architecture.layers[layer]
    kept = np.flatnonzero(keep[architecture.groups.rows(layer, member.kind)])
    every = len(member_rows(member, shape, np.arange(shape.widths[member.kind])))
    mask = torch.zeros(every, dtype=torch.bool)
    mask[torch.from_numpy(member_rows(member, shape, kept))] = True
    return mask
