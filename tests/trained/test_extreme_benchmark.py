"""The built case of docs/extreme-pruning.md: copies change nothing but the ranking, and training can be interrupted."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import build, token_ids, windows_of

from benchmarks.extreme.build import difference, train
from benchmarks.extreme.copies import narrowed, plan_of_widths, widened
from benchmarks.extreme.walk import RUNS, arguments_of
from cli.options import parse_options
from core.families import Family
from core.groups import ATTENTION, MLP
from core.transforms import Transforms
from importance.measure import measure_importance
from importance.scoring import score_groups
from models.architecture import architecture_of
from models.family_table import family_of
from tools.train_demo import Batches, Training

LAYER, WIDTHS = 1, (1, 3)  # of 4 KV groups and 24 channels in tiny_models.SHARED: stored 4 and 8 times


def pair_of(model: Any, family: Family) -> tuple[Any, Any]:
    """The model with a narrow layer, and that one widened to the shape it had."""
    config, architecture = copy.deepcopy(model.config), architecture_of(model, family)
    importance = np.arange(len(architecture.groups), dtype=np.float64)
    narrow = narrowed(model, family, importance, {LAYER: WIDTHS})
    return narrow, widened(narrow, family, config)


def test_the_widened_model_computes_the_same(family_model: Any) -> None:
    family = family_of(family_model.config.model_type)
    shape = architecture_of(family_model, family)
    narrow, wide = pair_of(family_model, family)
    assert architecture_of(narrow, family).layers[LAYER].widths == WIDTHS
    assert architecture_of(wide, family) == shape
    assert difference(wide, narrow, token_ids()) < 1e-5


def test_a_copy_has_its_share_of_the_importance_and_goes_first(llama: Any) -> None:
    family = family_of("llama")
    few, many = pair_of(llama, family)
    windows = windows_of(token_ids(rows=3))
    found = {}
    for name, model in (("few", few), ("many", many)):
        architecture = architecture_of(model, family)
        values = measure_importance(model, family, architecture, windows, criterion="taylor").values
        found[name] = [values[architecture.groups.rows(LAYER, kind)] for kind in (ATTENTION, MLP)]
    for kind, times in ((ATTENTION, 4), (MLP, 8)):
        np.testing.assert_allclose(found["many"][kind], np.repeat(found["few"][kind] / times, times), rtol=1e-4)

    groups, frozen = architecture.groups, np.zeros(len(values), dtype=bool)
    copies = set(range(groups.rows(LAYER, MLP).start, groups.rows(LAYER, MLP).stop))
    raw, log = (
        score_groups(groups, values, Transforms(normalise=how), frozen=frozen, prior=None) for how in (None, "log")
    )
    assert set(raw.order[:24].tolist()) == copies
    assert len(copies & set(log.order[:24].tolist())) < 24 / 2


def test_the_most_important_groups_are_kept(llama: Any) -> None:
    architecture = architecture_of(llama, family_of("llama"))
    importance = np.zeros(len(architecture.groups))
    rows = architecture.groups.rows(2, MLP)
    importance[rows.start + np.array([7, 3, 20])] = (1.0, 3.0, 2.0)
    plan = plan_of_widths(architecture, importance, {2: (4, 2)})
    assert plan.kept(2, MLP).tolist() == [3, 20]
    assert plan.kept(2, ATTENTION).tolist() == [0, 1, 2, 3]
    assert len(plan.kept(1, MLP)) == 24
    assert plan.removed_params == 22 * architecture.layers[2].channel_params


def test_an_interrupted_training_ends_where_one_without_a_break_does(tmp_path: Path) -> None:
    batches = Batches(np.random.default_rng(0).integers(3, 97, 400), bos=1, size=2, seq_len=9, seed=0)

    def started(name: str) -> Training:
        training = Training(build("llama").requires_grad_(True), tmp_path / name)
        training.resume()
        return training

    whole, broken = started("whole"), started("resumed")
    train(whole, batches, 4)
    for step in range(2):
        broken.update(batches(step), step / 4, mixed=False)
    broken.save()
    resumed = started("resumed")
    train(resumed, batches, 4)
    assert (whole.step, resumed.step) == (4, 4)
    expected = whole.model.state_dict()
    for name, tensor in resumed.model.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


@pytest.mark.parametrize("name", RUNS)
def test_the_runs_are_commands_of_the_program(name: str, tmp_path: Path) -> None:
    settings = parse_options(arguments_of("demo", "0.5", tmp_path, name)).settings
    assert settings.output.output == tmp_path / name
    assert settings.budget.pruning_ratio == 0.5
