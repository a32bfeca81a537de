"""Findings on what a pruned model lost: elsewhere, in tasks, in what it writes, each on both sides of its bound."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from diagnostics_cases import judge

from core.transforms import Remedy
from diagnostics.findings.finding import Finding
from diagnostics.findings.remedies import Advice
from diagnostics.findings.rules_of_the_cost import Cost, cost_findings
from diagnostics.reports.next_command import next_command, only_remedies


def results(
    losses: Mapping[str, float | None],
    acc: tuple[float, float] | None = None,
    repeated: tuple[float, float] = (0.1, 0.1),
    ended: tuple[float | None, float | None] = (None, None),
    error: float = 0.01,
) -> dict[str, Any]:
    """losses: nats per token by text. The pairs: dense and pruned, both with the standard error."""
    sides: list[dict[str, Any]] = []
    for side in (0, 1):
        tasks = {} if acc is None else {"quiz": {"acc": acc[side], "acc_stderr": error, "num_items": 50}}
        way: dict[str, float | None] = {"repeated_4grams": repeated[side], "repeated_4grams_stderr": error}
        way |= {"ended": ended[side], "ended_stderr": error, "length": 9.0}
        sides.append({"tasks": tasks, "generation": {"greedy": way}})
    change = {name: {"ratio": None, "nll_difference_nats_per_token": loss} for name, loss in losses.items()}
    return {"dense": sides[0], "pruned": sides[1], "change": {"perplexity": change}}


def issues(found: dict[str, Any], home: str = "notes.txt", **options: Any) -> list[str]:
    """Those but ``much_is_lost``, which has tests of its own."""
    told = [finding.issue for finding in cost_findings(Cost(found, (home,), **options))]
    return [issue for issue in told if issue != "much_is_lost"]


def the(issue: str, cost: Cost) -> Finding:
    (found,) = (finding for finding in cost_findings(cost) if finding.issue == issue)
    return found


@pytest.mark.parametrize(
    ("home", "elsewhere", "found"),
    [
        (0.015, 0.333, True),
        (0.3, 0.89, True),
        (0.047, 0.112, False),  # 0.065 nats more are little
        (0.3, 0.55, False),  # less than twice as much: the ratio is high, and so is the loss at home
        (-0.01, 0.12, True),
        (None, 0.9, False),
        (0.01, None, False),
    ],
)
def test_loss_elsewhere_is_a_tenth_of_a_nat_and_twice_the_loss_at_home(
    home: float | None, elsewhere: float | None, found: bool
) -> None:
    assert issues(results({"notes.txt": home, "pydoc": elsewhere})) == ["loss_elsewhere"] * found


def test_its_remedy_is_text_of_the_models_own_judged_on_the_same_texts() -> None:
    texts = Remedy(eval_datasets=("my notes.txt",), eval_elsewhere="pydoc")
    found = results({"my notes.txt": 0.015, "pydoc": 0.333})
    finding = the("loss_elsewhere", Cost(found, ("my notes.txt",), texts))
    assert finding.flags == "--dataset self --eval_datasets 'my notes.txt' --eval_elsewhere pydoc"
    assert "0.333 nats per token on pydoc (perplexity +39.5 %), and 0.015" in finding.description
    command = next_command("prog", ["--dataset", "my notes.txt", "--seed", "1"], finding.flags, Path("results/run"))
    assert command == (
        "prog --seed 1 --dataset self --eval_datasets 'my notes.txt' --eval_elsewhere pydoc "
        "--output results/run_datasetself"
    )
    assert not only_remedies(finding.flags)
    refused = the("loss_elsewhere", Cost(found, ("my notes.txt",), texts, refusal=lambda remedy: "no"))
    assert refused.remedy is None
    own = the("loss_elsewhere", Cost(results({"self": 0.015, "pydoc": 0.333}), ("self",)))
    assert own.remedy is None


def test_much_is_lost_from_a_tenth_of_perplexity_on_and_names_what_was_not_done() -> None:
    ways = (
        Advice("Try the repair, which was off.", Remedy(reconstruct="least_squares")),
        Advice("Try to train.", Remedy(recover="blocks,distill")),
        Advice("Try more.", Remedy(recover_tokens=2_000_000)),
    )
    below, above = (results({"notes.txt": loss, "pydoc": 0.9}) for loss in (math.log(1.099), math.log(1.101)))
    assert "much_is_lost" not in [finding.issue for finding in cost_findings(Cost(below, ("notes.txt",)))]
    found = the("much_is_lost", Cost(above, ("notes.txt",), to_lose_less=ways))
    assert found.description == "The pruned model loses 0.096 nats per token on notes.txt (perplexity +10.1 %)."
    assert found.flags == "--reconstruct least_squares"
    assert (
        "0.900 nats per token on pydoc"
        in the("much_is_lost", Cost(results({"pydoc": 0.9}), ("notes.txt",))).description
    )
    assert found.recommendation.startswith("Try the repair, which was off. This is advice")

    def refusal(remedy: Remedy) -> str | None:
        return "no" if remedy.reconstruct else None

    trains = the("much_is_lost", Cost(above, ("notes.txt",), to_lose_less=ways, refusal=refusal))
    assert trains.flags == "--recover blocks,distill"
    command = next_command("prog", ["--recover", "blocks", "--seed", "1"], trains.flags, Path("results/run"))
    assert command == "prog --seed 1 --recover blocks,distill --output results/run_blocks_distill"
    longer = the("much_is_lost", Cost(above, ("notes.txt",), to_lose_less=ways[2:]))
    assert longer.flags == "--recover_tokens 2000000"
    assert not any(only_remedies(finding.flags or "") for finding in (found, trains, longer))
    none_left = the("much_is_lost", Cost(above, ("notes.txt",)))
    assert (none_left.flags, none_left.recommendation) == (None, "Remove less, or calibrate on more text.")


def test_a_task_suffers_by_a_tenth_beyond_its_error_where_perplexity_shows_less() -> None:
    small, large = {"notes.txt": 0.05}, {"notes.txt": math.log(1.1)}
    assert issues(results(small, acc=(0.5, 0.44))) == ["tasks_suffer"]
    assert issues(results(small, acc=(0.5, 0.46))) == []  # 8 %
    assert issues(results(small, acc=(0.5, 0.44), error=0.03)) == []  # 0.06 is no more than 2 · √2 · 0.03
    assert issues(results(large, acc=(0.5, 0.44))) == []  # perplexity says so itself
    assert issues(results({}, acc=(0.5, 0.44))) == ["tasks_suffer"]
    (finding,) = cost_findings(Cost(results(small, acc=(0.5, 0.44)), ("notes.txt",)))
    assert finding.description == (
        "quiz acc falls from 50.0 % to 44.0 %, by 12 % of what it was, and perplexity changes by +5.1 % only."
    )


def test_writing_suffers_by_more_repetition_and_by_more_or_fewer_ends() -> None:
    small, large = {"notes.txt": 0.05}, {"notes.txt": 0.2}
    assert issues(results(small, repeated=(0.1, 0.25))) == ["writing_suffers"]
    assert issues(results(small, repeated=(0.25, 0.1))) == []
    assert issues(results(small, repeated=(0.1, 0.25), error=0.06)) == []
    assert issues(results(small, ended=(0.5, 0.25))) == issues(results(small, ended=(0.25, 0.5))) == ["writing_suffers"]
    assert issues(results(small, ended=(0.5, None))) == []
    assert issues(results(large, repeated=(0.1, 0.25))) == []
    assert issues(results(small) | {"pruned": {"tasks": {}, "generation": None}}) == []


def test_further_findings_stand_with_their_like() -> None:
    diagnosis = judge([10, 10, 91, 91, 91] + [10] * 7)
    further = cost_findings(Cost(results({"notes.txt": 0.015, "pydoc": 0.333}), ("notes.txt",)))
    told = diagnosis.with_findings(further).findings
    severities = [finding.severity for finding in told]
    assert severities == sorted(severities, key=("high", "medium", "low", "info").index)
    assert told[0] == diagnosis.findings[0]
    assert further[0] in told
    assert diagnosis.with_findings(()) is diagnosis
    assert json.dumps(further[0].to_json())
