"""The streamed engine measures what the resident one does, wherever weights and hidden states lie meanwhile."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from repairs import WINDOWS, plan_for
from repairs import family as row_of
from streamed_models import is_empty, streamed
from test_importance import hook_count, measured
from tiny_models import build, token_ids, windows_of

from core.engine import engine_of
from core.errors import NumericalError, OutputError
from core.measured import Importance
from core.resting import FileStream
from evaluation.perplexity import window_nll
from importance import layer_sweep
from importance.block_losses import measure_block_losses
from importance.outliers import find_outliers
from importance.priors import measure_prior
from models.architecture import architecture_of
from models.family_table import family_of
from pruning.repair import repair, repaired_for_now

IDS = token_ids(rows=5, length=8)
CRITERIA = {
    "taylor": {},
    "taylor of the sum": {"criterion": "taylor", "gradient_reduction": "sum"},
    "taylor_2nd": {},
    "fisher": {},
    "obs": {},
    "wanda": {},
}


def assert_same(found: Importance, wanted: Importance, rtol: float = 1e-5) -> None:
    np.testing.assert_allclose(found.values, wanted.values, rtol=rtol)
    assert (found.halves is None) == (wanted.halves is None)
    if found.halves is not None and wanted.halves is not None:
        np.testing.assert_allclose(found.halves, wanted.halves, rtol=rtol)
    assert (found.windows_used, found.windows_skipped) == (wanted.windows_used, wanted.windows_skipped)
    shares = found.second_order_share, wanted.second_order_share
    assert shares == (None, None) or shares[0] == pytest.approx(shares[1], rel=rtol)
    if found.gradients is not None:
        for name in ("mean", "norm", "min", "max"):
            np.testing.assert_allclose(getattr(found.gradients, name), getattr(wanted.gradients, name), rtol=rtol)


def test_every_criterion_in_every_family(family_model: Any) -> None:
    hollow = streamed(family_model)
    for name, options in CRITERIA.items():
        asked: dict[str, Any] = {"criterion": name} | options
        assert_same(measured(hollow, ids=IDS, **asked), measured(family_model, ids=IDS, **asked))
        assert is_empty(hollow)
        assert hook_count(hollow) == hook_count(streamed(family_model))


def test_priors_and_outliers_in_every_family(family_model: Any) -> None:
    hollow, family, windows = streamed(family_model), family_of(family_model.config.model_type), windows_of(IDS)
    for method in ("loss", "similarity"):
        found, wanted = (measure_prior(m, family, windows, method=method) for m in (hollow, family_model))
        np.testing.assert_allclose(found.block, wanted.block, rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(found.layer, wanted.layer, rtol=1e-5, atol=1e-7)
        assert found.dense_nll == pytest.approx(wanted.dense_nll)
    architecture = architecture_of(hollow, family)
    channels = [find_outliers(m, family, architecture, windows) for m in (hollow, family_model)]
    np.testing.assert_array_equal(channels[0].rows, channels[1].rows)
    np.testing.assert_allclose(channels[0].factor, channels[1].factor, rtol=1e-5)


@pytest.mark.parametrize("every", [1, 2, 3])
def test_what_rests_in_files_or_is_computed_again_changes_nothing(
    every: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layer_sweep.LayerInputs, "spacing", lambda _self: every)
    model = build("gemma3_text")
    for criterion in ("fisher", "obs", "wanda"):
        found = measured(streamed(model, tmp_path), criterion, IDS, batch_size=2)
        assert_same(found, measured(model, criterion, IDS, batch_size=2))
    assert list(tmp_path.iterdir()) == []


def test_a_head_that_runs_out_of_memory_finds_the_stream_as_it_was(llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the third window, when two have their gradients: the batch comes again in halves."""
    calls: list[int] = []
    original = layer_sweep.sum_of_nll

    def full_once(*given: Any) -> torch.Tensor:
        calls.append(len(calls))
        if len(calls) == 3:
            raise torch.OutOfMemoryError("pretended")
        return original(*given)

    monkeypatch.setattr(layer_sweep, "sum_of_nll", full_once)
    assert_same(measured(streamed(llama), "fisher", IDS), measured(llama, "fisher", IDS))
    assert len(calls) == 3 + len(IDS)


