"""The budget by measured loss: levels, hulls and rankings by hand, and the search within its time box."""

import json
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tables import architecture
from tiny_models import build, token_ids, windows_of
from workspace import Workspace, call, observe

from cli.options import parse_options
from core.groups import ATTENTION, MLP
from importance.block_losses import TimeUpError, measure_block_losses
from models.architecture import architecture_of
from models.family_table import family_of
from pruning.allocation import LEVELS, by_marginal_loss, groups_at, lower_hull
from pruning.planning import Limits, plan_removal
from run.option_rules import idle_notes


def test_levels_are_whole_steps_below_the_share() -> None:
    # K = 3 may lose 2, F = 10 in steps of 4 (first 2): removable 2 + 4 = 6; half of 6 is 3, whole steps below: 2.
    model, limits = architecture((3, 10)), Limits(round_to=4)
    assert groups_at(model, limits, 1.0).tolist() == [2, 6]
    assert groups_at(model, limits, 0.5).tolist() == [1, 2]
    assert groups_at(model, limits, 0.25).tolist() == [0, 0]
    assert sorted(LEVELS) == [n / 8 for n in range(1, 9)]


def test_the_hull_drops_what_lies_above() -> None:
    # (1, 5) lies above the line from (0, 0) to (2, 4), and (3, 9) above that from (2, 4) to (4, 10)? 7 < 9: yes.
    at, height = lower_hull(np.array([0.0, 1, 2, 3, 4]), np.array([0.0, 5, 4, 9, 10]))
    assert (at.tolist(), height.tolist()) == ([0, 2, 4], [0, 4, 10])
    # Removing two helps: the hull falls, then rises.
    at, height = lower_hull(np.array([0.0, 1, 2, 4]), np.array([0.0, 1, -2, 4]))
    assert (at.tolist(), height.tolist()) == ([0, 2, 4], [0, -2, 4])


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(-5, 5), min_size=1, max_size=9))
def test_the_hull_is_convex_and_never_above_a_point(losses: list[float]) -> None:
    params, found = np.arange(len(losses) + 1.0), np.array([0.0, *losses])
    at, height = lower_hull(params, found)
    assert (np.diff(np.diff(height) / np.diff(at)) > 0).all()
    assert (np.interp(params, at, height) <= found + 1e-9).all()
    assert set(at) <= set(params)


def test_marginal_loss_moves_the_budget() -> None:
    """Two layers of (1, 5), channels of 3 parameters; scores would take layer 0's channels first.

    Layer 0: 2 channels cost 0.6 (slope 0.1), 4 cost 1.8 (0.2). Layer 1: 2 cost 0.06 (0.01), 4 cost 1.86 (0.3).
    So layer 1 gives two, then layer 0 four, then layer 1 the rest; what no curve reaches comes last, by score.
    """
    model = architecture((1, 5), (1, 5))  # rows 0 KV, 1-5 channels, 6 KV, 7-11 channels
    order = np.arange(12)
    removed = np.array([[0, 4, 0, 4], [0, 2, 0, 2]])
    losses = np.array([[0, 1.8, 0, 1.86], [0, 0.6, 0, 0.06]])
    ranked, slope = by_marginal_loss(model, order, Limits(), removed, losses)
    assert slope[ranked[:8]].tolist() == pytest.approx([0.01, 0.01, 0.1, 0.1, 0.2, 0.2, 0.3, 0.3])
    assert ranked.tolist() == [7, 8, 1, 2, 3, 4, 9, 10, 0, 5, 6, 11]
    plan = plan_removal(model, ranked, ratio=15 / model.prunable_params + 1e-9, ratio_of="prunable", limits=Limits())
    assert [np.flatnonzero(~plan.keep[plan.groups.rows(layer, MLP)]).tolist() for layer in (0, 1)] == [
        [0, 1, 2],
        [0, 1],
    ]


def test_order_inside_a_block_and_protection_stay() -> None:
    model = architecture((2, 6), (2, 6))
    rng = np.random.default_rng(0)
    order, limits = rng.permutation(16), Limits(protected=(3,))
    removed = np.stack([groups_at(model, limits, share) for share in LEVELS[:4]])
    ranked, _ = by_marginal_loss(model, order, limits, removed, rng.random((4, 4)))
    assert sorted(ranked.tolist()) == list(range(16))
    for block in range(4):
        mine = [row for row in order.tolist() if model.groups.block[row] == block and row != 3]
        assert [row for row in ranked.tolist() if row in mine] == mine
    assert plan_removal(model, ranked, ratio=0.5, ratio_of="prunable", limits=limits).keep[3]


