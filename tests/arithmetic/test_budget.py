"""Budgets and limits by hand, and the message for a ratio that they do not reach."""

import math
import re

import numpy as np
import pytest
from tables import architecture

from core.errors import BudgetError, UsageError
from core.groups import ATTENTION, Architecture, LayerShape
from pruning.planning import Limits, budget_params, frozen_groups, plan_removal, removable_params


@pytest.mark.parametrize(
    ("ratio", "whole", "expected"),
    [
        (0.29, 100, 29),
        (0.57, 100, 57),
        (0.1, 30, 3),
        (0.3, 7_000_000_010, 2_100_000_003),
        (1e-05, 100_000, 1),
    ],
)
def test_budget_is_exact_in_the_decimal_typed(ratio: float, whole: int, expected: int) -> None:
    # In floats 0.29 * 100 = 28.999999999999996 and 0.57 * 100 = 56.99999999999999.
    model = Architecture("llama", 8, whole, (LayerShape(6, 3, 1, whole - 3, 1, 1),))
    assert budget_params(model, ratio, "prunable", Limits()) == expected


def test_budget_of_total_and_of_prunable() -> None:
    model = architecture((2, 10), rest=150)  # groups 2·10 + 10·3 = 50, norms 2, total 202
    assert budget_params(model, 0.1, "prunable", Limits()) == 5
    assert budget_params(model, 0.1, "total", Limits()) == 20


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        (Limits(), 2 * (30 + 27)),  # a KV group and a channel stay in each of two layers of 40 + 30
        (Limits(freeze_first=1), 57),
        (Limits(freeze_last=1), 57),
        (Limits(freeze_first=1, freeze_last=1), 0),
        (Limits(freeze_first=9), 0),
        (Limits(min_kv_heads=3), 2 * (10 + 27)),
        (Limits(min_kv_heads=9), 2 * 27),
        (Limits(max_block_ratio=0.5), 2 * (20 + 15)),
        (Limits(max_block_ratio=0.29), 2 * (10 + 6)),  # ⌊1.16⌋ KV groups, ⌊2.9⌋ channels
        (Limits(round_to=4), 2 * (30 + 18)),  # widths 10, 8, 4
        (Limits(round_to=4, max_block_ratio=0.5), 2 * (20 + 6)),  # 5 channels may go, but only 8 is in reach
        (Limits(round_to=5), 2 * (30 + 15)),
        (Limits(round_to=8), 2 * (30 + 6)),
        (Limits(round_to=10), 2 * 30),
        (Limits(round_to=64), 2 * 30),
    ],
)
def test_removable_params_by_hand(limits: Limits, expected: int) -> None:
    assert removable_params(architecture((4, 10), (4, 10)), limits) == expected


def test_frozen_groups_are_those_that_can_never_be_removed() -> None:
    model = architecture((2, 3), (1, 3), (2, 2))
    assert frozen_groups(model, Limits()).tolist() == [False] * 5 + [True] + [False] * 3 + [False] * 4
    assert frozen_groups(model, Limits(freeze_first=1)).tolist() == [True] * 6 + [False] * 7
    assert frozen_groups(model, Limits(freeze_last=2)).tolist() == [False] * 5 + [True] * 8
    assert frozen_groups(model, Limits(round_to=2)).tolist() == [False] * 5 + [True] + [False] * 5 + [True] * 2
    assert frozen_groups(model, Limits(min_kv_heads=2))[model.groups.kind == ATTENTION].all()


# A ratio out of reach


def advised(message: str) -> list[tuple[float, str]]:
    """The flags a message names: (ratio, ratio_of)."""
    advice = message.split("; ")[1]
    return [(float(ratio), of) for ratio, of in re.findall(r"--pruning_ratio (\S+) --ratio_of (\w+)", advice)]


