"""Every option acts: one by one, each shows a difference that a user can see, or the reason why not."""

import importlib
import json
import re
import shlex
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_options_of_texts
from transformers import TrainerCallback
from workspace import Workspace, call, notes_on, observe, write_model

import run.recover
from cli.options import build_parser, parse_options
from core import resting
from core.program import program_name

OPTIONS = {
    option: action
    for action in build_parser()._actions
    for option in action.option_strings
    if option.startswith("--") and option != "--help"
}


@pytest.fixture(scope="module")
def base(workspace: Workspace) -> dict[str, Any]:
    return observe(workspace.run("base"))


# option -> (arguments for the run, arguments for the run it is compared with, what must differ)
ACTS: dict[str, tuple[list[str], list[str], str]] = {
    "--dtype": (["--dtype", "float32"], [], "stored"),
    "--pruning_ratio": (["--pruning_ratio", "0.3"], [], "plan"),
    "--ratio_of": (["--ratio_of", "total"], [], "plan"),
    "--importance_method": (["--importance_method", "wanda"], [], "importance"),
    "--gradient_reduction": (["--gradient_reduction", "sum"], [], "importance"),
    "--freeze_first_n_layers": (["--freeze_first_n_layers", "1"], [], "plan"),
    "--freeze_last_n_layers": (["--freeze_last_n_layers", "1"], [], "plan"),
    "--max_block_ratio": (["--max_block_ratio", "0.5"], [], "plan"),
    "--min_kv_heads": (["--min_kv_heads", "3"], [], "plan"),
    "--round_to": (["--round_to", "8"], [], "plan"),
    "--epsilon": (["--epsilon", "0.65"], [], "plan"),
    "--enable_grad_clip": (["--enable_grad_clip"], [], "score"),
    "--clip_percentile_low": (["--enable_grad_clip", "--clip_percentile_low", "40"], ["--enable_grad_clip"], "score"),
    "--clip_percentile_high": (["--enable_grad_clip", "--clip_percentile_high", "60"], ["--enable_grad_clip"], "score"),
    "--enable_grad_norm": (["--enable_grad_norm"], [], "plan"),
    "--norm_method": (["--enable_grad_norm", "--norm_method", "zscore"], ["--enable_grad_norm"], "score"),
    "--temperature": (["--temperature", "1.0"], [], "score"),
    "--tau": (["--temperature", "1.0", "--tau", "inf"], ["--temperature", "1.0"], "score"),
    "--prior": (["--temperature", "1.0", "--prior", "similarity"], ["--temperature", "1.0"], "score"),
    "--prior_samples": (["--temperature", "1.0", "--prior_samples", "2"], ["--temperature", "1.0"], "score"),
    "--num_samples": (["--num_samples", "4"], [], "importance"),
    "--seq_len": (["--seq_len", "12"], [], "importance"),
    "--seed": (["--seed", "1"], [], "windows"),
    "--dry_run": (["--dry_run"], [], "files"),
    "--no_save_model": (["--no_save_model"], [], "files"),
    "--run_evaluation": (["--run_evaluation", "none"], [], "files"),
    "--eval_seq_len": (["--eval_seq_len", "16"], [], "evaluation"),
    "--eval_samples": (["--eval_samples", "2"], [], "evaluation"),
    "--protect": (["--protect", "measured"], [], "files"),
    "--allocate": (["--allocate", "searched"], [], "files"),
    "--rounds": (["--rounds", "2"], [], "files"),
    "--target": (["--target", "stock"], [], "plan"),
    "--tensor_parallel": (["--target", "vllm", "--tensor_parallel", "2"], ["--target", "vllm"], "plan"),
    "--max_shard_size": (["--max_shard_size", "20KB"], [], "files"),
    "--no_verify": (["--no_verify"], [], "files"),
    "--reconstruct": (["--reconstruct", "least_squares", "--num_samples", "40"], ["--num_samples", "40"], "evaluation"),
    "--reconstruct_text": (
        ["--reconstruct", "least_squares", "--num_samples", "40", "--reconstruct_text", "calibration"],
        ["--reconstruct", "least_squares", "--num_samples", "40"],
        "evaluation",
    ),
    "--reconstruct_modules": (
        ["--reconstruct", "least_squares", "--num_samples", "40", "--reconstruct_modules", "outputs"],
        ["--reconstruct", "least_squares", "--num_samples", "40"],
        "evaluation",
    ),
    "--reconstruct_target": (
        ["--reconstruct", "least_squares", "--num_samples", "40", "--reconstruct_target", "pruned"],
        ["--reconstruct", "least_squares", "--num_samples", "40"],
        "evaluation",
    ),
}
# Options whose effect is shown by a test of their own, below or in test_options_of_texts.py.
ELSEWHERE = {
    "--base_model": "test_base_model_and_output_name_what_is_read_and_written",
    "--output": "test_base_model_and_output_name_what_is_read_and_written",
    "--device": "test_device",
    "--gpu_memory": "test_device",
    "--trust_remote_code": "test_trust_remote_code_alone_runs_a_tokenizers_python",
    "--dataset": "test_datasets",
    "--eval_datasets": "test_datasets",
    "--eval_elsewhere": "test_text_of_another_kind_is_evaluated_on_a_few_windows",
    "--text_column": "test_text_column_names_where_rows_keep_their_text",
    "--batch_size": "test_batch_size_sets_the_windows_of_a_pass_and_not_the_result",
    "--overwrite": "test_overwrite",
    "--plan": "test_plan_replays_a_decision",
    "--eval_tasks": "test_tasks",
    "--eval_task_path": "test_tasks",
    "--verify": "test_verify_is_the_default_and_can_be_said",
    "--engine": "test_a_streamed_run_gives_what_a_resident_one_does",
    "--scratch": "test_a_streamed_run_gives_what_a_resident_one_does",
    "--low_memory": "test_low_memory_is_another_word",
    "--minutes": "test_minutes_end_a_search_after_whole_levels",
    "--remedy": "test_remedy_auto_tries_plans_and_prunes_with_the_best",
    "--cache_dir": "test_cache_dir_names_where_measurements_are_kept",
    "--recover": "test_recover_trains_what_is_left",
    "--recover_tokens": "test_distillation_is_as_long_and_as_deep_as_asked",
    "--recover_lora": "test_distillation_is_as_long_and_as_deep_as_asked",
    "--report_to": "test_report_to_names_who_hears_of_a_distillation",
    "--export": "test_export_writes_a_gguf_file_beside_the_model",
}


