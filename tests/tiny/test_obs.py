"""obs: moments against plain autograd, passes and batches that do not show, memory, and a rank that refits prove."""

from typing import Any

import numpy as np
import pytest
import torch
from test_importance import IDS, hook_count, measured, nll
from tiny_models import build, token_ids, windows_of

from core import symmetric
from core.errors import NumericalError, UsageError
from importance import passes
from importance.elimination import eliminate, in_order
from importance.obs import obs_importance, outputs_weighted
from importance.obs_moments import MomentMeter, layer_bytes
from models.architecture import architecture_of, decoder_layers
from models.family_table import family_of


def meter(model: Any, ids: torch.Tensor = IDS, **options: Any) -> MomentMeter:
    family = family_of(model.config.model_type)
    return MomentMeter(model, family, architecture_of(model, family), windows_of(ids), **options)


def moments_by_hand(model: Any, ids: torch.Tensor) -> dict[tuple[int, int], tuple[torch.Tensor, torch.Tensor]]:
    """(layer, kind) -> H, g, by plain autograd over the whole graph, a sequence at a time."""
    family = family_of(model.config.model_type)
    seen: dict[tuple[int, int], list[tuple[torch.Tensor, torch.Tensor]]] = {}

    def watch(key: tuple[int, int], args: Any, output: torch.Tensor) -> None:
        output.retain_grad()
        seen.setdefault(key, []).append((args[0].detach().flatten(0, 1).double(), output))

    handles = [
        layer.get_submodule(path).register_forward_hook(
            lambda _m, args, output, key=(index, kind): watch(key, args, output)
        )
        for index, layer in enumerate(decoder_layers(model, family))
        for kind, path in enumerate((family.attention_output, family.mlp_output))
    ]
    model.requires_grad_(True)
    for row in ids:
        nll(model, row[None]).backward()
    for handle in handles:
        handle.remove()
    model.zero_grad()
    model.requires_grad_(False)
    found = {}
    for key, pairs in seen.items():
        x = torch.cat([inputs for inputs, _ in pairs])
        d = torch.cat([output.grad.flatten(0, 1).double() for _, output in pairs if output.grad is not None])
        found[key] = x.T @ x / ids.numel(), d.square().sum(0) / ids.numel()
    return found


