"""Recovery where memory holds the cut model and not the dense one beside it: the same weights, and a note."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from workspace import Workspace, call

import pruning.recovery.distill as distill
import run.teacher
from core import ranks
from core.engine import engine_of
from run.teacher import READ_AGAIN, Room

RECOVER = ("--recover_tokens", "1000", "--num_samples", "8", "--cache_dir", "none")


def recovered(workspace: Workspace, name: str, *options: str) -> tuple[bytes, list[str]]:
    """The saved weights, and the notes on the teacher."""
    output = workspace.root / name
    code, _, error = call([*workspace.base_arguments(), *RECOVER, *options, "--output", str(output)])
    assert code == 0, error
    notes = [line.strip() for line in re.split(r"[\r\n]", error) if READ_AGAIN in line]
    return (output / "model" / "model.safetensors").read_bytes(), notes


@pytest.mark.parametrize(
    "options",
    [("--recover", "blocks"), ("--recover", "blocks,distill"), ("--recover", "distill", "--recover_lora", "2")],
)
def test_a_teacher_that_does_not_fit_is_read_as_it_is_needed(
    options: tuple[str, ...], workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "-".join(options).replace(",", "-")
    held, notes = recovered(workspace, f"held{name}", *options)
    assert not notes
    monkeypatch.setattr(run.teacher, "free_for_one", lambda *_asked: 1000)
    found, notes = recovered(workspace, f"read{name}", *options)
    assert len(notes) == 1
    assert notes[0].startswith("note: the dense model and what training takes need ")
    assert found == held


def test_processes_decide_together(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    gathered, crowded = ranks.gathered, Room(weights=7_000_000_000, training=60_000_000, free=9_000)

    def with_a_crowded_one(value: Any, what: str) -> list[Any]:
        return [*gathered(value, what), *[crowded] * (what == "teacher")]

    monkeypatch.setattr(ranks, "gathered", with_a_crowded_one)
    _, notes = recovered(workspace, "together", "--recover", "blocks")
    assert notes == [
        "note: the dense model and what training takes need 7.1 GB, and 9.0 kB are free on cpu: " + READ_AGAIN
    ]


@pytest.mark.parametrize(
    ("weights", "training", "free", "holds", "gains"),
    [
        (10, 5, None, True, False),  # nothing tells
        (10, 5, 15, True, False),
        (10, 5, 14, False, True),
        (10, 5, 5, False, True),
        (10, 15, 14, False, False),  # training does not fit either way: first as it is, since sizes are guesses
        (10, 15, 9, False, True),  # the dense model could not even be loaded
    ],
)
def test_weights_leave_where_that_helps(
    weights: int, training: int, free: int | None, holds: bool, gains: bool
) -> None:
    room = Room(weights, training, free)
    assert (room.holds_both, room.gains) == (holds, gains)


def test_it_leaves_where_training_runs_out_of_memory_beside_it(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    held, _ = recovered(workspace, "beside", "--recover", "distill")
    trained, tried = distill._trained, []

    def short_of_memory(small: Any, dense: Any, *given: Any) -> Any:
        streams = engine_of(dense).streams
        tried.append((given[5], streams))
        if not streams:
            small.model.layers[0].mlp.down_proj.weight.zero_()
            raise torch.OutOfMemoryError("for the test")
        return trained(small, dense, *given)

    monkeypatch.setattr(distill, "_trained", short_of_memory)
    found, notes = recovered(workspace, "without", "--recover", "distill")
    most = tried[0][0]
    assert tried[-1] == (most, True)
    assert {streams for _, streams in tried[:-1]} == {False}
    assert notes == [f"note: distillation does not fit in memory beside the dense model: {READ_AGAIN}"]
    assert found == held


@pytest.mark.parametrize(("free", "attempts"), [(10**9, {False, True}), (300_000, {False}), (50_000, {True})])
def test_what_fits_nowhere_is_one_line(
    free: int, attempts: set[bool], workspace: Workspace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Nor is it tried without the dense model where training alone takes more than there is."""
    tried = set()

    def short_of_memory(_small: Any, dense: Any, *_given: Any) -> Any:
        tried.add(engine_of(dense).streams)
        raise torch.OutOfMemoryError("for the test")

    monkeypatch.setattr(run.teacher, "free_for_one", lambda *_asked: free)
    monkeypatch.setattr(distill, "_trained", short_of_memory)
    arguments = [*workspace.base_arguments(), *RECOVER, "--recover", "distill", "--output", str(tmp_path / "none")]
    code, _, error = call(arguments)
    assert code == 2
    assert "distillation does not fit in memory with a single window: use --recover_lora 16" in error
    assert tried == attempts


def test_the_dense_model_writes_what_is_distilled_on_before_a_repair_changes_it(workspace: Workspace) -> None:
    options = (*("--dataset", "self", "--reconstruct", "least_squares", "--recover", "distill"), *RECOVER)
    code, _, error = call([*workspace.base_arguments(), *options, "--output", str(workspace.root / "order")])
    assert code == 0, error
    stages = re.findall(r"^\[(.+)\]$", error.replace("\r", "\n"), flags=re.MULTILINE)
    assert [stage for stage in stages if stage in ("text for distillation", "repair", "recover")] == [
        "text for distillation",
        "repair",
        "recover",
    ]