def test_every_option_is_covered_here() -> None:
    assert set(ACTS) | set(ELSEWHERE) == set(OPTIONS)
    shown = globals() | vars(test_options_of_texts)
    assert all(name in shown for name in ELSEWHERE.values())


@pytest.mark.parametrize("option", ACTS)
def test_option_makes_a_visible_difference(option: str, workspace: Workspace, base: dict[str, Any]) -> None:
    arguments, other, what = ACTS[option]
    name = option.strip("-")
    compared = observe(workspace.run(f"{name}-other", *other)) if other else base
    assert observe(workspace.run(name, *arguments))[what] != compared[what]


def test_recover_trains_what_is_left(
    workspace: Workspace, base: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run.recover, "BlockSettings", partial(run.recover.BlockSettings, steps=8, check_every=4))
    found = observe(workspace.run("blocks", "--recover", "blocks"))
    assert set(found["files"]) - set(base["files"]) == {"analysis/recovery.json"}
    assert found["evaluation"]["pruned"] != base["evaluation"]["pruned"]
    assert found["evaluation"]["before_recovery"]["perplexity"] == base["evaluation"]["pruned"]["perplexity"]
    assert found["plan"] == base["plan"]


def test_distillation_is_as_long_and_as_deep_as_asked(workspace: Workspace) -> None:
    for name, asked in {"tokens": ("--recover_tokens", "5000"), "lora": ("--recover_lora", "2")}.items():
        arguments = ("--recover", "distill", "--recover_tokens", "4500", *asked, "--run_evaluation", "none")
        output = workspace.run(f"distil-{name}", *arguments)
        report = json.loads((output / "analysis" / "recovery.json").read_text())["distill"]
        assert (report["tokens"], report["lora"]) == ((5000, None) if name == "tokens" else (4500, 2))


