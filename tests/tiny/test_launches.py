"""What the repair and the evaluation launch on a device, a layer and batch of windows, and when the host waits for it.

Counted on a CPU as operators are dispatched; ``test_gpu_paths`` does the same for criteria, ``test_elimination`` for
eliminations. All counts are exact, and the bounds leave some room for other releases of torch and transformers.
"""

import copy
from typing import Any

import pytest
import torch
from operators import Operators
from repairs import IDS, family, plan_for
from tiny_models import windows_of

from evaluation.distance import DenseStates, Distance, Head
from evaluation.perplexity import perplexity
from pruning.repair import RepairSettings, repair

LAYERS = 3


def plain_forward(model: Any, windows: int) -> Operators:
    with Operators() as operators, torch.no_grad():
        model(input_ids=IDS[:windows], use_cache=False)
    return operators


@pytest.mark.parametrize(("target", "forwards", "most"), [("stream", 2, 90), ("pruned", 1, 50)])
def test_a_repair_waits_for_its_solutions_alone(llama: Any, target: str, forwards: int, most: int) -> None:
    """forwards: streams that pass each layer. most: operators a layer and batch beyond theirs."""
    plan = plan_for(llama)

    def counted(windows: int) -> Operators:
        """Batches of two, of which every fourth window is held out: 4 batches of 8 windows, 8 of 16."""
        settings = RepairSettings(target=target, text="calibration", batch_size=2)
        model = copy.deepcopy(llama)
        with Operators() as operators:
            repair(model, family(model), plan, windows_of(IDS[:windows]), settings)
        return operators

    few, many, plain = counted(8), counted(16), plain_forward(llama, 2)
    # Windows are embedded by the model's own forward, which asks once whether they are packed. Nothing else waits.
    assert many.waits - few.waits == 4 * plain.waits
    a_batch = (many.seen.total() - few.seen.total()) / 4
    assert (a_batch - forwards * plain.seen.total()) / LAYERS <= most
    assert few.waits - 4 * plain.waits <= 100 * LAYERS  # four sets of sums a layer, each solved with four ridges


@pytest.mark.parametrize(("compares", "most"), [(False, 10), (True, 90)])
def test_perplexity_and_distance_wait_for_nothing(llama: Any, compares: bool, most: int) -> None:
    """most: operators a batch of four windows beyond the forward pass; of each of them the distance is taken."""

    def counted(windows: int) -> Operators:
        text = windows_of(IDS[:windows])
        states = DenseStates(text, Head.of(llama))
        perplexity(llama, text, batch_size=4, description="", watch=states)
        with Operators() as operators:
            perplexity(llama, text, batch_size=4, description="", watch=Distance(states) if compares else None)
        return operators

    few, many, plain = counted(8), counted(16), plain_forward(llama, 4)
    assert many.waits - few.waits == 2 * plain.waits
    assert (many.seen.total() - few.seen.total()) / 2 - plain.seen.total() <= most
