"""Options that say which texts and tasks are read and measured on: each shows a difference that a user can see."""

import json
import shlex
from typing import Any

import pytest
from workspace import Workspace, call, observe

from core.transforms import Remedy
from diagnostics.findings.finding import Finding


@pytest.fixture(scope="module")
def base(workspace: Workspace) -> dict[str, Any]:
    return observe(workspace.run("base"))


def test_datasets(workspace: Workspace, base: dict[str, Any]) -> None:
    other = str(workspace.other_text)
    calibrated = observe(workspace.run("dataset", "--dataset", other))
    assert calibrated["importance"] != base["importance"]
    evaluated = observe(workspace.run("eval_datasets", "--eval_datasets", f"{workspace.text},{other}"))
    assert evaluated["plan"] == base["plan"]
    assert len(evaluated["evaluation"]["dense"]["perplexity"]) == 2
    text = str(workspace.text)
    assert evaluated["evaluation"]["dense"]["perplexity"][text] == base["evaluation"]["dense"]["perplexity"][text]


def test_text_of_another_kind_is_evaluated_on_a_few_windows(
    workspace: Workspace, base: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Findings on what that tells stand with the others, in the file and on the page, with the same texts named."""
    costs: list[Any] = []

    def found_elsewhere(cost: Any) -> tuple[Finding, ...]:
        costs.append(cost)
        return (Finding("loss_elsewhere", "high", "Much is lost.", "Try it.", Remedy(dataset="self") | cost.texts),)

    monkeypatch.setattr("run.windows.ELSEWHERE_TOKENS", 100)
    monkeypatch.setattr("run.explain.cost_findings", found_elsewhere)
    other = str(workspace.other_text)
    folder = workspace.run("elsewhere", "--eval_elsewhere", other, "--reconstruct", "least_squares")
    found = observe(folder)
    evaluated, home = found["evaluation"], str(workspace.text)
    assert list(evaluated["pruned"]["perplexity"]) == list(evaluated["pruned"]["distance"]) == [home, other]
    assert list(evaluated["before_repair"]["perplexity"]) == [home]
    assert evaluated["dense"]["perplexity"][home] == base["evaluation"]["dense"]["perplexity"][home]
    assert found["windows"][f"evaluation {other}"]["source"].startswith("8 windows, evenly spaced, of ")
    (cost,) = costs
    assert list(cost.home) == [home]
    assert cost.losses.keys() == {home, other}
    every = json.loads((folder / "analysis" / "gradient_diagnosis.json").read_text())["diagnosis"]
    (told,) = (finding for finding in every if finding["issue"] == "loss_elsewhere")
    assert shlex.split(told["flags"]) == ["--dataset", "self", "--eval_datasets", home, "--eval_elsewhere", other]
    assert "Much is lost." in (folder / "report.html").read_text(encoding="utf-8")
    short = workspace.root / "short.txt"
    short.write_text("ba be bi", encoding="utf-8")
    code, _, error = call(
        [
            *workspace.base_arguments(),
            "--eval_elsewhere",
            str(short),
            "--dry_run",
            "--output",
            str(workspace.root / "nowhere"),
        ]
    )
    assert code == 0
    assert "note: nothing is evaluated elsewhere: " in error


def test_text_column_names_where_rows_keep_their_text(workspace: Workspace, base: dict[str, Any]) -> None:
    rows = workspace.root / "rows.jsonl"
    rows.write_text(json.dumps({"body": workspace.text.read_text(encoding="utf-8"), "title": 1}), encoding="utf-8")
    read = observe(workspace.run("text_column", "--dataset", str(rows), "--text_column", "body"))
    assert read["importance"] == base["importance"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")  # lm-eval's and datasets' own
def test_tasks(workspace: Workspace) -> None:
    folder = ["--eval_task_path", str(workspace.task_folder)]
    found = observe(workspace.run("tasks-run", "--eval_tasks", "tiny_choice", *folder, "--run_evaluation", "none"))
    for half in ("dense", "pruned"):
        assert found["evaluation"][half]["tasks"]["tiny_choice"]["num_items"] == 3
        assert found["evaluation"][half]["perplexity"] == {}
    arguments = [*workspace.base_arguments(), "--output", str(workspace.root / "x"), "--eval_tasks", "tiny_choice"]
    code, _, error = call(arguments)
    assert code == 2
    assert "tiny_choice" in error


def test_speed_is_measured_on_request(workspace: Workspace, base: dict[str, Any]) -> None:
    found = observe(workspace.run("speed", "--run_evaluation", "speed"))
    assert found["evaluation"]["pruned"]["latency"] is True
    assert base["evaluation"]["pruned"]["latency"] is False
