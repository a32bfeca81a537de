"""A third kind of block, which only some layers have: everything between importance and surgery takes it as it comes.

Rows of MODEL, cost of a group in brackets: 0-1 KV groups (10), 2-5 channels (3) | 6-7 KV groups (10), 8-11 experts (6)
| 12-13 KV groups (10), 14-17 channels (3), 18-21 experts (6). Blocks 0 to 6 in that order; 132 parameters in groups.
"""

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import tables
from diagnostics_cases import importance_of
from run_folders import write_run

from core.errors import NumericalError, PlanError
from core.groups import ATTENTION, MLP, Architecture, Block, LayerShape
from core.kinds import TABLE, Kind
from core.measured import Prior
from core.plan import PruningPlan
from core.plan_check import check_of
from core.transforms import Transforms
from diagnostics.comparison.shared import shared_removals
from diagnostics.findings.diagnosis import Diagnosis, diagnose
from diagnostics.findings.remedies import ActiveRemedies
from diagnostics.page.heat import layers_by_kind
from diagnostics.page.why import reasons
from diagnostics.reports.analysis import comparison, summary_by_layer, write_reports
from diagnostics.reports.pictures import draw_pictures
from diagnostics.run_folder import read_run
from importance.scoring import Scores, score_groups
from pruning.allocation import by_marginal_loss, groups_at
from pruning.limits import Limits
from pruning.plan_file import read_plan, write_plan
from pruning.planning import plan_removal
from pruning.targets import check_plan, explain, limits_for
from pruning.uniform import plan_uniform
from run.refine.caps import halved_caps

EXPERTS = len(TABLE)
ROW = Kind(
    name="experts",
    title="experts",
    noun="expert",
    unit="experts",
    width_noun="number of experts",
    parts={"expert": ()},
    output_part="expert",
    counts=lambda width, _: {"num_experts": width},
    width_key="num_experts",
    kept_key="kept_experts",
    cost_key="expert_params",
    fixed_key="experts_fixed_params",
    step="round_to",
)
NAN = float("nan")


def attention() -> Block:
    return Block(ATTENTION, 2, 10, 0, (("query", 8), ("kv", 4)))


def mlp() -> Block:
    return Block(MLP, 4, 3, 0, (("channel", 1),))


def experts() -> Block:
    return Block(EXPERTS, 4, 6, 1, (("expert", 1),))


SHAPES = tuple(
    LayerShape.of(blocks, norm_params=2)
    for blocks in ([attention(), mlp()], [attention(), experts()], [attention(), mlp(), experts()])
)
MODEL = Architecture("toy", 8, 50 + sum(shape.total_params for shape in SHAPES), SHAPES)
FIRST_EXPERTS = [8, 9, 10, 11, *range(8), *range(12, 22)]


@pytest.fixture(autouse=True)
def third_kind() -> Iterator[None]:
    TABLE.append(ROW)
    yield
    TABLE.remove(ROW)


def plan_for(params: int, order: list[int], **limits: Any) -> PruningPlan:
    ratio = params / MODEL.prunable_params + 1e-9
    return plan_removal(MODEL, np.array(order), ratio=ratio, ratio_of="prunable", limits=Limits(**limits))


def gone(plan: PruningPlan) -> list[int]:
    return np.flatnonzero(~plan.keep).tolist()


def prior(**changes: float) -> Prior:
    block = np.array([[1.0, 2.0, NAN], [1.0, NAN, changes.get("experts", 4.0)], [1.0, 2.0, 3.0]])
    return Prior(block, np.array([3.0, 5.0, 6.0]), "loss", 32, 2.0)


def scores(seed: int = 0, **options: Any) -> Scores:
    importance = np.random.default_rng(seed).random(22)
    frozen = np.zeros(22, dtype=bool)
    return score_groups(MODEL.groups, importance, Transforms(**options), frozen=frozen, prior=prior())


def diagnosed(plan: PruningPlan, found: Scores) -> Diagnosis:
    frozen = np.zeros(22, dtype=bool)
    return diagnose(MODEL, importance_of(plan), found, plan, prior(), frozen, ActiveRemedies())


# The table


