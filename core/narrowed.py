"""Groups left out of a model's forward pass by computing only the others: what silencing them gives, in less time.

No weight is touched. Each time a module runs it takes the rows, or columns, that are kept of its weight as it then is.
So no second model is held: the copy lasts as long as the module runs.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np

from core.families import OUT, Family, Member, member_rows
from core.groups import LayerShape
from core.silence import silenced


def narrows(layer: Any, family: Family, kind: int, keep: np.ndarray) -> bool:
    """Whether ``narrowed`` can leave out what one block of ``layer`` does not keep; keep: bool (its width,).

    Some group has to stay and some to go. Modules must be plain linear ones, whose forward nobody replaced; one that
    stacks parts of different kinds is taken apart at places that its configuration fixes.
    """
    from torch import nn

    members = family.members_of(kind)
    modules = [layer.get_submodule(member.path) for member in members]
    plain = all(type(module) is nn.Linear and "forward" not in module.__dict__ for module in modules)
    alike = all(len(set(member.parts)) == 1 for member in members)
    return bool(keep.any() and not keep.all()) and plain and alike


@contextmanager
def narrowed(layer: Any, family: Family, shape: LayerShape, kind: int, keep: np.ndarray) -> Iterator[None]:
    """Inside, one block of ``layer`` computes the groups that are kept and no others; its writing module receives the
    inputs that are left. For what ``narrows``."""
    kept = np.flatnonzero(keep)
    changed = []
    try:
        for member in family.members_of(kind):
            module = layer.get_submodule(member.path)
            module.forward = _narrow(module, member, member_rows(member, shape, kept))
            changed.append(module)
        yield
    finally:
        for module in changed:
            del module.__dict__["forward"]


def left_out(
    layer: Any, family: Family, shape: LayerShape, kind: int, keep: np.ndarray
) -> AbstractContextManager[None]:
    """Inside, one block of ``layer`` computes without the groups that are not kept, the faster way if it can."""
    how = narrowed if narrows(layer, family, kind, keep) else silenced
    return how(layer, family, shape, kind, keep)


def _narrow(module: Any, member: Member, positions: np.ndarray) -> Callable[[Any], Any]:
    """The forward of a linear module cut to these positions along the member's axis; a bias goes with the outputs."""
    import torch
    import torch.nn.functional as F

    rows = torch.from_numpy(positions)
    rows = rows if module.weight.is_meta else rows.to(module.weight.device)

    def forward(inputs: Any) -> Any:
        here, bias = rows.to(inputs.device), module.bias
        if bias is not None and member.axis == OUT:
            bias = bias.index_select(0, here)
        return F.linear(inputs, module.weight.index_select(member.axis, here), bias)

    return forward
