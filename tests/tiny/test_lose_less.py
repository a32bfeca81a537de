"""The finding that much is lost names what its own run did not do, as a command that works."""

import json
import shlex

import pytest
from workspace import Workspace, call

REPAIRED = ("--reconstruct", "least_squares")


@pytest.fixture(autouse=True)
def much(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is lost is much."""
    monkeypatch.setattr("diagnostics.findings.rules_of_the_cost.SUFFERS", -1.0)


@pytest.mark.parametrize(
    ("name", "arguments", "flags"),
    [
        ("cut", (), "--reconstruct least_squares"),
        ("taylor", REPAIRED, "--importance_method obs"),
        ("normalised", (*REPAIRED, "--enable_grad_norm"), "--recover distill"),
        ("obs", (*REPAIRED, "--importance_method", "obs"), "--recover distill"),
        ("blocks", (*REPAIRED, "--importance_method", "obs", "--recover", "blocks"), "--recover blocks,distill"),
        ("streamed", (*REPAIRED, "--importance_method", "obs", "--engine", "streamed"), "--recover blocks"),
        (
            "distilled",
            (*REPAIRED, "--importance_method", "obs", "--recover", "distill", "--recover_tokens", "500"),
            "--recover_tokens 2000",
        ),
    ],
)
def test_what_was_not_done_comes_in_order(
    workspace: Workspace, name: str, arguments: tuple[str, ...], flags: str
) -> None:
    folder = workspace.run(f"loses_{name}", *arguments)
    every = json.loads((folder / "analysis" / "gradient_diagnosis.json").read_text())["diagnosis"]
    (told,) = (finding for finding in every if finding["issue"] == "much_is_lost")
    assert told["flags"] == flags
    assert told["description"].startswith("The pruned model loses ")


def test_its_flags_work_on_the_same_run(workspace: Workspace) -> None:
    """From the cut alone to four times the tokens, each run with the flags that the one before named."""
    arguments: list[str] = []
    for number in range(3):
        folder = workspace.run(f"climbs_{number}", *arguments, "--recover_tokens", "100")
        every = json.loads((folder / "analysis" / "gradient_diagnosis.json").read_text())["diagnosis"]
        (told,) = (finding for finding in every if finding["issue"] == "much_is_lost")
        arguments += shlex.split(told["flags"])
    assert arguments == [*("--reconstruct", "least_squares", "--importance_method", "obs", "--recover", "distill")]


def test_a_replayed_plan_is_not_ranked_again(workspace: Workspace) -> None:
    first = workspace.run("loses_first")
    plan = first / "analysis" / "pruning_plan.json"
    output = workspace.root / "loses_replayed"
    base = ["--base_model", str(workspace.model), "--dataset", str(workspace.text), "--device", "cpu"]
    asked = ["--num_samples", "6", "--seq_len", "16", "--run_evaluation", "ppl", "--eval_seq_len", "32"]
    code, _, error = call([*base, *asked, "--eval_elsewhere", "none", "--plan", str(plan), "--output", str(output)])
    assert code == 0, error
    every = json.loads((output / "analysis" / "gradient_diagnosis.json").read_text())["diagnosis"]
    (told,) = (finding for finding in every if finding["issue"] == "much_is_lost")
    assert told["flags"] == "--recover distill"
