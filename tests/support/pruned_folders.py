"""Saved folders of every family with what their models computed before, for the checks in ``round_trips.py``."""

from pathlib import Path

import torch
from round_trips import generated, logits
from tiny_models import CONFIGS, build, random_plan, token_ids
from workspace import word_tokenizer

from models.architecture import architecture_of
from models.family_table import family_of
from models.narrow import empty_narrow_model
from models.saving import save_checkpoint
from pruning.surgery import operate


def prune_and_save(root: Path, name: str) -> Path:
    """A model of tiny_models.CONFIGS pruned unevenly, every second one without its middle layer."""
    model = build(name)
    family = family_of(model.config.model_type)
    removed_layers = (1,) if sorted(CONFIGS).index(name) % 2 else ()
    plan = random_plan(architecture_of(model, family), seed=3, removed_layers=removed_layers)
    model = operate(model, empty_narrow_model(model, family, plan), family, plan)
    folder = save_checkpoint(model, family, word_tokenizer(), root / name, torch.float32)
    if family.model_type == "gemma2":
        model.set_attn_implementation("eager")  # as it is loaded; sdpa, the default before 5.23, has no soft caps
    ids = token_ids(rows=2, length=12)
    expected = {"ids": ids, "logits": logits(model, ids), "generated": generated(model, ids)}
    torch.save(expected, folder / "expected.pt")
    return folder
