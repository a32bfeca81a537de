"""Runs in little: ``fill`` plays the stages and writes what they write; nothing loads a model."""

import os
from pathlib import Path
from typing import Any

import pytest

from core.errors import OutputError
from core.files import write_json, write_text
from run.folder import RunFolder, claimed

FILLED = ("analysis/pruning_plan.json", "model/config.json", "model/model.safetensors", "report.html")
RECORD = {"schema_version": 1, "options": {"base_model": "demo"}, "environment": {}, "timings_s": {}}


def fill(folder: RunFolder, text: str) -> None:
    write_json(folder.staging / "analysis" / "pruning_plan.json", {"made_by": text})
    write_json(folder.staging / "model" / "config.json", {"per_layer_config": text})
    write_text(folder.staging / "model" / "model.safetensors", text * 99)
    write_text(folder.staging / "report.html", text)


def finish(output: Path, text: str = "first", meanwhile: Path | None = None, **claim: Any) -> None:
    """meanwhile: what the user writes while the run goes on."""
    with claimed(output, **claim) as folder:
        fill(folder, text)
        if meanwhile is not None:
            meanwhile.write_text("mine")
        folder.publish(RECORD)


def fail(output: Path, error: BaseException, **claim: Any) -> None:
    with claimed(output, **claim) as folder:
        fill(folder, "second")
        raise type(error)(str(error).replace("STAGING", str(folder.staging)))


def contents(folder: Path) -> dict[str, bytes]:
    """Every file's bytes by name; nothing for what is no folder."""
    below = Path(folder).rglob("*") if os.path.isdir(folder) else ()  # noqa: PTH112  pathlib raises for long names
    return {str(path.relative_to(folder)): path.read_bytes() for path in below if path.is_file()}


def refusal(output: Path, **claim: Any) -> str:
    """The line of a run that is refused before it begins, and that leaves no trace."""
    before = contents(output)
    with pytest.raises(OutputError) as refused, claimed(output, **claim):
        pytest.fail("it began")
    assert contents(output) == before
    assert len(str(refused.value).splitlines()) == 1
    return str(refused.value)
