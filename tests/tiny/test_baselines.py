"""Published methods of the benchmarks, each against an example worked out by hand."""

import numpy as np
import pytest
import torch
from tables import architecture

from benchmarks.baselines import (
    compensating_bias,
    fluctuation,
    greedy_surgeon,
    increasing_keep,
    increasing_shares,
    least_squares,
    over_kind_mean,
    ranked_keep,
    reconstructed,
    redundant_layers,
    skipped_layers,
    uniform_keep,
)
from core.groups import ATTENTION, MLP

SQUARE = torch.float64


def removed(keep: np.ndarray) -> list[int]:
    return np.flatnonzero(~keep).tolist()


def test_uniform_takes_the_same_share_of_every_block() -> None:
    """80 prunable parameters, half of them: one of 2 KV groups (10 each) and 2 of 4 channels (5 each) a layer."""
    model = architecture((2, 4), (2, 4), kv=10, channel=5)
    importance = np.array([2, 1, 4, 3, 2, 1, 20, 10, 10, 20, 30, 40], float)
    assert removed(uniform_keep(model, importance, 0.5)) == [1, 4, 5, 7, 8, 9]


def test_uniform_rounds_kv_groups_and_spends_the_rest_on_channels() -> None:
    """Half of 3 KV groups is 1, not 2. Of 2·(3·10 + 8·5) = 140, 70 go: 20 as KV groups, 50 as 10 channels."""
    model = architecture((3, 8), (3, 8), kv=10, channel=5)
    keep = uniform_keep(model, np.arange(22.0), 0.5)
    assert [int((~keep[model.groups.rows(layer, ATTENTION)]).sum()) for layer in (0, 1)] == [1, 1]
    assert [int((~keep[model.groups.rows(layer, MLP)]).sum()) for layer in (0, 1)] == [5, 5]


def test_what_is_left_over_goes_a_channel_a_layer() -> None:
    """15 of 4·15 = 60 go: no KV group (a quarter of 1 rounds to 0) and 3 channels of 5, of the first three layers."""
    model = architecture(*[(1, 2)] * 4, kv=5, channel=5)
    assert removed(uniform_keep(model, np.zeros(12), 0.25)) == [1, 4, 7]


def test_llm_pruner_leaves_both_ends_alone() -> None:
    """LLaMA-7B: layers 4 to 29 of 32 are pruned. The others pay: 2 of 4 layers lose twice the share."""
    assert skipped_layers(32) == (0, 1, 2, 3, 30, 31)
    assert skipped_layers(8) == (0, 7)
    model = architecture(*[(2, 4)] * 4, kv=10, channel=5)
    keep = uniform_keep(model, np.tile([2, 1, 4, 3, 2, 1], 4).astype(float), 0.25, frozen=(0, 3))
    assert removed(keep) == [7, 10, 11, 13, 16, 17]


def test_slimgpt_takes_more_of_deeper_layers() -> None:
    """ln(1 + i)/ln 4 is 0, 1/2, 0.79248, 1, on average 0.57312: from 0.1 (a quarter of 0.4) by 0.3/0.57312 of that."""
    shares = increasing_shares(0.4, np.ones(4))
    assert shares == pytest.approx([0.1, 0.36173, 0.51482, 0.62345], abs=1e-5)
    assert shares.mean() == pytest.approx(0.4)
    assert increasing_shares(0.4, np.ones(1)).tolist() == [0.4]


def test_slimgpt_leaves_something_of_the_last_layer() -> None:
    """0.7 would take 0.175 + 0.525/0.57312 = 1.09 of it: it keeps 5 %, and the first layer pays."""
    shares = increasing_shares(0.7, np.ones(4))
    assert shares[3] == pytest.approx(0.95)
    assert shares.mean() == pytest.approx(0.7)
    assert shares[0] > 0.175


def test_slimgpt_spends_a_layers_share_on_kv_groups_and_channels() -> None:
    """64 of 160. Of 2 KV groups 0.2, 0.72, 1.03, 1.25 give 0, 1, 1, 1; what is left of 4, 14.5, 20.6, 24.9 parameters
    gives 0, 0, 2, 2 channels of 5. Of 14 left over the last two layers take a channel each."""
    model = architecture(*[(2, 4)] * 4, kv=10, channel=5)
    assert removed(increasing_keep(model, 0.4)) == [6, 12, 14, 15, 16, 18, 20, 21, 22]


def test_gisp_divides_by_the_mean_of_what_is_left_of_a_kind() -> None:
    """KV groups 1, 3, 4, 0: mean 2. Channels 2, 2, 4, one that is gone, then 1, 1, 1, 3: 14 over 7."""
    model = architecture((2, 4), (2, 4))
    importance = np.array([1, 3, 2, 2, 4, 9, 4, 0, 1, 1, 1, 3], float)
    found = over_kind_mean(model.groups, importance, np.arange(12) != 5)
    assert found.tolist() == [0.5, 1.5, 1.0, 1.0, 2.0, 0.0, 2.0, 0.0, 0.5, 0.5, 0.5, 1.5]
    channels_alone = np.where(model.groups.kind == MLP, importance, 0.0)
    assert over_kind_mean(model.groups, channels_alone, np.ones(12, dtype=bool))[[0, 1, 6, 7]].tolist() == [0.0] * 4


