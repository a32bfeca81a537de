"""report.html: well-formed, self-contained, escaped, equal to the JSON beside it, whatever was not measured."""

import json
import re
import tomllib
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from run_folders import record, write_run
from workspace import Workspace

from core.files import write_json
from diagnostics.comparison.compare import compare
from diagnostics.page.charts import Values, axis, layer_bars, layer_lines, scatter
from diagnostics.page.headline import headline
from diagnostics.page.render import TEMPLATES
from diagnostics.page.run_page import run_page, write_run_page
from diagnostics.run_folder import FILES, Run, at, read_run
from diagnostics.wording import percent

ROOT = Path(__file__).resolve().parents[2]
EVEN, STEEP = [20, 20, 20, 20, 20, 20], [10, 10, 80, 10, 5, 5]
ARGV = ["--base_model", "some/model", "--output", "x"]
VOID = {"meta", "br", "line", "rect", "circle", "path", "link", "img"}
SECTIONS = {
    "run": ["removed", "cost", "next", "why", "how"],
    "comparison": ["cost", "removed", "shared", "next"],
}


class Page(HTMLParser):
    """The elements of a page; fails on tags that are not closed in order, or an id used twice."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.attributes: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self.feed(text)
        self.close()
        assert self.open == []
        ids = [found["id"] for _, found in self.attributes if "id" in found]
        assert len(ids) == len(set(ids))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes.append((tag, dict(attrs)))
        if tag == "meta" or (tag in VOID and self.get_starttag_text().endswith("/>")):  # type: ignore[union-attr]
            return
        self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open:
            self.texts.setdefault(self.open[-1], []).append(data)

    def of(self, tag: str) -> list[str]:
        return [text.strip() for text in self.texts.get(tag, [])]

    @property
    def visible(self) -> str:
        return " ".join(" ".join(texts) for tag, texts in self.texts.items() if tag not in ("script", "style"))

    @property
    def sections(self) -> list[str | None]:
        return [found["id"] for tag, found in self.attributes if tag == "section"]


def page_of(run: Run, *, written: list[Path] | None = None) -> Page:
    return Page(run_page(run, ARGV, written or [], "python run_global_pruning.py"))


def measured_run(folder: Path, points: list[int] = STEEP, **options: Any) -> Run:
    return read_run(write_run(folder, points, options=options))


# The whole page


def test_a_page_has_its_sections_and_the_numbers_of_the_json(tmp_path: Path) -> None:
    run = measured_run(tmp_path / "run")
    page = page_of(run)
    assert page.sections == SECTIONS["run"]
    assert page.of("h1") == page.of("title")[:1]
    for row in run.diagnosis["layers"]:
        exact = f"layer {row['layer_idx']}: {percent(row['pruning_rate'], 2)} removed"
        assert any(text.startswith(exact) for text in page.of("span")), exact
    results = run.evaluation
    for part in ("dense", "pruned"):
        assert f"{results[part]['perplexity']['pydoc']['perplexity']:.2f}" in page.of("td")
        assert f"{100 * results[part]['tasks']['quiz']['acc']:.1f} ± 2.0 %" in page.of("td")
    for key in ("achieved_of_total", "achieved_of_prunable", "requested_of_total"):
        assert percent(run.comparison["budget"][key], 2) in page.of("td")
    assert "layer 2, MLP: 81.63 % removed, 80 of 98 channels" in page.of("span")


def test_every_finding_is_there_with_its_command(tmp_path: Path) -> None:
    run = measured_run(tmp_path / "run")
    page, findings = page_of(run), run.diagnosis["diagnosis"]
    advised = [finding for finding in findings if finding["flags"]]
    assert advised
    texts = [text.replace("\N{NO-BREAK SPACE}", " ") for text in page.of("p")]
    for finding in findings:
        assert finding["description"] in texts
        assert finding["recommendation"] in texts
    for finding in advised:
        commands = [code for code in page.of("code") if finding["flags"] in code]
        assert commands
        assert commands[0].startswith("python run_global_pruning.py --base_model some/model ")
    assert len([tag for tag, found in page.attributes if tag == "button"]) == len(page.of("code"))


def test_names_that_hold_markup_are_escaped(tmp_path: Path) -> None:
    evil = "<script>alert('x')</script>\"&"
    run = measured_run(tmp_path / "run", base_model=evil, dataset=evil)
    run = replace(run, folder=tmp_path / evil)
    text = run_page(run, ["--base_model", evil], [tmp_path / evil / "a'\"<b>.json"], "python run_global_pruning.py")
    assert "<script>alert" not in text
    page = Page(text)
    assert [tag for tag, _ in page.attributes].count("script") == 1
    assert any(evil in paragraph for paragraph in page.of("p"))
    folder = write_run(tmp_path / "<b>&amp;'", EVEN, options={"base_model": evil})
    compare([folder, write_run(tmp_path / "other", EVEN, options={"base_model": evil})], tmp_path / "out")
    other = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "<b>" not in other
    assert "<script>alert" not in other
    Page(other)


def test_nothing_is_loaded_from_anywhere(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / "a", EVEN), write_run(tmp_path / "b", STEEP)]
    compare(folders, tmp_path / "out")
    write_run_page(folders[0], record(), ARGV, [folders[0] / "analysis" / "pruning_plan.json"])
    for path in (tmp_path / "out" / "report.html", folders[0] / "report.html"):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"https?://|@import|url\(|\bsrc=", text)
        page = Page(text)
        assert not {"link", "img", "iframe", "object"} & {tag for tag, _ in page.attributes}
        links = [found["href"] for tag, found in page.attributes if "href" in found]
        assert links
        assert [link for link in links if not (path.parent / str(link)).is_file()] == []
        policy = [found["content"] for _, found in page.attributes if found.get("http-equiv")]
        assert str(policy[0]).startswith("default-src 'none'")


def test_a_comparison_has_its_sections_and_the_cells_of_its_tables(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / "a", EVEN), write_run(tmp_path / "b", STEEP, 11.0)]
    text = compare(folders, tmp_path / "out")
    page = Page((tmp_path / "out" / "report.html").read_text(encoding="utf-8"))
    assert page.sections == SECTIONS["comparison"]
    assert page.of("h1") == ["b is best of 2 at 14.5 % removed; perplexity 10.0 → 11.0"]
    cells = page.of("td") + page.of("th")
    for section in text.split("\n\n")[:4]:
        for row in section.splitlines()[2:4]:
            assert [cell for cell in re.split(r"\s{2,}", row.strip()) if cell not in cells] == []
    assert "a and b, layer 3: 50.00 % shared" in page.of("span")
    assert any(code.startswith("diff ") for code in page.of("code"))


def test_equal_input_makes_equal_bytes(tmp_path: Path) -> None:
    run = measured_run(tmp_path / "run")
    assert run_page(run, ARGV, [], "p") == run_page(read_run(tmp_path / "run"), ARGV, [], "p")


# What is not there


def test_a_dry_run_says_so_and_how_to_carry_it_out(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "look", EVEN, None, options={"dry_run": True})
    run = read_run(folder)
    page = Page(run_page(run, [*ARGV, "--dry_run"], [], "python run_global_pruning.py"))
    assert page.of("h1") == ["14.5 % would be removed; loss after pruning not measured; no layer loses over half"]
    plan, output = folder / "analysis" / "pruning_plan.json", tmp_path / "look_pruned"
    command = f"python run_global_pruning.py --base_model some/model --plan {plan} --output {output}"
    assert page.of("code")[0] == command
    assert page.sections == SECTIONS["run"]


@pytest.mark.parametrize("absent", sorted(FILES))
def test_without_one_of_its_files_a_page_still_renders(absent: str, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", STEEP)
    (folder / FILES[absent]).unlink(missing_ok=True)
    page = page_of(read_run(folder))
    assert page.sections == SECTIONS["run"]
    expected = {
        "evaluation": "loss after pruning not measured",
        "diagnosis": "Scores: not measured (no analysis/gradient_diagnosis.json)",
        "record": "run.json: not there.",
        "comparison": "not measured",
        "verification": "The saved model was not verified.",
        "plan": "layer 2: 80.00 % removed, extreme",
    }
    assert expected[absent] in page.visible


def test_an_empty_run_renders(tmp_path: Path) -> None:
    page = page_of(Run(tmp_path))
    assert page.sections == SECTIONS["run"]
    assert page.of("h1") == ["Size not known; loss after pruning not measured"]
    assert page.visible.count("not measured") >= 6


def test_what_was_not_measured_is_said_with_the_reason(tmp_path: Path) -> None:
    run = measured_run(tmp_path / "run", importance_method="magnitude")
    layers = [row | {"gradient_mean": None} for row in run.diagnosis["layers"]]
    page = page_of(replace(run, diagnosis=run.diagnosis | {"layers": layers}))
    assert "Gradients: not measured (magnitude uses none)" in page.visible
    assert "Priors: not measured (--temperature is 0)" in page.visible


def test_a_page_of_a_failed_proof_says_so(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", EVEN)
    checks = [{"name": "logits", "error": 0.5}, {"name": "load", "error": 0.0}]
    write_json(folder / FILES["verification"], {"passed": False, "checks": checks})
    assert "The saved model FAILED its 2 checks, largest error 5.0e-01." in page_of(read_run(folder)).visible


# Titles


def test_the_title_tells_the_main_fact(tmp_path: Path) -> None:
    two = read_run(write_run(tmp_path / "two", [60, 20, 60, 20, 20, 20], 39.44))
    assert headline(two) == "24.1 % removed; perplexity 10.0 → 39.4; layers 0 and 2 lose over half"
    one = read_run(write_run(tmp_path / "one", STEEP, 1234.0))
    assert headline(one) == "14.5 % removed; perplexity 10.0 → 1,234; layer 2 loses over half"
    much = read_run(write_run(tmp_path / "much", [95, 40, 40, 40, 40, 40]))
    assert headline(much).endswith("layer 0 loses over 74 %")
    many = read_run(write_run(tmp_path / "many", [51, 1] * 20))
    assert headline(many).endswith("20 layers lose over half")


# Charts


def inside(chart: Any) -> bool:
    left, top, right, bottom = chart.plot
    marks = [mark for series in chart.series for mark in series.marks]
    points = [(mark.x + mark.width, mark.y + mark.height) for mark in marks] + [(mark.x, mark.y) for mark in marks]
    return all(left <= x <= right and top - 0.01 <= y <= bottom + 0.01 for x, y in points)


@pytest.mark.parametrize("num_layers", [1, 12, 32, 126])
def test_marks_stand_inside_the_plot_and_layer_numbers_apart(num_layers: int) -> None:
    values = Values("v", "layer", np.geomspace(1e-9, 1e-3, num_layers).tolist())
    lines = layer_lines("t", "d", "y", [values], log=True)
    bars = layer_bars("t", "d", Values("v", "layer", [0.0, 1.0] * num_layers), [1], [(0.5, "half", "limit")])
    assert lines is not None
    for chart in (lines, bars):
        assert inside(chart)
        places = [tick.at for tick in chart.x_ticks]
        assert all(b - a >= 22 for a, b in pairwise(places))
    assert len(lines.series[0].marks) == num_layers
    assert [mark.css for mark in bars.series[0].marks[:2]] == ["", "extreme"]


@pytest.mark.parametrize(
    ("values", "log", "ticks"),
    [
        ([0.0, 5.8], False, (0.0, 2.0, 4.0, 6.0)),
        ([3.5, 3.5], False, (3.0, 4.0)),
        ([-0.1, 0.31], False, (-0.2, 0.0, 0.2, 0.4)),
        ([0.003, 0.008], True, (0.002, 0.005, 0.01)),
        ([2.0, 2.0], True, (2.0, 5.0)),
        ([1e-9, 1e-3], True, (1e-9, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3)),
        ([0.0, 5.8], True, (0.0, 2.0, 4.0, 6.0)),
    ],
)
def test_axes_end_at_round_numbers(values: list[float], log: bool, ticks: tuple[float, ...]) -> None:
    found = axis(values, 100.0, 0.0, log=log)
    assert set(ticks) <= set(found.ticks)
    assert found.low <= min(values)
    assert found.high >= max(values)
    assert 2 <= len(found.ticks) <= 9
    assert found.log is (log and min(values) > 0)
    assert (found(found.low), found(found.high)) == (100.0, 0.0)


def test_gaps_break_lines_and_hide_bands() -> None:
    gappy = Values("v", "layer", [1.0, None, 3.0, 0.0], [0.5, 0.5, 2.0, 0.5], [2.0, None, 4.0, 1.0])
    chart = layer_lines("t", "d", "y", [gappy], log=True)
    assert chart is not None
    (series,) = chart.series
    assert series.line.count("M") == 2
    assert len(series.marks) == 2
    assert series.band == ""
    assert layer_lines("t", "d", "y", [Values("v", "layer", [None, 0.0])], log=True) is None


def test_points_get_shapes_and_colours_of_their_own() -> None:
    points = [(f"run{index}", 20.0, 3.0 + index, "tip") for index in range(12)]
    chart = scatter("t", "d", ("x", "y"), points)
    assert len({(series.css, series.shape) for series in chart.series}) == 12
    assert inside(chart)


def test_gradient_and_prior_charts_show_the_diagnosis(tmp_path: Path) -> None:
    run = measured_run(tmp_path / "run")
    layers = [row | {"prior_attention": 0.1, "prior_mlp": 0.2, "prior_layer": 0.3} for row in run.diagnosis["layers"]]
    page = page_of(replace(run, diagnosis=run.diagnosis | {"layers": layers}))
    assert "Prior: loss without the block" in page.of("h3")
    assert "layer 3: MLP 0.2" in page.of("li")
    assert "layer 3: mean |gradient| 1" in page.of("li")
    assert "Raw gradients: layers differ 1.00-fold" in page.of("h3")


# Colours


def themes() -> dict[str, dict[str, str]]:
    css = (TEMPLATES / "style.css").read_text(encoding="utf-8")
    blocks = re.findall(r":root \{(.*?)\}", css, flags=re.S)
    light, dark = (dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block)) for block in blocks)
    return {"light": light, "dark": dark}


def luminance(rgb: np.ndarray) -> float:
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def rgb(colour: str) -> np.ndarray:
    return np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255


def contrast(a: np.ndarray, b: np.ndarray) -> float:
    """WCAG 2: (lighter + 0.05) / (darker + 0.05); 4.5 is enough for text, 3 for graphics."""
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_and_marks_can_be_told_from_their_background(theme: str) -> None:
    colours = themes()[theme]
    assert colours.keys() == themes()["light"].keys()
    for name in set(colours) - {"page", "surface", "line", "cold", "hot"}:
        for ground in ("page", "surface"):
            assert contrast(rgb(colours[name]), rgb(colours[ground])) >= 4.5, (name, ground)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_numbers_in_heat_maps_can_be_read_at_every_heat(theme: str) -> None:
    """Cells mix hot into cold in sRGB; their ink is the theme's own."""
    colours = themes()[theme]
    for heat in np.linspace(0, 1, 101):
        ground = heat * rgb(colours["hot"]) + (1 - heat) * rgb(colours["cold"])
        assert contrast(rgb(colours["ink"]), ground) >= 4.5, heat