def test_blocks_are_numbered_as_layers_have_them() -> None:
    groups = MODEL.groups
    assert groups.widths.tolist() == [2, 4, 2, 4, 2, 4, 4]
    assert groups.block_layer.tolist() == [0, 0, 1, 1, 2, 2, 2]
    assert groups.block_kind.tolist() == [0, 1, 0, EXPERTS, 0, 1, EXPERTS]
    assert groups.block_cost.tolist() == [10, 3, 10, 6, 10, 3, 6]
    assert (groups.rows(1, EXPERTS), groups.rows_of(6), groups.rows_of_layer(1)) == (
        slice(8, 12),
        slice(18, 22),
        slice(6, 12),
    )
    assert groups.block_name(3) == "experts of layer 1"
    assert groups.by_block(groups.cost).tolist() == [20, 12, 20, 24, 20, 12, 24]
    assert groups.by_layer(groups.cost).tolist() == [32, 44, 56]
    assert groups.layer_sums(groups.widths).tolist() == [6, 6, 10]
    with pytest.raises(ValueError, match="layer 1 has no block of kind mlp"):
        groups.rows(1, MLP)


def test_blocks_spread_over_layers_and_kinds_and_back() -> None:
    values = np.arange(7.0)
    spread = MODEL.groups.spread(values)
    assert np.array_equal(spread, np.array([[0, 1, NAN], [2, NAN, 3], [4, 5, 6]]), equal_nan=True)
    assert MODEL.groups.gathered(spread).tolist() == values.tolist()
    assert MODEL.groups.spread(values > 0).tolist() == [[False, True, False], [True, False, True], [True, True, True]]


def test_a_layer_refuses_blocks_out_of_order() -> None:
    for blocks in ([mlp(), attention()], [mlp(), mlp()]):
        with pytest.raises(ValueError, match="ascend by kind"):
            LayerShape.of(blocks, 0)


def test_a_model_without_the_kind_is_none_the_wiser(tmp_path: Path) -> None:
    """What is written of a dense model does not depend on which other kinds the program knows."""
    dense = tables.architecture((2, 4), (2, 4))
    plan = plan_removal(dense, np.arange(12), ratio=0.3, ratio_of="prunable", limits=Limits())
    assert plan.block_rates().shape == (2, 2)
    known = write_plan(tmp_path / "known.json", plan).read_bytes()
    assert list(comparison(plan)["layers"][0]) == ["layer_idx", "total", "attention", "mlp", "is_zero_layer"]
    TABLE.remove(ROW)
    try:
        assert write_plan(tmp_path / "unknown.json", plan).read_bytes() == known
    finally:
        TABLE.append(ROW)
    assert list(json.loads(known)["base"]["layers"][0]) == [
        *("num_heads", "num_kv_heads", "head_dim", "intermediate_size", "kv_group_params", "channel_params"),
        *("attention_fixed_params", "mlp_fixed_params", "norm_params"),
    ]


# Scores


def test_the_correction_takes_each_blocks_own_prior() -> None:
    plain, corrected = scores(), scores(temperature=1.0)
    factor = np.log1p([1, 2, 1, 4, 1, 2, 3])
    assert corrected.score == pytest.approx(plain.score * factor[MODEL.groups.block])
    assert corrected.factor is not None
    assert np.isnan(corrected.factor).tolist() == [[False, False, True], [False, True, False], [False] * 3]


def test_a_layer_is_normalised_with_all_its_blocks() -> None:
    found, groups = scores(normalise="minmax"), MODEL.groups
    for layer in range(3):
        assert (found.score[groups.layer == layer].min(), found.score[groups.layer == layer].max()) == (0, 1)


def test_a_prior_that_is_missing_where_there_is_a_block_is_refused() -> None:
    frozen = np.zeros(22, dtype=bool)
    with pytest.raises(NumericalError, match="the prior of layer 1 experts is nan"):
        score_groups(MODEL.groups, np.ones(22), Transforms(temperature=1.0), frozen=frozen, prior=prior(experts=NAN))


# Plans


def test_experts_go_by_rank_down_to_the_last() -> None:
    # Budget 20: three experts of layer 1 (18); the fourth is its floor, and nothing else costs 2 or less.
    plan = plan_for(20, FIRST_EXPERTS)
    assert gone(plan) == [8, 9, 10]
    assert plan.gap_reason == "smaller than the smallest step left (a channel of 3 parameters)"
    assert plan.layer_rates().tolist() == [0, 18 / 44, 0]
    assert np.array_equal(plan.block_rates(), np.array([[0, 0, NAN], [0, NAN, 0.75], [0, 0, 0]]), equal_nan=True)
    assert plan.pruned_architecture.layers[1].facts() == {
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_dim": 4,
        "num_experts": 1,
        "kv_group_params": 10,
        "expert_params": 6,
        "attention_fixed_params": 0,
        "experts_fixed_params": 1,
        "norm_params": 2,
    }


