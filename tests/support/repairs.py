"""Repairs of tiny models, for tests: windows, plans, and a repaired copy."""

import copy
from typing import Any

import torch
from tiny_models import random_plan, token_ids, windows_of

from core.plan import PruningPlan
from models.architecture import architecture_of, decoder_layers
from models.family_table import family_of
from pruning.repair import RepairSettings, repair
from pruning.repair_report import RepairReport

IDS = token_ids(rows=24, length=14)
WINDOWS = windows_of(IDS)


def family(model: Any) -> Any:
    return family_of(model.config.model_type)


def plan_for(model: Any, removed_layers: tuple[int, ...] = ()) -> PruningPlan:
    return random_plan(architecture_of(model, family(model)), seed=3, removed_layers=removed_layers)


def repaired(model: Any, plan: PruningPlan, **options: Any) -> tuple[Any, RepairReport]:
    copied = copy.deepcopy(model)
    return copied, repair(copied, family(model), plan, WINDOWS, RepairSettings(**options))


@torch.no_grad()
def hidden_states(model: Any, ids: torch.Tensor) -> list[torch.Tensor]:
    """The input of every layer and the output of the last, as the model's own forward makes them."""
    states: list[torch.Tensor] = []
    layers = decoder_layers(model, family(model))
    handles = [layer.register_forward_pre_hook(lambda _m, args: states.append(args[0])) for layer in layers]
    last = layers[-1].register_forward_hook(
        lambda _m, _a, out: states.append(out[0] if isinstance(out, tuple) else out)
    )
    model(input_ids=ids, use_cache=False)
    for handle in (*handles, last):
        handle.remove()
    return states