def test_greedy_by_slope_is_the_best_allocation_of_convex_curves() -> None:
    """Against every possible allocation of 6 channels over three blocks with convex curves."""
    rng = np.random.default_rng(1)
    model = architecture((1, 7), (1, 7), (1, 7))
    for _ in range(20):
        curves = np.cumsum(np.sort(rng.random((3, 6)), axis=1), axis=1)  # marginal losses rise
        removed = np.zeros((6, 6), dtype=np.int64)
        losses = np.zeros((6, 6))
        for block in range(3):
            removed[:, 2 * block + 1], losses[:, 2 * block + 1] = np.arange(1, 7), curves[block]
        ranked, _ = by_marginal_loss(model, np.arange(24), Limits(), removed, losses)
        plan = plan_removal(
            model, ranked, ratio=18 / model.prunable_params + 1e-9, ratio_of="prunable", limits=Limits()
        )
        gone = [int((~plan.keep[plan.groups.rows(layer, MLP)]).sum()) for layer in range(3)]
        assert sum(gone) == 6

        def cost(counts: Any, curves: np.ndarray = curves) -> float:
            return sum(float(curves[b][n - 1]) if n else 0.0 for b, n in enumerate(counts))

        every = [(a, b, 6 - a - b) for a in range(7) for b in range(7 - a)]
        assert cost(gone) == pytest.approx(min(cost(counts) for counts in every))


def test_a_measurement_out_of_time_leaves_nothing() -> None:
    model, family = build("llama"), family_of("llama")
    shapes, windows = architecture_of(model, family), windows_of(token_ids())
    keep = np.ones(len(shapes.groups), dtype=bool)
    keep[shapes.groups.rows(0, ATTENTION)] = False
    with pytest.raises(TimeUpError):
        measure_block_losses(model, family, shapes, windows, keep, is_late=lambda: True)
    assert not any(module._forward_pre_hooks or "forward" in module.__dict__ for module in model.modules())


# Runs


def test_a_complete_search_is_deterministic_and_loses_to_nothing(workspace: Workspace) -> None:
    arguments = ["--allocate", "searched", "--dry_run", "--run_evaluation", "none"]
    runs = [workspace.run(f"searched-{i}", *arguments) for i in range(2)]
    assert observe(runs[0]) == observe(runs[1])
    first, second = ((run / "analysis" / "allocation.json").read_bytes() for run in runs)
    assert first == second
    record = json.loads(first)
    assert record["levels_complete"] == len(LEVELS)
    lower = record["searched_minus_global"]["mean"] < 0
    total = json.loads((runs[0] / "analysis" / "pruning_plan.json").read_text())["base"]["total_params"]
    as_much = record["global"]["removed_params"] - record["searched"]["removed_params"] <= total / 1000
    assert record["taken"] == ("searched" if lower and as_much else "global")
    for curve in record["curves"]:
        assert curve["groups_removed"] == sorted(curve["groups_removed"])
        assert len(curve["nats_per_token"]) == len(LEVELS)


@pytest.mark.parametrize("wins", [True, False])
def test_the_searched_plan_is_taken_only_if_it_loses_less(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, wins: bool
) -> None:
    from run.refine import driver

    monkeypatch.setattr(driver, "is_lower", lambda *_losses: wins)
    monkeypatch.setattr(driver, "removes_as_much", lambda *_plans: True)
    run = workspace.run(f"forced-{wins}", "--allocate", "searched", "--dry_run", "--run_evaluation", "none")
    plain = observe(workspace.run(f"plain-{wins}", "--dry_run", "--run_evaluation", "none"))
    assert (observe(run)["plan"] != plain["plan"]) == wins
    groups = pq.read_table(run / "analysis" / "groups.parquet").to_pylist()
    for block in {(row["layer"], row["kind"]) for row in groups} if wins else ():
        # What is called the score is what was ranked: nothing that stays lies below what its block lost.
        rows = [row for row in groups if (row["layer"], row["kind"]) == block]
        gone, kept = ([row["score"] for row in rows if row["kept"] == side] for side in (False, True))
        assert max(gone, default=-np.inf) <= min(kept, default=np.inf)


def test_no_time_no_search(workspace: Workspace) -> None:
    arguments = ["--allocate", "searched", "--minutes", "1e-9", "--dry_run", "--run_evaluation", "none"]
    run = workspace.run("hurried", *arguments)
    record = json.loads((run / "analysis" / "allocation.json").read_text())
    assert (record["levels_complete"], record["searched"], record["taken"]) == (0, None, "global")
    assert observe(run)["plan"] == observe(workspace.run("plain", "--dry_run", "--run_evaluation", "none"))["plan"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--allocate", "best"], ["best", "global", "searched"]),
        (["--minutes", "0"], ["'0'", "(0, inf)"]),
        (["--allocate", "searched", "--target", "stock"], ["--allocate searched", "--target stock", "leave one out"]),
        (["--allocate", "searched", "--epsilon", "0.2"], ["--epsilon 0.2", "leave one out"]),
        (["--allocate", "searched", "--protect", "measured"], ["--protect measured", "leave one out"]),
    ],
)
def test_what_cannot_work_is_one_line(workspace: Workspace, arguments: list[str], words: list[str]) -> None:
    code, _, error = call([*workspace.base_arguments(), *arguments, "--output", str(workspace.root / "never")])
    assert (code, len(error.splitlines())) == (2, 1)
    assert [word for word in words if word not in error] == []


def test_minutes_need_a_search() -> None:
    command = parse_options(["--base_model", "demo", "--minutes", "3"])
    assert idle_notes(command.settings, command.given) == ["--minutes needs --allocate searched"]
