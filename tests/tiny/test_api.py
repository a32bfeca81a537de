"""``import global_pruning as gp``: what the command does, from Python, in a process that belongs to somebody else."""

import asyncio
import contextlib
import copy
import importlib
import io
import json
import logging
import os
import random
import signal
import subprocess
import sys
import threading
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer
from workspace import Workspace, call, observe, write_text

import global_pruning as gp
from core.plan import PruningPlan
from core.say import say_on_stderr
from diagnostics.findings.finding import SEVERITIES
from pruning.plan_file import write_plan

ROOT = Path(__file__).resolve().parents[2]
SMALL: dict[str, Any] = {"num_samples": 6, "seq_len": 16, "device": "cpu", "say": gp.silent}
IN_MEMORY = {name: value for name, value in SMALL.items() if name != "device"}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return Workspace.make(tmp_path_factory.mktemp("api"))


@pytest.fixture(scope="module")
def session(workspace: Workspace) -> gp.Session:
    return gp.open(workspace.model, dataset=workspace.text, **SMALL)


@pytest.fixture(scope="module")
def plan(session: gp.Session) -> PruningPlan:
    return session.plan(session.score("obs"), ratio=0.4, ratio_of="prunable")


def loaded(workspace: Workspace, dtype: torch.dtype = torch.float32) -> tuple[Any, Any]:
    """A model as somebody has it in the middle of their own work: in train mode, with gradients and a hook."""
    model = AutoModelForCausalLM.from_pretrained(workspace.model, dtype=dtype).train()
    model.lm_head.register_forward_hook(lambda *_: None)
    parameters = list(model.parameters())
    parameters[0].grad = torch.ones_like(parameters[0])
    parameters[1].requires_grad_(False)
    return model, AutoTokenizer.from_pretrained(workspace.model)


