"""One way over the windows: bad windows left out alone, values out of float32's range, tokens whose stream is zero."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
import torch
from test_importance import IDS, hook_count, measured, nll
from test_obs import meter
from tiny_models import build, token_ids, windows_of

from core.errors import NumericalError, UsageError
from importance import passes
from importance.gradient_scale import GradientNorms
from importance.over_windows import Measurement, over_windows
from importance.passes import Batch, Forward
from importance.priors import measure_prior
from importance.sums import output_projections
from models.family_table import family_of

GRADIENTS = ("taylor", "taylor_2nd", "fisher", "obs")
WITH_TEXT = (*GRADIENTS, "wanda")


def test_halves_of_a_batch_are_even_and_odd_among_all_windows() -> None:
    """Windows 3, 4, 5 of all: the second one is even."""
    batch = Batch(np.arange(3)[:, None], first=3)
    assert batch.ids[batch.half(0)].ravel().tolist() == [1]
    assert batch.ids[batch.half(1)].ravel().tolist() == [0, 2]
    assert [(window.first, window.ids.tolist()) for window in batch.windows()] == [(3, [[0]]), (4, [[1]]), (5, [[2]])]


class _Recorder(Measurement):
    """Sees a window's first id, NaN for id 9 and Inf for id 8 unless the scale is small; keeps what it saw."""

    scales = True

    def __init__(self) -> None:
        self.kept: list[tuple[int, list[int], float]] = []
        self.batch: Any = None

    def start(self, batch: Batch) -> None:
        self.batch = batch

    def seen(self) -> Iterable[tuple[int, torch.Tensor]]:
        first = torch.from_numpy(self.batch.ids[:, 0]).double()
        first[first == 9] = float("nan")
        if self.batch.scale > 1e-15:
            first[first == 8] = float("inf")
        return [(2, first)]

    def keep(self, batch: Batch) -> None:
        self.kept.append((batch.first, batch.ids[:, 0].tolist(), batch.scale))


def walk(llama: Any, first_ids: list[int], batch_size: int, recorder: _Recorder) -> Any:
    ids = torch.tensor(first_ids)[:, None].expand(-1, 4).contiguous()
    run = Forward(llama, lambda ids: ids.double().sum())
    return over_windows(llama, windows_of(ids), run, recorder, batch_size=batch_size, description="recorder")


def test_a_bad_window_takes_no_neighbour_with_it(llama: Any) -> None:
    """Window 5 of 20 is NaN; of the batch 4..7 the others count, each alone."""
    recorder = _Recorder()
    tally = walk(llama, [3] * 5 + [9] + [3] * 14, 4, recorder)
    assert [(first, len(ids)) for first, ids, _ in recorder.kept] == [
        *((0, 4), (4, 1), (6, 1), (7, 1), (8, 4), (12, 4), (16, 4))
    ]
    assert (tally.windows, tally.used, tally.skipped) == ((10, 9), 19, 1)


def test_what_overflows_comes_again_on_a_smaller_scale_and_nothing_else_does(llama: Any) -> None:
    recorder = _Recorder()
    tally = walk(llama, [3, 8, 3], 1, recorder)
    assert recorder.kept == [(0, [3], 1.0), (1, [8], 2.0**-64), (2, [3], 1.0)]
    assert tally.skipped == 0


def test_windows_that_are_no_longer_rare_end_in_a_line_that_names_layer_and_count(llama: Any) -> None:
    with pytest.raises(NumericalError, match=r"the activations of layer 2 \(in 2 windows so far, 1 tolerated\)"):
        walk(llama, [9] * 2 + [3] * 18, 2, _Recorder())
    assert hook_count(llama) == 0


def with_a_zero_first_token(name: str) -> tuple[Any, torch.Tensor]:
    """Every window starts with a token whose embedding is zero, as in models that pad with their first token."""
    model = build(name)
    with torch.no_grad():
        model.get_input_embeddings().weight[1] = 0
    ids = IDS.clone()
    ids[:, 0] = 1
    return model, ids


@pytest.mark.parametrize("name", ["gemma2", "gemma3_text", "llama"])
@pytest.mark.parametrize("criterion", WITH_TEXT)
def test_a_first_token_of_zeros_still_gives_a_ranking(name: str, criterion: str) -> None:
    """Its stream stays zero, and norms multiply its gradient by 1000 each, in gemma four a layer."""
    model, ids = with_a_zero_first_token(name)
    result = measured(model, criterion, ids)
    assert np.isfinite(result.values).all()
    assert (result.windows_used, result.windows_skipped) == (5, 0)
    if result.gradients is not None:
        assert np.isfinite(result.gradients.norm).all()


def test_a_silent_token_has_no_gradient_and_the_others_keep_theirs() -> None:
    """g is the mean over all tokens of squares from plain autograd in float64, those of the first token left out."""
    model, ids = with_a_zero_first_token("gemma2")
    squares: dict[tuple[int, int], torch.Tensor] = {}

    def watch(key: tuple[int, int], output: torch.Tensor) -> None:
        output.register_hook(lambda gradient: squares.__setitem__(key, gradient[:, 1:].square().sum((0, 1))))

    precise = build("gemma2").double()
    precise.load_state_dict(model.state_dict())
    handles = [
        module.register_forward_hook(lambda _m, _args, output, key=(layer, member.kind): watch(key, output))
        for layer, member, module in output_projections(precise, family_of("gemma2"))
    ]
    precise.requires_grad_(True)
    nll(precise, ids).backward()
    for handle in handles:
        handle.remove()
    for found in meter(model, ids):
        for kind in (0, 1):
            expected = squares[found.layer, kind] / ids.numel()
            torch.testing.assert_close(found.outputs[kind], expected, rtol=1e-3, atol=1e-6 * float(expected.max()))


