"""Surgery on a model that is not in memory: what the plan makes of each tensor, by its name alone."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch

from core.families import Family, Member
from core.plan import PruningPlan
from pruning.surgery import slice_tensor


class Fate(NamedTuple):
    """name: in the pruned model. layer: old index of the decoder layer it is in, None outside. member: it is cut as."""

    name: str
    layer: int | None = None
    member: Member | None = None


def fate_of(name: str, family: Family, plan: PruningPlan) -> Fate | None:
    """What becomes of the tensor that the dense state dict calls ``name``; None when it goes with its layer."""
    prefix = f"{family.layers}."
    if not name.startswith(prefix):
        return Fate(name)
    index, _, inner = name.removeprefix(prefix).partition(".")
    layer = int(index)
    if layer in plan.removed_layers:
        return None
    path = inner.rpartition(".")[0]
    member = next((member for member in family.members if member.path == path), None)
    return Fate(f"{prefix}{plan.remaining_layers.index(layer)}.{inner}", layer, member)


class PrunedTensors(Mapping[str, torch.Tensor]):
    """The pruned model's tensors by their new names; each is read from ``dense`` and cut when it is asked for."""

    def __init__(self, dense: Mapping[str, torch.Tensor], family: Family, plan: PruningPlan) -> None:
        self.dense = dense
        self.plan = plan
        fates = {name: fate_of(name, family, plan) for name in dense}
        self.origins = {fate.name: (name, fate) for name, fate in fates.items() if fate is not None}

    def __getitem__(self, name: str) -> torch.Tensor:
        old_name, fate = self.origins[name]
        tensor = self.dense[old_name]
        if fate.member is None or fate.layer is None:
            return tensor
        return slice_tensor(fate.member, tensor, self.plan, fate.layer)

    def __iter__(self) -> Iterator[str]:
        return iter(self.origins)

    def __len__(self) -> int:
        return len(self.origins)
