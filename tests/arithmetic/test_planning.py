"""Plans by hand, on a few groups."""

from typing import Any

import numpy as np
import pytest
from tables import architecture

from core.errors import BudgetError
from core.groups import ATTENTION, MLP, Architecture, LayerShape
from core.plan import PruningPlan
from pruning.planning import Limits, plan_removal


def plan_for(model: Architecture, params: int, order: list[int] | None = None, **limits: Any) -> PruningPlan:
    """The plan that may remove ``params`` parameters; ascending rows are the default ranking."""
    rows = np.arange(len(model.groups)) if order is None else np.array(order)
    ratio = params / model.prunable_params + 1e-9
    plan = plan_removal(model, rows, ratio=ratio, ratio_of="prunable", limits=Limits(**limits))
    assert plan.budget_params == params
    return plan


def removed(plan: PruningPlan, layer: int, kind: int) -> list[int]:
    return np.flatnonzero(~plan.keep[plan.groups.rows(layer, kind)]).tolist()


# The walk, by hand. Rows of architecture((2, 4), (2, 4)): 0-1 KV, 2-5 channels | 6-7 KV, 8-11 channels.


def test_the_lowest_go_first_and_what_does_not_fit_is_skipped() -> None:
    # Budget 16: rows 2 and 3 (6), then KV group 0 (10) fits exactly; with 15 it does not, and 8 4 9 follow.
    model, order = architecture((2, 4), (2, 4)), [2, 3, 0, 8, 4, 9, 10, 11, 5, 6, 7, 1]
    exact = plan_for(model, 16, order)
    assert (removed(exact, 0, ATTENTION), removed(exact, 0, MLP), removed(exact, 1, MLP)) == ([0], [0, 1], [])
    assert (exact.removed_params, exact.budget_gap_params, exact.gap_reason) == (16, 0, "")
    skipping = plan_for(model, 15, order)
    assert (removed(skipping, 0, ATTENTION), removed(skipping, 0, MLP)) == ([], [0, 1, 2])
    assert removed(skipping, 1, MLP) == [0, 1]


def test_the_gap_has_a_reason() -> None:
    model = architecture((2, 4), (2, 4))
    plan = plan_for(model, 5, [2, 3, 0, 1, 4, 5, 6, 7, 8, 9, 10, 11])
    assert plan.removed_params == 3
    assert plan.gap_reason == "smaller than the smallest step left (a channel of 3 parameters)"
    wide = plan_for(model, 5, round_to=2, min_kv_heads=2)
    assert wide.gap_reason == "smaller than the smallest step left (2 channels of 6 parameters)"


def test_when_channels_are_at_their_floor_the_gap_is_a_kv_group() -> None:
    # Layers (3, 2): channels may lose 3 + 3, then only KV groups are left, 10 each: 19 = 6 + 10 + 3 unspent.
    plan = plan_for(architecture((3, 2), (3, 2)), 19, [3, 4, 8, 9, 0, 1, 2, 5, 6, 7])
    assert plan.removed_params == 16
    assert plan.gap_reason == "smaller than the smallest step left (a KV group of 10 parameters)"


def test_a_ratio_too_small_for_anything_keeps_everything() -> None:
    model = architecture((2, 4), (2, 4))
    plan = plan_removal(model, np.arange(12), ratio=0.001, ratio_of="total", limits=Limits(epsilon=0.5))
    assert plan.keep.all()
    assert (plan.removed_params, plan.budget_params, plan.removed_layers) == (0, 0, ())
    assert plan.gap_reason == ""
    assert plan_for(model, 2).gap_reason == "smaller than the smallest step left (a channel of 3 parameters)"
    assert plan_for(model, 2).keep.all()


def test_floors_keep_a_kv_group_and_a_channel() -> None:
    plan = plan_for(architecture((2, 4), (2, 4)), 38)
    assert [plan.kept(layer, kind).tolist() for layer in (0, 1) for kind in (0, 1)] == [[1], [3], [1], [3]]


def test_one_kv_head_is_never_pruned() -> None:
    plan = plan_for(architecture((1, 4), (1, 4)), 18, [0, 5, 1, 2, 3, 4, 6, 7, 8, 9])
    assert [removed(plan, layer, ATTENTION) for layer in (0, 1)] == [[], []]
    assert plan.removed_params == 18


def test_min_kv_heads() -> None:
    plan = plan_for(architecture((4, 4), (4, 4)), 38, min_kv_heads=3)
    assert [len(plan.kept(layer, ATTENTION)) for layer in (0, 1)] == [3, 3]


def test_max_block_ratio_caps_each_block() -> None:
    # Half of 4 KV groups and half of 5 channels, rounded down: 2 and 2.
    plan = plan_for(architecture((4, 5), (4, 5)), 52, max_block_ratio=0.5)
    assert plan.block_rates().tolist() == [[0.5, 0.4], [0.5, 0.4]]


