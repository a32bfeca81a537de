"""Shapes a runtime accepts: the limits each target sets, by hand, and uniform plans against every pair of widths."""

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tables import architecture

from core.errors import BudgetError, PlanError, UsageError
from core.groups import ATTENTION, MLP, Architecture, LayerShape
from core.plan import PruningPlan
from pruning.limits import Limits, block_steps
from pruning.planning import budget_params, frozen_groups, plan_removal, removable_params
from pruning.targets import TARGETS, check_plan, default_round_to, explain, limits_for
from pruning.uniform import plan_uniform

WIDE = architecture((8, 2048), (8, 2048))


def uniform(
    model: Architecture, params: int, scores: list[float], order: list[int] | None = None, **limits: Any
) -> PruningPlan:
    """The uniform plan that may remove ``params`` parameters; the order is that of the scores unless given."""
    s = np.array(scores, float)
    rank = np.argsort(s, kind="stable") if order is None else np.array(order)
    ratio = params / model.prunable_params + 1e-9
    return plan_uniform(model, s, rank, ratio=ratio, ratio_of="prunable", limits=Limits(**limits))


def widths(plan: PruningPlan) -> list[tuple[int, int]]:
    return [(len(plan.kept(layer, ATTENTION)), len(plan.kept(layer, MLP))) for layer in plan.remaining_layers]


# Steps of several KV groups, by hand


def test_kv_groups_go_in_steps() -> None:
    # Width 6 in steps of 4: 2 down to 4, which stay. Width 9 in steps of 4: 1, then 4, down to 4.
    steps = block_steps(architecture((6, 3), (9, 3), (3, 3)), Limits(kv_round_to=4))
    assert steps.first[::2].tolist() == [2, 1, 3]
    assert steps.step[::2].tolist() == [4, 4, 4]
    assert steps.removable[::2].tolist() == [2, 5, 0]  # 3 heads are no more than a step: they stay
    assert block_steps(architecture((8, 3)), Limits(kv_round_to=4, min_kv_heads=5)).removable[0] == 0
    assert block_steps(architecture((8, 3)), Limits(kv_round_to=2, max_block_ratio=0.7)).removable[0] == 4


def test_a_step_of_kv_groups_waits_for_its_last_and_gives_the_gap_its_name() -> None:
    # Rows 0-3 KV, 4-5 channels | 6-9 KV, 10-11 channels. Layer 0's pair ends at row 1, behind layer 1's pair.
    model = architecture((4, 2), (4, 2))
    order = np.array([0, 6, 7, 1, 8, 9, 2, 3, 4, 5, 10, 11])
    plan = plan_removal(model, order, ratio=20 / 92 + 1e-9, ratio_of="prunable", limits=Limits(kv_round_to=2))
    assert [plan.kept(layer, ATTENTION).tolist() for layer in (0, 1)] == [[0, 1, 2, 3], [2, 3]]
    rest = plan_removal(
        model, order, ratio=27 / 92 + 1e-9, ratio_of="prunable", limits=Limits(kv_round_to=2, round_to=2)
    )
    assert rest.gap_reason == "smaller than the smallest step left (2 KV groups of 20 parameters)"


def test_limits_that_no_target_narrows_are_the_users_own() -> None:
    limits = Limits(freeze_first=1, round_to=3, epsilon=0.2)
    assert limits_for("hf", WIDE, limits) == limits
    assert limits_for("vllm", WIDE, limits) == limits
    assert Limits() == Limits(kv_round_to=1, uniform=False, kv_widths=())


# Uniform plans by hand. A KV group costs 10 and a channel 3: in two layers, 20 and 6.