def test_report_to_names_who_hears_of_a_distillation(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[float] = []

    class Tracker(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            heard.extend(value for name, value in logs.items() if name == "loss")

    integrations = "transformers.integrations.integration_utils"
    monkeypatch.setitem(importlib.import_module(integrations).INTEGRATION_TO_CALLBACK, "wandb", Tracker)
    monkeypatch.setattr("transformers.integrations.get_available_reporting_integrations", lambda: ["wandb"])
    arguments = ("--recover", "distill", "--recover_tokens", "4500", "--run_evaluation", "none")
    workspace.run("tracked", *arguments, "--report_to", "wandb")
    assert heard


def test_same_options_same_seed_same_plan_bytes(workspace: Workspace, base: dict[str, Any]) -> None:
    again = observe(workspace.run("again"))
    assert again == base


@pytest.mark.parametrize("criterion", ["taylor_2nd", "fisher", "obs", "magnitude"])
def test_criteria_differ(criterion: str, workspace: Workspace, base: dict[str, Any]) -> None:
    found = observe(workspace.run(f"criterion-{criterion}", "--importance_method", criterion))
    assert found["importance"] != base["importance"]
    source = json.loads((workspace.root / f"criterion-{criterion}/analysis/gradient_diagnosis.json").read_text())
    expected = {
        "taylor_2nd": "weights",
        "fisher": "inputs of o_proj/down_proj",
        "obs": "outputs of o_proj/down_proj",
        "magnitude": "none",
    }
    assert source["gradient_source"] == expected[criterion]


def test_base_model_and_output_name_what_is_read_and_written(workspace: Workspace, tmp_path: Path) -> None:
    other = write_model(tmp_path / "other", "qwen3")
    output = workspace.run("other-model", "--base_model", str(other), "--output", str(tmp_path / "out"))
    assert output.exists() is False
    config = json.loads((tmp_path / "out" / "model" / "config.json").read_text())
    assert config["model_type"] == "pruned_qwen3"
    expected = {"analysis", "evaluation", "model", "report.html", "run.json", "visualization"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == expected


def test_device(workspace: Workspace) -> None:
    record = json.loads((workspace.run("device", "--dry_run", "--run_evaluation", "none") / "run.json").read_text())
    assert record["environment"]["device"] == "cpu"
    code, _, error = call([*workspace.base_arguments(), "--device", "cuda:77", "--output", str(workspace.root / "x")])
    assert code == 2
    assert "--device cuda:77" in error
    code, _, error = call([*workspace.base_arguments(), "--device", "tpu", "--output", str(workspace.root / "x")])
    assert code == 2
    assert "auto, cpu, cuda, cuda:N" in error
    assert notes_on("--device", "cpu", "--gpu_memory", "17GB") == ["--gpu_memory has an effect on a GPU only"]


def test_trust_remote_code_alone_runs_a_tokenizers_python(workspace: Workspace, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "remote")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["auto_map"] = {"AutoTokenizer": [None, "brought_along.BroughtTokenizer"]}
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"tokenizer_class": "BroughtTokenizer"}))
    marker = tmp_path / "ran"
    (folder / "brought_along.py").write_text(
        "from pathlib import Path\nfrom transformers import PreTrainedTokenizerFast\n"
        f"Path({str(marker)!r}).write_text('yes')\n"
        "class BroughtTokenizer(PreTrainedTokenizerFast):\n    pass\n"
    )
    arguments = ["--base_model", str(folder), "--dry_run", "--run_evaluation", "none"]
    refused = call([*workspace.base_arguments(), *arguments, "--output", str(tmp_path / "untrusted")])
    assert refused[0] == 2
    assert refused[2].endswith("it brings Python of its own; read that, then add --trust_remote_code to run it\n")
    assert not marker.exists()
    workspace.run("trusted", *arguments, "--trust_remote_code")
    assert marker.exists()