def state_of(model: Any) -> dict[str, Any]:
    """All that a user may notice: weights, gradients, flags, modes, hooks, configuration."""
    return {
        "weights": {name: tensor.clone() for name, tensor in model.state_dict().items()},
        "places": [parameter.data_ptr() for parameter in model.parameters()],
        "gradients": [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        "flags": [parameter.requires_grad for parameter in model.parameters()],
        "modes": [module.training for module in model.modules()],
        "hooks": [
            (list(module._forward_hooks), list(module._forward_pre_hooks), list(module._backward_hooks))
            for module in model.modules()
        ],
        "own": [sorted(vars(module)) for module in model.modules()],
        "config": model.config.to_dict(),
        "generation": model.generation_config.to_dict(),
    }


def equal(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(equal(*pair) for pair in zip(one, other, strict=True))
    return bool(one == other)


def process_state() -> dict[str, Any]:
    """All that a call could leave behind in the process."""
    return {
        "warnings": list(warnings.filters),
        "random": random.getstate(),
        "numpy": np.random.get_state()[1].tolist(),  # type: ignore[index]  # noqa: NPY002
        "torch": torch.get_rng_state(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "warn only": torch.is_deterministic_algorithms_warn_only_enabled(),
        "filled": torch.utils.deterministic.fill_uninitialized_memory,  # type: ignore[attr-defined]
        "cudnn": (torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark),
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "dtype": torch.get_default_dtype(),
        "grad": torch.is_grad_enabled(),
        "verbosity": transformers.logging.get_verbosity(),
        "bars": transformers.utils.logging.is_progress_bar_enabled(),
        "levels": {name: logging.getLogger(name).level for name in ("", "transformers", "datasets", "matplotlib")},
        "handlers": {name: list(logging.getLogger(name).handlers) for name in ("", "transformers")},
        "environment": dict(os.environ),
        "signals": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)],
        "streams": (sys.stdout, sys.stderr, sys.excepthook),
        "numpy errors": np.geterr(),
        "folder": Path.cwd(),
        "umask": _umask(),
        "path": list(sys.path),
    }


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def in_a_process(code: str, folder: Path, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        capture_output=True,
        text=True,
        check=False,
    )


# --- importing ---


def test_importing_is_light_and_changes_nothing(tmp_path: Path) -> None:
    done = in_a_process(
        "import logging, os, sys, time, warnings, random, signal\n"
        "before = (list(warnings.filters), random.getstate(), dict(os.environ), logging.root.level,\n"
        "          list(logging.root.handlers), signal.getsignal(signal.SIGINT), sys.stdout, list(sys.path))\n"
        "start = time.process_time()\n"
        "import global_pruning as gp\n"
        "took = time.process_time() - start\n"
        "after = (list(warnings.filters), random.getstate(), dict(os.environ), logging.root.level,\n"
        "         list(logging.root.handlers), signal.getsignal(signal.SIGINT), sys.stdout, list(sys.path))\n"
        "assert before == after\n"
        "heavy = {'torch', 'transformers', 'datasets', 'lm_eval', 'matplotlib', 'pandas'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "assert took < 1, took\n",
        tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert (done.stdout, done.stderr) == ("", "")


def test_a_package_of_the_user_with_one_of_our_names_is_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "__init__.py").write_text("")
    places = os.pathsep.join([str(tmp_path), str(ROOT)])
    done = in_a_process("import models\nimport global_pruning", tmp_path, PYTHONPATH=places)
    last = done.stderr.splitlines()[-1]
    assert last.startswith("ImportError: a package named 'models' was imported before ours (")
    assert str(tmp_path) in last
    assert "import global_pruning first" in last
    ours = "import global_pruning\nfrom models import loading"
    assert in_a_process(ours, tmp_path, PYTHONPATH=places).returncode == 0


# --- everything at once ---


def test_prune_is_the_command(workspace: Workspace) -> None:
    """The same plan, bytes and files, for the same settings; and the command line that it names asks for the same."""
    by_command = workspace.run("by command", "--reconstruct", "least_squares", "--eval_datasets", str(workspace.text))
    result = gp.prune(
        workspace.model,
        ratio=0.4,
        ratio_of="prunable",
        dataset=workspace.text,
        output=workspace.root / "by call",
        importance_method="taylor",
        reconstruct="least_squares",
        eval_seq_len=32,
        eval_datasets=[workspace.text],
        **SMALL,
    )
    assert observe(result.path) == observe(by_command)
    weights = [folder / "model" / "model.safetensors" for folder in (result.path, by_command)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    records = [json.loads((folder / "run.json").read_text()) for folder in (result.path, by_command)]
    assert [record["options"] | {"output": ""} for record in records[:1]] == [records[1]["options"] | {"output": ""}]

    name = str(workspace.text)
    assert result.perplexity[name][1] == result.evaluation["pruned"]["perplexity"][name]["perplexity"]  # type: ignore[index]
    assert result.plan.removed_params == result.plan.architecture.total_params - result.model.num_parameters()
    assert result.findings[0].description in result._repr_html_()
    assert "perplexity" in repr(result)


def test_a_dry_run_has_no_model_and_needs_none(workspace: Workspace) -> None:
    result = gp.prune(workspace.model, dataset=workspace.text, output=workspace.root / "dry", dry_run=True, **SMALL)
    assert result.model is None
    assert "parameters" in result._repr_html_()


WRONG_OPTIONS: dict[str, dict[str, Any]] = {
    "pruning_ratio: '1.5' is not a number in (0, 1)": {"ratio": 1.5},
    "pruning_ratio: 'a fifth' is not": {"ratio": "a fifth"},
    "num_samples: '0' is not": {"num_samples": 0},
    "dry_run='yes' is neither True nor False": {"dry_run": "yes"},
    "target='tpu' is none of hf, stock": {"target": "tpu"},
    "--device gpu is not one of": {"device": "gpu"},
    "overwite is not an option; did you mean overwrite?": {"overwite": True},
    "base_model='demo': ": {"base_model": "demo"},
    "run_evaluation: 'ppl,foo' is not": {"run_evaluation": ["ppl", "foo"]},
    "--low_memory": {"low_memory": True, "importance_method": "taylor"},
}


@pytest.mark.parametrize("says", WRONG_OPTIONS)
def test_wrong_options_are_one_line_and_leave_no_folder(says: str, workspace: Workspace) -> None:
    output = workspace.root / "never"
    with pytest.raises(gp.UsageError) as caught:
        gp.prune(workspace.model, **{"dataset": workspace.text, "output": output, **SMALL} | WRONG_OPTIONS[says])
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not output.exists()


# --- step by step ---


@pytest.mark.parametrize("method", ["taylor", "taylor_2nd", "fisher", "obs", "wanda", "magnitude"])
def test_each_criterion_scores_under_any_transform(method: str, session: gp.Session) -> None:
    plain = session.score(method)
    assert plain.values.shape == (len(session.plan(plain, 0.2).keep),)
    assert plain.method == method
    transformed = session.score(method, normalise="log", clip=(1, 99), temperature=1.0, tau="auto")
    np.testing.assert_array_equal(transformed.values, plain.values)  # importance stays; transforms act in plan()
    assert transformed.prior is not None
    assert method in repr(plain)
    assert "<table>" in plain._repr_html_()


def test_a_plan_made_step_by_step_is_the_commands(workspace: Workspace, session: gp.Session, tmp_path: Path) -> None:
    run = workspace.run("for its plan", "--enable_grad_norm", "--freeze_first_n_layers", "1", "--no_save_model")
    scores = session.score("taylor", normalise="log")
    plan = session.plan(scores, 0.4, ratio_of="prunable", freeze_first_n_layers=1)
    written = write_plan(tmp_path / "pruning_plan.json", plan)
    assert written.read_bytes() == (run / "analysis" / "pruning_plan.json").read_bytes()
    severities = [SEVERITIES.index(finding.severity) for finding in session.explain(plan)]
    assert severities
    assert severities == sorted(severities)


def test_many_plans_from_one_pass_and_many_models(session: gp.Session, tmp_path: Path) -> None:
    scores = session.score("obs")
    plans = [session.plan(scores, ratio, ratio_of="prunable") for ratio in (0.2, 0.4)]
    models = [session.prune(plan) for plan in plans]
    assert [model.num_parameters() for model in models] == [
        plan.architecture.total_params - plan.removed_params for plan in plans
    ]
    again = session.prune(plans[0])
    assert equal(dict(models[0].state_dict()), dict(again.state_dict()))  # the repair of the other left no trace
    for index, model in enumerate(models):
        folder = session.save(model, tmp_path / "deep" / str(index))
        reloaded = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32)
        assert reloaded.num_parameters() == model.num_parameters()


def test_check_measures_what_prune_delivers(session: gp.Session, plan: PruningPlan) -> None:
    from evaluation.perplexity import window_nll

    check = session.check(plan)
    windows = session._inner.judging
    model = session.prune(plan)
    nll = window_nll(model, windows.ids, batch_size=None, description="") / (windows.seq_len - 1)
    assert check.loss == pytest.approx(float(nll.mean()), rel=1e-3)  # prune() rounds to the stored bfloat16
    assert check.increase == pytest.approx(check.loss - check.dense_loss, abs=1e-9)
    assert check.num_windows == len(windows)
    assert session.check(plan) == check
    assert "nats/token" in repr(check)
    assert "<table>" in check._repr_html_()


def test_values_show_themselves(session: gp.Session, plan: PruningPlan) -> None:
    assert repr(plan).startswith(f"PruningPlan({plan.removed_params:,} of ")
    assert plan._repr_html_().count("<tr>") == 1 + plan.architecture.num_layers
    assert repr(session).startswith("model: llama, 3 layers, ")
    assert "<table>" in session._repr_html_()


def test_a_stock_plan_gives_a_model_of_the_familys_own_class(session: gp.Session, tmp_path: Path) -> None:
    plan = session.plan(session.score("wanda"), 0.2, target="stock")
    small = session.prune(plan, target="stock")
    assert type(small).__name__ == "LlamaForCausalLM"
    folder = session.save(small, tmp_path / "stock")
    assert not list(folder.glob("*.py"))
    with pytest.raises(gp.PlanError, match="--target stock cannot serve"):
        session.prune(session.plan(session.score("obs"), 0.4), target="stock")


def test_steps_refuse_in_one_line(session: gp.Session, plan: PruningPlan, workspace: Workspace, tmp_path: Path) -> None:
    scores = session.score("magnitude")
    wrong: list[tuple[type, str, Any]] = [
        (gp.UsageError, "importance_method='gradient' is none of taylor", lambda: session.score("gradient")),
        (gp.UsageError, "norm_method='l2' is none of log", lambda: session.score(normalise="l2")),
        (gp.UsageError, "needs 0 <= low < high", lambda: session.score(clip=(95, 5))),
        (gp.UsageError, "clip=5 is neither", lambda: session.score(clip=5)),  # type: ignore[arg-type]
        (gp.UsageError, "temperature: '-1' is not", lambda: session.score(temperature=-1)),
        (gp.UsageError, "plan(freeze=...): there is no such limit", lambda: session.plan(scores, freeze=1)),
        (gp.UsageError, "min_kv_heads: '0' is not", lambda: session.plan(scores, min_kv_heads=0)),
        (gp.UsageError, "ratio_of='all' is none of", lambda: session.plan(scores, ratio_of="all")),
        (gp.BudgetError, "0.99", lambda: session.plan(scores, 0.99)),
        (gp.UsageError, "output='x': open() takes", lambda: gp.open(workspace.model, output="x")),
        (gp.ModelError, "no such folder", lambda: gp.open(tmp_path / "nowhere")),
        (gp.DataError, "neither one of", lambda: gp.open(workspace.model, **SMALL, dataset="nowhere.txt")),
        (gp.ModelError, "save() takes the model that prune() returned", lambda: session.save(plan, tmp_path / "p")),
    ]
    for kind, says, step in wrong:
        with pytest.raises(gp.PruningError) as caught:
            step()
        assert type(caught.value) is kind, says
        assert says in str(caught.value)
        assert "\n" not in str(caught.value)


def test_plans_and_scores_of_another_model_are_refused(session: gp.Session, plan: PruningPlan, tmp_path: Path) -> None:
    from workspace import write_model

    other = gp.open(write_model(tmp_path / "other", "mistral"), dataset=None, say=gp.silent)
    for step in (session.prune, session.check, session.explain):
        with pytest.raises(gp.PlanError, match="another model"):
            step(other.plan(other.score("magnitude"), 0.2))
    with pytest.raises(gp.PlanError, match="another model"):
        session.plan(other.score("magnitude"), 0.2)


def test_without_text_magnitude_is_all_there_is(workspace: Workspace, tmp_path: Path) -> None:
    session = gp.open(workspace.model, dataset=None, say=gp.silent, device="cpu")
    plan = session.plan(session.score("magnitude"), 0.3)
    session.save(session.prune(plan), tmp_path / "model")
    for step in (
        lambda: session.score("obs"),
        lambda: session.check(plan),
        lambda: session.score("magnitude", temperature=1),
    ):
        with pytest.raises(gp.DataError, match="opened with dataset=None"):
            step()


def test_text_is_read_when_it_is_first_needed(workspace: Workspace, tmp_path: Path) -> None:
    text = write_text(tmp_path / "text.txt")
    session = gp.open(workspace.model, dataset=text, **SMALL)
    text.unlink()
    session.score("magnitude")
    with pytest.raises(gp.DataError):
        session.score("obs")


# --- saving ---


def test_a_model_trained_after_the_cut_is_proved_against_itself(
    session: gp.Session, plan: PruningPlan, tmp_path: Path
) -> None:
    """In float32, though the checkpoint is bfloat16: the proof is of what is written, and the model stays as it is."""
    small = session.prune(plan).requires_grad_(True).train()
    optimiser = torch.optim.SGD(small.parameters(), lr=0.05)
    ids = torch.randint(4, 90, (2, 12))
    for _ in range(3):
        small(input_ids=ids, labels=ids).loss.backward()
        optimiser.step()
    before = state_of(small)
    session.save(small, tmp_path / "trained")
    after = state_of(small)
    for part in ("weights", "gradients", "flags", "modes", "hooks"):
        assert equal(before[part], after[part]), part
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "trained", trust_remote_code=True, dtype=torch.float32)
    small.eval()
    with torch.no_grad():
        difference = (reloaded(input_ids=ids).logits - small(input_ids=ids).logits).norm() / small(
            input_ids=ids
        ).logits.norm()
    assert difference < 2e-2  # bfloat16 keeps 8 bits


