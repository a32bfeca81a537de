"""The comparison of calibration texts: what is extra, on which windows, and what a killed run keeps."""

import argparse
from pathlib import Path

from benchmarks.calibration_text import keep_row, kept_rows, table

DENSE = {"home": [1.0, 3.0], "self": [2.0, 2.0]}
HOME = {"home": [1.5, 3.5], "self": [3.0, 3.0]}
BOTH = {"home": [1.5, 4.0], "self": [2.5, 2.5]}


def test_the_table_gives_extra_loss_and_the_error_of_a_difference() -> None:
    """home: 0.5 above 2.0; both: 0.75, of which the windows' gaps to the first row are 0 and 0.5."""
    text = table([("dense", 0.0, DENSE), ("pydoc", 0.3, HOME), ("pydoc,self", 0.3, BOTH)])
    assert "| dense, nats/token | | 2.000 | 2.000 | |" in text
    assert "| pydoc | 30% | 0.500 | 1.000 | 0.750 |" in text
    assert "| pydoc,self | 30% | 0.750 ± 0.250 | 0.500 ± 0.000 | 0.625 |" in text


def test_a_killed_run_keeps_the_rows_of_its_own_setting(tmp_path: Path) -> None:
    names = ("model", "home", "home_test", "other", "ratio_of", "samples", "seq_len", "seed", "part", "eval_samples")
    options = argparse.Namespace(**dict.fromkeys(names, "x"), json=tmp_path / "new" / "rows.jsonl")
    assert kept_rows(options) == []
    keep_row(options, "pydoc", 0.3, HOME)
    assert [(row["text"], row["ratio"], row["nll"]) for row in kept_rows(options)] == [("pydoc", 0.3, HOME)]
    options.seed = "y"
    assert kept_rows(options) == []
