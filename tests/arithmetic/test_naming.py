"""run.naming: runs that differ go to different folders, whose names can be read."""

import itertools
from pathlib import Path

import pytest

from cli.options import parse_options

# Each differs from every other in what is asked for.
RUNS = [
    "",
    "--pruning_ratio 0.1",
    "--pruning_ratio 0.1 --ratio_of prunable",
    "--importance_method fisher",
    "--enable_grad_norm",
    "--enable_grad_norm --norm_method sqrt",
    "--enable_grad_clip",
    "--enable_grad_clip --clip_percentile_high 90",
    "--temperature 1",
    "--temperature 1 --tau inf",
    "--temperature 1 --prior_samples 3",
    "--dataset pydoc",
    "--dataset self",
    "--dataset pydoc,self",
    "--dataset pydoc:0.7,self:0.3",
    "--dataset b/text.txt,self",
    "--dataset /data/b/text.txt,self",
    "--dataset a/text.txt",
    "--dataset b/text.txt",
    "--dataset /data/a/text.txt",
    "--dataset /data/b/text.txt",
    "--target stock",
    "--dry_run",
    "--seed 1",
    "--num_samples 4",
    "--max_block_ratio 0.5",
    "--reconstruct none",
    "--recover blocks",
    "--recover blocks,distill",
    "--recover distill --recover_tokens 9",
    "--recover distill --recover_lora 9",
    "--dtype float32",
    "--eval_datasets c4",
    "--plan a/analysis/pruning_plan.json",
    "--plan b/analysis/pruning_plan.json",
    "--plan x/b/analysis/pruning_plan.json",
]
MODELS = ["demo", "owner/demo", "other/demo", "/models/a/demo", "/models/b/demo", "."]


def folder(arguments: str, model: str = "demo") -> Path:
    output = parse_options(["--base_model", model, *arguments.split()]).settings.output.output
    assert output is not None
    return output


def test_runs_that_differ_differ_in_their_folder() -> None:
    for one, other in itertools.combinations(RUNS, 2):
        assert folder(one) != folder(other), (one, other)
    for one, other in itertools.combinations(MODELS, 2):
        assert folder("", one) != folder("", other), (one, other)


@pytest.mark.parametrize(
    "same",
    [
        "--seed 0",
        "--norm_method sqrt",
        "--tau 3",
        "--device cpu",
        "--no_verify",
        "--reconstruct least_squares",
        "--recover none",
    ],
)
def test_what_does_not_act_or_is_the_default_changes_nothing(same: str) -> None:
    assert folder(same) == folder("")


def test_names_are_short_and_say_what_was_asked() -> None:
    assert folder("--dataset pydoc") == Path("results/demo/obs_0.2_pydoc")
    assert folder("--dataset pydoc,self") == Path("results/demo/obs_0.2_pydoc+self")
    assert folder("--dataset pydoc:7,self:3") == Path("results/demo/obs_0.2_pydoc0.7+self0.3")
    assert folder("--pruning_ratio 0.5 --ratio_of prunable --dataset c4 --dry_run") == Path(
        "results/demo/obs_0.5-of-prunable_dry_c4"
    )
    transforms = "--enable_grad_norm --norm_method log --enable_grad_clip --temperature 1 --tau 0"
    assert folder(transforms) == Path("results/demo/obs_0.2_log_clip5-95_T1_tau0_wikitext2+self")
    assert folder("--plan look/analysis/pruning_plan.json").name.startswith("replayed_look_wikitext2+self_")


@pytest.mark.parametrize("model", ["x" * 400, "ü" * 300, "with space/and\nline", "...", "~"])
def test_any_name_of_a_model_becomes_one_that_a_file_system_takes(model: str) -> None:
    output = parse_options(["--base_model", model, "--dataset", f"{model}/t.txt"]).settings.output.output
    assert output is not None
    parts = output.parts
    assert len(parts) == 3
    assert all(len(part.encode()) <= 120 and part.isprintable() and not part.startswith(".") for part in parts)