def test_the_pair_that_loses_least_score_wins() -> None:
    # Rows 0-1 KV, 2-9 channels | 10-11 KV, 12-19 channels. Budget 24: k = 2 takes 4 channels (24); k = 1 takes none
    # (20, gap 4). Channels at 1 a parameter lose 4·2·3·1 = 24; KV groups at 1.3 lose 2·10·1.3 = 26, at 1.1 only 22.
    model = architecture((2, 8), (2, 8))
    layer = [1.3, 9.0, *[1.0] * 8]
    plan = uniform(model, 24, layer + layer)
    assert widths(plan) == [(2, 4), (2, 4)]
    assert (plan.removed_params, plan.budget_gap_params, plan.gap_reason) == (24, 0, "")
    assert plan.kept(0, MLP).tolist() == [4, 5, 6, 7]
    layer[0] = 1.1
    plan = uniform(model, 24, layer + layer)
    assert widths(plan) == [(1, 8), (1, 8)]
    assert plan.kept(1, ATTENTION).tolist() == [1]
    assert plan.gap_reason == "smaller than the smallest step left (a channel in every layer, 6 parameters)"


def test_the_lowest_ranked_of_each_layer_go() -> None:
    model = architecture((1, 4), (1, 4))
    plan = uniform(model, 12, [9, 5, 1, 4, 2, 9, 1, 7, 8, 3])
    assert [plan.kept(layer, MLP).tolist() for layer in (0, 1)] == [[0, 2], [1, 2]]


def test_rounding_floors_and_caps_hold_in_uniform_plans() -> None:
    model = architecture((4, 10), (4, 10))
    flat = [1.0] * 28
    assert widths(uniform(model, 36, flat, round_to=4, min_kv_heads=4)) == [(4, 4)] * 2  # 6 channels in both layers
    plan = uniform(model, 35, flat, round_to=4, min_kv_heads=4)
    assert widths(plan) == [(4, 8)] * 2
    assert plan.gap_reason == "smaller than the smallest step left (4 channels in every layer, 24 parameters)"
    with pytest.raises(
        BudgetError, match=r"allow at most 32 to be removed: the largest ratio possible is .*; use --pruning_ratio"
    ):
        uniform(model, 60, flat, round_to=4, min_kv_heads=3, max_block_ratio=0.5, kv_widths=(2, 3))  # (3, 8): 20 + 12
    assert widths(uniform(model, 70, [*[0.0] * 4, *[1.0] * 10] * 2, kv_widths=(2, 4))) == [(2, 5)] * 2


def test_a_ratio_below_one_step_in_all_layers_keeps_everything() -> None:
    plan = uniform(architecture((2, 4), (2, 4)), 5, [1.0] * 12)
    assert plan.keep.all()
    assert plan.gap_reason == "smaller than the smallest step left (a channel in every layer, 6 parameters)"


def test_layers_of_different_widths_meet_at_the_narrowest() -> None:
    # (4, 6) and (2, 8): 20 of KV groups and 6 of channels must go; 6 more take a channel each.
    model = architecture((4, 6), (2, 8))
    plan = uniform(model, 32, list(range(20)))
    assert widths(plan) == [(2, 5), (2, 5)]
    assert plan.kept(0, ATTENTION).tolist() == [2, 3]
    with pytest.raises(BudgetError, match=r"is 25, but equal widths in all layers take 26: use --pruning_ratio 0.255 "):
        uniform(model, 25, list(range(20)))
    with pytest.raises(UsageError, match="no MLP width is possible in all layers, which have 6 to 9"):
        uniform(architecture((2, 6), (2, 9)), 20, [0.0] * 19, max_block_ratio=0.2)


def test_what_never_goes_in_a_uniform_plan_is_frozen() -> None:
    model = architecture((4, 5), (4, 5))
    frozen = frozen_groups(model, Limits(uniform=True, kv_widths=(4,), round_to=2))
    assert frozen.tolist() == [True] * 4 + [False] * 5 + [True] * 4 + [False] * 5
    assert removable_params(model, Limits(uniform=True, kv_widths=(3, 4), round_to=2)) == 20 + 18  # widths 3 and 2


@pytest.mark.parametrize("flags", [{"freeze_first": 1}, {"freeze_last": 2}, {"epsilon": 0.1}])
def test_frozen_layers_and_epsilon_have_no_uniform_plan(flags: dict[str, Any]) -> None:
    named = "--epsilon" if "epsilon" in flags else "--freeze_first_n_layers and --freeze_last_n_layers"
    with pytest.raises(UsageError, match=named):
        limits_for("stock", WIDE, Limits(**flags))