@pytest.mark.parametrize("ratio_of", ["total", "prunable"])
@pytest.mark.parametrize("limits", [Limits(), Limits(freeze_first=1, round_to=4, min_kv_heads=2, max_block_ratio=0.7)])
def test_a_ratio_out_of_reach_names_the_largest_and_commands_that_work(ratio_of: str, limits: Limits) -> None:
    model = architecture((4, 10), (4, 10), (4, 10), rest=777)
    with pytest.raises(BudgetError) as caught:
        budget_params(model, 0.9, ratio_of, limits)
    message = str(caught.value)
    assert "\n" not in message
    assert "--pruning_ratio 0.9" in message
    ratio, of = advised(message)[0]
    assert of == ratio_of
    assert f"the largest ratio possible is {ratio}" in message
    order = np.arange(len(model.groups))
    for command in advised(message):
        plan = plan_removal(model, order, ratio=command[0], ratio_of=command[1], limits=limits)
        assert plan.removed_params > 0
    with pytest.raises(BudgetError):  # the next of 4 decimals no longer works
        budget_params(model, round(ratio + 1e-4, 4), of, limits)


def test_mostly_embeddings_are_told_of_ratio_of_prunable() -> None:
    model = architecture((4, 10), (4, 10), rest=856)  # groups 140 of 1000 parameters, 114 of them removable
    with pytest.raises(BudgetError) as caught:
        budget_params(model, 0.5, "total", Limits())
    assert str(caught.value) == (
        "--pruning_ratio 0.5 of total parameters is 500, but floors, caps and frozen layers allow at most 114 "
        "to be removed: the largest ratio possible is 0.1149; use --pruning_ratio 0.1149 --ratio_of total, "
        "or --pruning_ratio 0.5 --ratio_of prunable"
    )
    assert [budget_params(model, *command, Limits()) for command in advised(str(caught.value))] == [114, 70]


def test_a_tiny_share_is_named_with_as_many_decimals_as_it_needs() -> None:
    # One channel of 3 may go, of 1,000,056 parameters: 0.0000 would be no ratio, 0.0000029 no channel.
    model = architecture((1, 2), rest=1_000_038)
    with pytest.raises(BudgetError) as caught:
        budget_params(model, 0.2, "total", Limits())
    ((ratio, of), *others) = advised(str(caught.value))
    assert "e-" not in str(caught.value)
    assert plan_removal(model, np.arange(3), ratio=ratio, ratio_of=of, limits=Limits()).removed_params == 3
    assert others == [(0.2, "prunable")]  # 3 of the 16 parameters of its groups
    with pytest.raises(BudgetError) as caught:
        budget_params(model, 0.1, "total", Limits())
    assert len(advised(str(caught.value))) == 1  # --ratio_of prunable would pass, but 1 parameter is no channel


def test_nothing_removable_is_said_so() -> None:
    with pytest.raises(BudgetError, match=r"allow none to be removed: freeze fewer layers"):
        budget_params(architecture((4, 10)), 0.2, "total", Limits(freeze_first=1))


@pytest.mark.parametrize("ratio", [0.0, 1.0, -0.1, 1.5, math.nan, math.inf])
def test_ratio_outside_0_and_1(ratio: float) -> None:
    with pytest.raises(UsageError, match=r"--pruning_ratio .*: needs a number above 0, below 1"):
        budget_params(architecture((4, 10)), ratio, "total", Limits())


def test_unknown_ratio_of() -> None:
    with pytest.raises(UsageError, match=r"--ratio_of layers: needs one of total, prunable"):
        budget_params(architecture((4, 10)), 0.2, "layers", Limits())


@pytest.mark.parametrize(
    ("flag", "limits"),
    [
        ("--freeze_first_n_layers -1", {"freeze_first": -1}),
        ("--freeze_last_n_layers -1", {"freeze_last": -1}),
        ("--max_block_ratio 0.0", {"max_block_ratio": 0.0}),
        ("--max_block_ratio 1.1", {"max_block_ratio": 1.1}),
        ("--max_block_ratio nan", {"max_block_ratio": math.nan}),
        ("--min_kv_heads 0", {"min_kv_heads": 0}),
        ("--round_to 0", {"round_to": 0}),
        ("--epsilon -0.1", {"epsilon": -0.1}),
        ("--epsilon 1.0", {"epsilon": 1.0}),
    ],
)
def test_limits_that_cannot_work(flag: str, limits: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=f"^{flag}: needs a number"):
        Limits(**limits)  # type: ignore[arg-type]
