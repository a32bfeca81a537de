"""Groups taken out of a model's forward pass without touching a weight: what they hand to o_proj or down_proj is 0."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np

from core.families import Family, member_rows
from core.groups import LayerShape


@contextmanager
def silenced(layer: Any, family: Family, shape: LayerShape, kind: int, keep: np.ndarray) -> Iterator[None]:
    """Inside, one block of ``layer`` computes without the groups that are not kept; keep: bool (its width,).

    Exactly what is left once they have been cut out: biases of o_proj and down_proj stay.
    """
    import torch

    hooks = []
    try:
        if not keep.all():
            member = family.output(kind)
            module = layer.get_submodule(member.path)
            gone = torch.ones(module.in_features, dtype=torch.bool)
            gone[torch.from_numpy(member_rows(member, shape, np.flatnonzero(keep)))] = False
            if not module.weight.is_meta:  # else its device is known when inputs come
                gone = gone.to(module.weight.device)
            hooks.append(module.register_forward_pre_hook(partial(_mask, gone)))
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _mask(gone: Any, _module: Any, inputs: tuple[Any]) -> tuple[Any]:
    return (inputs[0].masked_fill(gone.to(inputs[0].device), 0.0),)  # not a product: 0 times Inf is NaN