# Uniform plans against all pairs


@st.composite
def cases(draw: st.DrawFn) -> tuple[Architecture, list[float], list[int], Limits, float]:
    shapes, same = [], draw(st.booleans())
    for layer in range(draw(st.integers(1, 3))):
        if layer == 0 or not same:
            heads, channels = draw(st.integers(1, 5)), draw(st.integers(1, 9))
            kv, channel, extra = draw(st.integers(1, 30)), draw(st.integers(1, 9)), draw(st.integers(0, 3))
        shapes.append(LayerShape(2 * heads, heads, 4, channels, kv, channel, extra, extra, 2))
    model = Architecture("llama", 8, draw(st.integers(0, 90)) + sum(s.total_params for s in shapes), tuple(shapes))
    limits = Limits(
        max_block_ratio=draw(st.sampled_from([1.0, 1.0, 0.7, 0.5])),
        min_kv_heads=draw(st.sampled_from([1, 1, 2, 8])),
        round_to=draw(st.sampled_from([1, 1, 2, 3, 4])),
        kv_round_to=draw(st.sampled_from([1, 1, 2])),
        kv_widths=draw(st.sampled_from([(), (), (1, 2, 4), (3,)])),
        uniform=True,
    )
    # Whole numbers, so that sums are exact in any order; the ranking need not follow them inside a block.
    scores = [float(draw(st.integers(-9, 9))) for _ in range(len(model.groups))]
    return model, scores, draw(st.permutations(range(len(model.groups)))), limits, draw(st.floats(0.01, 0.99))


def legal_widths(model: Architecture, limits: Limits, kind: int) -> list[int]:
    """The definition, width by width."""
    step, floor = ((limits.kv_round_to, limits.min_kv_heads), (limits.round_to, 1))[kind]
    all_widths = [shape.widths[kind] for shape in model.layers]

    def reaches(width: int, kept: int) -> bool:
        capped = width - kept > Fraction(str(limits.max_block_ratio)) * width
        return kept == width or (0 < kept < width and kept % step == 0 and kept >= min(floor, width) and not capped)

    common = [kept for kept in range(1, min(all_widths) + 1) if all(reaches(width, kept) for width in all_widths)]
    return [kept for kept in common if kind == MLP or not limits.kv_widths or kept in limits.kv_widths]


@settings(max_examples=300, deadline=None)
@given(case=cases(), ratio_of=st.sampled_from(["total", "prunable"]))
def test_a_uniform_plan_is_the_best_of_all_pairs(
    case: tuple[Architecture, list[float], list[int], Limits, float], ratio_of: str
) -> None:
    model, scores, order, limits, ratio = case
    groups, whole = model.groups, model.total_params if ratio_of == "total" else model.prunable_params
    budget = int(Fraction(repr(ratio)) * whole)
    kv_widths, mlp_widths = (legal_widths(model, limits, kind) for kind in (ATTENTION, MLP))

    def plan() -> PruningPlan:
        return plan_uniform(model, np.array(scores), np.array(order), ratio=ratio, ratio_of=ratio_of, limits=limits)

    if not kv_widths or not mlp_widths:
        with pytest.raises(UsageError, match="is possible in all layers"):
            plan()
        return

    def removed(pair: tuple[int, int]) -> list[int]:
        rows = []
        for block in range(2 * model.num_layers):
            inside = [row for row in order if groups.block[row] == block]
            rows += inside[: len(inside) - pair[block % 2]]
        return rows

    def price(pair: tuple[int, int]) -> int:
        return sum(int(groups.cost[row]) for row in removed(pair))

    pairs = {(kv, channels): price((kv, channels)) for kv in kv_widths for channels in mlp_widths}
    assert removable_params(model, limits) == max(pairs.values())
    if not min(pairs.values()) <= budget <= max(pairs.values()):
        with pytest.raises(BudgetError):
            plan()
        return

    def steps(pair: tuple[int, int]) -> list[int]:
        """Prices of the pairs one step further down."""
        kv, channels = kv_widths[kv_widths.index(pair[0]) - 1], mlp_widths[mlp_widths.index(pair[1]) - 1]
        further = [(kv, pair[1])] * (kv < pair[0]) + [(pair[0], channels)] * (channels < pair[1])
        return [pairs[other] for other in further]

    going = [scores[row] for row in removed((min(kv_widths), min(mlp_widths)))]
    low = min([0.0, *(scores[row] for row in np.flatnonzero(~frozen_groups(model, limits)))])
    assert low <= min([0.0, *going])

    def lost(pair: tuple[int, int]) -> float:
        return sum((scores[row] - low) * groups.cost[row] for row in removed(pair))

    spending = [
        pair for pair, spent in pairs.items() if spent <= budget and all(other > budget for other in steps(pair))
    ]
    best = min(spending, key=lambda pair: (lost(pair), -pairs[pair], -pair[0]))
    found = plan()
    assert widths(found) == [best] * model.num_layers
    assert set(np.flatnonzero(~found.keep).tolist()) == set(removed(best))
    assert found.removed_params == pairs[best] == model.total_params - found.pruned_architecture.total_params
    assert (found.budget_params, found.gap_reason == "") == (budget, pairs[best] == budget)
    if found.gap_reason:
        step = min(other - pairs[best] for other in steps(best))
        assert found.budget_gap_params < step
        assert f"{step} parameters" in found.gap_reason