def test_a_message_names_an_expert() -> None:
    # 98: all but one group of every block, 30 + 9 + 9 + 18 + 18 = 84, do not reach it; 80 leaves one expert of layer 2.
    plan = plan_for(80, [*range(18), 18, 19, 20, 21])
    assert plan.gap_reason == "smaller than the smallest step left (an expert of 6 parameters)"


def test_limits_of_its_row_bound_it() -> None:
    # Steps of two: experts 8 9 (12), then channels 2 3 (6); 2 of 20 parameters are left.
    assert gone(plan_for(20, FIRST_EXPERTS, round_to=2)) == [2, 3, 8, 9]
    assert gone(plan_for(20, FIRST_EXPERTS, caps=(2, 4, 2, 1, 2, 4, 4))) == [0, 2, 8]
    assert gone(plan_for(20, FIRST_EXPERTS, protected=(8,))) == [9, 10, 11]
    assert gone(plan_for(18, FIRST_EXPERTS, max_block_ratio=0.25)) == [2, 8, 14, 18]


def test_a_layer_of_experts_is_removed_whole() -> None:
    # Layer 1 would keep 16 of 44 parameters. Whole it takes 44 + 1 + 2 = 47 of 50, and a channel the rest.
    order = [8, 9, 10, 6, 2, 3, 4, 14, 15, 16, *(0, 1, 5, 7, 11, 12, 13, 17, 18, 19, 20, 21)]
    plan = plan_for(50, order, epsilon=0.5)
    assert plan.removed_layers == (1,)
    assert gone(plan) == [2, *range(6, 12)]
    assert plan.removed_params == 50
    assert [shape.widths for shape in plan.pruned_architecture.layers] == [(2, 3), (2, 4, 4)]


@pytest.mark.parametrize("budget", [17, 39, 60, 75, 84])
@pytest.mark.parametrize("seed", range(3))
def test_uniform_widths_are_the_best_of_all_triples(budget: int, seed: int) -> None:
    """Every triple of widths that spends the budget, tried one by one; layers without a kind have no say in it."""
    found = scores(seed)
    plan = plan_uniform(
        MODEL, found.score, found.order, ratio=budget / 132 + 1e-9, ratio_of="prunable", limits=Limits()
    )
    groups, price = MODEL.groups, (30, 6, 12)

    def params(widths: tuple[int, ...]) -> int:
        return sum(p * (full - width) for p, full, width in zip(price, (2, 4, 4), widths, strict=True))

    def lost(widths: tuple[int, ...]) -> float:
        ascending = [np.sort((found.score * groups.cost)[groups.rows_of(block)]) for block in range(7)]
        return sum(float(ascending[b][: groups.widths[b] - widths[groups.block_kind[b]]].sum()) for b in range(7))

    def spends(widths: tuple[int, ...]) -> bool:
        fewer = [(*widths[:i], widths[i] - 1, *widths[i + 1 :]) for i in range(3) if widths[i] > 1]
        return params(widths) <= budget and all(params(other) > budget for other in fewer)

    triples = [widths for widths in itertools.product((1, 2), range(1, 5), range(1, 5)) if spends(widths)]
    best = min(triples, key=lost)
    assert [shape.widths for shape in plan.pruned_architecture.layers] == [
        best[:2],
        (best[0], best[2]),
        best,
    ]
    assert plan.removed_params == params(best)
    check_plan("stock", plan)


def test_targets_bound_it_like_the_others() -> None:
    assert limits_for("vllm", MODEL, Limits(), tensor_parallel=2).step(EXPERTS) == 2
    assert (
        explain("vllm", MODEL, Limits())[0]
        == "vllm: every layer keeps at least one KV group, one channel and one expert"
    )
    with pytest.raises(PlanError, match="keeps an expert in layer 1, not a multiple of 2"):
        check_plan("vllm", plan_for(20, FIRST_EXPERTS), tensor_parallel=2)
    with pytest.raises(
        PlanError, match="keeps 2 KV groups and an expert in layer 1, but 2 KV groups, 4 channels and 4 "
    ):
        check_plan("stock", plan_for(20, FIRST_EXPERTS))


