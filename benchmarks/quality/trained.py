"""Recovery by gradients, of this project and of LLM-Pruner, on one budget of tokens.

The pruned model is cut for real and trained as a narrow one, as the program does it; then its weights go back into the
columns and rows of the wide model that they came from, so that it is read and restored like any other.
"""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from benchmarks.quality.case import Case, Keep, Training
from benchmarks.quality.stream import silence
from core.families import IN, Family
from core.plan import PruningPlan
from models.narrow import empty_narrow_model
from pruning.recovery.blocks import BlockSettings, recover_blocks
from pruning.surgery import operate

Train = Callable[[Any, Any, Case, PruningPlan, Training], object]  # narrow, dense, ...: trains narrow in place


def trained(selection: Keep, train: Train) -> Keep:
    """A selection with its repair, then a recovery of the cut model."""

    def keep(case: Case, ratio: float) -> np.ndarray:
        assert case.training is not None, "a method that trains needs text to train on"
        training = case.once("text to train on", case.training)  # first, as the dense model may write some of it
        dense = copy.deepcopy(case.model)
        chosen = selection(case, ratio)
        plan = case.plan(chosen, ratio)
        silence(case.model, case.family, case.architecture, chosen)
        wide = copy.deepcopy(case.model)  # surgery uses it up
        narrow = operate(wide, empty_narrow_model(wide, case.family, plan), case.family, plan)
        with torch.enable_grad():
            train(narrow, dense, case, plan, training)
        put_back(narrow, case.model, case.family, plan)
        return chosen

    return keep


@torch.no_grad()
def put_back(narrow: Any, wide: Any, family: Family, plan: PruningPlan) -> None:
    """Write what the layers of ``narrow``, cut from ``wide`` by ``plan``, hold into the places they were cut from."""
    members = {member.path: member for member in family.members}
    layers = zip(wide.get_submodule(family.layers), narrow.get_submodule(family.layers), strict=True)
    for layer, (target, source) in enumerate(layers):
        for path, module in source.named_modules():
            member, there = members.get(path), target.get_submodule(path)
            for name, values in module.named_parameters(recurse=False):
                into = there.get_parameter(name)
                if member is None or (name == "bias" and member.axis == IN):
                    into.copy_(values)
                else:
                    columns = torch.from_numpy(plan.columns(layer, member)).to(into.device)
                    into.index_copy_(member.axis, columns, values.to(into.dtype))


def blocks(narrow: Any, dense: Any, case: Case, plan: PruningPlan, training: Training) -> None:
    """``--recover blocks``: of its steps as many as the tokens pay for, each token passing through every block once."""
    settings = BlockSettings(seed=case.seed, steps=steps_of(training.tokens))
    recover_blocks(narrow, dense, case.family, plan, case.windows, settings)


def steps_of(tokens: int) -> int:
    """Steps a block that so many tokens pay for, at least one and at most the usual number."""
    usual = BlockSettings()
    return max(1, min(usual.steps, tokens // usual.step_tokens))


def distilled(narrow: Any, dense: Any, case: Case, plan: PruningPlan, training: Training) -> None:
    """``--recover distill``: towards the dense model's token distribution, no labels."""
    from pruning.recovery.distill import DistilSettings, distil

    settings = DistilSettings(tokens=training.tokens, seed=case.seed)
    distil(narrow, dense, case.family, training.text, training.check, settings)


def blocks_and_distilled(narrow: Any, dense: Any, case: Case, plan: PruningPlan, training: Training) -> None:
    """``--recover blocks,distill``: the first on at most half of the tokens, the second on what is left of them."""
    half = training.tokens // 2
    spent = min(half, steps_of(half) * BlockSettings().step_tokens)
    blocks(narrow, dense, case, plan, training._replace(tokens=half))
    distilled(narrow, dense, case, plan, training._replace(tokens=training.tokens - spent))


def next_token_lora(narrow: Any, dense: Any, case: Case, plan: PruningPlan, training: Training) -> None:
    """LLM-Pruner's recovery: LoRA on the text's own next token."""
    from benchmarks.quality.next_token import train_lora

    train_lora(narrow, case.family, training.tokens, training.text, case.seed)
