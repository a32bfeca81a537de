"""Criteria against independent autograd computations; the model is left as found; order and batches do not matter."""

from importlib import import_module
from inspect import signature
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import build, token_ids, windows_of

from core.criteria import CRITERIA
from core.errors import NumericalError
from core.families import IN, Family
from core.groups import Architecture
from importance import passes
from importance.measure import measure_importance
from models.architecture import architecture_of, decoder_layers
from models.family_table import family_of

IDS = token_ids(rows=5, length=10)


def measured(model: Any, criterion: str, ids: torch.Tensor = IDS, **options: Any) -> Any:
    family = family_of(model.config.model_type)
    return measure_importance(
        model, family, architecture_of(model, family), windows_of(ids), criterion=criterion, **options
    )


def nll(model: Any, ids: torch.Tensor) -> torch.Tensor:
    logits = model(input_ids=ids).logits
    return -torch.log_softmax(logits[:, :-1].double(), -1).gather(-1, ids[:, 1:, None]).sum()


def gradients_of(model: Any, ids: torch.Tensor) -> list[dict[str, torch.Tensor]]:
    """One dict a sequence: parameter name -> gradient, by plain autograd on everything."""
    model.requires_grad_(True)
    found = []
    for row in ids:
        model.zero_grad()
        nll(model, row[None]).backward()
        found.append({name: p.grad.double().clone() for name, p in model.named_parameters() if p.grad is not None})
    model.zero_grad()
    model.requires_grad_(False)
    return found


def groups_by_hand(model: Any, family: Family, architecture: Architecture, tensors: dict[str, torch.Tensor]) -> Any:
    """Sum element values over each group, spelling out which rows and columns a group owns."""
    values = []
    for index, shape in enumerate(architecture.layers):
        run, d = shape.num_heads // shape.num_kv_heads * shape.head_dim, shape.head_dim
        h, k, f = shape.num_heads * d, shape.num_kv_heads * d, shape.intermediate_size

        def tensor(path: str, index: int = index) -> Any:
            return tensors.get(f"model.layers.{index}.{path}")

        for group in range(shape.num_kv_heads):
            query = slice(group * run, (group + 1) * run)
            key = slice(group * d, (group + 1) * d)
            total = tensor("self_attn.o_proj.weight")[:, query].sum()
            for bias in ("weight", "bias"):
                if tensor(f"self_attn.q_proj.{bias}") is not None:
                    total += tensor(f"self_attn.q_proj.{bias}")[query].sum()
                    total += tensor(f"self_attn.k_proj.{bias}")[key].sum()
                    total += tensor(f"self_attn.v_proj.{bias}")[key].sum()
            fused = tensor("self_attn.qkv_proj.weight")
            if fused is not None:
                total += fused[query].sum() + fused[h:][key].sum() + fused[h + k :][key].sum()
            values.append(total)
        for channel in range(f):
            total = tensor("mlp.down_proj.weight")[:, channel].sum()
            for bias in ("weight", "bias"):
                for path in ("gate_proj", "up_proj"):
                    if tensor(f"mlp.{path}.{bias}") is not None:
                        total += tensor(f"mlp.{path}.{bias}")[channel].sum()
            fused = tensor("mlp.gate_up_proj.weight")
            if fused is not None:
                total += fused[channel].sum() + fused[f + channel].sum()
            values.append(total)
    return torch.stack(values).numpy()


def test_every_criterion_says_what_it_takes() -> None:
    """The registry's properties and the functions' signatures agree; halves and gradients come where they say so."""
    for name, criterion in CRITERIA.items():
        module, function = criterion.measured_by.split(":")
        taken = signature(getattr(import_module(module), function)).parameters
        assert criterion.reads_text == ("windows" in taken), name
        assert criterion.batches == ("batch_size" in taken), name
        assert criterion.uses_gradient_reduction == ("reduction" in taken), name
        assert set(criterion.keywords) <= set(taken), name


