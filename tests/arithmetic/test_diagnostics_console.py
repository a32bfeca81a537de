"""The closing text: every number in it, wrapped lines, and a next command that can be pasted."""

import shlex
from pathlib import Path
from typing import Any

import pytest
from diagnostics_cases import judge, plan_of

from core.arguments import without
from diagnostics.reports.closing import closing_report
from diagnostics.reports.next_command import beside, folder_suffix, next_command, only_remedies

EXTREME = [10, 10, 91, 91, 91] + [10] * 7  # 363 of 1200 prunable, 200 + 12 · 105 = 1460 in all
ARGV = ["--base_model", "demo", "--pruning_ratio", "0.2", "--output", "results/demo/run"]


def side(parameters: int, perplexity: float, accuracy: float, speed: float) -> dict[str, Any]:
    return {
        "parameters": parameters,
        "bytes": 2 * parameters,
        "perplexity": {
            "pydoc": {
                "perplexity": perplexity,
                "nll_nats_per_token": 2.0,
                "bits_per_byte": None,
                "num_windows": 4,
                "seq_len": 8,
                "source": "test",
            }
        },
        "tasks": {"quiz": {"acc": accuracy, "acc_stderr": 0.03, "num_items": 200}},
        "latency": {"prefill_tokens_per_s": speed, "decode_tokens_per_s": speed / 10, "batch_size": 1},
    }


def report(points: list[int], evaluation: Any = None, argv: list[str] = ARGV, **options: Any) -> str:
    return closing_report(
        judge(points, **options),
        plan_of(points),
        evaluation,
        argv,
        Path("results/demo/run"),
        [Path("results/demo/run/model"), Path("results/my run/run.json")],
        "python run_global_pruning.py",
    )


def row(text: str, label: str) -> str:
    (line,) = (line for line in text.splitlines() if line.startswith(label))
    return " ".join(line.removeprefix(label).split())


def command(text: str) -> list[str]:
    (line,) = (line for line in text.splitlines() if line.startswith("python "))
    return shlex.split(line)


def test_table_shows_dense_pruned_and_change() -> None:
    text = report(EXTREME, {"dense": side(1460, 10.0, 0.45, 5000), "pruned": side(1097, 12.5, 0.41, 6000)})
    assert row(text, "parameters") == "1,460 1,097 -24.9 %"
    assert row(text, "bytes") == "2.9 kB 2.2 kB -24.9 %"
    assert row(text, "perplexity pydoc") == "10.00 12.50 +25.0 %"
    assert row(text, "quiz acc") == "45.0 ± 3.0 % 41.0 ± 3.0 % -4.0 points"
    assert row(text, "prefill tokens/s") == "5,000 6,000 +20.0 %"
    assert row(text, "decode tokens/s") == "500.00 600.00 +20.0 %"
    assert "batch_size" not in text
    assert "num_items" not in text


def test_distance_stands_below_its_perplexity() -> None:
    far: dict[str, Any] = {"pydoc": {"kl_nats_per_token": 0.021346, "top1_agreement": 0.9312}}
    pruned = side(1097, 12.5, 0.41, 6000) | {"distance": far}
    lines = report(EXTREME, {"dense": side(1460, 10.0, 0.45, 5000), "pruned": pruned}).splitlines()
    place = next(index for index, line in enumerate(lines) if line.startswith("perplexity pydoc"))
    assert [line.split() for line in lines[place + 1 : place + 3]] == [
        ["KL", "from", "dense", "0.0213", "nats"],
        ["same", "top", "token", "93.1", "%"],
    ]
    far["pydoc"]["kl_nats_per_token"] = None
    assert "KL" not in report(EXTREME, {"dense": side(1460, 10.0, 0.45, 5000), "pruned": pruned})


def test_what_the_models_write_is_told_in_points_and_ends_where_there_are_any() -> None:
    def writes(repeated: float, ended: float | None) -> dict[str, Any]:
        sampled = {"repeated_4grams": 0.0, "repeated_4grams_stderr": 0.0, "ended": 0.0, "length": 9.0}
        greedy = {"repeated_4grams": repeated, "repeated_4grams_stderr": 0.02, "ended": ended, "length": 9.0}
        return {"generation": {"greedy": greedy, "sampled": sampled}}

    dense, pruned = side(1460, 10.0, 0.45, 5000), side(1097, 12.5, 0.41, 6000)
    text = report(EXTREME, {"dense": dense | writes(0.25, None), "pruned": pruned | writes(0.375, 0.5)})
    assert row(text, "greedy text repeated") == "25.0 ± 2.0 % 37.5 ± 2.0 % +12.5 points"
    assert row(text, "greedy text ended") == "- 50.0 % -"
    assert row(text, "sampled text repeated") == "0.0 ± 0.0 % 0.0 ± 0.0 % +0.0 points"
    assert "sampled text ended" not in text
    half = report(EXTREME, {"dense": dense, "pruned": pruned | {"generation": None}})
    assert "text repeated" not in half


def test_ratios_over_both_numbers_of_parameters() -> None:
    text = report(EXTREME)
    assert row(text, "of total parameters") == "24.86 % 24.86 %"
    assert row(text, "of prunable parameters") == "30.25 % 30.25 %"


