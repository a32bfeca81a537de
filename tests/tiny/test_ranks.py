"""Several processes at work on one run: they find what one finds alone, and one that ends ends all of them."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from workspace import Workspace

from core import ranks

ROOT = Path(__file__).resolve().parents[2]
SUPPORT = ROOT / "tests" / "support"
RECOVERED = ("--reconstruct", "least_squares", "--recover", "blocks", "--num_samples", "16")  # as in forked_ranks
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), str(SUPPORT)])}


@pytest.fixture(scope="module")
def cases(workspace: Workspace) -> dict[str, Any]:
    """What became of every case in ``forked_ranks``: exit codes by rank, what was said, what lies in the folder."""
    done = subprocess.run(
        [sys.executable, str(SUPPORT / "forked_ranks.py"), str(workspace.root)],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_two_ranks_find_what_one_finds_alone(cases: dict[str, Any]) -> None:
    """Every criterion, priors, repaired weights and losses of every family."""
    assert cases["measures"]["codes"] == [0, 0], cases["measures"]["err"][-2000:]
    assert cases["measures"]["out"] == "all alike\n"


def test_an_error_on_one_rank_ends_all_of_them_in_one_line(cases: dict[str, Any]) -> None:
    assert cases["fails"]["codes"] == [2, 3]
    assert cases["fails"]["err"] == "error: NaN or Inf in the loss\n"


def test_a_rank_that_waits_can_be_interrupted(cases: dict[str, Any]) -> None:
    assert cases["interrupted"]["codes"] == [143, 2]
    assert cases["interrupted"]["err"].startswith("interrupted; ")
    assert cases["interrupted"]["err"].count("\n") == 1


def test_two_ranks_distil_with_what_fits_both_and_go_on_together(cases: dict[str, Any]) -> None:
    assert cases["distils"]["codes"] == [0, 0], cases["distils"]["err"][-2000:]
    assert cases["distils"]["out"] == "all alike\n"
    assert cases["distils"]["err"].count("an interrupted distillation goes on from step 5 of 8") == 1


def test_ranks_that_disagree_end_in_one_line(cases: dict[str, Any]) -> None:
    assert cases["differs"]["codes"] == [2, 2]
    assert cases["differs"]["err"] == "error: the plan of process 1 is not that of process 0: find out why\n"


def test_ranks_at_different_places_are_a_bug_with_one_traceback(cases: dict[str, Any]) -> None:
    assert cases["strays"]["codes"] == [1, 1]
    assert cases["strays"]["err"].count("Traceback") == 1
    assert "RuntimeError: processes of one run are at different places" in cases["strays"]["err"]


@pytest.mark.parametrize(("victim", "codes"), [("first_killed", [-9, 2]), ("second_killed", [2, -9])])
def test_a_killed_rank_leaves_nothing_finished_and_the_next_run_finishes(
    victim: str, codes: list[int], cases: dict[str, Any], workspace: Workspace
) -> None:
    case = cases[victim]
    assert case["codes"] == codes
    assert "run.json" not in case["files"]
    again = workspace.run(victim, *["--overwrite"] * ("unfinished.json" in case["files"]))
    assert {path.name for path in again.iterdir()} == {"analysis", "model", "evaluation", *REPORTS}


def test_weights_dealt_out_to_two_ranks_make_the_run_of_one_process(
    cases: dict[str, Any], workspace: Workspace
) -> None:
    """Scored, repaired, cut, recovered, saved, proved and judged."""
    assert cases["sharded"]["codes"] == [0, 0], cases["sharded"]["err"][-2000:]
    assert "engine: sharded, as asked\n" in cases["sharded"]["err"]
    assert cases["sharded"]["err"].count("verified: ") == 1
    together, alone = workspace.root / "sharded", workspace.run("held", *RECOVERED)
    plans = [(folder / "analysis" / "pruning_plan.json").read_bytes() for folder in (alone, together)]
    assert plans[0] == plans[1]
    assert _pruned_nll(together) == pytest.approx(_pruned_nll(alone), rel=1e-4)
    weights = [load_file(folder / "model" / "model.safetensors") for folder in (alone, together)]
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, rtol=0.05, atol=0.01)  # bfloat16, and steps of Adam


def test_a_rank_killed_among_sharded_weights_ends_the_other_in_one_line(cases: dict[str, Any]) -> None:
    assert cases["sharded_killed"]["codes"] == [2, -9]
    assert "run.json" not in cases["sharded_killed"]["files"]
    errors = [line for line in cases["sharded_killed"]["err"].splitlines() if line.startswith("error: ")]
    assert errors == ["error: another process of this run has ended, so all of them end; run again"]


REPORTS = {"report.html", "run.json", "visualization"}


def test_a_run_by_torchrun_is_the_run_of_one_process(workspace: Workspace) -> None:
    """Corrected, in two rounds that are judged, repaired, distilled; the console hears one process."""
    asked = ["--importance_method", "obs", "--reconstruct", "least_squares", "--num_samples", "48"]
    asked += ["--temperature", "1.0", "--rounds", "2", "--recover", "distill", "--recover_tokens", "30000"]
    alone = workspace.run("alone", *asked)
    together = workspace.root / "together"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*launcher, ROOT / "run_global_pruning.py", *workspace.base_arguments(), *asked, "--output", str(together)],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    plans = [(folder / "analysis" / "pruning_plan.json").read_bytes() for folder in (alone, together)]
    assert plans[0] == plans[1]
    nll = [_pruned_nll(folder) for folder in (alone, together)]
    assert nll[1] == pytest.approx(nll[0], rel=1e-3)
    assert json.loads((together / "run.json").read_text())["environment"]["processes"] == 2
    assert done.stderr.count("[importance]\n") == 1
    assert done.stderr.count("distilled (held-out divergence") == 1  # it gained, and says so once
    assert done.stdout.count("of prunable parameters") == 1


def _pruned_nll(folder: Path) -> float:
    (found,) = json.loads((folder / "evaluation" / "evaluation_results.json").read_text())["pruned"][
        "perplexity"
    ].values()
    return float(found["nll_nats_per_token"])


def test_every_thing_is_dealt_to_one_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    """7 things among 3 ranks: 3, 2 and 2 neighbours; in turn 0, 3, 6 - 1, 4 - 2, 5."""
    shares, turns = [], []
    for rank in range(3):
        monkeypatch.setattr(ranks, "here", lambda rank=rank: ranks.Ranks(rank, 3))
        shares.append(list(range(7))[ranks.share(7)])
        turns.append([number for number in range(7) if ranks.has(number)])
    assert shares == [[0, 1, 2], [3, 4], [5, 6]]
    assert turns == [[0, 3, 6], [1, 4], [2, 5]]


def test_without_the_environment_of_a_launcher_there_is_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ranks.ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
    assert ranks.started() == ranks.ALONE
    monkeypatch.setenv("WORLD_SIZE", "4")  # left by something else: nobody to meet
    assert ranks.started() == ranks.ALONE
    for name in ranks.ENVIRONMENT:
        monkeypatch.setenv(name, "none")
    assert ranks.started() == ranks.ALONE
