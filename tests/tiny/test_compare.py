"""Runs side by side: hand-worked overlaps, ranks and verdicts; partial and older folders; files that agree."""

import csv
import io
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from diagnostics_cases import plan_of
from run_folders import record, write_run
from tables import reshaped
from workspace import Workspace

from cli.compare import main
from core.files import write_json
from core.plan import PruningPlan
from diagnostics.comparison.compare import compare
from diagnostics.comparison.health import health
from diagnostics.comparison.page import next_steps
from diagnostics.comparison.ranking import rankings
from diagnostics.comparison.runs import read_runs, shortest_names
from diagnostics.comparison.shared import overlaps
from diagnostics.reports.analysis import comparison
from diagnostics.run_folder import FILES, SCHEMA_VERSION, Run, read_run
from run.record import SCHEMA_VERSION as WRITTEN_SCHEMA

EVEN, STEEP = [20, 20, 20, 20, 20, 20], [10, 10, 80, 10, 5, 5]


def removing(plan: PruningPlan, *rows: int) -> PruningPlan:
    """The plan with exactly these groups removed."""
    keep = np.ones(len(plan.groups), dtype=bool)
    keep[list(rows)] = False
    return replace(plan, keep=keep, removed_params=len(rows), budget_params=len(rows))


def line(text: str, table: str, name: str) -> str:
    """The row of a run in one of the printed tables, blanks squeezed, without its name."""
    section = next(part for part in text.split("\n\n") if part.startswith(table + "\n"))
    (found,) = (row for row in section.splitlines()[2:] if row.startswith(name + " "))
    return " ".join(found.split()[1:])


# Names


def test_names_are_the_shortest_ends_that_differ() -> None:
    assert shortest_names([Path("/x/a"), Path("/x/b")]) == ["a", "b"]
    assert shortest_names([Path("/x/a/run"), Path("/x/b/run"), Path("/y/c")]) == ["a/run", "b/run", "c"]
    assert shortest_names([Path("/run"), Path("/x/run")]) == ["/run", "x/run"]


# Overlap


def test_overlap_by_hand(tmp_path: Path) -> None:
    """Layer 0 holds rows 0-99. A removes 2, 3, 4, 5 and B removes 4, 5, 6: 2 shared of 5. Layer 1: B alone, so 0.
    Layer 2: neither. Over the model 2 of 4 + 5 - 2 = 7. By chance 4·3/98 are shared in layer 0's MLP block."""
    base = plan_of([0, 0, 0])
    first = write_run(tmp_path / "a", removing(base, 2, 3, 4, 5))
    second = write_run(tmp_path / "b", removing(base, 4, 5, 6, 110, 111))
    (pair,) = overlaps(read_runs([first, second]))
    assert pair.by_layer == (2 / 5, 0.0, None)
    assert pair.total == 2 / 7
    chance = 4 * 3 / 98
    assert pair.by_chance == pytest.approx(chance / (4 + 5 - chance), rel=1e-12)


def test_overlap_counts_parameters_not_groups(tmp_path: Path) -> None:
    """A KV group that costs 10 weighs ten channels: rows 0 (KV), 2 against rows 0, 3 share 10 of 12 parameters."""
    shape = reshaped(plan_of([0]).architecture.layers[0], kv_group_params=10)
    base = plan_of([0], shape=shape)
    folders = [write_run(tmp_path / name, removing(base, 0, row)) for name, row in (("a", 2), ("b", 3))]
    (pair,) = overlaps(read_runs(folders))
    assert pair.total == 10 / 12


def test_plans_for_different_models_share_nothing_to_compare(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / "a", EVEN), write_run(tmp_path / "b", EVEN[:4]), write_run(tmp_path / "c", EVEN)]
    pairs = overlaps(read_runs(folders))
    assert [(pair.first, pair.second, pair.total) for pair in pairs] == [("a", "c", 1.0)]


# Ranks


def test_the_lowest_perplexity_at_equal_size_is_best(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / name, EVEN, ppl) for name, ppl in (("a", 13.0), ("b", 12.0), ("c", 14.0))]
    folders.append(write_run(tmp_path / "smaller", [40] * 6, 11.0))
    runs = read_runs(folders)
    equal, other = rankings(runs)
    assert equal.names == ("b", "a", "c")
    assert equal.best == "b"
    assert (other.names, other.best) == (("smaller",), None)
    text = compare(folders)
    assert "10.00 → 12.00 +20.0 % best 50.0 % → 40.0 %" in line(text, "Cost", "b")
    assert "10.00 → 13.00 +30.0 % 2" in line(text, "Cost", "a")
    assert "+10.0 % - " in line(text, "Cost", "smaller")