def test_inputs_are_kept_as_densely_as_there_is_room(llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """81 layers, streams of 5 · 8 · 64 float32: all inputs and the stream behind are 82, with k = 9 there are 9 + 9."""
    hollow, stream = streamed(llama), 5 * 8 * 64 * 4
    carrier = layer_sweep.Carrier(hollow, family_of("llama"), IDS.numpy())
    carrier.layers = carrier.layers * 27
    for streams, every in ((82, 1), (81, 2), (43, 2), (42, 3), (18, 9), (5, 9)):
        monkeypatch.setattr(carrier.engine, "fits", lambda needed, room=streams * stream: needed <= room)
        assert layer_sweep.LayerInputs(carrier).every == every


def test_windows_with_nan_are_left_out_and_no_others(llama: Any) -> None:
    def spoil(_module: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
        return output.masked_fill((args[0] == 96)[..., None], float("nan"))

    hollow = streamed(llama)
    for model in (llama, hollow):
        model.model.embed_tokens.register_forward_hook(spoil)
    ids = token_ids(rows=20, length=6, vocabulary=90)
    ids[7, 2] = 96
    for criterion in ("fisher", "wanda"):
        assert_same(measured(hollow, criterion, ids), measured(llama, criterion, ids), rtol=1e-4)
    ids[:, 2] = 96
    with pytest.raises(NumericalError, match="in 2 windows so far, 1 tolerated"):
        measured(hollow, "wanda", ids)


def test_a_weight_that_is_not_finite_is_named_when_it_is_read(llama: Any) -> None:
    with torch.no_grad():
        llama.model.layers[1].mlp.up_proj.weight[3, 3] = float("inf")
    hollow = streamed(llama)
    with pytest.raises(NumericalError, match=r"model.layers.1.mlp.up_proj.weight holds NaN or Inf as float32"):
        measured(hollow, "wanda", IDS)
    assert is_empty(hollow)


def test_perplexity_repair_and_block_losses_in_every_family(family_model: Any, tmp_path: Path) -> None:
    """The refitted weights lie in files; what was refitted for now is gone afterwards."""
    hollow, family = streamed(family_model, tmp_path), row_of(family_model)
    nll = partial(window_nll, ids=IDS.numpy(), batch_size=None, description="nll")
    np.testing.assert_allclose(nll(hollow), nll(family_model), rtol=1e-6)
    plan = plan_for(family_model)
    measured_losses = [
        measure_block_losses(model, family, plan.architecture, windows_of(IDS), plan.keep)
        for model in (hollow, family_model)
    ]
    np.testing.assert_allclose(measured_losses[0], measured_losses[1], rtol=1e-5, atol=1e-6)
    dense = nll(hollow)
    with repaired_for_now(hollow, family, plan, WINDOWS):
        tried = nll(hollow)
    np.testing.assert_array_equal(nll(hollow), dense)
    repair(hollow, family, plan, WINDOWS)
    repair(family_model, family, plan, WINDOWS)
    weights = family_model.state_dict()
    for name, tensor in engine_of(hollow).tensors.items():
        torch.testing.assert_close(tensor, weights[name], rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(tried, nll(hollow))
    assert is_empty(hollow)


@pytest.mark.parametrize("criterion", ["fisher", "taylor_2nd", "obs"])
def test_what_overflows_comes_again_on_a_smaller_scale(llama: Any, criterion: str) -> None:
    """Gradients times 2^70 behind the last layer, of one window more: squares leave float32 in layers that others have
    passed."""

    def enlarge(_module: Any, _args: Any, output: Any) -> None:
        if output.requires_grad:
            output.register_hook(lambda gradient: gradient * 2.0**70)

    hollow = streamed(llama)
    for model in (llama, hollow):
        model.model.layers[1].register_forward_hook(enlarge)
    assert_same(measured(hollow, criterion, IDS), measured(llama, criterion, IDS))


def test_a_sum_of_gradients_cannot_leave_a_window_out(llama: Any) -> None:
    hollow = streamed(llama)

    def spoil(_module: Any, _args: Any, output: Any) -> None:
        if output.requires_grad:
            output.register_hook(lambda gradient: gradient * float("nan"))

    hollow.model.layers[1].register_forward_hook(spoil)
    with pytest.raises(NumericalError, match=r"layer 1 .*--gradient_reduction sequence"):
        measured(hollow, "taylor", IDS, gradient_reduction="sum")
    assert is_empty(hollow)


def test_a_stream_in_a_file(tmp_path: Path) -> None:
    stream = FileStream(tmp_path, (4, 2, 3), torch.bfloat16)
    values = torch.randn(4, 2, 3).bfloat16()
    stream[2:4], stream[0:2] = values[2:], values[:2]
    assert torch.equal(stream[1:4], values[1:])
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="windows 0 to 1"):
        stream[0:1] = values
    stream.file.file.truncate(5)
    with pytest.raises(OutputError, match=f"{tmp_path} takes no more.*--scratch"):
        stream[0:4]
    with pytest.raises(OutputError, match="takes no more"):
        FileStream(tmp_path / "nowhere", (1, 1, 1), torch.float32)
