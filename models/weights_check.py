"""Whether a saved folder holds the weights that it should, tensor by tensor: what no comparison of outputs can see."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from core.families import Family
from models.architecture import decoder_layers
from models.expected import relative_error
from models.verification import Check

NAME = "weights"
# ‖a − b‖ / ‖b‖ of a tensor whose every value falls on another side of a rounding step is 2^-8 in bfloat16 and 2^-11 in
# float16; in float32 it is what conditioning makes of the solver's rounding.
SOLVED = {torch.bfloat16: 4e-3, torch.float16: 5e-4, torch.float32: 1e-3}


@torch.no_grad()
def compare_weights(folder: Path, expected: Any, family: Family, *, solved_elsewhere: bool) -> Check:
    """Every tensor of ``folder`` against that of ``expected``, the narrow model as it should be.

    What was cut and nothing more is equal to the last bit on every machine, and so is a repair on the machine that made
    it. solved_elsewhere: it was made on another, whose solver rounds otherwise; projections may then differ by SOLVED.
    """
    weights, worst = expected.state_dict(), Check(NAME, 0.0, 0.0)
    solved = set(_projections(expected, family)) if solved_elsewhere else set()
    for name, stored in stored_tensors(folder):
        tolerance = SOLVED.get(stored.dtype, 0.0) if name in solved else 0.0
        if name not in weights or weights[name].shape != stored.shape:
            continue  # the checks of widths and of loading name it
        error = relative_error(stored, weights[name].to(stored.dtype).cpu())
        found = Check(NAME, error, tolerance, f"{name} is not what the base model and the plan give, by {error:.2g}")
        if not found.passed:
            return found
        if error > worst.error:
            worst = Check(NAME, error, tolerance)
    return worst


def _projections(model: Any, family: Family) -> Iterator[str]:
    for index in range(len(decoder_layers(model, family))):
        for member in family.members:
            for part in ("weight", "bias"):
                yield f"{family.layers}.{index}.{member.path}.{part}"


def stored_tensors(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - no mapping
                yield name, file.get_tensor(name)