@pytest.mark.parametrize("criterion", WITH_TEXT)
def test_squares_beyond_float32_are_priced_on_another_scale(criterion: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A loss times 2^70 takes squares of gradients beyond float32, the gradients themselves not."""
    model = build("llama")
    plain, original = measured(model, criterion), passes.summed_nll
    monkeypatch.setattr(passes, "summed_nll", lambda model, ids: original(model, ids) * 2.0**70)
    large = measured(model, criterion)
    power = {"taylor": 1, "fisher": 2, "obs": 2, "wanda": 0}.get(criterion)
    assert np.isfinite(large.values).all()
    if power is not None:
        np.testing.assert_allclose(large.values / 2.0 ** (70 * power), plain.values, rtol=1e-5)
    if large.gradients is not None:
        np.testing.assert_allclose(large.gradients.norm / 2.0**70, plain.gradients.norm, rtol=1e-5)


@pytest.mark.parametrize(("reduction", "way_out"), [("sequence", "wanda"), ("sum", "--gradient_reduction sequence")])
def test_gradients_that_no_scale_mends_name_a_way_without_them(llama: Any, reduction: str, way_out: str) -> None:
    def spoil(_module: Any, _args: Any, output: Any) -> None:
        if output.requires_grad:
            output.register_hook(lambda gradient: gradient * float("nan"))

    handle = llama.model.layers[1].register_forward_hook(spoil)
    with pytest.raises(NumericalError, match=f"the gradients of layers 0, 1 .*{way_out}"):
        measured(llama, "taylor", gradient_reduction=reduction)
    handle.remove()
    assert hook_count(llama) == 0


def test_float16_gradients_neither_vanish_nor_overflow(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loss times 2^-10 or 2^12: as it is, most of its gradients would be below float16's smallest number, 6e-8, or
    some above its largest, 65,504."""
    model = build("llama", std=0.1)
    reference = measured(model, "fisher").values
    model, original = model.half(), passes.summed_nll
    for power in (-10, 0, 12):
        monkeypatch.setattr(passes, "summed_nll", lambda model, ids, by=2.0**power: original(model, ids) * by)
        values = measured(model, "fisher").values / 4.0**power
        np.testing.assert_allclose(values, reference, rtol=0.1, atol=0.003 * reference.max())


def test_activations_whose_squares_overflow_are_still_ranked(llama: Any) -> None:
    with torch.no_grad():
        llama.model.layers[2].mlp.up_proj.weight[3] *= 1e24
        llama.model.layers[2].mlp.down_proj.weight[:, 3] = 0
    values = measured(llama, "wanda").values
    assert np.isfinite(values).all()


def test_a_prior_leaves_a_rare_bad_window_out(llama: Any) -> None:
    with torch.no_grad():
        llama.model.embed_tokens.weight[96] = float("nan")
    ids = token_ids(rows=40, length=6, vocabulary=90)
    spoiled = ids.clone()
    spoiled[7, 2] = 96
    clean = torch.cat([ids[:7], ids[8:]])
    for method in ("loss", "similarity"):
        found, expected = (
            measure_prior(llama, family_of("llama"), windows_of(some), method=method) for some in (spoiled, clean)
        )
        assert found.num_windows == 39
        np.testing.assert_allclose(found.block, expected.block, rtol=1e-3, atol=1e-6)


def test_one_window_that_does_not_fit_recomputes_before_it_gives_up(llama: Any) -> None:
    """Out of memory while activations are kept; recomputed, it fits."""
    reference = measured(llama, "fisher").values

    def full(_module: Any, _args: Any) -> None:
        if torch.is_grad_enabled() and "forward" not in llama.model.layers[0].__dict__:
            raise torch.OutOfMemoryError("pretended")

    handle = llama.model.layers[0].mlp.register_forward_pre_hook(full)
    values = measured(llama, "fisher").values
    assert (measured(llama, "taylor").values > 0).all()
    handle.remove()
    np.testing.assert_allclose(values, reference, rtol=1e-4)
    handle = llama.model.layers[0].mlp.register_forward_pre_hook(_always_full)
    with pytest.raises(UsageError, match="one window does not fit in memory: use a shorter --seq_len"):
        measured(llama, "taylor")
    handle.remove()


def _always_full(_module: Any, _args: Any) -> None:
    raise torch.OutOfMemoryError("pretended")


def test_norms_of_layers_that_are_not_watched_are_zero() -> None:
    norms = GradientNorms(3, "weights")
    norms.add(1, torch.tensor([6.0]), torch.tensor([3.0]), 2)
    norms.add(1, torch.tensor([2.0]), torch.tensor([4.0]), 2)
    mean, norm = norms.read([tensor.numpy() for tensor in norms.tensors()])
    assert mean.tolist() == [[0, 2, 0]]  # (6 + 2) / 4
    assert norm.tolist() == [[0, 5, 0]]  # sqrt(9 + 16)