def test_moments_equal_plain_autograd_in_every_family(family_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(symmetric, "LEAST_ROWS", 8)  # several panels, what lies below them mirrored
    expected = moments_by_hand(family_model, IDS)
    for found in meter(family_model):
        for kind in (0, 1):
            inputs, outputs = expected.pop((found.layer, kind))
            torch.testing.assert_close(found.inputs[kind].double(), inputs, rtol=1e-4, atol=1e-6 * float(inputs.max()))
            torch.testing.assert_close(found.outputs[kind], outputs, rtol=1e-3, atol=1e-8 * float(outputs.max()))
    assert expected == {}


def test_importance_is_the_elimination_of_those_moments(family_model: Any) -> None:
    family = family_of(family_model.config.model_type)
    architecture = architecture_of(family_model, family)
    result = measured(family_model, "obs")
    assert (result.criterion, result.windows_used, result.windows_skipped) == ("obs", 5, 0)
    for (layer, kind), (inputs, outputs) in moments_by_hand(family_model, IDS).items():
        path = (family.attention_output, family.mlp_output)[kind]
        weight = decoder_layers(family_model, family)[layer].get_submodule(path).weight
        rows = architecture.groups.rows(layer, kind)
        groups = rows.stop - rows.start
        run = architecture.layers[layer].num_heads // groups * architecture.layers[layer].head_dim if kind == 0 else 1
        expected = in_order(eliminate(inputs, outputs.sqrt()[:, None] * weight.double(), run))
        np.testing.assert_allclose(result.values[rows], expected, rtol=1e-3)
        assert (result.values[rows] > 0).all()
        assert len(set(result.values[rows])) == groups


def test_gradient_statistics_are_of_the_outputs(llama: Any) -> None:
    expected = moments_by_hand(llama, IDS[:1])
    statistics = measured(llama, "obs", IDS[:1]).gradients
    assert statistics.source == "outputs of o_proj/down_proj"
    for layer in range(3):
        squares = sum(float(expected[layer, kind][1].sum()) for kind in (0, 1)) * IDS.shape[1]
        assert statistics.norm[layer] == pytest.approx(squares**0.5, rel=1e-3)
    assert (statistics.min > 0).all()
    np.testing.assert_array_equal(statistics.min, statistics.mean)


def test_one_kv_head_is_one_group() -> None:
    """Its cost is all the block does: sum_d g_d E[y_d^2] of o_proj, with H's ridge of 1 %."""
    model = build("llama-mqa")
    family = family_of("llama")
    architecture = architecture_of(model, family)
    values = measured(model, "obs").values
    for layer, module in enumerate(decoder_layers(model, family)):
        inputs, outputs = moments_by_hand(model, IDS)[layer, 0]
        inputs.diagonal().add_(0.01 * inputs.diagonal().mean())
        weighted = outputs.sqrt()[:, None] * module.self_attn.o_proj.weight.double()
        expected = float(torch.einsum("ci,ij,cj->", weighted, inputs, weighted))
        assert values[architecture.groups.rows(layer, 0)] == pytest.approx([expected], rel=1e-3)


@pytest.mark.parametrize("name", ["llama", "gemma2", "phi3"])
def test_several_passes_equal_one(name: str) -> None:
    model = build(name)
    family = family_of(model.config.model_type)
    shape = architecture_of(model, family).layers[0]
    two = 2 * layer_bytes(shape, 64, 2048, 4)
    assert meter(model).passes() == [range(3)]
    assert meter(model, most_bytes=two).passes() == [range(2), range(2, 3)]
    assert meter(model, most_bytes=1).passes() == [range(1), range(1, 2), range(2, 3)]
    family, windows = family_of(model.config.model_type), windows_of(IDS)
    results = [
        obs_importance(model, family, architecture_of(model, family), windows, most_bytes=most)
        for most in (3 * two // 2, two, 1)
    ]
    for other in results[1:]:
        assert other.halves is None
        np.testing.assert_array_equal(other.values, results[0].values)
        for field in ("mean", "norm", "min", "max"):
            np.testing.assert_array_equal(getattr(other.gradients, field), getattr(results[0].gradients, field))


def test_a_layer_s_bytes_are_counted() -> None:
    """o_proj 64 inputs, down_proj 24, C = 64: 4*(64^2 + 24^2) and 10 tokens of (64+64) + (24+64) values of 2 bytes.
    A second set of moments comes from the same tokens."""
    shape = architecture_of(build("llama"), family_of("llama")).layers[0]
    assert layer_bytes(shape, 64, 10, 2) == 4 * (4096 + 576) + 2 * 10 * (128 + 88)
    assert layer_bytes(shape, 64, 10, 2, sets=2) == 8 * (4096 + 576) + 2 * 10 * (128 + 88)


def test_halves_need_one_pass_that_holds_all_layers_twice(llama: Any) -> None:
    shape = architecture_of(llama, family_of("llama")).layers[0]
    both = 3 * layer_bytes(shape, 64, 2048, 4, sets=2)
    held = meter(llama, most_bytes=both, halves=True)
    assert held.passes() == [range(3)]
    assert all(len(found.halves) == 2 for found in held)
    assert held.has_halves
    short = meter(llama, most_bytes=both - 1, halves=True)
    assert short.passes() == [range(3)]
    assert all(found.halves == () for found in short)
    assert not short.has_halves


@pytest.mark.parametrize("batch_size", [1, 2, 3, None])
def test_halves_are_the_moments_of_every_other_window(llama: Any, batch_size: int | None) -> None:
    """Windows 0, 2, 4 and 1, 3, whatever the batches; both together are the moments that a meter without halves has."""
    even, odd = meter(llama, IDS[::2]), meter(llama, IDS[1::2])
    whole = meter(llama, IDS, batch_size=batch_size, halves=True)
    for found, *alone, plain in zip(whole, even, odd, meter(llama), strict=True):
        for one, other in zip((found, *found.halves), (plain, *alone), strict=True):
            for field in ("inputs", "outputs"):
                torch.testing.assert_close(getattr(one, field), getattr(other, field), rtol=1e-4, atol=1e-6)
    assert whole.counts == [3, 2]


def test_halves_cost_the_importance_nothing_but_rounding(family_model: Any) -> None:
    family = family_of(family_model.config.model_type)
    architecture = architecture_of(family_model, family)
    both, without = (
        obs_importance(family_model, family, architecture, windows_of(IDS), most_bytes=most)
        for most in (None, 3 * layer_bytes(architecture.layers[0], 64, 2048, 4))
    )
    assert both.halves is not None
    assert without.halves is None
    np.testing.assert_allclose(both.values, without.values, rtol=1e-4)


def test_passes_hold_half_the_weights_but_a_gib_at_least(llama: Any) -> None:
    assert meter(llama).most_bytes == 1 << 30
    large = meter(llama)
    object.__setattr__(large.architecture, "total_params", 2**30)
    large = MomentMeter(llama, large.family, large.architecture, large.windows)
    assert large.most_bytes == 2 << 30


def test_same_windows_same_bytes(llama: Any) -> None:
    assert measured(llama, "obs").values.tobytes() == measured(llama, "obs").values.tobytes()


def test_between_two_layers_the_model_is_as_found(llama: Any) -> None:
    llama.train()
    for _ in meter(llama, most_bytes=1):
        assert hook_count(llama) == 0
        assert llama.training


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("name", ["llama", "gemma3_text", "phi3"])
def test_recomputing_layers_changes_nothing(name: str, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(name)
    plain = measured(model, "obs")
    recomputed: list[int] = []
    original = passes.checkpoint

    def counting(*args: Any, **kwargs: Any) -> Any:
        recomputed.append(1)
        return original(*args, **kwargs)

    monkeypatch.setattr(passes, "checkpoint", counting)
    monkeypatch.setattr(passes, "layers_to_recompute", lambda *_args: count)
    checkpointed = measured(model, "obs")
    assert len(recomputed) == count
    np.testing.assert_allclose(checkpointed.values, plain.values, rtol=1e-4)
    np.testing.assert_allclose(checkpointed.gradients.norm, plain.gradients.norm, rtol=1e-4)


def test_a_batch_that_ran_out_of_memory_leaves_nothing_behind(llama: Any) -> None:
    """The last layer has seen its gradients when the first runs out: the whole batch comes again, halved."""
    reference = measured(llama, "obs").values
    failures: list[int] = []

    def full(_module: Any, _inputs: Any, gradients: Any) -> None:
        if gradients[0].shape[0] > 2:
            failures.append(len(gradients[0]))
            raise torch.OutOfMemoryError("pretended")

    handle = llama.model.layers[0].mlp.register_full_backward_hook(full)
    try:
        values = measured(llama, "obs").values
    finally:
        handle.remove()
    assert failures[-1] > 2
    assert set(failures[:-1]) == {5}  # larger batches than there are windows shrink first
    np.testing.assert_allclose(values, reference, rtol=1e-4)


def test_no_memory_for_the_moments_is_one_line(llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_args: Any, **_options: Any) -> Any:
        raise torch.OutOfMemoryError("pretended")

    monkeypatch.setattr("importance.obs.eliminate", full)
    with pytest.raises(UsageError, match=r"obs does not fit in memory: layer 0 has 64 inputs.*fisher"):
        measured(llama, "obs")
    assert hook_count(llama) == 0
    monkeypatch.setattr(torch.Tensor, "addmm_", full)
    with pytest.raises(UsageError, match="smaller --batch_size"):
        measured(llama, "obs")
    assert hook_count(llama) == 0


def test_nan_stops_and_a_rare_bad_window_does_not_show() -> None:
    model = build("llama")
    with torch.no_grad():
        model.model.embed_tokens.weight[96] = float("nan")
    ids = token_ids(rows=40, length=6, vocabulary=90)
    spoiled = ids.clone()
    spoiled[7, 2] = 96
    result = measured(model, "obs", spoiled, batch_size=1)
    assert (result.windows_used, result.windows_skipped) == (39, 1)
    clean = measured(model, "obs", torch.cat([ids[:7], ids[8:]]))
    np.testing.assert_allclose(result.values, clean.values, rtol=1e-4)
    odd = measured(model, "obs", torch.cat([ids[1:7:2], ids[9::2]]))  # those behind window 7 stay in their half
    np.testing.assert_allclose(result.halves, [measured(model, "obs", ids[::2]).values, odd.values], rtol=1e-3)
    spoiled[:, 2] = 96
    with pytest.raises(NumericalError, match=r"in 3 windows so far, 2 tolerated.*checkpoint is intact"):
        measured(model, "obs", spoiled)


def test_a_channel_that_repeats_another_gives_one_of_the_two_away(llama: Any) -> None:
    """Channels 3 and 8 carry one signal. Fisher prices both like the signal; with a refit the first costs next to
    nothing (the ridge) and the second all of it."""
    with torch.no_grad():
        for path in ("gate_proj", "up_proj"):
            weight = llama.model.layers[1].mlp.get_submodule(path).weight
            weight[8] = weight[3]
    family = family_of("llama")
    rows = architecture_of(llama, family).groups.rows(1, 1)
    ids = token_ids(rows=20, length=12)
    first, second = sorted(measured(llama, "obs", ids).values[rows][[3, 8]])
    assert second > 20 * first
    low, high = sorted(measured(llama, "fisher", ids).values[rows][[3, 8]])
    assert high < 20 * low


def test_no_gradient_no_importance(llama: Any) -> None:
    assert outputs_weighted(torch.zeros(64, dtype=torch.float64), torch.ones(64, 24)).abs().max() == 0
    with torch.no_grad():
        llama.lm_head.weight.zero_()
    assert measured(llama, "obs").values.max() == 0