def test_a_70b_shape_gets_a_uniform_plan() -> None:
    shape = LayerShape(64, 8, 128, 28672, 18 * 8192 * 128, 3 * 8192, norm_params=2 * 8192)
    model = Architecture("llama", 8192, 70_553_706_496, (shape,) * 80)
    scores = np.random.default_rng(0).random(len(model.groups))
    limits = limits_for("stock", model, Limits(round_to=default_round_to(model)), tensor_parallel=4)
    plan = plan_uniform(model, scores, np.argsort(scores), ratio=0.2, ratio_of="total", limits=limits)
    assert 0 <= plan.budget_gap_params < 80 * 64 * 3 * 8192
    (kv, channels), *rest = set(widths(plan))
    assert not rest
    assert kv in (4, 8)
    assert channels % 64 == 0
    assert int(plan.groups.cost[~plan.keep].sum()) == plan.removed_params


# Targets


def test_round_to_by_default() -> None:
    assert [default_round_to(architecture((1, width))) for width in (1, 1023, 1024, 14336)] == [1, 1, 64, 64]


def test_vllm_splits_every_layer_evenly() -> None:
    limits = limits_for("vllm", WIDE, Limits(round_to=3), tensor_parallel=4)
    assert (limits.kv_round_to, limits.round_to, limits.uniform) == (4, 12, False)
    order = np.random.default_rng(0).permutation(len(WIDE.groups))
    plan = plan_removal(WIDE, order, ratio=0.6, ratio_of="prunable", limits=limits)
    assert all(kv % 4 == 0 and channels % 4 == 0 for kv, channels in widths(plan))
    check_plan("vllm", plan, tensor_parallel=4)


def test_a_tensor_parallel_size_that_does_not_fit_names_those_that_do() -> None:
    with pytest.raises(
        UsageError,
        match=r"^--tensor_parallel 3 does not divide the 8 KV groups of a layer; possible values: 1, 2, 4, 8$",
    ):
        limits_for("vllm", WIDE, Limits(), tensor_parallel=3)
    with pytest.raises(UsageError, match=r"does not divide the 6 channels of a layer; possible values: 1, 2$"):
        limits_for("vllm", architecture((4, 8), (4, 6)), Limits(), tensor_parallel=4)
    with pytest.raises(UsageError, match="--tensor_parallel 0: needs a number of at least 1"):
        limits_for("vllm", WIDE, Limits(), tensor_parallel=0)
    for target in ("hf", "llama.cpp"):
        with pytest.raises(
            UsageError, match=f"--tensor_parallel 2 has an effect only with --target vllm or stock, not with {target}"
        ):
            limits_for(target, WIDE, Limits(), tensor_parallel=2)
    with pytest.raises(UsageError, match=r"--target onnx: needs one of hf, stock, vllm, llama\.cpp"):
        limits_for("onnx", WIDE, Limits())


