"""Shim until the registry lands."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Criterion:
    reads_text: bool = True
    takes_reduction: bool = False
    takes_batches: bool = True
    priced_in_loss: bool = False
    without_halves: str | None = None


CRITERIA = {
    "taylor": Criterion(takes_reduction=True, takes_batches=False),
    "taylor_2nd": Criterion(takes_reduction=True, takes_batches=False),
    "fisher": Criterion(),
    "obs": Criterion(
        priced_in_loss=True,
        without_halves="the memory for obs's moments does not hold both halves of all layers in one pass",
    ),
    "wanda": Criterion(),
    "magnitude": Criterion(
        reads_text=False,
        takes_batches=False,
        without_halves="magnitude reads no text, so it is the same for any windows",
    ),
}
