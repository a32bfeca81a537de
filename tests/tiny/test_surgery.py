"""The narrow model computes what the dense one computes with the removed groups' output columns zeroed."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import build, plan_keeping, random_plan, token_ids

from core.families import IN, member_rows
from core.groups import LayerShape
from core.plan import PruningPlan
from models.architecture import architecture_of, decoder_layers
from models.family_table import family_of
from models.narrow import empty_narrow_model
from pruning.surgery import operate

IDS = token_ids(rows=3, length=14)
TOLERANCE = 1e-5


def pruned(model: Any, plan: PruningPlan) -> Any:
    family = family_of(model.config.model_type)
    victim = copy.deepcopy(model)
    return operate(victim, empty_narrow_model(victim, family, plan), family, plan)


def zeroed(model: Any, plan: PruningPlan) -> Any:
    """The dense model, removed groups' columns of o_proj and down_proj set to 0; a removed layer adds nothing."""
    family = family_of(model.config.model_type)
    model = copy.deepcopy(model)
    with torch.no_grad():
        for index, layer in enumerate(decoder_layers(model, family)):
            for member in family.members:
                if member.axis == IN:
                    module = layer.get_submodule(member.path)
                    kept = member_rows(member, plan.architecture.layers[index], plan.kept(index, member.kind))
                    gone = np.setdiff1d(np.arange(module.in_features), kept)
                    module.weight[:, torch.from_numpy(gone)] = 0.0
                    if index in plan.removed_layers and module.bias is not None:
                        module.bias.zero_()
    return model


def architecture(model: Any) -> Any:
    return architecture_of(model, family_of(model.config.model_type))


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return float((actual - expected).norm() / expected.norm())


@torch.no_grad()
def logits(model: Any, attention: str, **inputs: Any) -> torch.Tensor:
    model.set_attn_implementation(attention)
    return model(**inputs).logits


def implementations(model: Any) -> list[str]:
    """gemma2's soft-capped attention exists as eager only."""
    return ["eager"] if model.config.model_type.endswith("gemma2") else ["eager", "sdpa"]


@pytest.mark.parametrize("removed_layers", [(), (1,)])
def test_sliced_equals_zeroed_for_every_attention_and_shifted_does_not(
    family_model: Any, removed_layers: tuple[int, ...]
) -> None:
    plan = random_plan(architecture(family_model), seed=1, removed_layers=removed_layers)
    narrow, reference = pruned(family_model, plan), zeroed(family_model, plan)
    for attention in implementations(family_model):
        expected = logits(reference, attention, input_ids=IDS)
        assert relative_error(logits(narrow, attention, input_ids=IDS), expected) <= TOLERANCE
    # Control: the same number of groups, one index off, in one block. It must be wrong by a factor of 100.
    for kind in (0, 1):
        wrong = plan.keep.copy()
        rows = plan.groups.rows(0, kind)
        wrong[rows] = np.roll(wrong[rows], 1)
        if (wrong == plan.keep).all():
            continue  # a single KV head: nothing to shift
        control = pruned(family_model, plan_keeping(plan.architecture, wrong, removed_layers))
        attention = implementations(family_model)[0]
        expected = logits(reference, attention, input_ids=IDS)
        assert relative_error(logits(control, attention, input_ids=IDS), expected) > 100 * TOLERANCE


@pytest.mark.parametrize("removed_layers", [(), (0,)])
def test_cached_generation_equals_the_zeroed_model(family_model: Any, removed_layers: tuple[int, ...]) -> None:
    plan = random_plan(architecture(family_model), seed=2, removed_layers=removed_layers)
    narrow, reference = pruned(family_model, plan), zeroed(family_model, plan)
    options = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False, "attention_mask": torch.ones_like(IDS)}
    expected = reference.generate(IDS, use_cache=False, **options)
    assert torch.equal(narrow.generate(IDS, use_cache=True, **options), expected)
    assert torch.equal(narrow.generate(IDS, use_cache=False, **options), expected)
    static = narrow.generate(IDS, cache_implementation="static", **options)  # sized by per_layer_config
    assert torch.equal(static, expected)