def test_frozen_layers_are_skipped() -> None:
    plan = plan_for(architecture((2, 4), (2, 4), (2, 4)), 19, freeze_first=1, freeze_last=1)
    assert plan.layer_rates().tolist() == [0, 19 / 32, 0]


def test_round_to_removes_steps_at_the_rank_of_their_last_channel() -> None:
    # Width 7: the first step is 7 mod 3 = 1 channel, the second 3. Rows 0 KV, 1-7 channels, 8 KV, 9-15 channels.
    # Layer 0's second step, 2 3 4, ends at row 4: it waits for both steps of layer 1, 9 and 10 11 12.
    model = architecture((1, 7), (1, 7))
    order = [1, 2, 3, 9, 10, 11, 12, 4, 5, 6, 7, 13, 14, 15, 0, 8]
    assert removed(plan_for(model, 3, order, round_to=3), 0, MLP) == [0]
    plan = plan_for(model, 15, order, round_to=3)
    assert (removed(plan, 0, MLP), removed(plan, 1, MLP)) == ([0], [0, 1, 2, 3])
    assert {len(plan.kept(layer, MLP)) for layer in (0, 1)} == {6, 3}
    assert plan_for(model, 14, order, round_to=3).removed_params == 6  # 9 more would be 15


def test_protected_groups_never_go_and_leave_their_place_to_others() -> None:
    # Rows 2 and 3 are the lowest and cost 3 each. With row 2 protected, 6 parameters are rows 3 and 4.
    plan = plan_for(architecture((2, 4), (2, 4)), 6, [2, 3, 4, *(0, 1), *range(5, 12)], protected=(2,))
    assert removed(plan, 0, MLP) == [1, 2]
    # All that is left to go: 1 KV group a layer, 3 of 4 channels in layer 1, 2 of the 3 unprotected in layer 0 and the
    # third as well, because the protected one is the floor.
    most = plan_for(architecture((2, 4), (2, 4)), 38, [2, 3, 4, *(0, 1), *range(5, 12)], protected=(2,))
    assert most.kept(0, MLP).tolist() == [0]


def test_protection_takes_whole_steps() -> None:
    # 7 channels in steps of 1, 3, 3; two protected leave 5, so 1 + 3 may go and never 1 + 3 + 3.
    model = architecture((1, 7))
    assert plan_for(model, 12, round_to=3, protected=(1, 2)).keep[1:3].all()
    with pytest.raises(BudgetError, match="protected groups allow at most 12 to be removed"):
        plan_for(model, 13, round_to=3, protected=(1, 2))


def test_caps_bound_each_block() -> None:
    # Layer 0 may lose no KV group and 1 channel, layer 1 whatever floors allow: 1 and 3.
    plan = plan_for(architecture((2, 4), (2, 4)), 3 + 19, caps=(0, 1, 2, 4))
    assert [removed(plan, layer, kind) for layer in (0, 1) for kind in (0, 1)] == [[], [0], [0], [0, 1, 2]]


def test_epsilon_leaves_layers_alone_that_are_protected_or_capped() -> None:
    model, order = architecture((2, 4), (2, 4), (2, 4)), None
    assert plan_for(model, 40, order, epsilon=0.5).removed_layers == (0,)
    # 19 of layer 0 go group by group, and 19 of layer 1, which falls under 0.5 as well and is not protected.
    assert plan_for(model, 40, order, epsilon=0.5, protected=(5,)).removed_layers == (1,)
    assert plan_for(model, 40, order, epsilon=0.5, protected=(5, 11)).removed_layers == ()
    assert plan_for(model, 40, order, epsilon=0.5, caps=(1, 4, 2, 4, 2, 4)).removed_layers == (1,)


def test_order_must_be_a_permutation() -> None:
    with pytest.raises(ValueError, match="not a permutation"):
        plan_for(architecture((2, 4)), 3, [0, 1, 2, 3, 4, 4])


# Epsilon, by hand. A layer of (2, 4) holds 32 prunable parameters and 34 in all.


def test_epsilon_removes_a_layer_whole_and_plans_the_rest_again() -> None:
    # Layer 0 first: 10 + 9 = 19 of 32 go, 13/32 = 0.41 stays, under 0.5. Whole it costs 34 of 40; the other 6
    # go to the next in the ranking, two channels of layer 1.
    model = architecture((2, 4), (2, 4), (2, 4))
    plan = plan_for(model, 40, [0, 1, 2, 3, 4, 5, 8, 9, 6, 7, 10, 11, 12, 13, 14, 15, 16, 17], epsilon=0.5)
    assert plan.removed_layers == (0,)
    assert removed(plan, 1, MLP) == [0, 1]
    assert plan.removed_params == 40
    assert not plan.keep[plan.groups.layer == 0].any()
    assert plan.layer_rates().tolist() == [1, 6 / 32, 0]


def test_epsilon_is_a_strict_bound_in_the_decimal_typed() -> None:
    # 13/32 = 0.40625 stays of layer 0.
    model, order = architecture((2, 4), (2, 4), (2, 4)), None
    assert plan_for(model, 40, order, epsilon=0.40625).removed_layers == ()
    assert plan_for(model, 40, order, epsilon=0.40626).removed_layers == (0,)