def test_saving_replaces_saved_models_alone(
    session: gp.Session, plan: PruningPlan, workspace: Workspace, tmp_path: Path
) -> None:
    small, folder = session.prune(plan), tmp_path / "model"
    session.save(small, folder)
    with pytest.raises(gp.OutputError, match="overwrite=True"):
        session.save(small, folder)
    session.save(small, folder, overwrite=True)
    with pytest.raises(gp.OutputError, match="is the model that is being pruned"):
        session.save(small, workspace.model, overwrite=True)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("mine")
    for place in (tmp_path, tmp_path / "notes", tmp_path / "notes" / "mine.txt"):
        with pytest.raises(gp.OutputError, match="not replaced"):
            session.save(small, place, overwrite=True)
    with pytest.raises(gp.PruningError, match=r"mine\.txt"):
        session.save(small, tmp_path / "notes" / "mine.txt" / "model")
    assert (tmp_path / "notes" / "mine.txt").read_text() == "mine"


# --- a model that the caller has in memory ---


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_in_memory_is_left_as_found(dtype: torch.dtype, workspace: Workspace, tmp_path: Path) -> None:
    model, tokenizer = loaded(workspace, dtype)
    before = state_of(model)
    session = gp.open(model, tokenizer=tokenizer, dataset=workspace.text, **IN_MEMORY)
    for method in ("obs", "taylor", "magnitude"):
        scores = session.score(method, temperature=1.0)
    plan = session.plan(scores, 0.3)
    session.explain(plan)
    session.check(plan)
    models = [session.prune(plan), session.prune(plan)]
    session.save(models[0], tmp_path / "model")
    gp.prune(model, tokenizer=tokenizer, dataset=workspace.text, output=tmp_path / "run", eval_seq_len=32, **IN_MEMORY)
    assert equal(state_of(model), before)
    assert equal(dict(models[0].state_dict()), dict(models[1].state_dict()))
    owned = {tensor.data_ptr() for tensor in model.state_dict().values()}
    assert not owned & {tensor.data_ptr() for tensor in models[0].state_dict().values()}