@pytest.mark.parametrize("name", CRITERIA)
def test_results_have_what_the_registry_promises(llama: Any, name: str) -> None:
    result = measured(llama, name)
    assert result.criterion == name
    assert CRITERIA[name].needs_gradients == (result.gradients is not None)
    assert CRITERIA[name].reads_text == (result.halves is not None) == (result.windows_used == len(IDS))


def test_taylor_equals_autograd_in_both_reductions_and_both_orders(family_model: Any) -> None:
    family = family_of(family_model.config.model_type)
    architecture = architecture_of(family_model, family)
    weights = {name: p.double() for name, p in family_model.named_parameters()}
    per_sequence = gradients_of(family_model, IDS)
    n = len(IDS)
    first = {k: sum((w * g[k]).abs() for g in per_sequence) / n for k, w in weights.items() if k in per_sequence[0]}
    of_sum = {k: (weights[k] * sum(g[k] for g in per_sequence)).abs() for k in first}
    square = {k: sum((weights[k] * g[k]) ** 2 for g in per_sequence) for k in first}
    expected = {
        ("taylor", "sequence"): first,
        ("taylor", "sum"): of_sum,
        ("taylor_2nd", "sequence"): {k: first[k] + 0.5 * square[k] / n for k in first},
        ("taylor_2nd", "sum"): {k: of_sum[k] + 0.5 * square[k] for k in first},
    }
    for (criterion, reduction), tensors in expected.items():
        result = measured(family_model, criterion, gradient_reduction=reduction)
        by_hand = groups_by_hand(family_model, family, architecture, tensors)
        np.testing.assert_allclose(result.values, by_hand, rtol=2e-4, atol=1e-9 * by_hand.max())
        assert (result.second_order_share is not None) == (criterion == "taylor_2nd")


def test_gradient_statistics_are_of_the_prunable_weights(llama: Any) -> None:
    architecture = architecture_of(llama, family_of("llama"))
    rows = []
    for gradients in gradients_of(llama, IDS):
        layers = []
        for index in range(architecture.num_layers):
            flat = torch.cat(
                [g.flatten() for k, g in gradients.items() if k.startswith(f"model.layers.{index}.") and "proj" in k]
            )
            layers.append((float(flat.abs().mean()), float(flat.norm())))
        rows.append(layers)
    expected = np.array(rows)  # (N, L, 2)
    for reduction in ("sequence", "sum"):
        statistics = measured(llama, "taylor", gradient_reduction=reduction).gradients
        np.testing.assert_allclose(statistics.mean, expected[:, :, 0].mean(0), rtol=1e-4)
        np.testing.assert_allclose(statistics.norm, expected[:, :, 1].mean(0), rtol=1e-4)
        np.testing.assert_allclose(statistics.min, expected[:, :, 0].min(0), rtol=1e-4)
        np.testing.assert_allclose(statistics.max, expected[:, :, 0].max(0), rtol=1e-4)
        assert statistics.source == "weights"


def test_fisher_is_the_squared_derivative_of_a_column_scale(family_model: Any) -> None:
    """sum_t sum_j a_tj dL/da_tj = sum over the group's o_proj/down_proj columns of w dL/dw, for every group."""
    family = family_of(family_model.config.model_type)
    architecture = architecture_of(family_model, family)
    squares = np.zeros(len(architecture.groups))
    for gradients in gradients_of(family_model, IDS):
        for index, layer in enumerate(decoder_layers(family_model, family)):
            shape = architecture.layers[index]
            for path, kind in ((family.attention_output, 0), (family.mlp_output, 1)):
                weight = layer.get_submodule(path).weight.double()
                columns = (weight * gradients[f"model.layers.{index}.{path}.weight"]).sum(0)
                per_group = columns.reshape(shape.widths[kind], -1).sum(1)
                squares[architecture.groups.rows(index, kind)] += per_group.square().numpy()
    result = measured(family_model, "fisher")
    np.testing.assert_allclose(result.values, squares / len(IDS), rtol=2e-3, atol=1e-7 * squares.max())
    assert result.gradients.source == "inputs of o_proj/down_proj"


