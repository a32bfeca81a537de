"""--remedy auto: the rule on made-up losses, what is tried, and a tiny model whose baseline can be beaten."""

import json
from typing import Any

import numpy as np
import pytest
from tiny_models import build, plan_keeping, token_ids
from workspace import Workspace, call, observe

from calibration import calibration_windows
from cli.options import parse_options
from core.transforms import Transforms
from core.windows import TokenWindows
from models.architecture import architecture_of
from models.family_table import family_of
from pruning.trials import Trial, choose, paired
from run.judging import loss_under
from run.refine import remedy
from run.session import Session

# The rule

BASE = np.array([3.0, 5.0, 4.0, 6.0])
NOISE = np.array([0.3, -0.2, 0.3, -0.2])


def trial(nll: np.ndarray, healthy: bool = False, name: str = "x") -> Trial:
    return Trial(name, f"--{name}", (), nll, healthy, 0, 0.1, 0.2)


def test_paired_differences_forget_how_windows_differ() -> None:
    """Differences 0.1, 0.3, 0.1, 0.3: mean 0.2, squared deviations 4 x 0.01, σ = √(0.04/3), over √4 windows."""
    mean, error = paired(BASE + np.array([0.1, 0.3, 0.1, 0.3]), BASE)
    assert mean == pytest.approx(0.2)
    assert error == pytest.approx(np.sqrt(0.04 / 3) / 2)
    assert paired(BASE[:1] + 1, BASE[:1]) == (1.0, 0.0)


def test_the_lowest_loss_wins_beyond_noise_whatever_its_health() -> None:
    trials = [trial(BASE, healthy=True), trial(BASE - 0.5, healthy=False), trial(BASE - 0.2, healthy=True)]
    choice = choose(trials)
    assert (choice.winner, choice.contenders) == (1, (1,))
    assert "0.5000 ± 0.0000 nats/token under the baseline" in choice.reason


def test_within_noise_the_healthy_plan_wins() -> None:
    """d = (0.3, -0.2, 0.3, -0.2) against the best: mean 0.05, σ = 0.2887, se 0.1443: within noise."""
    best = BASE - 1
    healthy = best + NOISE
    choice = choose([trial(BASE), trial(best, name="best"), trial(healthy, healthy=True)])
    assert (choice.winner, choice.contenders) == (2, (1, 2))
    assert "best, which is not, loses less by 0.0500 ± 0.1443" in choice.reason
    same_health = choose([trial(BASE), trial(best, healthy=True), trial(healthy, healthy=True)])
    assert same_health.winner == 1


def test_a_healthy_plan_that_loses_to_the_baseline_never_wins() -> None:
    """Worse by 0.05 on average with a standard error of 0.14: within noise of the baseline, and still out."""
    worse = BASE + NOISE
    choice = choose([trial(BASE), trial(worse, healthy=True)])
    assert (choice.winner, choice.contenders) == (0, (0,))
    assert "nothing that was tried loses less" in choice.reason


def test_equal_plans_leave_the_baseline() -> None:
    assert choose([trial(BASE), trial(BASE)]).winner == 0
    assert choose([trial(BASE), trial(BASE, healthy=True)]).winner == 1


def test_losses_that_are_not_finite_are_out() -> None:
    broken = np.array([1.0, np.nan, 1.0, 1.0])
    assert choose([trial(BASE), trial(broken, healthy=True)]).winner == 0
    assert choose([trial(broken), trial(BASE), trial(BASE - 1)]).winner == 2
    choice = choose([trial(broken), trial(broken, healthy=True)])
    assert choice.winner == 0
    assert "No plan gives a finite loss" in choice.reason


def test_the_record_says_what_was_tried() -> None:
    rows = choose([trial(BASE), trial(BASE - 0.5), trial(BASE + 1)]).to_json()
    assert [row["taken"] for row in rows] == [False, True, False]
    assert [row["within_noise_of_best"] for row in rows] == [False, True, False]
    assert rows[2]["minus_baseline"] == {"mean": 1.0, "standard_error": 0.0}
    assert rows[2]["minus_best"]["mean"] == 1.5


# What is tried, and how


def session_of(arguments: list[str]) -> Session:
    settings = parse_options(arguments).settings
    session = Session(settings)
    session.read_windows(judging=True)
    return session


def test_flags_name_a_job_and_make_it_again(workspace: Workspace) -> None:
    given = ["--enable_grad_clip", "--clip_percentile_low", "1", "--temperature", "0.5", "--tau", "auto"]
    session = session_of([*workspace.base_arguments(), *given, "--max_block_ratio", "0.7"])
    candidate = remedy.Candidate(session.settings.scores.transforms, session.limits)
    assert candidate.flags == (
        "--enable_grad_clip --clip_percentile_low 1 --clip_percentile_high 95 --temperature 0.5 --tau auto "
        "--max_block_ratio 0.7"
    )
    again = session_of([*workspace.base_arguments(), *candidate.flags.split()])
    assert (again.settings.scores.transforms, again.limits) == (candidate.transforms, candidate.limits)
    plain = session_of(workspace.base_arguments())
    assert remedy.Candidate(plain.settings.scores.transforms, plain.limits).flags == ""


