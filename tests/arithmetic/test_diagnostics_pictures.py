"""Pictures exist, have the size of their layers, show what they should, and touch nothing global."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from diagnostics_cases import importance_of, judge, plan_of, scores_of

from core.measured import Importance
from core.plan import PruningPlan
from diagnostics.findings.diagnosis import diagnose
from diagnostics.findings.quantities import Scores
from diagnostics.findings.remedies import ActiveRemedies
from diagnostics.reports.canvas import VERMILLION, drawing, log_axis, new_figure
from diagnostics.reports.pictures import draw_pictures, gradients_title, rates_title, scores_title


def draw(folder: Path, plan: PruningPlan, importance: Importance | None, scores: Scores | None) -> dict[str, Path]:
    frozen = plan.groups.layer == 0
    diagnosis = diagnose(plan.architecture, importance, scores, plan, None, frozen, ActiveRemedies())
    return {path.stem: path for path in draw_pictures(folder, diagnosis, plan, importance, scores, [])}


def deep_plan(num_layers: int) -> PruningPlan:
    return plan_of([10, 10, 91, 92, 93] + [10] * (num_layers - 5))


def pixels_near(path: Path, colour: str) -> int:
    """Number of pixels of about that colour, ``#RRGGBB``."""
    rgb = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    image = matplotlib.image.imread(path)
    return int((np.abs(image[..., :3] - rgb).max(axis=-1) < 0.02).sum())


@pytest.mark.parametrize(("num_layers", "width"), [(12, 1350), (32, 1485), (80, 2400)])
def test_three_pictures_as_wide_as_their_layers_need(tmp_path: Path, num_layers: int, width: int) -> None:
    plan = deep_plan(num_layers)
    mean = np.geomspace(1e-8, 1e-4, num_layers).tolist()
    paths = draw(tmp_path, plan, importance_of(plan, mean), scores_of(plan, mean))
    heights = {"pruning_ratio_by_layer": 675, "score_distribution": 1162, "gradient_by_layer": 1162}
    assert paths.keys() == heights.keys()
    for name, path in paths.items():
        image = matplotlib.image.imread(path)
        assert image.shape[:2] == (heights[name], width)
        assert image[..., :3].std() > 0.05


def test_without_gradients_two_pictures_and_without_scores_one(tmp_path: Path) -> None:
    plan = deep_plan(8)
    no_gradients = importance_of(plan, gradients=None)
    two = draw(tmp_path / "two", plan, no_gradients, scores_of(plan))
    assert set(two) == {"pruning_ratio_by_layer", "score_distribution"}
    one = draw(tmp_path / "one", plan, None, None)
    assert set(one) == {"pruning_ratio_by_layer"}
    assert [path.name for path in (tmp_path / "one").iterdir()] == ["pruning_ratio_by_layer.png"]


def test_the_threshold_is_drawn(tmp_path: Path) -> None:
    paths = draw(tmp_path, deep_plan(8), None, None)
    assert pixels_near(paths["pruning_ratio_by_layer"], VERMILLION) > 500


def test_zero_negative_and_missing_values_can_be_drawn(tmp_path: Path) -> None:
    plan = deep_plan(8)
    bad = [0.0, float("nan"), float("inf"), -1.0, 1e-9, 1.0, 2.0, 3.0]
    importance = importance_of(plan, bad)
    rng = np.random.default_rng(0)
    sparse = rng.random(len(plan.groups)) * (rng.random(len(plan.groups)) > 0.2)
    for name, scores in {
        "bad": scores_of(plan, bad),
        "sparse": replace(scores_of(plan), per_parameter=sparse, score=sparse - 0.5),
        "zero": scores_of(plan, [0.0] * 8),
    }.items():
        assert len(draw(tmp_path / name, plan, importance, scores)) == 3