# Where each step is interrupted: in a function of ours that it calls once weights, hooks or gradients are in use.
INTERRUPTED = {
    "score": "importance.passes.summed_nll",
    "check": "run.judging.window_nll",
    "prune": "run.deliver.repair_dense",
    "everything": "run.deliver.repair_dense",
}


@pytest.mark.parametrize("step", INTERRUPTED)
def test_ctrl_c_leaves_model_and_process_as_found(
    step: str, workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = loaded(workspace)
    session = gp.open(model, tokenizer=tokenizer, dataset=workspace.text, **IN_MEMORY)
    plan = session.plan(session.score("obs"), 0.3)
    module, function = INTERRUPTED[step].rsplit(".", 1)
    original = getattr(importlib.import_module(module), function)

    def press(*arguments: Any, **options: Any) -> Any:
        original(*arguments, **options)
        raise KeyboardInterrupt

    everything = {"dataset": workspace.text, "output": tmp_path / "run", "eval_seq_len": 32, **IN_MEMORY}
    steps: dict[str, Any] = {
        "score": lambda: session.score("taylor"),
        "check": lambda: session.check(plan),
        "prune": lambda: session.prune(plan),
        "everything": lambda: gp.prune(model, tokenizer=tokenizer, **everything),
    }
    before, process = state_of(model), process_state()
    with monkeypatch.context() as patch:
        patch.setattr(INTERRUPTED[step], press)
        with pytest.raises(KeyboardInterrupt):
            steps[step]()
    assert equal(state_of(model), before)
    assert equal(process_state(), process)
    assert session.prune(plan).num_parameters() < model.num_parameters()  # and the session goes on


def test_what_is_no_causal_model_is_refused(workspace: Workspace) -> None:
    model, tokenizer = loaded(workspace)
    adapted = copy.copy(model)
    adapted.peft_config = {}
    wrong = {
        "a model in memory needs its tokenizer": (model, None),
        "object is not a transformers model": (object(), tokenizer),
        "Linear is not a transformers model": (torch.nn.Linear(2, 2), tokenizer),
        "LlamaModel has no language-model head": (model.model, tokenizer),
        "merge it first": (adapted, tokenizer),
    }
    for says, (given, its_tokenizer) in wrong.items():
        for door in (gp.open, gp.prune):
            with pytest.raises(gp.ModelError, match=says):
                door(given, tokenizer=its_tokenizer, dataset=workspace.text, **IN_MEMORY)
    with pytest.raises(gp.UsageError, match="device='cpu': a model in memory is taken as it is"):
        gp.open(model, tokenizer=tokenizer, device="cpu")


# --- a guest in somebody's process ---


def test_nothing_is_left_behind_in_the_process(workspace: Workspace, tmp_path: Path) -> None:
    np.random.seed(3)  # noqa: NPY002
    before = process_state()
    session = gp.open(workspace.model, dataset=workspace.text, **SMALL)
    plan = session.plan(session.score("taylor", temperature=1.0), 0.2)
    session.check(plan)
    session.save(session.prune(plan), tmp_path / "model")
    with pytest.raises(gp.PruningError):
        session.score("wrong")
    gp.prune(workspace.model, dataset=workspace.text, output=tmp_path / "run", eval_seq_len=32, **SMALL)
    after = process_state()
    assert {name for name in before if not equal(before[name], after[name])} == set()


def test_silence_is_silence_and_lines_go_where_they_are_heard(workspace: Workspace, tmp_path: Path) -> None:
    def work(say: Any) -> tuple[str, str]:
        out, error = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
            session = gp.open(workspace.model, dataset=workspace.text, **SMALL | {"say": say})
            plan = session.plan(session.score("obs"), 0.2)
            session.check(plan)
            session.save(session.prune(plan), tmp_path / "model", overwrite=True)
            gp.prune(
                workspace.model,
                dataset=workspace.text,
                output=tmp_path / "run",
                overwrite=True,
                eval_seq_len=32,
                **SMALL | {"say": say},
            )
        return out.getvalue(), error.getvalue()

    heard: list[str] = []
    assert work(gp.silent) == ("", "")
    assert work(heard.append) == ("", "")
    assert "[repair]" in heard
    out, error = work(say_on_stderr)
    assert out == ""
    assert "[repair]" in error
    assert "window/s" in error  # a bar


def test_two_sessions_and_threads_do_not_mix(workspace: Workspace, plan: PruningPlan) -> None:
    """Each hears its own lines; both plan as one alone does; the process is as it was, whoever ends last."""
    before, heard, plans = process_state(), ([], []), {}  # type: ignore[var-annotated]
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            session = gp.open(workspace.model, dataset=workspace.text, **SMALL | {"say": heard[number].append})
            plans[number] = session.plan(session.score("obs"), 0.4, ratio_of="prunable")
            session.prune(plans[number])
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    for number in range(2):
        np.testing.assert_array_equal(plans[number].keep, plan.keep)
        assert heard[number].count("[repair]") == 1
    after = process_state()
    assert {name for name in before if not equal(before[name], after[name])} == set()


def test_it_works_where_an_event_loop_runs(workspace: Workspace, plan: PruningPlan) -> None:
    """As in Jupyter."""

    async def cell() -> PruningPlan:
        session = gp.open(workspace.model, dataset=workspace.text, **SMALL)
        scores = await asyncio.to_thread(session.score, "obs")
        return session.plan(scores, 0.4, ratio_of="prunable")

    np.testing.assert_array_equal(asyncio.run(cell()).keep, plan.keep)


def test_a_full_disk_is_one_line(
    session: gp.Session, plan: PruningPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device", str(tmp_path))

    monkeypatch.setattr("models.saving.save_tokenizer", full)
    with pytest.raises(gp.PruningError, match="full") as caught:
        session.save(session.prune(plan), tmp_path / "model")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "model").exists()


def test_the_command_line_of_a_call_asks_for_the_same(workspace: Workspace) -> None:
    from cli.argv import argv_of
    from cli.keywords import settings_of
    from cli.options import parse_options

    asked: list[dict[str, Any]] = [
        {},
        {"pruning_ratio": 0.1 + 0.2, "output": "results/a b", "verify": False, "cache_dir": "none"},
        {"run_evaluation": "none", "reconstruct": "none", "tau": "auto", "temperature": 0.5},
        {"eval_datasets": ["c4", "pydoc"], "run_evaluation": ["ppl", "speed"], "eval_samples": 4, "overwrite": True},
        {"enable_grad_clip": True, "clip_percentile_low": 1, "max_block_ratio": 0.5, "export": "gguf"},
        {"plan": "plan.json", "batch_size": 4, "max_shard_size": "200mb"},
    ]
    for options in asked:
        settings = settings_of({"base_model": "demo", "dataset": "pydoc", **options})
        assert parse_options(argv_of(settings)).settings == settings, options
    assert call(["--help"])[0] == 0