def test_flap_standardises_inside_a_block_and_averages_over_a_group() -> None:
    """Var · ‖W_:j‖² = (0, 1, 2, 5): mean 2, sum of squares 14, sample deviation √(14/3); pairs average ∓1.5."""
    variance, weight = np.array([0.0, 0.25, 2.0, 5.0]), np.array([[3.0, 2.0, 1.0, 0.6], [0.0, 0.0, 0.0, 0.8]])
    deviation = np.sqrt(14 / 3)
    assert fluctuation(variance, weight, 2, MLP) == pytest.approx([-1.5 / deviation, 1.5 / deviation])


def test_flap_squares_the_metric_of_attention() -> None:
    """(0, 1, 2, 5)² = (0, 1, 4, 25): mean 7.5, pairs average 0.5 and 14.5, so ∓7 over the deviation."""
    variance = np.array([0.0, 1.0, 2.0, 5.0])
    deviation = np.std([0, 1, 4, 25], ddof=1)
    assert fluctuation(variance, np.ones((1, 4)), 2, ATTENTION) == pytest.approx([-7 / deviation, 7 / deviation])


def test_flap_puts_the_mean_of_what_it_removes_into_a_bias() -> None:
    """2·1 + 3·2 = 8 and 5·1 + 6·2 = 17."""
    weight, gone = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]), torch.tensor([False, True, True])
    assert compensating_bias(weight, torch.tensor([9.0, 1.0, 2.0]), gone).tolist() == [8.0, 17.0]


def test_ranked_walks_the_order_until_the_budget_is_spent() -> None:
    """A quarter of 40: the channel of 5 that ranks first, then no KV group of 10, then the next channel."""
    model = architecture((2, 4), kv=10, channel=5)
    assert removed(ranked_keep(model, np.array([4, 0, 1, 2, 3, 5]), 0.25)) == [2, 4]


def test_shortgpt_removes_whole_layers_while_the_budget_pays() -> None:
    """Layers of 22 prunable parameters: half of 66 pays for one, 70 % for two."""
    model = architecture(*[(1, 4)] * 3)
    influence = np.array([0.3, 0.1, 0.2])
    assert redundant_layers(model, influence, 0.3) == ()
    assert redundant_layers(model, influence, 0.5) == (1,)
    assert redundant_layers(model, influence, 0.7) == (1, 2)


def test_least_squares_lets_a_copy_take_over() -> None:
    """Features 0 and 1 are equal: w_0 becomes (2 + 3 + λ·2)/(1 + λ) with λ = 1 % of the mean diagonal 1."""
    gram = torch.ones(2, 2, dtype=SQUARE)
    refit = least_squares(torch.tensor([[2.0, 3.0]]), gram, torch.tensor([0]))
    assert refit.tolist() == [[pytest.approx(5.02 / 1.01), 0.0]]


def test_grail_lets_a_copy_take_over() -> None:
    """Features 0 and 1 are equal: ridge regression tells both from 0 by 1/(1 + λ), λ = 0.1 % of its diagonal 1."""
    repaired = reconstructed(torch.tensor([[2.0, 3.0]]), torch.ones(2, 2, dtype=SQUARE), torch.tensor([0]))
    assert repaired.tolist() == [[pytest.approx(5 / 1.001), 0.0]]


def test_grail_is_ridge_regression_of_all_features_on_the_kept() -> None:
    """Against rows that stand for the penalty: [X_k; √λ I] B^T = [X; 0] by least squares."""
    rng = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(*shape, generator=rng, dtype=SQUARE) for shape in ((30, 5), (3, 5)))
    kept = torch.tensor([0, 2, 3])
    penalty = (x.T @ x)[kept, kept].mean() * 0.001
    rows = torch.cat([x[:, kept], penalty.sqrt() * torch.eye(3, dtype=SQUARE)])
    found = torch.linalg.lstsq(rows, torch.cat([x, torch.zeros(3, 5, dtype=SQUARE)])).solution  # B^T
    assert torch.allclose(reconstructed(weight, x.T @ x, kept)[:, kept], weight @ found.T)


def test_the_surgeon_removes_a_copy_before_a_small_weight() -> None:
    """0 and 1 are copies, so 0 costs 4·0.02 once 1 takes over; 2 is small but alone: 1. Then 1 stands for 25."""
    gram = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0]], dtype=SQUARE)
    weight = torch.tensor([[2.0, 3.0, 1.0]])
    assert greedy_surgeon(weight, gram, 3, 1).tolist() == [False, True, True]
    assert greedy_surgeon(weight, gram, 3, 2).tolist() == [False, True, False]


@pytest.mark.parametrize("size", [1, 2])
def test_the_surgeon_takes_the_group_whose_loss_is_least_after_a_refit(size: int) -> None:
    """Against trying every group: ‖X W^T − X Ŵ^T‖² + λ‖W − Ŵ‖², and again once one is gone."""
    rng = torch.Generator().manual_seed(size)
    x = torch.randn(40, 6, generator=rng, dtype=SQUARE) @ torch.randn(6, 6, generator=rng, dtype=SQUARE)
    weight, gram = torch.randn(5, 6, generator=rng, dtype=SQUARE), x.T @ x
    damped = gram + torch.eye(6, dtype=SQUARE) * gram.diagonal().mean() * 0.01
    groups = 6 // size
    gone: list[int] = []
    for _ in range(2):
        losses = {}
        for group in set(range(groups)) - set(gone):
            kept = [j for j in range(6) if j // size not in {group, *gone}]
            error = weight - least_squares(weight, gram, torch.tensor(kept))
            losses[group] = float((error @ damped * error).sum())
        gone.append(min(losses, key=lambda group: losses[group]))
        keep = greedy_surgeon(weight, gram, groups, len(gone))
        assert sorted(gone) == (~keep).nonzero()[:, 0].tolist()
