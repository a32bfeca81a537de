"""What an output is refitted to: dense, pruned, or what brings the residual stream back."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from repairs import IDS, family, hidden_states, plan_for, repaired
from tiny_models import build, plan_keeping, token_ids, windows_of

from models.architecture import architecture_of
from pruning.repair import RepairSettings, repair
from pruning.repair_targets import before_norm, one_over_mean_square
from pruning.repair_windows import check_windows


def test_targets_agree_until_the_streams_part(llama: Any) -> None:
    plan = plan_for(llama)
    dense, to_dense = repaired(llama, plan, target="dense")
    pruned, to_pruned = repaired(llama, plan, target="pruned")
    first = [net.model.layers[0].self_attn.o_proj.weight for net in (dense, pruned)]
    later = [net.model.layers[2].mlp.down_proj.weight for net in (dense, pruned)]
    torch.testing.assert_close(*first, rtol=1e-3, atol=1e-4)
    assert (later[0] - later[1]).abs().max() > 1e-2
    assert to_dense.blocks[-1].error_before > to_pruned.blocks[-1].error_before


def test_stream_target_brings_the_residual_stream_nearer_than_the_others(llama: Any) -> None:
    """Behind the last layer, on other windows, mean of ‖gap‖² / ‖h‖²; with text enough for 64 x 24 weights."""
    plan, fitted = plan_for(llama), token_ids(rows=600, length=14, seed=1)
    others = token_ids(rows=40, length=14, seed=2)
    dense = hidden_states(llama, others)[-1]
    gaps = {}
    for target in ("stream", "dense", "pruned"):
        model = copy.deepcopy(llama)
        repair(model, family(llama), plan, windows_of(fitted), RepairSettings(target=target))
        gap = hidden_states(model, others)[-1] - dense
        gaps[target] = float((gap.norm(dim=-1) / dense.norm(dim=-1)).square().mean())
    assert gaps["stream"] < 0.97 * gaps["dense"] < gaps["pruned"]


def test_error_of_the_last_block_is_that_of_the_stream_behind_it(llama: Any) -> None:
    """Target minus output is h_dense - h_pruned behind the block; a token counts by 1 / mean(h_dense^2)."""
    plan = plan_for(llama)
    model, done = repaired(llama, plan, target="stream")
    check = IDS[torch.from_numpy(check_windows(len(IDS)))]
    outputs: list[torch.Tensor] = []
    model.model.layers[2].mlp.down_proj.register_forward_hook(lambda _m, _a, out: outputs.append(out))
    dense = hidden_states(llama, check)[-1]
    gap = dense - hidden_states(model, check)[-1]
    weight = 1 / dense.square().mean(-1, keepdim=True)
    error = float((weight * gap.square()).sum() / (weight * (outputs[0] + gap).square()).sum())
    assert done.blocks[-1].error_after == pytest.approx(error, rel=1e-3)


def test_a_removed_layer_is_made_up_for_by_those_behind_it(llama: Any) -> None:
    """Nothing else goes but one channel of layer 2; the stream target alone sees what layer 1 would have added."""
    architecture = architecture_of(llama, family(llama))
    keep = np.ones(len(architecture.groups), dtype=bool)
    keep[-1] = False
    plan = plan_keeping(architecture, keep, (1,))
    gaps = {}
    for target in ("stream", "pruned"):
        model, _ = repaired(llama, plan, target=target)
        with torch.no_grad():
            for member in ("self_attn.o_proj", "mlp.down_proj"):
                model.model.layers[1].get_submodule(member).weight.zero_()
        gaps[target] = float((hidden_states(model, IDS)[-1] - hidden_states(llama, IDS)[-1]).norm())
    assert gaps["stream"] < 0.9 * gaps["pruned"]


@pytest.mark.parametrize("name", ["gemma2", "gemma3_text"])
def test_behind_a_norm_too_the_stream_target_brings_the_residual_stream_nearer(name: str) -> None:
    """Behind the last layer, on other windows, mean of ‖gap‖² / ‖h‖²: the target knows the norm's scale."""
    dense_model, others = build(name), token_ids(rows=40, length=14, seed=2)
    dense = hidden_states(dense_model, others)[-1]
    gaps = {}
    for target in ("stream", "dense", "pruned"):
        model = copy.deepcopy(dense_model)
        fitted = windows_of(token_ids(rows=600, length=14, seed=1))
        repair(model, family(model), plan_for(model), fitted, RepairSettings(target=target))
        gap = hidden_states(model, others)[-1] - dense
        gaps[target] = float((gap.norm(dim=-1) / dense.norm(dim=-1)).square().mean())
    assert gaps["stream"] < 0.97 * min(gaps["dense"], gaps["pruned"])


@torch.no_grad()
def test_a_change_behind_a_norm_is_taken_back_before_it() -> None:
    """A small one, to first order: norm(y + before_norm(change)) - norm(y) is the change less what rms takes back."""
    norm = build("gemma3_text").model.layers[0].post_feedforward_layernorm
    norm.weight.uniform_(0.0, 1.0)
    y, change = torch.randn(2, 5, 64) * 7, 1e-3 * torch.randn(2, 5, 64)
    moved = norm(y + before_norm(norm, y, change)) - norm(y)
    along = norm(y) / norm(y).norm(dim=-1, keepdim=True)
    across = change - (change * along).sum(-1, keepdim=True) * along
    assert float((moved - change).norm() / change.norm()) < 0.2
    assert float((moved * across).sum() / across.square().sum()) == pytest.approx(1.0, abs=0.1)


def test_a_token_whose_stream_is_zero_has_no_say() -> None:
    """1 and 3 have a mean square of 5. A weight of 1/0, or of 1e20 twice, would be Inf and end the repair."""
    weights = one_over_mean_square(torch.tensor([[1.0, 3.0], [0.0, 0.0]]))
    torch.testing.assert_close(weights, torch.tensor([[0.2], [0.0]]))
