"""KL and agreement against a formula over both models' logits, and what must not show in them."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny_models import build

from core.windows import TokenWindows
from evaluation import distance as module
from evaluation.distance import DenseStates, Distance, Head, compared_rows
from evaluation.perplexity import window_nll


def windows_of(count: int, tokens: int = 12) -> TokenWindows:
    ids = np.random.default_rng(1).integers(0, 97, (count, tokens), dtype=np.int64)
    return TokenWindows(ids, "toy", "evaluation", "drawn at random")


def states_of(model: Any, windows: TokenWindows, batch_size: int | None = None) -> DenseStates:
    states = DenseStates(windows, Head.of(model))
    window_nll(model, windows.ids, batch_size=batch_size, description="dense", watch=states)
    return states


def distance_of(model: Any, states: DenseStates, windows: TokenWindows, batch_size: int | None = None) -> Any:
    distance = Distance(states)
    window_nll(model, windows.ids, batch_size=batch_size, description="other", watch=distance)
    return distance.result()


def disturbed(model: Any) -> None:
    with torch.no_grad():
        for parameter in model.model.layers.parameters():
            parameter.mul_(1.1)


@pytest.fixture(params=["llama", "gemma2", "phi3"])  # gemma2 caps its logits
def model(request: Any) -> Any:
    return build(request.param, std=0.15)


def test_equals_the_formula_over_both_models_logits(model: Any) -> None:
    windows = windows_of(5)
    ids = torch.from_numpy(windows.ids)
    with torch.no_grad():
        before = model(ids).logits[:, :-1].double()
    states = states_of(model, windows)
    disturbed(model)
    with torch.no_grad():
        after = model(ids).logits[:, :-1].double()
    log_p, log_q = F.log_softmax(before, -1), F.log_softmax(after, -1)
    by_window = (log_p.exp() * (log_p - log_q)).sum(-1).mean(-1)

    found = distance_of(model, states, windows)

    assert found["kl_nats_per_token"] == pytest.approx(by_window.mean().item(), rel=1e-4)
    assert found["kl_nats_per_token"] > 1e-4
    assert found["kl_standard_error"] == pytest.approx(by_window.std().item() / 5**0.5, rel=1e-3)
    assert found["top1_agreement"] == (before.argmax(-1) == after.argmax(-1)).double().mean().item() < 1
    assert (found["num_windows"], found["num_tokens"]) == (5, 5 * 11)


def test_a_model_is_at_no_distance_from_itself_until_its_head_is_trained() -> None:
    model, windows = build("llama", std=0.15), windows_of(3)
    states = states_of(model, windows)
    same = distance_of(model, states, windows)
    assert same["kl_nats_per_token"] == pytest.approx(0, abs=1e-7)
    assert same["top1_agreement"] == 1
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(1.5)
    assert distance_of(model, states, windows)["kl_nats_per_token"] > 1e-3


@pytest.mark.parametrize(("batch_size", "positions"), [(1, 1), (2, 5), (7, 1000)])
def test_batches_and_chunks_do_not_show(monkeypatch: pytest.MonkeyPatch, batch_size: int, positions: int) -> None:
    model, windows = build("llama", std=0.15), windows_of(7)
    monkeypatch.setattr(module, "DISTANCE_TOKENS", 4 * 12)  # windows 0, 1, 3 and 5 of seven
    states = states_of(model, windows, batch_size=3)
    filled = DenseStates(windows, Head.of(model))
    filled.fill(model, windows, None, "again")
    torch.testing.assert_close(filled.states, states.states)
    disturbed(model)
    expected = distance_of(model, states, windows)
    monkeypatch.setattr("evaluation.perplexity.CACHED_BYTES", positions * 97 * 4)

    found = distance_of(model, states, windows, batch_size)

    assert found["num_windows"] == 4
    assert found["kl_nats_per_token"] == pytest.approx(expected["kl_nats_per_token"], rel=1e-4)
    assert found["top1_agreement"] == expected["top1_agreement"]


def test_compared_windows_are_spread_evenly_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DISTANCE_TOKENS", 4 * 12 + 5)
    assert compared_rows(windows_of(10)).tolist() == [0, 2, 5, 7]
    assert compared_rows(windows_of(3)).tolist() == [0, 1, 2]
    assert compared_rows(windows_of(2, tokens=60)).tolist() == [0]  # one, however long


def test_of_nan_nothing_is_told_and_one_window_has_no_error() -> None:
    model, windows = build("llama", std=0.15), windows_of(1)
    states = states_of(model, windows)
    assert distance_of(model, states, windows)["kl_standard_error"] is None
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight[0] = torch.nan
    found = distance_of(model, states, windows)
    assert [found[key] for key in ("kl_nats_per_token", "kl_standard_error", "top1_agreement")] == [None] * 3