def test_trial_windows_share_nothing_with_those_importance_saw(workspace: Workspace) -> None:
    session = session_of(workspace.base_arguments())
    text = session.settings.calibration
    seen = calibration_windows(text.dataset, session.tokenizer, text.num_samples, text.seq_len, 0)
    tried = session.judging
    both = calibration_windows(text.dataset, session.tokenizer, len(seen) + len(tried), text.seq_len, 0)
    np.testing.assert_array_equal(both.ids, np.concatenate([seen.ids, tried.ids]))
    assert "overlap" not in both.source + tried.source


def test_where_the_text_is_too_short_another_seed_draws_them_and_says_so(workspace: Workspace) -> None:
    tried = session_of([*workspace.base_arguments(), "--num_samples", "500"]).judging
    assert "they may overlap the 500 windows drawn first" in tried.source
    assert len(tried) == 16


def test_loss_by_mask_equals_loss_after_surgery() -> None:
    """The NLL of a plan's windows, by hooks on the dense model and by the smaller model itself."""
    from evaluation.perplexity import window_nll
    from models.narrow import empty_narrow_model
    from pruning.surgery import operate

    model = build("llama")
    family = family_of("llama")
    architecture = architecture_of(model, family)
    keep = np.random.default_rng(0).random(len(architecture.groups)) < 0.7
    keep[architecture.groups.block_start[:-1]] = True
    plan = plan_keeping(architecture, keep)
    windows = TokenWindows(token_ids(5, 12).numpy(), "random", "calibration", "random ids")

    masked = loss_under(model, family, plan, windows, None, "x")
    before = window_nll(model, windows.ids, batch_size=None, description="dense")
    smaller = operate(model, empty_narrow_model(model, family, plan), family, plan)
    after = window_nll(smaller, windows.ids, batch_size=None, description="pruned")
    np.testing.assert_allclose(masked, after / 11, rtol=1e-5)
    assert np.abs(before / 11 - masked).max() > 0.01


# Runs


def test_auto_uses_the_cache_and_tells_the_console(workspace: Workspace) -> None:
    arguments = [*workspace.base_arguments(), "--cache_dir", str(workspace.root / "kept"), "--remedy", "auto"]
    runs = [workspace.root / f"auto-{i}" for i in range(2)]
    for run in runs:
        code, out, error = call([*arguments, "--dry_run", "--output", str(run)])
        assert code == 0, error
        assert "remedy tried" in error
        assert "\ntaken: " in error
        assert "Next, try" not in out
        assert "analysis/remedy.json" in out
    cache = json.loads((runs[1] / "run.json").read_text())["facts"]["cache"]
    assert {cache["importance"], cache["prior"]} == {"hit"}
    assert observe(runs[0]) == observe(runs[1])
    first, second = ((run / "analysis" / "remedy.json").read_bytes() for run in runs)
    assert first == second


def test_transforms_that_were_given_are_the_baseline(workspace: Workspace) -> None:
    run = workspace.run("given", "--remedy", "auto", "--enable_grad_norm", "--norm_method", "zscore", "--dry_run")
    record = json.loads((run / "analysis" / "remedy.json").read_text())
    assert record["tried"][0]["flags"] == "--enable_grad_norm --norm_method zscore"
    flags = [trial["flags"] for trial in record["tried"]]
    assert "" in flags
    assert len(set(flags)) == len(flags)
    assert "--enable_grad_norm --norm_method zscore --temperature 1 --tau 0" not in flags


def test_auto_with_magnitude_reads_text_for_its_trials(workspace: Workspace) -> None:
    """The winner's loss is within noise of the best and not above the baseline's, on real numbers too."""
    run = workspace.run("magnitude", "--importance_method", "magnitude", "--remedy", "auto", "--dry_run")
    tried = json.loads((run / "analysis" / "remedy.json").read_text())["tried"]
    (taken,) = [trial for trial in tried if trial["taken"]]
    assert taken["minus_best"]["mean"] <= taken["minus_best"]["standard_error"]
    assert taken["nll_nats_per_token"] <= tried[0]["nll_nats_per_token"]


def test_a_candidate_that_cannot_be_planned_is_named(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    from core.errors import NumericalError

    original = remedy.rank

    def refuse_minmax(*arguments: Any, transforms: Transforms, **others: Any) -> Any:
        if transforms.normalise == "minmax":
            raise NumericalError("spread too widely")
        return original(*arguments, transforms=transforms, **others)

    monkeypatch.setattr(remedy, "rank", refuse_minmax)
    run = workspace.run("refused", "--remedy", "auto", "--dry_run", "--run_evaluation", "none")
    record = json.loads((run / "analysis" / "remedy.json").read_text())
    assert record["refused"] == [
        {"flags": "--enable_grad_norm --norm_method minmax", "named_by": [], "reason": "spread too widely"}
    ]
