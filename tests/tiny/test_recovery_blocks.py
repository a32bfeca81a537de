"""Recovery block by block: what it trains, on what error, and what it leaves alone."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from repairs import IDS, WINDOWS, family, hidden_states, plan_for
from streamed_models import streamed
from tiny_models import CONFIGS, build, plan_keeping

from core.engine import engine_of
from core.errors import UsageError
from core.plan import PruningPlan
from models.architecture import architecture_of, decoder_layers
from pruning.recovery.blocks import BlockSettings, recover_blocks
from pruning.recovery.report import BlocksReport
from run.deliver import cut_model

QUICK: dict[str, Any] = {"steps": 12, "check_every": 4, "text": "calibration"}


def cut(model: Any, plan: PruningPlan) -> Any:
    return cut_model(copy.deepcopy(model), family(model), plan, stock=False).requires_grad_(False)


def recovered(model: Any, plan: PruningPlan, **options: Any) -> tuple[Any, BlocksReport]:
    small = cut(model, plan)
    return small, recover_blocks(small, model, family(model), plan, WINDOWS, BlockSettings(**QUICK | options))


def state(model: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def distance(dense: Any, small: Any, ids: torch.Tensor) -> float:
    """Mean over tokens of ‖h - h_dense‖² / ‖h_dense‖² behind the last layer."""
    h, h_dense = hidden_states(small, ids)[-1], hidden_states(dense, ids)[-1]
    return float(((h - h_dense).norm(dim=-1) / h_dense.norm(dim=-1)).square().mean())


@pytest.mark.parametrize("name", ["llama-biased-tied-mha", "qwen3", "gemma3_text", "phi3"])
def test_blocks_come_nearer_to_the_dense_stream_and_nothing_else_changes(name: str) -> None:
    model = build(name)
    plan, dense = plan_for(model), state(model)
    before = cut(model, plan)
    small, report = recovered(model, plan)
    held_out = IDS[3::4]
    assert distance(model, small, held_out) < distance(model, before, held_out)
    assert report.num_recovered > 0
    assert all((block.error_after < block.error_before) == block.recovered for block in report.blocks)
    assert all(torch.equal(tensor, dense[key]) for key, tensor in model.state_dict().items())
    changed = {key for key, tensor in small.state_dict().items() if not torch.equal(tensor, before.state_dict()[key])}
    assert all(key.startswith("model.layers.") for key in changed)
    assert any("norm" in key for key in changed)  # a block's own norms are part of it
    assert not any(parameter.requires_grad for parameter in small.parameters())
    assert not small.training


def test_errors_are_those_of_the_streams() -> None:
    model = build("gemma2")
    plan = plan_for(model)
    small, report = recovered(model, plan)
    last = report.blocks[-1]
    assert (last.layer, last.kind) == (2, "mlp")
    assert last.error_after == pytest.approx(distance(model, small, IDS[3::4]), rel=1e-4)
    assert last.error_after == min(last.curve)
    assert last.steps == np.argmin(last.curve) * QUICK["check_every"]


def test_layers_that_lose_nothing_keep_their_weights() -> None:
    model = build("llama")
    architecture = architecture_of(model, family(model))
    keep = np.ones(len(architecture.groups), dtype=bool)
    keep[np.flatnonzero(architecture.groups.layer == 1)[3:9]] = False  # a KV head and five channels
    small, report = recovered(model, plan_keeping(architecture, keep))
    assert {block.layer for block in report.blocks} == {1}
    dense, narrow = decoder_layers(model, family(model)), decoder_layers(small, family(model))
    for layer in (0, 2):
        assert all(
            torch.equal(a, b) for a, b in zip(dense[layer].parameters(), narrow[layer].parameters(), strict=True)
        )


def test_a_layer_that_is_gone_is_made_up_for_by_those_behind_it() -> None:
    model = build("llama")
    plan = plan_for(model, removed_layers=(1,))
    small, report = recovered(model, plan)
    assert [block.layer for block in report.blocks if block.layer != 0] == [2, 2]
    assert distance(model, small, IDS[3::4]) < distance(model, cut(model, plan), IDS[3::4])


def test_the_same_seed_gives_the_same_weights_and_the_batch_size_is_no_matter() -> None:
    model = build("qwen2")
    plan = plan_for(model)
    first, second, other = (recovered(model, plan, seed=seed)[0] for seed in (0, 0, 1))
    assert all(torch.equal(tensor, state(second)[key]) for key, tensor in first.state_dict().items())
    assert any(not torch.equal(tensor, state(other)[key]) for key, tensor in first.state_dict().items())
    one_by_one = state(recovered(model, plan, batch_size=4)[0])
    assert all(torch.allclose(tensor, one_by_one[key], atol=1e-3) for key, tensor in first.state_dict().items())


def test_steps_finer_than_bfloat16_add_up() -> None:
    """A step of 1/1000 of a weight is below bfloat16's resolution of 1/256: without masters nothing would move."""
    model = build("llama").to(torch.bfloat16)
    plan = plan_for(model)
    before = cut(model, plan).state_dict()
    small, report = recovered(model, plan, rate=1e-3, steps=24, check_every=8)
    assert report.num_recovered > 0
    moved = [~torch.eq(tensor, before[key]) for key, tensor in small.state_dict().items() if "proj" in key]
    assert float(torch.cat([values.flatten() for values in moved]).float().mean()) > 0.1


def test_a_cpu_takes_gradients_in_bfloat16_where_that_pays_and_judges_in_float32(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True}, raising=False)
    monkeypatch.setattr("core.precision.WIDE", 32)
    model = build("llama")
    plan = plan_for(model)
    before, small = cut(model, plan), cut(model, plan)
    seen: set[tuple[bool, torch.dtype]] = set()
    small.model.layers[1].mlp.down_proj.register_forward_hook(
        lambda _module, _inputs, output: seen.add((torch.is_grad_enabled(), output.dtype))
    )
    settings = BlockSettings(**QUICK, stored_dtype=torch.bfloat16)
    recover_blocks(small, model, family(model), plan, WINDOWS, settings)
    assert seen == {(True, torch.bfloat16), (False, torch.float32)}
    weights_away = streamed(cut(model, plan))
    report = recover_blocks(weights_away, model, family(model), plan, WINDOWS, settings)
    assert report.products == "bfloat16"
    tensors = engine_of(weights_away).tensors
    assert all(torch.equal(tensors[name], tensor) for name, tensor in small.state_dict().items())
    assert {parameter.dtype for parameter in small.parameters()} == {torch.float32}
    held_out = IDS[3::4]
    assert distance(model, small, held_out) < distance(model, before, held_out)


def test_what_trains_to_nan_keeps_its_weights() -> None:
    model = build("llama")
    plan = plan_for(model)
    before = cut(model, plan).state_dict()
    small, report = recovered(model, plan, rate=1e30)
    assert report.num_recovered == 0
    assert all(torch.equal(tensor, before[key]) for key, tensor in small.state_dict().items())


def test_one_window_is_too_few() -> None:
    model = build("llama")
    plan = plan_for(model)
    with pytest.raises(UsageError, match="--num_samples 1 is too few"):
        recover_blocks(cut(model, plan), model, family(model), plan, WINDOWS.head(1))


def test_every_family_can_be_recovered() -> None:
    """One step of each: a block's parameters are found from gradients, so no family needs a table of them."""
    for name in CONFIGS:
        model = build(name)
        _, report = recovered(model, plan_for(model), steps=1, check_every=1)
        assert len(report.blocks) >= 4, name