def test_left_padding_equals_the_zeroed_model(family_model: Any) -> None:
    plan = random_plan(architecture(family_model), seed=3)
    narrow, reference = pruned(family_model, plan), zeroed(family_model, plan)
    ids, mask = IDS.clone(), torch.ones_like(IDS)
    ids[1, :5], mask[1, :5] = 0, 0
    for attention in implementations(family_model):
        expected = logits(reference, attention, input_ids=ids, attention_mask=mask)
        actual = logits(narrow, attention, input_ids=ids, attention_mask=mask)
        assert relative_error(actual[mask.bool()], expected[mask.bool()]) <= TOLERANCE


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable.:FutureWarning")  # the name users know, until v6
def test_gradient_checkpointing_gives_the_zeroed_models_gradients(family_model: Any) -> None:
    plan = random_plan(architecture(family_model), seed=4)
    narrow, reference = pruned(family_model, plan), zeroed(family_model, plan)
    narrow.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    gradients = []
    for model in (narrow, reference):
        model.train().requires_grad_(True)
        model(input_ids=IDS, labels=IDS, use_cache=False).loss.backward()
        gradients.append(model.get_input_embeddings().weight.grad)
    assert relative_error(*gradients) <= TOLERANCE


def test_an_empty_plan_changes_no_bit_of_the_logits(family_model: Any) -> None:
    shape = architecture(family_model)
    plan = plan_keeping(shape, np.ones(len(shape.groups), dtype=bool))
    narrow = pruned(family_model, plan)
    attention = implementations(family_model)[-1]
    assert torch.equal(
        logits(narrow, attention, input_ids=IDS), logits(copy.deepcopy(family_model), attention, input_ids=IDS)
    )


@pytest.mark.parametrize("removed_layers", [(), (1,)])
def test_the_narrow_models_own_count_is_the_plans(family_model: Any, removed_layers: tuple[int, ...]) -> None:
    plan = random_plan(architecture(family_model), seed=5, removed_layers=removed_layers)
    narrow = pruned(family_model, plan)
    assert architecture(narrow) == plan.pruned_architecture
    assert architecture(narrow).total_params == plan.architecture.total_params - plan.removed_params


def test_layer_lists_and_cache_indices_follow_the_layers_that_remain() -> None:
    """Layers sliding, full, sliding; without layer 0 the cache index 0 is the full one."""
    model = build("gemma3_text")
    plan = random_plan(architecture(model), seed=6, removed_layers=(0,))
    narrow = pruned(model, plan)
    assert narrow.config.layer_types == ["full_attention", "sliding_attention"]
    assert [layer.self_attn.layer_idx for layer in narrow.model.layers] == [0, 1]
    assert [layer.self_attn.sliding_window for layer in narrow.model.layers] == [None, 6]
    cache = narrow(input_ids=IDS, use_cache=True).past_key_values
    assert [cache.layers[i].keys.shape[1] for i in (0, 1)] == [s.num_kv_heads for s in plan.pruned_architecture.layers]


def test_surgery_moves_untouched_tensors_and_releases_sliced_ones(llama: Any) -> None:
    plan = random_plan(architecture(llama), seed=7)
    family = family_of("llama")
    norm, embedding = llama.model.layers[0].input_layernorm.weight, llama.model.embed_tokens.weight
    data = norm.data_ptr()
    narrow = operate(llama, empty_narrow_model(llama, family, plan), family, plan)
    assert narrow.model.layers[0].input_layernorm.weight.data_ptr() == data
    assert narrow.model.embed_tokens.weight is embedding
    assert llama.model.layers[0].mlp.down_proj.weight is None
    assert not any(parameter.is_meta for parameter in narrow.parameters())
    assert not any(buffer.is_meta for buffer in narrow.buffers())


def test_tied_embeddings_stay_tied() -> None:
    model = build("llama-biased-tied-mha")
    narrow = pruned(model, random_plan(architecture(model), seed=8))
    assert narrow.lm_head.weight is narrow.model.embed_tokens.weight


def test_member_rows_by_hand() -> None:
    """phi3's fused qkv: H=4, K=2, D=3. Group 1 owns query rows 6..11, key rows 15..17, value rows 21..23."""
    family = family_of("phi3")
    member = next(m for m in family.members if m.path == "self_attn.qkv_proj")
    shape = LayerShape(4, 2, 3, 5, 1, 1)
    expected = [6, 7, 8, 9, 10, 11, 15, 16, 17, 21, 22, 23]
    assert member_rows(member, shape, np.array([1])).tolist() == expected
    fused_mlp = next(m for m in family.members if m.path == "mlp.gate_up_proj")
    assert member_rows(fused_mlp, shape, np.array([0, 3])).tolist() == [0, 3, 5, 8]
