"""The Python API in somebody's process: what it imports, changes, says and leaves behind."""

import asyncio
import contextlib
import copy
import importlib
import io
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from api_cases import IN_MEMORY, ROOT, SMALL, equal, in_a_process, loaded, process_state, state_of
from workspace import Workspace, call

import global_pruning as gp
from core.plan import PruningPlan
from core.say import say_on_stderr


@pytest.fixture(scope="module")
def session(workspace: Workspace) -> gp.Session:
    return gp.open(workspace.model, dataset=workspace.text, **SMALL)


@pytest.fixture(scope="module")
def plan(session: gp.Session) -> PruningPlan:
    return session.plan(session.score("obs"), ratio=0.4, ratio_of="prunable")


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