def test_llama_cpp_rows_fill_blocks_of_32() -> None:
    # A KV group has 2 query heads of 4: 8 columns of o_proj, so 4 of them make a block.
    limits = limits_for("llama.cpp", WIDE, Limits(round_to=48))
    assert (limits.kv_round_to, limits.round_to) == (4, 96)
    usual = Architecture("llama", 4096, 10**9, (LayerShape(32, 8, 128, 14336, 5_242_880, 12_288),))
    assert limits_for("llama.cpp", usual, Limits(round_to=64)) == Limits(round_to=64)
    assert limits_for("llama.cpp", usual, Limits()) == Limits(round_to=32)
    with pytest.raises(UsageError, match=r"for llama, mistral, qwen2, qwen3 only, not for phi3; use --target stock"):
        limits_for("llama.cpp", Architecture("phi3", 8, 10**9, usual.layers), Limits())


def test_every_restriction_is_one_line() -> None:
    said = {target: explain(target, WIDE, limits_for(target, WIDE, Limits())) for target in TARGETS}
    assert {target: len(lines) for target, lines in said.items()} == {"hf": 0, "stock": 1, "vllm": 1, "llama.cpp": 4}
    assert not any("\n" in line for lines in said.values() for line in lines)
    assert "32" in said["llama.cpp"][1]
    assert "--round_to 256" in said["llama.cpp"][-1]
    split = explain("vllm", WIDE, limits_for("vllm", WIDE, Limits(), tensor_parallel=4))
    assert split[1] == "vllm: KV groups and MLP widths are multiples of 4, as --tensor_parallel splits them"
    some = limits_for("stock", WIDE, Limits(), kv_widths=(8, 2))
    assert (
        explain("stock", WIDE, some)[1]
        == "stock: KV groups per layer are one of 2, 8, the only ones that class accepts"
    )
    assert len(explain("llama.cpp", WIDE, limits_for("llama.cpp", WIDE, Limits(round_to=256)))) == 3
    qwen2 = Architecture("qwen2", 8, 10**9, WIDE.layers)
    assert explain("stock", qwen2, limits_for("stock", qwen2, Limits()))[1].endswith("--min_kv_heads 8 keeps all heads")


def test_a_plan_made_elsewhere_is_checked() -> None:
    order = np.arange(len(WIDE.groups))
    plan = plan_removal(WIDE, order, ratio=0.3, ratio_of="prunable", limits=Limits(min_kv_heads=8, max_block_ratio=0.9))
    first, second = widths(plan)
    assert first != second
    check_plan("hf", plan)
    with pytest.raises(PlanError, match=r"^--plan keeps 8 KV groups and \d+ channels in layer 0, but .* in layer 1"):
        check_plan("stock", plan)
    odd = plan_removal(WIDE, order, ratio=10 / WIDE.prunable_params, ratio_of="prunable", limits=Limits())
    assert widths(odd) == [(7, 2048), (8, 2048)]
    with pytest.raises(PlanError, match=r"keeps 7 KV groups in layer 0, not a multiple of 2, which --target vllm"):
        check_plan("vllm", odd, tensor_parallel=2)
    same = uniform(WIDE, 20, [0.0] * 8 + [1.0] * 2048 + [0.0] * 8 + [1.0] * 2048)
    assert widths(same) == [(7, 2048)] * 2
    check_plan("stock", same)
    with pytest.raises(PlanError, match="keeps 7 KV groups and 2048 channels per layer; KV groups can be 4, 8, which"):
        check_plan("stock", same, kv_widths=(4, 8))


def test_the_budget_is_checked_before_a_plan_is_made() -> None:
    limits = Limits(uniform=True, kv_widths=(8,), max_block_ratio=0.5)
    assert budget_params(WIDE, 0.4, "prunable", limits) > 0
    with pytest.raises(BudgetError, match="the largest ratio possible"):
        budget_params(WIDE, 0.5, "prunable", limits)
