"""docs/notebook.ipynb and the README's Python: every cell runs, in order, as a reader would run it."""

import json
import re
from pathlib import Path
from typing import Any

import matplotlib
import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    matplotlib.use("agg")
    cells = json.loads((ROOT / "docs" / "notebook.ipynb").read_text(encoding="utf-8"))["cells"]
    names: dict[str, Any] = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), cell["id"], "exec"), names)
    for checks in names["checks"].values():
        increases = [check.increase for check in checks]
        assert increases == sorted(increases)  # the more goes, the more is lost
    assert (tmp_path / "results" / "notebook" / "model" / "config.json").is_file()
    assert len(names["figure"].axes) == 1
    names["plt"].close(names["figure"])


def test_the_notebook_is_stored_as_it_ran() -> None:
    """Every cell in order, without an error, the chart among the outputs, and no place on somebody's machine."""
    text = (ROOT / "docs" / "notebook.ipynb").read_text(encoding="utf-8")
    cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = {cell["id"]: cell["outputs"] for cell in cells}
    assert "error" not in {output["output_type"] for some in outputs.values() for output in some}
    assert any("image/png" in output.get("data", {}) for output in outputs["chart"])
    for name in ("open", "score", "plan", "check"):
        assert any("text/html" in output.get("data", {}) for output in outputs[name]), name
    assert not re.search(r"/(home|root|Users|tmp|work)/", text)


@pytest.mark.slow
def test_the_python_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The block under "From Python", then the one under "Load it" on what it saved."""
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.M | re.S)
    load, work = blocks
    exec(compile(work, "README: From Python", "exec"), {})
    exec(compile(load.replace("results/demo/model", "results/python/model"), "README: Load it", "exec"), {})