def test_runs_of_equal_perplexity_share_a_place(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / name, EVEN, ppl) for name, ppl in (("a", 12.0), ("b", 13.0), ("c", 12.0))]
    (ranking,) = rankings(read_runs(folders))
    assert (ranking.best, ranking.winners) == ("a", ("a", "c"))
    assert [ranking.place(name) for name in ranking.names] == [1, 1, 3]
    text = compare(folders)
    assert "a and c are best of 3, perplexity 12.00" in text
    assert "best" in line(text, "Cost", "c")
    (steps,) = [command for sentence, command in next_steps(read_runs(folders), [ranking]) if "differs" in sentence]
    assert "/a/" in steps
    assert "/b/" in steps


@pytest.mark.parametrize("change", [{"text": "xyz"}, {"options": {"base_model": "another/model"}}])
def test_other_text_or_another_model_is_not_ranked_together(tmp_path: Path, change: dict[str, object]) -> None:
    runs = read_runs([write_run(tmp_path / "a", EVEN), write_run(tmp_path / "b", EVEN, 11.0, **change)])  # type: ignore[arg-type]
    assert [ranking.best for ranking in rankings(runs)] == [None, None]


def test_without_fingerprints_the_description_of_the_text_decides(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / "a", EVEN), write_run(tmp_path / "b", EVEN, 11.0)]
    (folders[0] / "run.json").unlink()
    assert [ranking.best for ranking in rankings(read_runs(folders))] == ["b"]
    results = folders[1] / FILES["evaluation"]
    results.write_text(results.read_text().replace('"num_tokens": 70', '"num_tokens": 71'))
    assert [ranking.best for ranking in rankings(read_runs(folders))] == [None, None]


# Layers and health


def test_layers_and_health_by_hand(tmp_path: Path) -> None:
    text = compare([write_run(tmp_path / "even", EVEN), write_run(tmp_path / "steep", STEEP)])
    assert line(text, "Layers", "even") == "20.0 % 20.0 % 20.0 % 0.0 points none 1.00 1.00 1.00"
    assert line(text, "Layers", "steep") == "80.0 % 10.0 % 5.0 % 75.0 points 2 1.00 1.00 1.00"
    assert line(text, "Health", "even") == "yes yes yes yes"
    assert line(text, "Health", "steep") == "no yes no no"


def test_each_criterion_of_health_fails_alone(tmp_path: Path) -> None:
    """55 % in layer 3 is extreme, though rates differ by 25 points; layers 9-11 at 57 % are three."""
    early = health(read_run(write_run(tmp_path / "a", [30, 30, 30, 55, 30, 30])))
    assert list(early.verdicts.values()) == [False, True, True]
    many = health(read_run(write_run(tmp_path / "b", [30] * 9 + [57] * 3)))
    assert list(many.verdicts.values()) == [True, False, True]
    uneven = health(read_run(write_run(tmp_path / "c", [10, 45, 10, 10, 10, 10])))
    assert list(uneven.verdicts.values()) == [True, True, False]
    assert (early.healthy, many.healthy, uneven.healthy) == (False, False, False)
    assert health(Run(tmp_path)).healthy is None


def test_health_agrees_with_the_finding_of_that_name(tmp_path: Path) -> None:
    for index, points in enumerate([EVEN, STEEP, [10, 45, 10, 10, 10, 10], [30] * 9 + [57] * 3]):
        run = read_run(write_run(tmp_path / str(index), points))
        found = "healthy" in {finding["issue"] for finding in run.diagnosis["diagnosis"]}
        assert health(run).healthy is found


def test_without_a_diagnosis_the_plan_is_judged_the_same(tmp_path: Path) -> None:
    for index, points in enumerate([EVEN, STEEP]):
        folder = write_run(tmp_path / str(index), points)
        whole = read_run(folder)
        (folder / FILES["diagnosis"]).unlink()
        part = read_run(folder)
        assert part.rates == pytest.approx(whole.rates)
        assert part.extreme_layers == whole.extreme_layers
        assert part.threshold == pytest.approx(whole.threshold)
        assert part.spread == pytest.approx(whole.spread)
        assert health(part) == health(whole)


