"""A distillation that was killed goes on from its last checkpoint, and ends where one ends that was not."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from repairs import IDS, family, plan_for
from safetensors.torch import load_file
from test_recovery_blocks import cut
from tiny_models import build
from workspace import Workspace, call

from pruning.recovery import checkpoints, trainer
from pruning.recovery.checkpoints import MANIFEST, Checkpoints
from pruning.recovery.distill import DistilSettings, distil
from pruning.recovery.report import DistilReport

ROOT = Path(__file__).resolve().parents[2]
TRAIN, CHECK = IDS.numpy()[:18], IDS.numpy()[18:]
DISTIL = (
    "--recover",
    "distill",
    "--recover_tokens",
    "15000",
    "--num_samples",
    "8",
    "--run_evaluation",
    "none",
    "--no_verify",
)


class KilledError(Exception):
    """For the test: nobody expects it."""


@pytest.fixture(autouse=True)
def checkpoints_at_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "EVERY_S", 0.0)


@pytest.fixture
def killed_at(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Call it with a step: training then ends there by an exception, before that step's checkpoint, until called with
    none."""
    at: list[int | None] = [None]
    step_end = trainer.Watching.on_step_end

    def ended(self: Any, args: Any, state: Any, control: Any, **how: Any) -> None:
        step_end(self, args, state, control, **how)
        if state.global_step == at[0]:
            raise KilledError

    monkeypatch.setattr(trainer.Watching, "on_step_end", ended)
    return lambda step: at.__setitem__(0, step)


def distilled(model: Any, kept: Checkpoints | None, **options: Any) -> tuple[dict[str, Any], DistilReport]:
    """Weights afterwards, of 10 steps in passes of which two make a step and five an epoch; and the report."""
    small = cut(model, plan_for(model))
    settings = DistilSettings(2300, **{"step_tokens": 224} | options)
    report = distil(small, model, family(model), TRAIN, CHECK, settings, kept)
    return small.state_dict(), report


@pytest.mark.parametrize(
    ("options", "dtype"), [({}, torch.float32), ({"lora": 4}, torch.float32), ({}, torch.bfloat16)], ids=str
)
def test_what_goes_on_ends_as_what_was_never_killed(
    options: dict[str, Any], dtype: torch.dtype, tmp_path: Path, killed_at: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the last bit, dropout included; nothing is unpickled on the way."""
    load, model = torch.load, build("llama").to(dtype)
    model.config.attention_dropout = 0.1
    whole, report = distilled(model, None, **options)
    assert (report.steps, report.resumed_from_step) == (10, None)
    kept = Checkpoints(tmp_path, {"of": "a test"}, [])
    killed_at(7)
    with pytest.raises(KilledError):
        distilled(model, kept, **options)
    assert {path.name for path in tmp_path.iterdir()} == {MANIFEST, "checkpoint-6"}
    killed_at(None)

    def loaded(*what: Any, **how: Any) -> Any:
        assert how["weights_only"] is True
        return load(*what, **how)

    monkeypatch.setattr(torch, "load", loaded)
    resumed, report = distilled(model, kept, **options)
    assert report.resumed_from_step == 6
    assert [step for step, _ in report.losses] == list(range(1, 11))
    assert all(torch.equal(values, resumed[name]) for name, values in whole.items())
    kept.clear()
    assert not tmp_path.exists()


def test_only_what_is_whole_and_of_this_distillation_is_gone_on_from(
    tmp_path: Path, killed_at: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    model, kept = build("llama"), Checkpoints(tmp_path / "kept", {"of": "a test"}, [])
    killed_at(5)
    with pytest.raises(KilledError):
        distilled(model, kept)
    assert kept.latest(steps=10, step_windows=16, half=False) == kept.folder / "checkpoint-4"
    assert kept.latest(steps=11, step_windows=16, half=False) is None
    assert Checkpoints(kept.folder, {"of": "another"}, []).latest(steps=10, step_windows=16, half=False) is None
    assert "the checkpoint is of another distillation, so distillation begins anew" in capsys.readouterr().err
    weights = kept.folder / "checkpoint-4" / trainer.WEIGHTS
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert kept.latest(steps=10, step_windows=16, half=False) is None
    assert "the checkpoint is damaged" in capsys.readouterr().err
    killed_at(None)
    assert distilled(model, kept)[1].resumed_from_step is None


def test_a_disk_that_takes_no_checkpoint_does_not_end_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    full = SimpleNamespace(free=10_000)
    monkeypatch.setattr(checkpoints.shutil, "disk_usage", lambda _: full)
    kept = Checkpoints(tmp_path, {}, [])
    report = distilled(build("llama"), kept)[1]
    assert report.kept
    assert len(kept.warnings) == 1
    assert "takes no checkpoint of the distillation (10.0 kB are free" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


KILLED = """
import os, signal, sys
import run_global_pruning
from pruning.recovery import checkpoints, trainer

checkpoints.EVERY_S, step_end = 0.0, trainer.Watching.on_step_end

def killed(self, args, state, control, **how):
    step_end(self, args, state, control, **how)
    if state.global_step == 9:
        os.kill(os.getpid(), signal.SIGKILL)

trainer.Watching.on_step_end = killed
run_global_pruning.main(sys.argv[1:])
"""


def test_the_same_command_goes_on_where_it_was_killed(workspace: Workspace, tmp_path: Path) -> None:
    """By the system, in a process of its own. Nothing is left of the checkpoints afterwards."""
    cache, output = tmp_path / "cache", tmp_path / "run"
    stale = cache / f"distillation-{'0' * 64}"
    stale.mkdir(parents=True)
    os.utime(stale, (time.time() - 15 * 86400,) * 2)
    arguments = [*workspace.base_arguments(), *DISTIL, "--cache_dir", str(cache)]
    command = [sys.executable, "-c", KILLED, *arguments, "--output", str(output)]
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    assert not stale.exists()
    (kept,) = cache.glob("distillation-*")
    assert not (output / "run.json").exists()

    code, _, error = call([*arguments, "--seed", "1", "--output", str(tmp_path / "another")])
    assert code == 0, error
    assert "goes on from" not in error
    assert kept.exists()

    code, _, error = call([*arguments, "--output", str(output)])
    assert code == 0, error
    assert "an interrupted distillation goes on from step 8 of 14" in error
    assert json.loads((output / "analysis" / "recovery.json").read_text())["distill"]["resumed_from_step"] == 8
    assert not list(cache.glob("distillation-*"))
    assert not list(output.glob(".*"))
    whole = workspace.root / "never_killed"
    code, _, error = call([*arguments, "--cache_dir", "none", "--output", str(whole)])
    assert code == 0, error
    found, expected = (load_file(folder / "model" / "model.safetensors") for folder in (output, whole))
    assert all(torch.equal(values, found[name]) for name, values in expected.items())
