"""The criteria that price groups, and what is true of each: the one place that a new criterion is entered. No torch.

Whoever asks "does it read text?" or "are its blocks in one unit?" asks a property here, never a name.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType


@dataclass(frozen=True)
class Criterion:
    """One way to price groups.

    measured_by: ``module:function``, imported when it is called (``importance.measure``).
    says: what it is, in a phrase for lists of choices.
    keywords: keyword arguments that the function gets in any case.
    reads_text: needs calibration windows; without, it never changes, from round to round and from text to text.
    needs_gradients: runs backward passes.
    batches: takes ``batch_size``.
    uses_gradient_reduction: takes ``reduction``, ``sequence`` or ``sum``.
    priced_in_loss: importance is the loss that a removal costs once the rest is refitted, in one unit for all blocks.
    streams: can be measured tensor by tensor from a checkpoint on disk, without the model.
    why_no_halves: what to say where an importance has no halves though there were windows for both.
    """

    measured_by: str
    says: str
    keywords: Mapping[str, object] = field(default_factory=lambda: MappingProxyType({}))
    reads_text: bool = True
    needs_gradients: bool = True
    batches: bool = True
    uses_gradient_reduction: bool = False
    priced_in_loss: bool = False
    streams: bool = False
    why_no_halves: str = "memory did not hold both halves"


_OF_A_SUM = "a sum of gradients does not come as a sum over windows"

CRITERIA: dict[str, Criterion] = {
    "taylor": Criterion(
        "importance.taylor:taylor_importance",
        "weight times gradient",
        uses_gradient_reduction=True,
        why_no_halves=_OF_A_SUM,
    ),
    "taylor_2nd": Criterion(
        "importance.taylor:taylor_importance",
        "the same and half its square",
        keywords=MappingProxyType({"second_order": True}),
        uses_gradient_reduction=True,
        why_no_halves=_OF_A_SUM,
    ),
    "fisher": Criterion("importance.fisher:fisher_importance", "squared derivative of the loss by the group's mask"),
    "obs": Criterion(
        "importance.obs:obs_importance",
        "loss once the rest of the block is refitted",
        priced_in_loss=True,
        why_no_halves="the memory for obs's moments does not hold both halves of all layers in one pass",
    ),
    "wanda": Criterion(
        "importance.wanda:wanda_importance", "weights times the norm of their inputs", needs_gradients=False
    ),
    "magnitude": Criterion(
        "importance.magnitude:magnitude_importance",
        "sum of absolute weights",
        reads_text=False,
        needs_gradients=False,
        batches=False,
        streams=True,
        why_no_halves="magnitude reads no text, so it is the same for any windows",
    ),
}