def test_the_budget_by_measured_loss_has_a_curve_for_it() -> None:
    # Everything costs 1 nat but the experts of layer 2, which cost nothing: they rank first.
    removed = groups_at(MODEL, Limits(), 1.0)
    assert removed.tolist() == [1, 3, 1, 3, 1, 3, 3]
    order, _ = by_marginal_loss(MODEL, np.arange(22), Limits(), removed[None], np.array([[1.0] * 6 + [0.0]]))
    assert order[:3].tolist() == [18, 19, 20]


def test_the_check_of_a_plan_names_and_caps_it() -> None:
    plan = plan_for(20, FIRST_EXPERTS)
    measured = np.array([[0, 0, NAN], [0, NAN, 2.0], [0, 0, 0]])
    check = check_of(plan, np.zeros(22), measured)
    assert check.names(check.flagged) == "experts of layer 1"
    assert [(row["layer"], row["kind"], row["groups_removed"]) for row in check.to_json()] == [(1, "experts", 3)]
    assert halved_caps(check, MODEL.groups.widths, ()) == (2, 4, 2, 1, 2, 4, 4)


# Files


def test_the_plan_file_holds_it_and_reads_it_back(tmp_path: Path) -> None:
    plan = plan_for(50, FIRST_EXPERTS)
    path = write_plan(tmp_path / "plan.json", plan)
    read = read_plan(path, MODEL)
    assert read.keep.tolist() == plan.keep.tolist()
    assert write_plan(tmp_path / "again.json", read).read_bytes() == path.read_bytes()
    value = json.loads(path.read_text())
    assert list(value["layers"][1]) == ["layer", "num_kv_heads", "num_experts", "kept_kv_heads", "kept_experts"]
    value["layers"][1]["kept_experts"] = [4]
    path.write_text(json.dumps(value))
    with pytest.raises(PlanError, match="layer 1 kept_experts holds something other than whole numbers from 0 to 3"):
        read_plan(path, MODEL)


def test_reports_have_a_column_for_it(tmp_path: Path) -> None:
    plan, found = plan_for(20, FIRST_EXPERTS), scores(temperature=1.0)
    diagnosis = diagnosed(plan, found)
    row = comparison(plan)["layers"][1]
    assert list(row) == ["layer_idx", "total", "attention", "experts", "is_zero_layer"]
    assert row["experts"] == {
        "original": 25,
        "pruned": 7,
        "reduced": 18,
        "reduction_ratio": 18 / 25,
        "num_experts": {"original": 4, "pruned": 1},
    }
    lines = [line.split() for line in summary_by_layer(diagnosis, plan).splitlines()]
    (second,) = [line for line in lines if line[:2] == ["Layer", "1"]]
    assert second[4:11] == ["2", "→", "2", "-", "4", "→", "1"]
    write_reports(tmp_path, diagnosis, plan, importance_of(plan), found)
    kinds = pq.read_table(tmp_path / "groups.parquet")["kind"].to_pylist()
    assert kinds == [TABLE[kind].name for kind in MODEL.groups.kind]
    layers = json.loads((tmp_path / "gradient_diagnosis.json").read_text())["layers"]
    assert [layer["prior_experts"] for layer in layers] == [None, 4.0, 3.0]
    assert [layer["factor_mlp"] is None for layer in layers] == [False, True, False]


def test_pictures_draw_it(tmp_path: Path) -> None:
    plan, found = plan_for(20, FIRST_EXPERTS), scores(normalise="log")
    written = draw_pictures(tmp_path, diagnosed(plan, found), plan, importance_of(plan), found, [])
    assert len(written) == 3


def test_a_folder_tells_it_again(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path, plan_for(20, FIRST_EXPERTS)))
    assert list(run.kinds) == [ATTENTION, MLP, EXPERTS]
    assert list(run.block_rates) == [{0: 0, 1: 0}, {0: 0, EXPERTS: 0.75}, {0: 0, 1: 0, EXPERTS: 0}]
    heat = layers_by_kind(run)
    assert heat is not None
    assert {name: [cell.text for cell in cells] for name, cells in heat.rows} == {
        "attention": ["0", "0", "0"],
        "MLP": ["0", "–", "0"],
        "experts": ["–", "75", "0"],
        "layer": ["0", "41", "0"],
    }
    assert dict(heat.rows)["experts"][1].exact == "layer 1, experts: 75.00 % removed, 3 of 4 experts"
    assert reasons(run).unmeasured == ("Priors: not measured (--temperature is 0)",)
    assert run.blocks is not None
    assert shared_removals(run.blocks, run.blocks)[0] == 1.0