def test_powers_of_ten_and_dollars_are_written_as_they_are_read() -> None:
    with drawing():
        figure, (ax,) = new_figure(3, 1, "a name with $two$ dollars", "")
        ax.plot([0, 1, 2], [1e-10, 1e-5, 100.0])
        log_axis(ax)
        figure.draw_without_rendering()
        labels = [label.get_text() for label in ax.get_yticklabels()]
    assert {"1e-10", "1e0", "1e2"} <= set(labels), labels
    assert not [label for label in labels if not label.startswith("1e")]


def test_equal_data_give_equal_files(tmp_path: Path) -> None:
    plan = deep_plan(8)
    first, second = (draw(tmp_path / name, plan, importance_of(plan), scores_of(plan)) for name in ("a", "b"))
    assert [path.read_bytes() for path in first.values()] == [path.read_bytes() for path in second.values()]


def test_files_name_no_date_and_no_program_version(tmp_path: Path) -> None:
    content = draw(tmp_path, deep_plan(8), None, None)["pruning_ratio_by_layer"].read_bytes()
    assert not [word for word in (b"Software", b"tIME", b"Creation", b"tEXt", b"iTXt") if word in content]


def test_titles_state_the_fact() -> None:
    mean = [1, 1, 1e-3, 1, 1, 1, 1, 1, 1, 2.0]
    extreme = judge([10, 10, 91, 91, 91] + [10] * 5, mean=mean)
    assert rates_title(extreme.measured) == "Layers 2-4 lose 91 %"
    assert gradients_title(extreme.measured) == (
        "Mean gradients differ 2,000-fold: smallest in layer 2, largest in layer 9"
    )
    assert rates_title(judge([10] * 9 + [60]).measured) == "Layer 9 loses 60 %"
    assert rates_title(judge([0, 60] * 12).measured) == "12 layers lose 60 %"
    assert rates_title(judge([12, 30, 20]).measured) == "No layer is extreme: each loses 12 to 30 %"
    frozen = judge([0, 30, 20], frozen_layers=[0]).measured
    assert rates_title(frozen) == "No layer is extreme: unfrozen layers lose 20 to 30 %"
    assert "zero or not finite" in gradients_title(judge([20, 20], mean=[0.0, 1.0]).measured)


def test_score_titles() -> None:
    plan = plan_of([20, 20])
    raw, even = scores_of(plan, [1.0, 50.0]), scores_of(plan, [1.0, 2.0])
    frozen = np.zeros(200, dtype=bool)

    def title(scores: Scores) -> str:
        measured = diagnose(plan.architecture, None, scores, plan, None, frozen, ActiveRemedies()).measured
        return scores_title(measured, scores)

    assert title(raw) == "Median scores of layers differ 50.0-fold; no transform is used"
    remedied = replace(raw, score=even.score)
    assert title(remedied) == "Median scores of layers differ 50.0-fold, 2.00-fold after transforms"
    assert "a median is zero" in title(scores_of(plan, [0.0, 1.0]))


def test_drawing_leaves_pyplot_and_the_backend_alone() -> None:
    program = (
        "import sys, pathlib, tempfile\n"
        "from diagnostics.findings.diagnosis import diagnose\n"
        "from diagnostics.reports.pictures import draw_pictures\n"
        "assert 'matplotlib' not in sys.modules and 'torch' not in sys.modules, 'imported too early'\n"
        "import numpy as np\n"
        "from diagnostics.findings.remedies import ActiveRemedies\n"
        "from diagnostics_cases import plan_of\n"
        "plan = plan_of([20, 30])\n"
        "frozen = np.zeros(200, dtype=bool)\n"
        "d = diagnose(plan.architecture, None, None, plan, None, frozen, ActiveRemedies())\n"
        "draw_pictures(pathlib.Path(tempfile.mkdtemp()), d, plan, None, None, [])\n"
        "assert 'matplotlib' in sys.modules and 'matplotlib.pyplot' not in sys.modules, 'pyplot imported'\n"
    )
    root = Path(__file__).parents[2]
    environment = {"PYTHONPATH": f"{root}:{root / 'tests' / 'support'}", "PATH": "/usr/bin:/bin"}
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
