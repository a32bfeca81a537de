"""What tiny models tell, by engine: in one process, and in several that work together and may share out weights."""

import copy
from typing import Any

import numpy as np
import torch
from streamed_models import sharded, streamed
from tiny_models import build, random_plan, token_ids, windows_of

from core import ranks
from core.criteria import CRITERIA
from core.engine import engine_of
from core.plan import PruningPlan
from core.windows import TokenWindows
from evaluation.perplexity import window_nll
from importance.block_losses import measure_block_losses
from importance.measure import measure_importance
from importance.outliers import find_outliers
from importance.priors import measure_prior
from models.architecture import architecture_of
from models.family_table import family_of
from pruning.recovery.blocks import BlockSettings, recover_blocks
from pruning.recovery.distill import DistilSettings, distil
from pruning.repair import RepairSettings, repair, repaired_for_now
from run.deliver import cut_model
from run.streamed_model import Streaming, streamed_pruned

FITTED_ON = windows_of(token_ids(rows=32, length=14))
STREAMING = Streaming(torch.device("cpu"), torch.float32, None, torch.float32, None, None)


def measured(name: str) -> dict[str, np.ndarray]:
    """Of one tiny model: every criterion, both priors, repaired weights, losses; on five windows, and on one."""
    model = build(name)
    family, windows = family_of(model.config.model_type), windows_of(token_ids(rows=5, length=12))
    architecture = architecture_of(model, family)
    plan = random_plan(architecture, seed=3)
    found: dict[str, np.ndarray] = {}
    for criterion in CRITERIA if name == "llama" else ("obs",):
        for reduction in ("sequence", "sum") if CRITERIA[criterion].uses_gradient_reduction else ("",):
            found |= importances(model, windows, criterion, gradient_reduction=reduction)
    if name == "llama":
        found |= importances(model, windows.head(1), "fisher")
        found |= distilled(model, plan)
    for engine, held in by_engine(model).items():
        if engine == "streamed":  # one of these says all: no process needs another's weights
            continue
        parts = refined(held, family, plan, windows) if name == "llama" else {}
        parts |= repaired(held, family, plan, windows)
        found |= {f"{part}, {engine}": values for part, values in parts.items()}
    return found


def repaired(model: Any, family: Any, plan: Any, windows: TokenWindows) -> dict[str, np.ndarray]:
    """Losses, and weights once it is repaired; ``model`` is used up."""
    found = {"nll": window_nll(model, windows.ids, batch_size=None, description="")}
    report = repair(model, family, plan, FITTED_ON, RepairSettings())
    found["report"] = np.array([report.windows_fitted, report.windows_shuffled, report.windows_held_out])
    return found | {"repaired": layers_of(model)}


def refined(model: Any, family: Any, plan: Any, windows: TokenWindows) -> dict[str, np.ndarray]:
    """Losses under a repair that is put back, priors, outliers, losses of blocks, and what recovery makes of the cut
    model."""
    found, architecture = {}, plan.architecture
    with repaired_for_now(model, family, plan, FITTED_ON):
        found["repaired for now"] = window_nll(model, windows.ids, batch_size=None, description="")
    for method in ("loss", "similarity"):
        prior = measure_prior(model, family, windows, method=method, batch_size=2)
        found[f"prior {method}"] = np.append(prior.block, prior.dense_nll or 0.0)
    found["outliers"] = find_outliers(model, family, architecture, windows).factor
    found["blocks"] = measure_block_losses(model, family, architecture, windows, plan.keep, batch_size=2)
    if engine_of(model).streams:
        small = streamed_pruned(model, plan, STREAMING, stock=False)
    else:
        small = cut_model(copy.deepcopy(model), family, plan, stock=False).requires_grad_(False)
    recovered = recover_blocks(small, model, family, plan, windows, BlockSettings(steps=6, check_every=3))
    found["recovery"] = np.array([block.curve for block in recovered.blocks])
    return found | {"recovered weights": layers_of(small)}


def layers_of(model: Any) -> np.ndarray:
    """All weights of all layers."""
    layers = model.get_submodule(family_of("llama").layers)
    found = [p.flatten().clone() for at in engine_of(model).visit(range(len(layers))) for p in layers[at].parameters()]
    return torch.cat(found).numpy()


def distilled(model: Any, plan: PruningPlan) -> dict[str, np.ndarray]:
    """Of a whole model and by adapters, six steps of four windows each, and what is left over where it is resumed."""
    train, check = token_ids(rows=15, length=12, seed=8).numpy().repeat(2, 0)[:24], token_ids(rows=3, length=12).numpy()
    found = {}
    for lora in (None, 4):
        small = cut_model(copy.deepcopy(model), family_of("llama"), plan, stock=False).requires_grad_(False)
        settings = DistilSettings(6 * 4 * 12, lora=lora, step_tokens=4 * 12)
        report = distil(small, model, family_of("llama"), train, check, settings)
        assert report.kept
        assert (report.steps, len(report.losses)) == (6, 6)
        found[f"divergence, lora {lora}"] = np.array([report.kl_before, report.kl_after, report.nll_after])
        found[f"distilled weights, lora {lora}"] = torch.cat([p.flatten() for p in small.parameters()]).numpy()
    return found


def importances(model: Any, windows: TokenWindows, criterion: str, **how: Any) -> dict[str, np.ndarray]:
    """All that one criterion tells, by engine."""
    family = family_of(model.config.model_type)
    architecture, found = architecture_of(model, family), {}
    for engine, held in by_engine(model).items():
        if engine != "resident" and not CRITERIA[criterion].reads_text:
            continue
        importance = measure_importance(held, family, architecture, windows, criterion=criterion, **how)
        stem = f"{criterion} {how} on {len(windows)}, {engine}"
        found[stem], gradients = importance.values, importance.gradients
        found[f"{stem}: windows"] = np.array([importance.windows_used, importance.windows_skipped])
        if importance.halves is not None:
            found[f"{stem}: halves"] = importance.halves
        for part in ("mean", "norm", "min", "max") if gradients is not None else ():
            found[f"{stem}: {part}"] = getattr(gradients, part)
    return found


def by_engine(model: Any) -> dict[str, Any]:
    """The same model resident, streamed, and, where there are several ranks, sharded."""
    models = {"resident": model, "streamed": streamed(model)}
    return models | {"sharded": sharded(model)} if ranks.count() > 1 else models


def with_a_window_of_inf() -> dict[str, np.ndarray]:
    """The last of 24 windows, which one rank alone meets, is left out by both. Its embedding is finite until gemma's
    scale is put on it."""
    model, ids = build("gemma2"), token_ids(rows=24, length=8, vocabulary=90)
    model.get_input_embeddings().weight[95] = torch.finfo(torch.float32).max
    ids[-1, 3] = 95
    return importances(model, windows_of(ids), "fisher")