def test_epsilon_spares_frozen_layers_the_budget_and_the_last_layer() -> None:
    model = architecture((2, 4), (2, 4), (2, 4))
    frozen = plan_for(model, 38, freeze_first=1, epsilon=0.9)
    assert frozen.removed_layers == (1,)
    assert plan_for(model, 33, epsilon=0.9).removed_layers == ()  # 34 would be needed
    single = architecture((2, 40), norms=0)
    assert plan_for(single, 127, epsilon=0.5).removed_layers == ()
    pair = architecture((2, 4), (2, 4), norms=0)
    assert plan_for(pair, 38, epsilon=0.9).removed_layers == (0,)


def test_epsilon_takes_the_layer_that_keeps_least_first() -> None:
    # Layer 1 loses 19 and layer 0 15, both are under 0.9; the budget of 34 covers one whole layer: layer 1.
    plan = plan_for(
        architecture((2, 4), (2, 4), (2, 4)),
        34,
        [6, 7, 8, 9, 10, 11, 2, 3, 4, 0, 1, 5, *range(12, 18)],
        epsilon=0.9,
    )
    assert plan.removed_layers == (1,)


def test_epsilon_removes_what_the_budget_covers_and_leaves_the_rest() -> None:
    # 70 buys 19 of layers 0, 1 and 2 and 13 of layer 3. The first three are under 0.5, with 13/32 each; 70
    # covers two whole layers, 34 + 34, and the remaining 2 buy nothing.
    plan = plan_for(architecture(*[(2, 4)] * 4), 70, epsilon=0.5)
    assert plan.removed_layers == (0, 1)
    assert plan.removed_params == 68
    assert plan.gap_reason == "smaller than the smallest step left (a channel of 3 parameters)"


def test_epsilon_takes_all_layers_under_it_before_planning_again() -> None:
    # Layer 0 gives 19, layers 2 and 3 a KV group and a channel each, 13, and then layer 1 gives 19: layers 0 and 1
    # keep 13/32. 68 pays for both whole (one after the other, layer 1 would be spared, as the 34 left buy less).
    model = architecture(*[(2, 4)] * 4)
    order = [*range(6), 12, 14, 18, 20, 8, 9, 10, 6, 7, 11, *(13, 15, 16, 17), *(19, 21, 22, 23)]
    assert plan_for(model, 38 + 26, order).layer_rates() == pytest.approx([19 / 32, 19 / 32, 13 / 32, 13 / 32])
    assert plan_for(model, 68, order, epsilon=0.5).removed_layers == (0, 1)


def test_epsilon_removes_again_what_falls_under_it_later() -> None:
    # 68 = 19 of layer 0, a KV group of 40 of layer 1, three channels of layer 2. Layer 0 goes (34); with 34 left the
    # KV group no longer fits, layer 2 gives 19, keeps 13/32 and goes as well.
    small = LayerShape(4, 2, 4, 4, 10, 3, norm_params=2)
    model = Architecture("llama", 8, 500, (small, LayerShape(4, 2, 4, 1, 40, 3), small))
    order = [*range(6), 6, 11, 12, 13, 9, 10, 14, 7, 8]
    assert plan_for(model, 68, order).layer_rates() == pytest.approx([19 / 32, 40 / 83, 9 / 32])
    plan = plan_for(model, 68, order, epsilon=0.5)
    assert plan.removed_layers == (0, 2)
    assert plan.keep[model.groups.layer == 1].all()


def test_a_layer_removed_whole_has_no_step_left() -> None:
    # Layer 0, whose channels cost 1, goes whole for 26 of 28; a channel of layer 1 costs 3.
    cheap, dear = LayerShape(4, 2, 4, 4, 10, 1, norm_params=2), LayerShape(4, 2, 4, 4, 10, 3, norm_params=2)
    plan = plan_for(Architecture("llama", 8, 500, (cheap, dear)), 28, epsilon=0.5)
    assert plan.removed_layers == (0,)
    assert plan.gap_reason == "smaller than the smallest step left (a channel of 3 parameters)"


def test_a_70b_shape_is_planned_to_the_last_channel() -> None:
    # 80 layers, 8 KV groups and 28,672 channels each: 2.3 million groups.
    shape = LayerShape(64, 8, 128, 28672, 18 * 8192 * 128, 3 * 8192, norm_params=2 * 8192)
    model = Architecture("llama", 8192, 70_553_706_496, (shape,) * 80)
    order = np.random.default_rng(0).permutation(len(model.groups))
    plan = plan_removal(model, order, ratio=0.2, ratio_of="total", limits=Limits())
    assert len(model.groups) == 80 * (8 + 28672)
    assert 0 <= plan.budget_gap_params < 3 * 8192
    assert int(plan.groups.cost[~plan.keep].sum()) == plan.removed_params