def test_wanda_and_magnitude_equal_their_formulas(family_model: Any) -> None:
    family = family_of(family_model.config.model_type)
    architecture = architecture_of(family_model, family)
    inputs: dict[tuple[int, str], torch.Tensor] = {}
    handles = [
        layer.get_submodule(path).register_forward_pre_hook(
            lambda _m, args, key=(index, path): inputs.__setitem__(key, args[0].double())
        )
        for index, layer in enumerate(decoder_layers(family_model, family))
        for path in (family.attention_output, family.mlp_output)
    ]
    family_model(input_ids=IDS)
    for handle in handles:
        handle.remove()
    expected = np.zeros(len(architecture.groups))
    for index, layer in enumerate(decoder_layers(family_model, family)):
        for path, kind in ((family.attention_output, 0), (family.mlp_output, 1)):
            norm = inputs[index, path].square().sum((0, 1)).sqrt()
            columns = (layer.get_submodule(path).weight.double().abs() * norm).sum(0)
            rows = architecture.groups.rows(index, kind)
            expected[rows] = columns.reshape(architecture.layers[index].widths[kind], -1).sum(1).numpy()
    np.testing.assert_allclose(measured(family_model, "wanda").values, expected, rtol=1e-4)
    absolute = {name: p.double().abs() for name, p in family_model.named_parameters()}
    np.testing.assert_allclose(
        measured(family_model, "magnitude").values,
        groups_by_hand(family_model, family, architecture, absolute),
        rtol=1e-5,
    )


@pytest.mark.parametrize("criterion", CRITERIA)
def test_any_order_of_windows_and_any_split_give_the_same_values(llama: Any, criterion: str) -> None:
    reference = measured(llama, criterion).values
    np.testing.assert_allclose(measured(llama, criterion, IDS.flip(0)).values, reference, rtol=1e-4)
    for batch_size in (1, 2, 5):
        np.testing.assert_allclose(measured(llama, criterion, batch_size=batch_size).values, reference, rtol=1e-4)


