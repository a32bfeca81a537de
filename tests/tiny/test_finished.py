"""cli.finished: a run of the same options is recognised, and nothing else."""

import json
from pathlib import Path

import pytest
from workspace import Workspace

from cli.finished import main


def test_the_same_options_however_they_are_typed(workspace: Workspace, tmp_path: Path) -> None:
    run = workspace.run("run", "--dry_run", "--run_evaluation", "none")
    asked = [*workspace.base_arguments(), "--output", str(run), "--dry_run", "--run_evaluation", "none"]
    assert main(asked) == 0
    assert main([*asked, "--seq_len=16", "--overwrite", "--cache_dir", str(tmp_path)]) == 0
    assert main([*asked, "--seq_len", "12"]) == 1
    assert main([*asked, "--enable_grad_norm"]) == 1
    assert main([*asked, "--round_to", "1"]) == 1  # resolved to 1 in that run, but not asked for


@pytest.mark.parametrize("text", [None, "", "[]", "{}", '{"asked": []}', '{"asked": {"seed": 0}}'])
def test_a_folder_without_a_readable_record_is_not_finished(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "run.json").write_text(text)
    assert main(["--base_model", "demo", "--output", str(tmp_path)]) == 1


def test_a_record_of_an_older_version_is_not_finished(workspace: Workspace) -> None:
    run = workspace.run("older", "--dry_run", "--run_evaluation", "none")
    record = json.loads((run / "run.json").read_text())
    del record["asked"]
    (run / "run.json").write_text(json.dumps(record))
    asked = [*workspace.base_arguments(), "--output", str(run), "--dry_run", "--run_evaluation", "none"]
    assert main(asked) == 1
