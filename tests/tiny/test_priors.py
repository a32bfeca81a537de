"""Priors against the naive computation: silence a block by zeroing its output weights and run the whole model."""

from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import token_ids, windows_of

from core.errors import NumericalError
from importance.priors import measure_prior
from importance.sums import summed_nll
from models.architecture import decoder_layers
from models.family_table import family_of

IDS = token_ids(rows=5, length=9)
TOKENS = 5 * 8


def nll(model: Any) -> float:
    with torch.no_grad():
        return summed_nll(model, IDS).item() / TOKENS


def test_loss_prior_equals_silencing_each_block_in_the_whole_model(family_model: Any) -> None:
    family = family_of(family_model.config.model_type)
    prior = measure_prior(family_model, family, windows_of(IDS), batch_size=2)
    dense = nll(family_model)
    assert prior.dense_nll == pytest.approx(dense, rel=1e-5)
    for index, layer in enumerate(decoder_layers(family_model, family)):
        saved = {}
        increases = []
        for path in (family.attention_output, family.mlp_output):
            module = layer.get_submodule(path)
            saved[path] = {name: p.clone() for name, p in module.named_parameters()}
            with torch.no_grad():
                for parameter in module.parameters():
                    parameter.zero_()
            increases.append(nll(family_model) - dense)
            if path == family.attention_output:
                with torch.no_grad():
                    for name, parameter in module.named_parameters():
                        parameter.copy_(saved[path][name])
        attention = layer.get_submodule(family.attention_output)
        with torch.no_grad():
            for parameter in attention.parameters():
                parameter.zero_()
        increases.append(nll(family_model) - dense)
        with torch.no_grad():
            for path, tensors in saved.items():
                for name, parameter in layer.get_submodule(path).named_parameters():
                    parameter.copy_(tensors[name])
        measured = [*prior.block[index], prior.layer[index]]
        np.testing.assert_allclose(measured, increases, rtol=1e-3, atol=2e-5)


def test_a_layer_behind_the_first_starts_from_the_cached_stream(llama: Any) -> None:
    """Layer 2 of 3 is measured without running layers 0 and 1 again: 1 dense pass + per-layer suffixes."""
    runs = [0, 0, 0]
    handles = [
        layer.mlp.gate_proj.register_forward_hook(lambda *_args, i=index: runs.__setitem__(i, runs[i] + 1))
        for index, layer in enumerate(llama.model.layers)
    ]
    measure_prior(llama, family_of("llama"), windows_of(IDS), batch_size=5)
    for handle in handles:
        handle.remove()
    # dense 1; attention silenced at l runs the mlps of l.. ; mlp or layer silenced at l runs those of l+1..
    assert runs == [1 + 1, 1 + 2 + 2, 1 + 3 + 4]


def test_similarity_prior_is_one_minus_cosine_of_the_stream(family_model: Any) -> None:
    family = family_of(family_model.config.model_type)
    prior = measure_prior(family_model, family, windows_of(IDS), method="similarity", batch_size=2)
    states: list[torch.Tensor] = []
    handles = [
        layer.register_forward_pre_hook(lambda _m, args: states.append(args[0].double()))
        for layer in decoder_layers(family_model, family)
    ]
    family_model(input_ids=IDS)
    for handle in handles:
        handle.remove()
    for index in range(len(states) - 1):
        a, b = states[index], states[index + 1]
        cosine = (a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1))
        assert prior.layer[index] == pytest.approx(float((1 - cosine).mean()), rel=1e-5)
    assert (prior.block > 0).all()
    assert prior.dense_nll is None


def test_block_similarity_is_zero_for_a_silent_block(llama: Any) -> None:
    with torch.no_grad():
        llama.model.layers[1].self_attn.o_proj.weight.zero_()
    prior = measure_prior(llama, family_of("llama"), windows_of(IDS), method="similarity")
    assert prior.block[1, 0] == pytest.approx(0.0, abs=1e-12)
    assert prior.block[1, 1] > 1e-3


@pytest.mark.parametrize("method", ["loss", "similarity"])
def test_model_is_left_as_found_also_after_an_exception(llama: Any, method: str) -> None:
    calls = []

    def broken(*_args: Any) -> None:
        calls.append(1)
        if len(calls) > 1:
            raise RuntimeError("boom")

    handle = llama.model.layers[2].mlp.register_forward_hook(broken)
    with pytest.raises(RuntimeError, match="boom"):
        measure_prior(llama, family_of("llama"), windows_of(IDS), method=method, batch_size=1)
    handle.remove()
    for module in llama.modules():
        assert "forward" not in module.__dict__
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


def test_nan_in_the_head_is_blamed_on_no_layer(llama: Any) -> None:
    with torch.no_grad():
        llama.lm_head.weight[0, 0] = float("nan")
    with pytest.raises(NumericalError, match="in the loss"):
        measure_prior(llama, family_of("llama"), windows_of(IDS))


@pytest.mark.parametrize("method", ["loss", "similarity"])
def test_out_of_memory_halves_the_batch_and_counts_nothing_twice(llama: Any, method: str) -> None:
    """The failing batch has run two layers before memory ends in the third; none of it may stay in the sums."""
    reference = measure_prior(llama, family_of("llama"), windows_of(IDS), method=method, batch_size=1)

    def full(_module: Any, args: Any) -> None:
        if len(args[0]) > 2:
            raise torch.OutOfMemoryError("pretended")

    handle = llama.model.layers[2].register_forward_pre_hook(full)
    try:
        prior = measure_prior(llama, family_of("llama"), windows_of(IDS), method=method)
    finally:
        handle.remove()
    np.testing.assert_allclose(prior.block, reference.block, rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(prior.layer, reference.layer, rtol=1e-3, atol=1e-6)