@pytest.mark.parametrize("criterion", ["taylor", "fisher"])
@pytest.mark.parametrize("name", ["llama", "gemma3_text", "phi3"])
@pytest.mark.parametrize("count", [1, 3])
def test_recomputing_layers_changes_nothing(
    name: str, criterion: str, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build(name)
    plain = measured(model, criterion)
    recomputed: list[int] = []
    original = passes.checkpoint

    def counting(*args: Any, **kwargs: Any) -> Any:
        recomputed.append(1)
        return original(*args, **kwargs)

    monkeypatch.setattr(passes, "checkpoint", counting)
    monkeypatch.setattr(passes, "layers_to_recompute", lambda *_args: count)
    checkpointed = measured(model, criterion)
    walks = len(IDS) if criterion == "taylor" else 1
    assert len(recomputed) == count * walks
    np.testing.assert_allclose(checkpointed.values, plain.values, rtol=1e-4)
    np.testing.assert_allclose(checkpointed.gradients.norm, plain.gradients.norm, rtol=1e-4)


def hook_count(model: Any) -> int:
    return sum(
        len(m._forward_hooks) + len(m._forward_pre_hooks) + ("forward" in m.__dict__) for m in model.modules()
    ) + sum(len(p._post_accumulate_grad_hooks or ()) for p in model.parameters())


@pytest.mark.parametrize(
    ("criterion", "fails"),
    # magnitude runs no forward pass that could fail half way
    [(name, fails) for name in CRITERIA for fails in (False, True) if not (fails and name == "magnitude")],
)
def test_the_model_is_left_as_found(llama: Any, criterion: str, fails: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    llama.train()
    llama.model.norm.weight.requires_grad_(True)
    llama.model.norm.weight.grad = torch.ones(64)
    before = {name: tensor.clone() for name, tensor in llama.state_dict().items()}
    if fails:
        calls: list[int] = []

        def broken(_module: Any, _args: Any, output: Any) -> None:
            calls.append(1)
            if len(calls) == 2:
                raise RuntimeError("boom")

        handle = llama.model.norm.register_forward_hook(broken)
        with pytest.raises(RuntimeError, match="boom"):
            measured(llama, criterion, batch_size=1)
        handle.remove()
    else:
        measured(llama, criterion)
    assert hook_count(llama) == 0
    assert llama.training
    assert llama.model.layers[0].training
    assert [name for name, p in llama.named_parameters() if p.requires_grad] == ["model.norm.weight"]
    assert torch.equal(llama.model.norm.weight.grad, torch.ones(64))
    assert all(p.grad is None for name, p in llama.named_parameters() if name != "model.norm.weight")
    assert all(torch.equal(before[name], tensor) for name, tensor in llama.state_dict().items())


@pytest.mark.parametrize("criterion", ["taylor", "fisher", "wanda"])
def test_nan_everywhere_stops_and_names_the_cause(llama: Any, criterion: str) -> None:
    with torch.no_grad():
        llama.model.layers[1].mlp.down_proj.weight[0, 0] = float("nan")
    with pytest.raises(NumericalError, match="layer"):
        measured(llama, criterion)
    assert hook_count(llama) == 0


def test_a_rare_bad_window_is_skipped_and_counted(llama: Any) -> None:
    """One window of forty holds a token whose embedding is NaN: 1/40 is within the tolerated 5 %."""
    with torch.no_grad():
        llama.model.embed_tokens.weight[96] = float("nan")
    ids = token_ids(rows=40, length=6, vocabulary=90)
    spoiled = ids.clone()
    spoiled[7, 2] = 96
    clean = torch.cat([ids[:7], ids[8:]])
    for criterion in ("taylor", "fisher"):
        result = measured(llama, criterion, spoiled, batch_size=1)
        assert (result.windows_used, result.windows_skipped) == (39, 1)
        np.testing.assert_allclose(result.values, measured(llama, criterion, clean).values, rtol=1e-4)


def test_bfloat16_models_are_reduced_in_float32(llama: Any) -> None:
    """A bfloat16 sum over 64*16 products would be off by percents; ours follows the float32 formula on the same
    bfloat16 weights and inputs."""
    model = llama.to(torch.bfloat16)
    family = family_of("llama")
    architecture = architecture_of(model, family)
    absolute = {name: p.double().abs() for name, p in model.named_parameters()}
    expected = groups_by_hand(model, family, architecture, absolute)
    np.testing.assert_allclose(measured(model, "magnitude").values, expected, rtol=1e-5)


def test_out_of_memory_halves_the_batch(llama: Any) -> None:
    reference = measured(llama, "fisher").values
    sizes: list[int] = []

    def full(_module: Any, args: Any) -> None:
        sizes.append(len(args[0]))
        if len(args[0]) > 2:
            raise torch.OutOfMemoryError("pretended")

    handle = llama.model.layers[0].register_forward_pre_hook(full)
    try:
        values = measured(llama, "fisher").values
    finally:
        handle.remove()
    assert max(sizes) > 2
    assert sizes[-1] <= 2
    np.testing.assert_allclose(values, reference, rtol=1e-4)


def test_the_groups_partition_every_member(family_model: Any) -> None:
    """Costs counted from tensors: groups and fixed parameters add up to the layer, layers and the rest to the model."""
    family = family_of(family_model.config.model_type)
    architecture = architecture_of(family_model, family)
    for layer, shape in zip(decoder_layers(family_model, family), architecture.layers, strict=True):
        assert shape.total_params == sum(p.numel() for p in layer.parameters())
        owned = sum(
            m.weight.numel() + (m.bias.numel() if m.bias is not None and member.axis != IN else 0)
            for member in family.members
            for m in [layer.get_submodule(member.path)]
        )
        assert shape.prunable_params == owned
    assert architecture.total_params == sum(p.numel() for p in family_model.parameters())