def test_batch_size_sets_the_windows_of_a_pass_and_not_the_result(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Results are defined without batches, so the difference to see is how many windows a pass takes."""
    from importance import over_windows

    sizes: list[list[int]] = []
    original = over_windows.for_each_batch

    def watching(ids: np.ndarray, step: Any, batch_size: int | None, description: str, first: int) -> None:
        seen: list[int] = []
        sizes.append(seen)

        def counted(batch: np.ndarray) -> None:
            seen.append(len(batch))
            step(batch)

        original(ids, counted, batch_size, description, first)

    monkeypatch.setattr(over_windows, "for_each_batch", watching)
    plans = []
    for batch_size in ("auto", "4"):
        arguments = ["--importance_method", "fisher", "--batch_size", batch_size, "--dry_run"]
        plans.append(observe(workspace.run(f"batch-{batch_size}", *arguments)))
    assert sizes == [[6], [4, 2]]
    np.testing.assert_allclose(plans[0]["importance"], plans[1]["importance"], rtol=1e-3)


def test_overwrite(workspace: Workspace) -> None:
    output = workspace.run("overwrite", "--run_evaluation", "none")
    (output / "notes.txt").write_text("mine")
    before = observe(output)
    arguments = [*workspace.base_arguments(), "--output", str(output), "--dry_run", "--run_evaluation", "none"]
    code, _, error = call(arguments)
    assert code == 2
    assert "--overwrite" in error
    assert observe(output) == before
    assert call([*arguments, "--overwrite"])[0] == 0
    assert not (output / "model").exists()
    assert (output / "notes.txt").read_text() == "mine"


def test_plan_replays_a_decision(workspace: Workspace, base: dict[str, Any]) -> None:
    plan = workspace.root / "base" / "analysis" / "pruning_plan.json"
    replayed = observe(workspace.run("replayed", "--plan", str(plan)))
    assert replayed["plan"] == base["plan"]
    assert replayed["evaluation"]["pruned"] == base["evaluation"]["pruned"]
    first, second = (workspace.root / name / "model" / "model.safetensors" for name in ("base", "replayed"))
    assert first.read_bytes() == second.read_bytes()
    diagnosis = json.loads((workspace.root / "replayed/analysis/gradient_diagnosis.json").read_text())
    assert diagnosis["gradient_source"] == "none"
    assert diagnosis["gradient_statistics"]["mean_ratio"] is None


def test_verify_is_the_default_and_can_be_said(workspace: Workspace, base: dict[str, Any]) -> None:
    assert observe(workspace.run("verified", "--no_verify", "--verify"))["files"] == base["files"]
    report = json.loads((workspace.root / "base" / "analysis" / "verification.json").read_text())
    assert report["passed"] is True
    assert {check["name"] for check in report["checks"]} >= {"head mapping", "logits", "generation", "left padding"}


def test_a_streamed_run_gives_what_a_resident_one_does(
    workspace: Workspace, base: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files are opened in --scratch where it is given, and none is left there."""
    scratch, opened = workspace.root / "scratch", []
    scratch.mkdir()
    original = resting.tempfile.TemporaryFile

    def noting(*, dir: Path, **options: Any) -> Any:
        opened.append(dir)
        return original(dir=dir, **options)

    monkeypatch.setattr(resting.tempfile, "TemporaryFile", noting)
    for name, further in (("streamed", []), ("scratched", ["--scratch", str(scratch)])):
        run = workspace.run(name, "--engine", "streamed", *further)
        assert observe(run) == base
        assert json.loads((run / "run.json").read_text())["facts"]["streamed"]
        assert (scratch in opened) == bool(further)
    assert list(scratch.iterdir()) == []


def test_low_memory_is_another_word(workspace: Workspace) -> None:
    run = workspace.run("low", "--low_memory", "--dry_run", "--run_evaluation", "none")
    assert json.loads((run / "run.json").read_text())["options"]["engine"] == "streamed"


def test_cache_dir_names_where_measurements_are_kept(workspace: Workspace, base: dict[str, Any]) -> None:
    folder = workspace.root / "kept"
    outcomes = []
    for name in ("cold", "warm"):
        run = workspace.run(f"cache-{name}", "--cache_dir", str(folder))
        assert observe(run) == base
        outcomes.append(set(json.loads((run / "run.json").read_text())["facts"]["cache"].values()))
    assert outcomes == [{"miss"}, {"hit"}]
    assert sorted(path.name.split("-")[0] for path in folder.iterdir()) == [
        "dense_perplexity",
        "importance",
        "model",
        "windows",
    ]
    assert workspace.run("cache-none", "--cache_dir", "none").is_dir()
    assert not Path("none").exists()


def test_remedy_auto_tries_plans_and_prunes_with_the_best(workspace: Workspace, base: dict[str, Any]) -> None:
    advised = observe(workspace.run("advise", "--remedy", "advise"))
    assert advised == base
    run = workspace.run("auto", "--remedy", "auto")
    record = json.loads((run / "analysis" / "remedy.json").read_text())
    assert len(record["tried"]) >= 7
    (taken,) = [trial for trial in record["tried"] if trial["taken"]]
    assert taken["nll_nats_per_token"] <= record["tried"][0]["nll_nats_per_token"]
    replayed = workspace.run("auto-by-hand", *shlex.split(taken["flags"]))
    assert observe(run)["plan"] == observe(replayed)["plan"]


def test_minutes_end_a_search_after_whole_levels(workspace: Workspace) -> None:
    levels = {}
    for minutes in ("0.000001", "10"):
        run = workspace.run(f"minutes-{minutes}", "--allocate", "searched", "--minutes", minutes, "--dry_run")
        levels[minutes] = json.loads((run / "analysis" / "allocation.json").read_text())["levels_complete"]
    assert levels == {"0.000001": 0, "10": 8}


def test_export_writes_a_gguf_file_beside_the_model(workspace: Workspace, tmp_path: Path) -> None:
    """The embedded model, because llama.cpp wants a byte-level tokenizer; a word-level one is refused beforehand."""
    pytest.importorskip("gguf")
    arguments = ["--base_model", "demo", "--importance_method", "magnitude", "--pruning_ratio", "0.2"]
    folder = workspace.run("exported", *arguments, "--run_evaluation", "none", "--export", "gguf")
    assert (folder / "model.gguf").read_bytes()[:4] == b"GGUF"
    output = ["--output", str(tmp_path / "x")]
    code, _, error = call([*workspace.base_arguments(), *output, "--export", "gguf"])
    assert code == 2
    assert len(error.splitlines()) == 1
    assert call([*workspace.base_arguments(), *output, "--export", "gguf", "--no_save_model"])[0] == 2


def test_help_gives_every_option_a_default_and_the_epilog_parses() -> None:
    text = build_parser().format_help()
    for option, action in OPTIONS.items():
        assert option in text
        assert "default" in (action.help or "") or action.required, option
    joined = text.split("commands that work:")[1].replace("\\\n", " ")
    commands = re.findall(rf"^ +{program_name()} (--.*)$", joined, flags=re.M)
    assert len(commands) == 5
    for command in commands:
        assert parse_options(command.split()).settings.model.base_model