def test_frozen_layers_of_an_undiagnosed_run_do_not_count_for_the_spread(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a", [0, 20, 25], options={"freeze_first_n_layers": 1})
    (folder / FILES["diagnosis"]).unlink()
    assert read_run(folder).spread == pytest.approx(0.05)


# Partial and older folders


@pytest.mark.parametrize("absent", sorted(FILES))
def test_a_run_that_lacks_a_file_is_compared_and_the_file_is_named(absent: str, tmp_path: Path) -> None:
    folders = [write_run(tmp_path / "part", EVEN), write_run(tmp_path / "whole", STEEP)]
    (folders[0] / FILES[absent]).unlink(missing_ok=True)
    text = compare(folders, tmp_path / "out")
    for table in ("Cost", "Layers", "Health"):
        assert line(text, table, "part")
    if absent != "verification":
        named = {"evaluation": "evaluation: nothing was measured"}.get(absent, FILES[absent])
        assert f"\npart: {named}" in text
    assert "\nwhole: " not in text
    assert line(text, "Cost", "whole").startswith("14.46 % 20.00 % 710 ")  # 120 of 830 and of 600 removed


@pytest.mark.parametrize("kept", ["diagnosis", "comparison", "plan"])
def test_one_file_of_analysis_is_enough(kept: str, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "part", EVEN)
    for name, path in FILES.items():
        if name != kept:
            (folder / path).unlink(missing_ok=True)
    text = compare([folder, write_run(tmp_path / "whole", EVEN)], tmp_path / "out")
    assert "part: run.json: the run is not finished" in text
    assert json.loads((tmp_path / "out" / "comparison.json").read_text())["runs"][0]["name"] == "part"


def test_an_older_schema_with_fewer_keys_and_other_types(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "old", EVEN)
    write_json(folder / "run.json", {"schema_version": 0})
    diagnosis = {"gradient_statistics": {"mean_ratio": "12"}, "extreme_pruning_layers": [{"layer_idx": 3}]}
    write_json(folder / FILES["diagnosis"], diagnosis)
    write_json(folder / FILES["evaluation"], {"dense": {"perplexity": {"pydoc": 3.0}}, "pruned": None})
    text = compare([folder])
    assert "old: run.json: schema_version 0, this program writes 1" in text
    assert line(text, "Layers", "old") == "20.0 % 20.0 % 20.0 % 0.0 points 3 - - -"
    assert "old: evaluation: the pruned model was not evaluated" in text


def test_a_dry_run_is_named_as_one(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "look", EVEN, None, options={"dry_run": True})
    assert "look: evaluation: dry run, nothing was measured" in compare([folder])


def test_the_schema_that_is_known_is_the_one_that_is_written() -> None:
    assert SCHEMA_VERSION == WRITTEN_SCHEMA


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda folder: None, ["gone", "does not exist", "--output"]),
        (lambda folder: folder.write_text("x"), ["gone", "is a file"]),
        (lambda folder: folder.mkdir(), ["gone", "holds no run", "pruning_comparison.json"]),
        (lambda folder: write_run(folder, EVEN) and (folder / "run.json").write_text("{"), ["run.json", "is not JSON"]),
        (lambda folder: write_run(folder, EVEN) and (folder / "run.json").write_text("[]"), ["not a JSON object"]),
    ],
)
def test_bad_folders_are_one_line_and_exit_2(
    spoil: object, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = write_run(tmp_path / "good", EVEN)
    spoil(tmp_path / "gone")  # type: ignore[operator]
    assert main([str(good), str(tmp_path / "gone"), "--output", str(tmp_path / "out")]) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert [word for word in words if word not in error] == []
    assert not (tmp_path / "out").exists()


def test_a_folder_given_twice_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_run(tmp_path / "run", EVEN)
    assert main([str(folder), str(folder / ".." / "run")]) == 2
    assert "given twice" in capsys.readouterr().err


# What is written


def test_an_output_folder_that_is_not_empty_needs_overwrite(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, out = write_run(tmp_path / "run", EVEN), tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    assert main([str(folder), "--output", str(out)]) == 2
    assert "add --overwrite" in capsys.readouterr().err
    assert main([str(folder), "--output", str(out), "--overwrite"]) == 0
    assert (out / "mine.txt").read_text() == "mine"


@pytest.mark.parametrize("name", ["run.json", "comparison.json"])
def test_overwrite_spares_what_no_comparison_wrote(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    folder, out = write_run(tmp_path / "run", EVEN), tmp_path / "out"
    out.mkdir()
    for mine in (name, "report.html"):
        (out / mine).write_text("{}")
    assert main([str(folder), "--output", str(out), "--overwrite"]) == 2
    assert "which no comparison wrote" in capsys.readouterr().err
    assert (out / "report.html").read_text() == "{}"


def test_all_files_tell_the_same(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / "a|b", EVEN, 12.0), write_run(tmp_path / "steep", STEEP, None)]
    text = compare(folders, tmp_path / "out")
    names = ["comparison.json", "comparison.csv", "comparison.md", "pruning_ratio_by_layer.png"]
    names += ["loss_against_ratio.png", "report.html"]
    assert text.split("\nWritten\n")[1].splitlines() == [str(tmp_path / "out" / name) for name in names]
    data = json.loads((tmp_path / "out" / "comparison.json").read_text())
    rows = list(csv.DictReader(io.StringIO((tmp_path / "out" / "comparison.csv").read_text())))
    assert [row["name"] for row in rows] == [run["name"] for run in data["runs"]] == ["a|b", "steep"]
    assert float(rows[0]["perplexity_pydoc_pruned"]) == data["runs"][0]["perplexity"]["pydoc"]["pruned"] == 12.0
    assert float(rows[1]["layer_2_rate"]) == data["runs"][1]["layers"]["rates"][2] == 0.8
    assert rows[1]["perplexity_pydoc_pruned"] == ""
    assert rows[0]["quiz_acc_dense"] == "0.5"
    assert (rows[0]["kl_nats_per_token_pydoc"], rows[1]["kl_nats_per_token_pydoc"]) == ("0.12", "")
    assert data["runs"][0]["distance"] == {"pydoc": {"kl_nats_per_token": 0.12, "top1_agreement": 0.75}}
    assert (rows[0]["generation_greedy_length_pruned"], rows[1]["generation_greedy_length_pruned"]) == ("12.0", "")
    assert re.search(r"a\|b +25\.0 % → 25\.0 % +12\.00 → 12\.00\nsteep +- +-\n", text)
    assert re.search(r"KL pydoc +same top token\na\|b +0\.120 nats +75\.0 %\nsteep +- +-\n", text)
    page = (tmp_path / "out" / "comparison.md").read_text()
    table = [row for row in page.split("## Cost")[1].split("##")[0].splitlines() if row.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in table} == {len(re.findall(r"(?<!\\)\|", table[0]))}
    assert "a\\|b" in page


def test_pictures_show_every_run(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / f"run{index}", EVEN, 12.0 + index) for index in range(4)]
    compare(folders[:1], tmp_path / "one")
    compare(folders, tmp_path / "four")
    one, four = (matplotlib.image.imread(tmp_path / name / "pruning_ratio_by_layer.png") for name in ("one", "four"))
    assert four.shape[0] > one.shape[0]
    assert four.shape[1] > one.shape[1]
    assert one[..., :3].std() > 0.05


def test_equal_runs_make_equal_files(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / "a", EVEN), write_run(tmp_path / "b", STEEP)]
    for name in ("one", "two"):
        compare(folders, tmp_path / name)
    first, second = (sorted((tmp_path / name).iterdir()) for name in ("one", "two"))
    assert [path.name for path in first] == [path.name for path in second]
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_a_diff_of_two_comparisons_shows_only_what_changed(tmp_path: Path) -> None:
    """One value a line and the same keys in the same order: plans that differ in layer 1 alone differ in its lines
    and in the totals, and line numbers mean the same in both files."""
    paths = [
        write_json(tmp_path / f"{name}.json", comparison(plan_of(points)))
        for name, points in (("a", [20, 20, 20]), ("b", [20, 30, 20]))
    ]
    first, second = (path.read_text().splitlines() for path in paths)
    value = r'(?:"(?:[^"\\]|\\.)*"|[-\d.eE+]+|true|false|null)'
    shape = re.compile(rf' *("[^"]+": )?({value}|[\[{{]|\[\]),?| *[\]}}],?')
    assert [row for row in first if not shape.fullmatch(row)] == []
    assert [row.split(":")[0] for row in first] == [row.split(":")[0] for row in second]
    begin, end = (first.index(f'      "layer_idx": {layer},') for layer in (1, 2))
    layers = first.index('  "layers": [')
    changed = [number for number, pair in enumerate(zip(first, second, strict=True)) if pair[0] != pair[1]]
    assert [number for number in changed if number > layers and not begin < number < end] == []
    assert [number for number in changed if begin < number < end]
    assert [number for number in changed if number < layers]


# As people call it


def test_two_real_runs_from_a_shell(workspace: Workspace) -> None:
    folders = [workspace.run("raw"), workspace.run("log", "--enable_grad_norm", "--norm_method", "log")]
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "diagnostics.compare", *map(str, folders), "--output", "both"],
        cwd=workspace.root,
        env=os.environ | {"PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    data = json.loads((workspace.root / "both" / "comparison.json").read_text())
    for folder, run in zip(folders, data["runs"], strict=True):
        results = json.loads((folder / FILES["evaluation"]).read_text())
        assert run["missing"] == []
        assert [values["pruned"] for values in run["perplexity"].values()] == [
            values["perplexity"] for values in results["pruned"]["perplexity"].values()
        ]
    (ranking,) = data["rankings"]
    best = min(data["runs"], key=lambda run: next(iter(run["perplexity"].values()))["pruned"])
    assert ranking["best"] == best["name"]
    assert f"{ranking['best']} is best of 2" in done.stdout
    assert 0 < data["shared_removals"][0]["jaccard"] < 1


def test_nothing_measured_is_nothing_claimed() -> None:
    assert Run(Path("x"), record=record()).parameters == (None, None)
    assert Run(Path("x")).rates == ()
    assert Run(Path("x")).extreme_layers is None
