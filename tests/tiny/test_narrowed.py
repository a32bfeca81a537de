"""Groups left out by computing only the others: the same as silencing them, for less arithmetic."""

from typing import Any

import numpy as np
import pytest
import torch
from repairs import family, plan_for
from tiny_models import build, token_ids
from torch.utils.flop_counter import FlopCounterMode

from core.groups import ATTENTION, MLP
from core.narrowed import left_out, narrowed, narrows
from core.silence import silenced
from models.architecture import architecture_of, decoder_layers
from models.expected import without_removed_groups

IDS = token_ids()


@torch.no_grad()
def logits_without(model: Any, plan: Any, leave_out: Any) -> torch.Tensor:
    with without_removed_groups(decoder_layers(model, family(model)), family(model), plan, leave_out):
        return model(input_ids=IDS, use_cache=False).logits


@torch.no_grad()
def test_logits_are_those_of_the_silenced_model(family_model: Any) -> None:
    before = family_model(input_ids=IDS, use_cache=False).logits
    for removed in ((), (1,)):
        plan = plan_for(family_model, removed)
        wanted, found = (logits_without(family_model, plan, how) for how in (silenced, left_out))
        assert (wanted - before).abs().max() > 0.01
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    assert torch.equal(family_model(input_ids=IDS, use_cache=False).logits, before)  # left as found
    assert not any("forward" in module.__dict__ for module in family_model.modules())


def test_one_half_of_the_groups_takes_one_half_of_the_products() -> None:
    model = build("llama")
    layer, row = decoder_layers(model, family(model))[0], family(model)
    shape = architecture_of(model, row).layers[0]
    keep = np.arange(24) % 2 == 0

    def flops(how: Any) -> int:
        with FlopCounterMode(display=False) as counter, torch.no_grad(), how(layer, row, shape, MLP, keep):
            layer.mlp(torch.zeros(1, 5, 64))
        return counter.get_total_flops()

    assert (flops(silenced), flops(left_out)) == (2 * 5 * 3 * 64 * 24, 2 * 5 * 3 * 64 * 12)


def test_which_blocks_can_be_narrowed() -> None:
    llama, phi3 = build("llama"), build("phi3")
    some, none, every = np.array([True, False, True, False]), np.zeros(4, bool), np.ones(4, bool)
    layer = decoder_layers(llama, family(llama))[0]
    assert narrows(layer, family(llama), ATTENTION, some)
    assert not narrows(layer, family(llama), ATTENTION, none)
    assert not narrows(layer, family(llama), ATTENTION, every)
    fused = decoder_layers(phi3, family(phi3))[0]  # qkv_proj is taken apart by the configuration's widths
    assert not narrows(fused, family(phi3), ATTENTION, some)
    assert narrows(fused, family(phi3), MLP, np.arange(24) > 5)
    layer.self_attn.q_proj.forward = layer.self_attn.q_proj.forward  # somebody else's
    assert not narrows(layer, family(llama), ATTENTION, some)
    assert narrows(layer, family(llama), MLP, np.arange(24) > 5)


def test_modules_are_put_back_after_an_exception() -> None:
    model = build("llama")
    layer, row = decoder_layers(model, family(model))[0], family(model)
    inside = narrowed(layer, row, architecture_of(model, row).layers[0], MLP, np.arange(24) > 5)
    with inside:
        assert layer.mlp.gate_proj(torch.zeros(1, 64)).shape == (1, 18)
    inside = narrowed(layer, row, architecture_of(model, row).layers[0], MLP, np.arange(24) > 5)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"), inside:
        layer.mlp.gate_proj(torch.zeros(1, 63))
    assert layer.mlp.gate_proj(torch.zeros(1, 64)).shape == (1, 24)
