"""Pruning in rounds: what went stays gone, importance is that of the model without it, the better plan is taken."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from tiny_models import build, random_plan, token_ids, windows_of
from workspace import Workspace, call, observe

from cli.options import parse_options
from importance.measure import measure_importance
from models.architecture import architecture_of, decoder_layers
from models.expected import without_removed_groups
from models.family_table import family_of
from models.narrow import empty_narrow_model
from pruning.surgery import operate
from run.option_rules import idle_notes


def record(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "analysis" / "rounds.json").read_text())
    return found


@pytest.mark.parametrize("criterion", ["taylor", "fisher", "wanda"])
def test_importance_of_a_silenced_model_is_that_of_the_pruned_one(criterion: str) -> None:
    """The re-measured importance of the groups that stay, without surgery and after it; the others' is 0."""
    model, family = build("llama"), family_of("llama")
    architecture = architecture_of(model, family)
    plan, windows = random_plan(architecture), windows_of(token_ids(rows=4, length=9))
    with without_removed_groups(decoder_layers(model, family), family, plan):
        silenced = measure_importance(model, family, architecture, windows, criterion=criterion).values
    smaller = operate(model, empty_narrow_model(model, family, plan), family, plan)
    cut = measure_importance(smaller, family, plan.pruned_architecture, windows, criterion=criterion).values
    np.testing.assert_allclose(silenced[plan.keep], cut, rtol=2e-3)
    assert not silenced[~plan.keep].any()


def test_what_went_in_a_round_stays_gone(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """The plans of all rounds, as they were made: each removes all that the one before it did."""
    from run import decision

    plans = []
    original = decision.plan_of

    def watching(*arguments: Any) -> Any:
        plans.append(original(*arguments))
        return plans[-1]

    monkeypatch.setattr(decision, "plan_of", watching)
    run = workspace.run("four", "--rounds", "4", "--enable_grad_norm", "--dry_run", "--run_evaluation", "none")
    rounds = plans[1:5]  # the first is made at once; those that follow are of halves of the importance
    for before, after in pairwise(rounds):
        assert not after.keep[~before.keep].any()
        assert after.removed_params > before.removed_params
    asked = [step["pruning_ratio"] for step in record(run)["steps"]]
    assert asked == [plan.requested_ratio for plan in rounds] == [0.1, 0.2, 0.4 * 3 / 4, 0.4]


def test_the_better_plan_is_taken_and_said(workspace: Workspace) -> None:
    runs = [workspace.run(f"three-{i}", "--rounds", "3", "--dry_run", "--run_evaluation", "none") for i in range(2)]
    assert observe(runs[0]) == observe(runs[1])
    found = record(runs[0])
    assert found == record(runs[1])
    better = found["rounds_minus_one_shot"]["mean"] < 0
    assert found["taken"] == ("rounds" if better else "one shot")
    once = observe(workspace.run("once", "--dry_run", "--run_evaluation", "none"))
    if not better:
        assert observe(runs[0])["plan"] == once["plan"]


@pytest.mark.parametrize("wins", [True, False])
def test_either_plan_can_win(workspace: Workspace, monkeypatch: pytest.MonkeyPatch, wins: bool) -> None:
    """Whatever the losses say: with rounds taken the kept groups, their scores and the plan belong together."""
    from run.refine import driver

    monkeypatch.setattr(driver, "is_lower", lambda *_losses: wins)
    monkeypatch.setattr(driver, "removes_as_much", lambda *_plans: True)
    run = workspace.run(f"forced-{wins}", "--rounds", "2", "--dry_run", "--run_evaluation", "none")
    once = observe(workspace.run(f"once-{wins}", "--dry_run", "--run_evaluation", "none"))
    assert record(run)["taken"] == ("rounds" if wins else "one shot")
    assert json.loads((run / "run.json").read_text())["facts"]["taken"] == {"rounds": record(run)["taken"]}
    assert (observe(run)["importance"] != once["importance"]) == wins
    assert wins or observe(run)["plan"] == once["plan"]
    rows = pq.read_table(run / "analysis" / "groups.parquet").to_pylist()
    layers = json.loads(observe(run)["plan"])["layers"]
    for layer, planned in enumerate(layers):
        for kind, kept in (("attention", "kept_kv_heads"), ("mlp", "kept_channels")):
            of_block = [row for row in rows if (row["layer"], row["kind"]) == (layer, kind)]
            assert [row["index"] for row in of_block if row["kept"]] == planned[kept]


def test_only_the_first_round_is_kept_between_runs(workspace: Workspace) -> None:
    arguments = ["--rounds", "2", "--dry_run", "--run_evaluation", "none", "--cache_dir", str(workspace.root / "kept")]
    runs = [workspace.run(f"cached-{i}", *arguments) for i in range(2)]
    outcomes = [json.loads((run / "run.json").read_text())["facts"]["cache"]["importance"] for run in runs]
    assert outcomes == ["miss", "hit"]
    assert len(list((workspace.root / "kept").glob("importance-*"))) == 1
    assert observe(runs[0]) == observe(runs[1])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--rounds", "0"], ["'0'", "[1, inf)"]),
        (["--rounds", "2", "--epsilon", "0.2"], ["--rounds 2", "--epsilon 0.2", "leave one out"]),
        (["--rounds", "2", "--target", "stock"], ["--rounds 2", "--target stock", "leave one out"]),
    ],
)
def test_what_cannot_work_is_one_line(workspace: Workspace, arguments: list[str], words: list[str]) -> None:
    code, _, error = call([*workspace.base_arguments(), *arguments, "--output", str(workspace.root / "never")])
    assert (code, len(error.splitlines())) == (2, 1)
    assert [word for word in words if word not in error] == []


def test_magnitude_has_no_rounds() -> None:
    command = parse_options(["--base_model", "demo", "--importance_method", "magnitude", "--rounds", "3"])
    notes = idle_notes(command.settings, command.given)
    assert notes == ["--rounds has no effect with magnitude, which is the same in every round"]
    assert not command.settings.ranks_on_text
