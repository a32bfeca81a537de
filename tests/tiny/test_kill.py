"""The program killed or asked to end: an earlier run is whole or replaced, and nothing is in the next run's way."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from workspace import Workspace

from run.interruption import Terminated, exit_code, terminations

ROOT = Path(__file__).resolve().parents[2]
CHEAP = ("--importance_method", "magnitude", "--run_evaluation", "none", "--no_verify")

# Everything is imported once; each run is a fork of that, killed after a random share of the time that a run takes.
KILLER = """
import json, os, random, sys, time
import run_global_pruning, run.deliver, run.finish, diagnostics.page.run_page, transformers.models.llama.modeling_llama

def start(arguments):
    child = os.fork()
    if child == 0:
        os._exit(run_global_pruning.main(arguments))
    return child

def state(folder):
    found = {}
    for below, _, names in os.walk(folder):
        found |= {os.path.relpath(path, folder): open(path, "rb").read() for name in names
                  for path in [os.path.join(below, name)]}
    return found

run, arguments = sys.argv[1], sys.argv[2:]
began = time.monotonic()
assert os.waitpid(start(arguments), 0)[1] == 0
took, outcomes = time.monotonic() - began, []
draw = random.Random(0)
for _ in range(20):
    before = state(run)
    child = start([*arguments, "--overwrite"])
    time.sleep(draw.uniform(0, 1.1 * took))
    os.kill(child, 9)
    os.waitpid(child, 0)
    refused = os.waitpid(start(arguments), 0)[1]  # looks into the folder, and tidies
    after = state(run)
    outcomes.append([refused >> 8, after == before, "run.json" in after, sorted(after) == sorted(before)])
print(json.dumps(outcomes))
"""


def told_by(program: str, *arguments: str) -> Any:
    """What a program in a process of its own prints last, as JSON."""
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_killed_at_twenty_moments_a_run_leaves_the_earlier_one_or_its_own(workspace: Workspace) -> None:
    run = workspace.root / "killed"
    outcomes = told_by(KILLER, str(run), *workspace.base_arguments(), *CHEAP, "--output", str(run))
    assert len(outcomes) == 20
    for refused, _, finished, same_names in outcomes:
        assert refused == 2  # for a folder that is not empty, and for no other reason
        assert finished
        assert same_names
    assert any(unchanged for _, unchanged, _, _ in outcomes)
    assert {path.name for path in run.iterdir()} == {"analysis", "model", "report.html", "run.json", "visualization"}


# Streamed runs, each killed at its n-th call of something; the last one is left alone.
STREAMED_KILLER = """
import json, os, sys
import run_global_pruning, run.finish, run.streamed_model, diagnostics.page.run_page, pruning.repair
import transformers.models.llama.modeling_llama
from importance.layer_sweep import LayerSweep

MOMENTS = {
    "scoring": (LayerSweep, "_count", 2),
    "repairing": (pruning.repair.LayerwiseRepair, "_choose", 2),
    "saving": (run.streamed_model._Rounded, "__getitem__", 5),
    "never": (LayerSweep, "_count", -1),
}

def dies_at(owner, name, last):
    original, calls = getattr(owner, name), []
    def call(*given, **more):
        calls.append(name)
        if len(calls) == last:
            os.kill(os.getpid(), 9)
        return original(*given, **more)
    setattr(owner, name, call)

folder, scratch, arguments = sys.argv[1], sys.argv[2], sys.argv[3:]
outcomes = {}
for moment, how in MOMENTS.items():
    child = os.fork()
    if child == 0:
        dies_at(*how)
        os._exit(run_global_pruning.main([*arguments, "--overwrite"]))
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    outcomes[moment] = [code, sorted(os.listdir(folder)), os.listdir(scratch)]
print(json.dumps(outcomes))
"""


def test_a_streamed_run_killed_at_any_step_leaves_nothing_that_looks_finished_nor_scratch(
    workspace: Workspace, tmp_path: Path
) -> None:
    output, scratch = tmp_path / "results" / "streamed", tmp_path / "scratch"
    scratch.mkdir()
    asked = [*workspace.base_arguments(), "--importance_method", "fisher", "--reconstruct", "least_squares"]
    asked += ["--engine", "streamed", "--scratch", str(scratch), "--run_evaluation", "none", "--output", str(output)]
    outcomes = told_by(STREAMED_KILLER, str(output), str(scratch), *asked)
    code, names, _ = outcomes.pop("never")
    assert (code, names) == (0, ["analysis", "model", "report.html", "run.json", "visualization"])
    for moment, (code, names, rest) in outcomes.items():
        assert code == -9, moment
        assert not {"run.json", "model"} & set(names)
        assert rest == []
    assert list(scratch.iterdir()) == []
    assert [path.name for path in output.parent.iterdir()] == ["streamed"]


@pytest.mark.slow
def test_sigterm_ends_a_run_like_ctrl_c(workspace: Workspace) -> None:
    run = workspace.run("terminated", *CHEAP)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    arguments = [*workspace.base_arguments(), *CHEAP, "--output", str(run), "--overwrite"]
    command = [sys.executable, str(ROOT / "run_global_pruning.py"), *arguments]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("[explain]"):
                process.terminate()
                break
        rest = process.stderr.read()
        assert process.wait(timeout=120) == 143
    assert rest.splitlines()[-1] == f"interrupted; the finished run in {run} is complete"
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_handlers_are_set_for_the_time_of_a_run_and_only_where_nobody_set_any() -> None:
    mine = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # nohup
    try:
        with terminations():
            signal.raise_signal(signal.SIGHUP)
            with pytest.raises(Terminated) as ended:
                signal.raise_signal(signal.SIGTERM)
        assert exit_code(ended.value) == 143
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGHUP, mine)
    assert exit_code(KeyboardInterrupt()) == 130


def test_one_request_told_twice_is_one() -> None:
    """Told to a process and to its group: the second must not break off the tidying that the first began."""
    with terminations():
        with pytest.raises(Terminated):
            signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