@pytest.mark.parametrize("evaluation", [None, {"dense": side(1460, 10.0, 0.45, 5000), "pruned": None}])
def test_without_a_pruned_model_only_parameters_compare(evaluation: Any) -> None:
    text = report(EXTREME, evaluation)
    assert row(text, "parameters") == "1,460 1,097 -24.9 %"
    if evaluation:
        assert row(text, "perplexity pydoc") == "10.00 - -"
    else:
        assert "perplexity" not in text


def test_null_and_infinite_results_show_as_missing() -> None:
    dense = side(1460, 10.0, 0.45, 5000)
    for broken in (None, float("inf"), float("nan")):
        pruned = side(1097, 12.5, 0.41, 6000)
        pruned["perplexity"]["pydoc"]["perplexity"] = broken
        pruned["latency"] = None
        text = report(EXTREME, {"dense": dense, "pruned": pruned})
        assert row(text, "perplexity pydoc") == "10.00 - -"
        assert row(text, "prefill tokens/s") == "5,000 - -"


def test_findings_are_wrapped_and_flags_stay_whole() -> None:
    text = report(EXTREME, mean=[1, 1, 1e-4, 1e-4, 1e-4] + [1.0] * 7)
    findings = text.split("Findings\n")[1].split("\n\n")[0].splitlines()
    assert findings[0].startswith("high    early layers over pruned: Early layers lose more than 50.0 %")
    assert max(map(len, findings)) <= 100
    assert "        try --enable_grad_norm --norm_method log --temperature 1.0 --tau 0.0" in findings


def test_next_command_takes_the_first_flags_and_a_folder_of_its_own() -> None:
    text = report(EXTREME, argv=[*ARGV, "--norm_method=sqrt", "--overwrite"])
    assert "Next, try\n" in text
    assert command(text) == [
        *["python", "run_global_pruning.py", "--base_model", "demo", "--pruning_ratio", "0.2"],
        *["--enable_grad_norm", "--norm_method", "log", "--temperature", "1.0", "--tau", "0.0"],
        *["--output", "results/demo/run_log_T1.0_tau0.0"],
    ]


def test_a_healthy_plan_is_not_urged_to_change() -> None:
    text = report([20] * 6)
    assert "Nothing needs a remedy; if you want to try one\n" in text
    assert command(text)[-4:] == ["--temperature", "1.0", "--output", "results/demo/run_T1.0"]
    assert "python" not in report([20] * 6, active={"temperature": 1.0})


def test_paths_are_copyable() -> None:
    assert report(EXTREME).endswith("Written\nresults/demo/run/model\n'results/my run/run.json'")


def test_options_are_replaced_in_either_spelling() -> None:
    argv = ["--temperature=0.5", "--eval_datasets", "a", "b", "--tau", "inf", "--seed", "1"]
    assert without(argv, ["--temperature", "--tau"]) == ["--eval_datasets", "a", "b", "--seed", "1"]
    assert without(argv, ["--eval_datasets"]) == ["--temperature=0.5", "--tau", "inf", "--seed", "1"]


def test_a_replayed_plan_is_not_replayed_with_a_remedy() -> None:
    line = next_command("prune", ["--base_model", "a b", "--plan", "x.json"], "--enable_grad_clip", Path("/r/run"))
    assert line == "prune --base_model 'a b' --enable_grad_clip --output /r/run_clip"


@pytest.mark.parametrize(
    ("flags", "suffix"),
    [
        ("--enable_grad_norm --norm_method sqrt", "sqrt"),
        ("--enable_grad_norm --norm_method log --enable_grad_clip", "log_clip"),
        ("--max_block_ratio 0.5", "cap0.5"),
        ("--clip_percentile_low 1 --clip_percentile_high 99", "low1_high99"),
        ("--importance_method fisher", "fisher"),
        ("--recover blocks,distill", "blocks_distill"),
        ("--recover_tokens 2000000", "tokens2000000"),
    ],
)
def test_folder_suffix(flags: str, suffix: str) -> None:
    assert folder_suffix(flags.split()) == suffix


def test_a_replayed_plan_is_made_again_at_its_own_size() -> None:
    text = report(EXTREME, argv=["--base_model", "demo", "--plan", "x/pruning_plan.json"])
    words = command(text)
    assert "--plan" not in words
    ratio = words[words.index("--pruning_ratio") + 1]
    assert float(ratio) == plan_of(EXTREME).requested_ratio
    assert words[words.index("--ratio_of") + 1] == "prunable"


@pytest.mark.parametrize(
    ("output", "folder"),
    [("results/a b", "results/a b_x"), ("run/", "run_x"), ("-run", "./-run_x"), (".", None), ("..", None)],
)
def test_the_next_folder_stands_beside_this_one(output: str, folder: str | None) -> None:
    assert beside(Path(output), "x") == (folder or f"{Path(output).resolve()}_x")


def test_remedies_that_were_tried_are_not_named_again_but_other_flags_are() -> None:
    assert only_remedies("--enable_grad_norm --norm_method log")
    assert not only_remedies("--num_samples 64")
