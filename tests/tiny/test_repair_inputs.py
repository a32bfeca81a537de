"""What reads the residual stream is refitted too: from where, to what, and what it must leave alone."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from repairs import IDS, family, plan_for, repaired
from tiny_models import build, token_ids, windows_of

from core.families import OUT, member_rows
from core.groups import ATTENTION
from core.kinds import TABLE
from models.architecture import decoder_layers
from pruning.repair import RepairSettings, repair
from pruning.repair_report import INPUT, OUTPUT
from pruning.repair_windows import check_windows


@pytest.mark.parametrize("name", ["llama", "phi3", "gemma3_text", "qwen2"])
@pytest.mark.parametrize("kind", ["attention", "mlp"])
def test_errors_of_inputs_are_those_of_what_the_kept_rows_give(name: str, kind: str) -> None:
    """Layer 1: the dense model's projections on its own stream against the repaired ones' on theirs, biases aside."""
    dense_model = build(name)
    plan, row = plan_for(dense_model), family(dense_model)
    model, done = repaired(dense_model, plan)
    (block,) = (block for block in done.of(INPUT) if (block.layer, block.kind) == (1, kind))
    readers = [member for member in row.members if member.axis == OUT and TABLE[member.kind].name == kind]
    check = IDS[torch.from_numpy(check_windows(len(IDS)))]
    outputs: list[list[torch.Tensor]] = [[], []]
    for found, net in zip(outputs, (dense_model, model), strict=True):
        for member in readers:
            rows = member_rows(member, plan.architecture.layers[1], plan.kept(1, member.kind))
            module = decoder_layers(net, row)[1].get_submodule(member.path)
            bias = 0.0 if module.bias is None else module.bias
            module.register_forward_hook(lambda _m, _a, out, f=found, r=rows, b=bias: f.append((out - b)[..., r]))
        with torch.no_grad():
            net(input_ids=check)
    target, output = (torch.cat(found, -1).double() for found in outputs)
    error = float((target - output).square().sum() / target.square().sum())
    assert block.error_after == pytest.approx(error, rel=1e-3)
    assert (block.error_after < block.error_before) == block.repaired


def test_inputs_are_refitted_from_where_the_streams_part_and_keep_the_rows_that_go(family_model: Any) -> None:
    row, plan = family(family_model), plan_for(family_model)
    model, done = repaired(family_model, plan)
    assert sum(block.repaired for block in done.of(INPUT)) >= 2
    if len(plan.kept(0, ATTENTION)) < plan.architecture.layers[0].num_kv_heads:
        order = [(block.layer, block.kind, block.side) for block in done.blocks]
        assert order[:3] == [(0, "attention", OUTPUT), (0, "mlp", INPUT), (0, "mlp", OUTPUT)]
    for index, layer in enumerate(decoder_layers(model, row)):
        for member in row.members:
            if member.axis == OUT:
                old = decoder_layers(family_model, row)[index].get_submodule(member.path).weight
                kept = member_rows(member, plan.architecture.layers[index], plan.kept(index, member.kind))
                gone = np.setdiff1d(np.arange(len(old)), kept)
                assert torch.equal(layer.get_submodule(member.path).weight[gone], old[gone])


def test_outputs_alone_leave_what_reads_the_stream_alone(llama: Any) -> None:
    plan = plan_for(llama)
    for options in ({"modules": "outputs"}, {"target": "pruned"}):
        model, done = repaired(llama, plan, **options)
        assert done.of(INPUT) == ()
        assert done.modules == "outputs"
        assert "stream in" not in done.sentence()
        assert torch.equal(model.model.layers[2].mlp.up_proj.weight, llama.model.layers[2].mlp.up_proj.weight)


def test_refitting_inputs_too_brings_logits_nearer(llama: Any) -> None:
    """On other windows, with text enough."""
    plan, fitted, others = (
        plan_for(llama),
        token_ids(rows=600, length=14, seed=1),
        token_ids(rows=40, length=14, seed=2),
    )
    gaps = {}
    for modules in ("outputs", "all"):
        model = copy.deepcopy(llama)
        repair(model, family(llama), plan, windows_of(fitted), RepairSettings(modules=modules))
        with torch.no_grad():
            gaps[modules] = float((model(input_ids=others).logits - llama(input_ids=others).logits).square().mean())
    assert gaps["all"] < 0.98 * gaps["outputs"]