# Wired in


def test_templates_are_shipped() -> None:
    packaged = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"][
        "package-data"
    ]
    shipped = {path for pattern in packaged["diagnostics"] for path in (ROOT / "diagnostics").glob(pattern)}
    assert shipped == set(TEMPLATES.iterdir())


def test_a_run_writes_its_page_before_its_record(workspace: Workspace) -> None:
    folder = workspace.run("whole", "--temperature", "1")
    page = Page((folder / "report.html").read_text(encoding="utf-8"))
    assert page.sections == SECTIONS["run"]
    assert (folder / "report.html").stat().st_mtime_ns <= (folder / "run.json").stat().st_mtime_ns
    options = json.loads((folder / "run.json").read_text())["options"]
    assert options["base_model"] in page.visible
    assert "Prior: loss without the block" in page.of("h3")
    assert at(read_run(folder).verification, "passed") is True
    assert "The saved model passed its" in page.visible


def test_a_run_without_evaluation_or_gradients_writes_its_page(workspace: Workspace) -> None:
    arguments = ["--importance_method", "magnitude", "--run_evaluation", "none", "--dry_run"]
    page = Page((workspace.run("bare", *arguments) / "report.html").read_text(encoding="utf-8"))
    assert "loss after pruning not measured" in page.of("h1")[0]
    assert "Gradients: not measured (magnitude uses none)" in page.visible


def test_equal_factors_are_equal_steps_on_a_log_axis() -> None:
    mean = np.geomspace(1e-8, 1e-2, 6)
    values = Values("g", "gradient", mean.tolist(), (mean / 2).tolist(), (mean * 2).tolist())
    chart = layer_lines("t", "d", "y", [values], log=True)
    assert chart is not None
    heights = [mark.y for mark in chart.series[0].marks]
    assert np.allclose(np.diff(heights), np.diff(heights)[0], atol=0.02)
    assert heights[0] > heights[-1]
    assert chart.series[0].band
