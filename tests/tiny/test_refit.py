"""The arithmetic of a refit: ridge regression from sums, and the choice on held-out tokens."""

import numpy as np
import pytest
import torch

from pruning.moments import InputMoments, Moments
from pruning.refit import choose, refit


def moments(k: torch.Tensor, y: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> Moments:
    """k (tokens, n), y (tokens, C), weight (C, n)."""
    found = Moments(y.shape[1], k.shape[1], k.device)
    r = y - k @ weight.T
    found.add(k, r if bias is None else r - bias, y)
    return found


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_two_channels_by_hand() -> None:
    """One output y = 2 k + 1 g over two tokens, k = (1, 2), g = (1, 0); channel g goes, W_k = 2 stays.

    r = y - 2 k = g = (1, 0). K K^T = 1 + 4 = 5, R K^T = 1. Without ridge the change is 1/5; with λ = 1, relative to
    the mean diagonal 5, it is 1/(5 + 5) = 1/10. Error of 0: |g|^2 / |y|^2 = 1 / (9 + 16). Error of 1/5:
    (1 - 1/5)^2 + (2/5)^2 = 0.8, over 25.
    """
    k, y, weight = torch.tensor([[1.0], [2.0]]), torch.tensor([[3.0], [4.0]]), torch.tensor([[2.0]])
    found = moments(k, y, weight)
    assert found.error(torch.zeros(1, 1).double()) == pytest.approx(1 / 25)
    for ridge, change, error in ((1e-12, 1 / 5, 0.8 / 25), (1.0, 1 / 10, (0.9**2 + 0.2**2) / 25)):
        solved = refit(found, ridge, intercept=False)
        assert solved is not None
        assert solved[0].item() == pytest.approx(change)
        assert found.error(solved[0]) == pytest.approx(error)


def test_intercept_by_hand() -> None:
    """y = 2 k + g, k = (1, 3), g = (1, 2): r = (1, 2). Centred: k = ∓1, r = ∓1/2, so the change is 1/2 and the
    bias moves by 3/2 - 2 · 1/2 = 1/2; that meets both tokens."""
    k, y = torch.tensor([[1.0], [3.0]]), torch.tensor([[3.0], [8.0]])
    found = moments(k, y, torch.tensor([[2.0]]), torch.zeros(1))
    solved = refit(found, 1e-12, intercept=True)
    assert solved is not None
    assert solved[1] is not None
    assert (solved[0].item(), solved[1].item()) == pytest.approx((0.5, 0.5))
    assert found.error(*solved) == pytest.approx(0.0, abs=1e-6)
    # A shift that is not optimal: r - 1 = (0, 1), over |y|^2 = 9 + 64.
    assert found.error(torch.zeros(1, 1).double(), torch.ones(1).double()) == pytest.approx(1 / 73)


@pytest.mark.parametrize("intercept", [False, True])
def test_the_formula_with_the_original_weights(intercept: bool) -> None:
    """(Y K^T + λ W_k)(K K^T + λ I)^-1, the constant as one more input without penalty."""
    k, y, weight, ridge = random(40, 3), random(40, 2, seed=1), random(2, 3, seed=2), 0.3
    k = k + 1.0
    bias = random(2, seed=3) if intercept else torch.zeros(2)
    solved = refit(moments(k, y, weight, bias), ridge, intercept=intercept)
    assert solved is not None
    inputs, start = k.double().numpy(), np.column_stack([weight.numpy(), bias.numpy()])
    centred = inputs - inputs.mean(0) * intercept
    penalty = np.diag([ridge * (centred**2).sum(0).mean()] * 3 + [0.0])
    inputs = np.column_stack([inputs, np.ones(40) * intercept])
    matrix = inputs.T @ inputs + penalty + np.diag([0.0, 0.0, 0.0, 1.0 - intercept])
    wanted = np.linalg.solve(matrix, (y.double().numpy().T @ inputs + start @ penalty).T).T
    np.testing.assert_allclose(weight.double().numpy() + solved[0].numpy(), wanted[:, :3], rtol=1e-5)
    if intercept:
        assert solved[1] is not None
        np.testing.assert_allclose(bias.double().numpy() + solved[1].numpy(), wanted[:, 3], rtol=1e-5)


@pytest.mark.parametrize("intercept", [False, True])
def test_an_infinite_ridge_changes_no_weight(intercept: bool) -> None:
    found = moments(random(30, 4), random(30, 2, seed=1), random(2, 4, seed=2))
    solved = refit(found, 1e15, intercept=intercept)
    assert solved is not None
    assert solved[0].abs().max() < 1e-12


def test_a_column_that_is_a_combination_of_the_others_is_restored_exactly() -> None:
    k, whole = random(50, 3), random(2, 4, seed=1)
    combination = torch.tensor([0.5, -2.0, 1.0])
    y = k @ whole[:, :3].T + (k @ combination)[:, None] * whole[:, 3]
    found = moments(k, y, whole[:, :3])
    choice = choose(found, found, whole[:, :3], None, ridges=(1e-9, 1e6))
    assert choice.ridge == 1e-9
    assert choice.error_before > 0.1
    assert choice.error_after < 1e-6  # what products in float32 leave
    torch.testing.assert_close(choice.weight, whole[:, :3] + torch.outer(whole[:, 3], combination))


def test_what_does_not_carry_over_to_held_out_tokens_is_not_done() -> None:
    """The removed input follows the kept one in the fitted tokens and opposes it in the held-out ones."""
    k, weight = random(20, 1), torch.tensor([[1.0]])
    fit, check = moments(k, 3 * k, weight), moments(k, -k, weight)
    choice = choose(fit, check, weight, None, ridges=(1e-3, 1.0))
    assert choice.ridge is None
    assert choice.weight is weight
    assert choice.error_after == choice.error_before > 0


def test_the_ridge_is_the_one_that_held_out_tokens_prefer() -> None:
    """Fitted: y = 2 k + k; held out: y = 2 k + k/2. The change at λ is 1/(1 + λ), so λ = 1 is exact."""
    k, weight = random(20, 1), torch.tensor([[2.0]])
    choice = choose(moments(k, 3 * k, weight), moments(k, 2.5 * k, weight), weight, None, ridges=(0.01, 1.0, 10.0))
    assert choice.ridge == 1.0
    assert choice.error_after < 1e-6
    assert choice.weight.item() == pytest.approx(2.5)


def test_a_larger_ridge_that_gains_nearly_as_much_is_preferred() -> None:
    """y = 2 k + k. At λ a share λ / (1 + λ) of r = k is left: it gains all but 0.8 % at 0.1, and 75 % at 1."""
    k, weight = random(20, 1), torch.tensor([[2.0]])
    found = moments(k, 3 * k, weight)
    choice = choose(found, found, weight, None, ridges=(0.001, 0.1, 1.0))
    assert choice.ridge == 0.1
    assert choice.error_after == pytest.approx((0.1 / 1.1) ** 2 / 9, rel=1e-3)


def test_errors_are_those_of_the_weights_as_stored() -> None:
    k, whole = random(200, 3), random(2, 3, seed=1)
    found = moments(k, k @ whole.T, torch.zeros(2, 3))
    exact = choose(found, found, torch.zeros(2, 3), None, ridges=(1e-9,))
    stored = choose(found, found, torch.zeros(2, 3), None, ridges=(1e-9,), stored_dtype=torch.bfloat16)
    assert exact.error_after < 1e-7 < stored.error_after < 1e-4
    assert torch.equal(stored.weight, stored.weight.bfloat16().float())


@pytest.mark.parametrize("intercept", [False, True])
def test_a_token_of_weight_two_counts_like_two_tokens(intercept: bool) -> None:
    k, r, y = random(9, 3), random(9, 2, seed=1), random(9, 2, seed=2)
    weighted, repeated = Moments(2, 3, k.device), Moments(2, 3, k.device)
    weighted.add(k, r, y, torch.tensor([1.0] * 6 + [2.0] * 3)[:, None])
    repeated.add(*(torch.cat([values, values[6:]]) for values in (k, r, y)))
    assert weighted.tokens == repeated.tokens == 12
    solved = [refit(found, 0.1, intercept=intercept) for found in (weighted, repeated)]
    assert solved[0] is not None
    assert solved[1] is not None
    torch.testing.assert_close(solved[0], solved[1], rtol=1e-5, atol=1e-6)
    assert weighted.error(*solved[0]) == pytest.approx(repeated.error(*solved[1]), rel=1e-5)


def test_sums_of_inputs_serve_any_weights_that_read_them() -> None:
    """W x is the target, W k what there is: the same as sums over the outputs themselves."""
    x, k, weight = random(50, 4), random(50, 4, seed=1), random(7, 4, seed=2)
    sums = InputMoments(4, k.device)
    sums.add(x[:20], k[:20])
    sums.add(x[20:], k[20:])
    found, wanted = sums.seen_by(weight), moments(k, x @ weight.T, weight)
    for name in ("gram", "cross"):
        torch.testing.assert_close(getattr(found, name), getattr(wanted, name), rtol=1e-4, atol=1e-4)
    assert (found.lack_energy, found.target_energy) == pytest.approx((wanted.lack_energy, wanted.target_energy))
    assert found.tokens == wanted.tokens
    change = refit(found, 0.1, intercept=False)
    assert change is not None
    assert found.error(change[0]) == pytest.approx(wanted.error(change[0]))


def test_inputs_that_are_always_zero_leave_the_weights() -> None:
    found = moments(torch.zeros(5, 2), random(5, 3), random(3, 2, seed=1))
    assert refit(found, 0.1, intercept=False) is None
    weight = random(3, 2)
    assert choose(found, found, weight, None, ridges=(0.1,)).weight is weight


def test_sums_do_not_depend_on_how_tokens_come() -> None:
    k, y, weight = random(60, 5), random(60, 4, seed=1), random(4, 5, seed=2)
    whole, parts = moments(k, y, weight), Moments(4, 5, k.device)
    for chosen in (slice(0, 7), slice(7, 50), slice(50, 60)):
        parts.add(k[chosen], (y - k @ weight.T)[chosen], y[chosen])
    for name in ("gram", "cross", "inputs", "lack"):
        torch.testing.assert_close(getattr(parts, name), getattr(whole, name), rtol=1e-5, atol=1e-4)
        assert getattr(parts, name).dtype == torch.float64
    assert parts.tokens == 60
    assert parts.lack_energy == pytest.approx(whole.lack_energy)


def test_sums_may_be_read_on_the_way() -> None:
    """They are mirrored in their place, and what comes later is added to that."""
    k, y, weight = random(300, 200), random(300, 4, seed=1), random(4, 200, seed=2)  # two panels
    whole, parts = moments(k, y, weight), Moments(4, 200, k.device)
    for chosen in (slice(0, 100), slice(100, 300)):
        parts.add(k[chosen], (y - k @ weight.T)[chosen], y[chosen])
        assert torch.equal(parts.gram, parts.gram.T)
    torch.testing.assert_close(parts.gram, whole.gram, rtol=1e-5, atol=1e-4)
    before = parts.gram.clone()
    assert refit(parts, 0.1, intercept=True) is not None
    assert torch.equal(parts.gram, before)
