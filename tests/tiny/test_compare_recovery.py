"""Runs side by side: what trained them after the cut, and what each step was worth."""

import csv
import io
import json
from pathlib import Path

from run_folders import write_run
from test_compare import EVEN, line

from diagnostics.comparison.compare import compare


def test_recovery_is_named_and_perplexity_told_after_each_step(tmp_path: Path) -> None:
    """Cut 16, repaired 14, recovered 12; recovered alone, 15 to 13; repaired alone, 17 to 14; neither, 18."""
    runs = {
        "both": (12.0, ["blocks", "distill"], {"repair": 16.0, "recovery": 14.0}),
        "trained": (13.0, ["blocks"], {"recovery": 15.0}),
        "repaired": (14.0, ["none"], {"repair": 17.0}),
        "bare": (18.0, ["none"], {}),
    }
    folders = [
        write_run(tmp_path / name, EVEN, last, options={"recover": recover}, before=before)
        for name, (last, recover, before) in runs.items()
    ]
    folders.append(write_run(tmp_path / "older", EVEN, None))  # of a version that knew no --recover
    text = compare(folders, tmp_path / "out")
    rows = {name: line(text, "Repair and recovery", name) for name in (*runs, "older")}
    assert rows == {
        "both": "blocks,distill 16.00 14.00 12.00",
        "trained": "blocks 15.00 - 13.00",
        "repaired": "none 17.00 14.00 -",
        "bare": "none 18.00 - -",
        "older": "- - - -",
    }
    told = json.loads((tmp_path / "out" / "comparison.json").read_text())["runs"]
    assert [run["recover"] for run in told] == [["blocks", "distill"], ["blocks"], ["none"], ["none"], None]
    assert told[1]["perplexity_on_the_way"] == {"pydoc": {"cut": 15.0, "repaired": None, "recovered": 13.0}}
    first, *_ = csv.DictReader(io.StringIO((tmp_path / "out" / "comparison.csv").read_text()))
    assert (first["recover"], first["perplexity_pydoc_repaired"]) == ("blocks,distill", "14.0")
    assert "Repair and recovery" in (tmp_path / "out" / "report.html").read_text()
    assert "Repair and recovery" not in compare(folders[2:4])
