"""Plan files: equal plans give equal bytes, come back whole, and fit no other model and no changed content."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tables import architecture, reshaped

from core.errors import PlanError
from core.groups import Architecture
from core.plan import PruningPlan
from pruning.plan_file import read_plan, write_plan
from pruning.planning import Limits, plan_removal

MODEL = architecture((2, 4), (2, 4), (2, 4), rest=60)  # 96 parameters in groups, 162 in all


def make_plan(model: Architecture = MODEL) -> PruningPlan:
    """Budget 48: layer 0 whole (34), three channels of layer 1 (9), a KV group (10) does not fit, one of layer 2."""
    order = np.array([0, 1, 2, 3, 4, 5, 8, 9, 10, 11, 6, 7, 12, 13, 14, 15, 16, 17])
    limits = Limits(epsilon=0.5)
    return plan_removal(model, order, ratio=0.5, ratio_of="prunable", limits=limits)


def changed(path: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """The file with one thing in it changed."""
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_plan(tmp_path / "pruning_plan.json", make_plan())


def test_a_plan_comes_back_whole(path: Path) -> None:
    written, read = make_plan(), read_plan(path, MODEL)
    assert written.removed_layers == (0,)
    assert not written.keep[written.groups.layer == 1].all()
    assert written.gap_reason
    assert read.keep.tolist() == written.keep.tolist()
    assert read.keep.dtype == bool
    assert replace(read, keep=written.keep) == written


def test_same_input_same_bytes(path: Path, tmp_path: Path) -> None:
    again = write_plan(tmp_path / "elsewhere" / "plan.json", make_plan())
    assert again.read_bytes() == path.read_bytes()
    assert write_plan(tmp_path / "third.json", read_plan(path, MODEL)).read_bytes() == path.read_bytes()
    assert str(tmp_path) not in path.read_text()


def test_the_layout(path: Path) -> None:
    value = json.loads(path.read_text())
    assert list(value) == ["schema_version", "base", "request", "achieved", "removed_layers", "layers"]
    assert value["request"] == {"pruning_ratio": 0.5, "ratio_of": "prunable", "budget_params": 48}
    assert value["achieved"] == {
        "of_total": 46 / 162,
        "of_prunable": 46 / 96,
        "removed_params": 46,  # 34 of layer 0, its norms among them, and four channels: three of layer 1, one of 2
        "budget_gap_params": 2,
        "gap_reason": "smaller than the smallest step left (a channel of 3 parameters)",
    }
    assert value["removed_layers"] == [0]
    empty: dict[str, Any] = {"num_kv_heads": 0, "intermediate_size": 0, "kept_kv_heads": [], "kept_channels": []}
    assert value["layers"][0] == {"layer": 0} | empty
    assert value["layers"][1]["kept_channels"] == [3]
    assert value["layers"][2] == {
        "layer": 2,
        "num_kv_heads": 2,
        "intermediate_size": 3,
        "kept_kv_heads": [0, 1],
        "kept_channels": [1, 2, 3],
    }
    assert value["base"]["layers"][0]["channel_params"] == 3


# A plan for another model


@pytest.mark.parametrize(
    ("model", "difference"),
    [
        (replace(MODEL, model_type="qwen3"), "model_type is 'llama' in the plan, 'qwen3' in this model"),
        (replace(MODEL, hidden_size=16), "hidden_size is 8 in the plan, 16 in this model"),
        (replace(MODEL, total_params=163), "total_params is 162 in the plan, 163 in this model"),
        (replace(MODEL, layers=MODEL.layers[:2]), "number of layers is 3 in the plan, 2 in this model"),
        (
            replace(MODEL, layers=(*MODEL.layers[:2], reshaped(MODEL.layers[2], intermediate_size=5))),
            "layer 2 intermediate_size is 4 in the plan, 5 in this model",
        ),
        (
            replace(MODEL, layers=(MODEL.layers[0], reshaped(MODEL.layers[1], kv_group_params=11), MODEL.layers[2])),
            "layer 1 kv_group_params is 10 in the plan, 11 in this model",
        ),
        (
            replace(MODEL, layers=(reshaped(MODEL.layers[0], head_dim=8), *MODEL.layers[1:])),
            "layer 0 head_dim is 4 in the plan, 8 in this model",
        ),
    ],
)
def test_the_first_difference_to_another_model_is_named(path: Path, model: Architecture, difference: str) -> None:
    with pytest.raises(PlanError) as caught:
        read_plan(path, model)
    assert str(caught.value).startswith(f"plan {path}: made for another model: {difference}; give analysis/")


# Files that are no plan


def test_missing(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"cannot be read \(No such file or directory\); give analysis/"):
        read_plan(tmp_path / "none.json", MODEL)
    with pytest.raises(PlanError, match=r"cannot be read \(Is a directory\)"):
        read_plan(tmp_path, MODEL)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\x00", b"[" * 100_000, b'{"schema_version": 1'])
def test_not_json(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(PlanError, match="is not JSON") as caught:
        read_plan(path, MODEL)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["[]", "1", "null", '"plan"'])
def test_json_but_no_object(path: Path, content: str) -> None:
    path.write_text(content)
    with pytest.raises(PlanError, match="is not a JSON object"):
        read_plan(path, MODEL)


def put(value: Any, *keys: Any) -> Callable[[dict[str, Any]], object]:
    """A change that sets value at a path of keys."""

    def change(plan: Any) -> None:
        for key in keys[:-1]:
            plan = plan[key]
        plan[keys[-1]] = value

    return change


def keep_one_more(plan: dict[str, Any]) -> None:
    """An honest count, but three parameters more than the totals say."""
    plan["layers"][2] |= {"kept_channels": [0, 1, 2, 3], "intermediate_size": 4}


def exceed_the_budget(plan: dict[str, Any]) -> None:
    """Everything agrees, but 49 of 48 parameters go."""
    plan["layers"][2] |= {"kept_channels": [2, 3], "intermediate_size": 2}
    plan["achieved"] |= {"removed_params": 49, "budget_gap_params": -1}


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (put(2, "schema_version"), "schema version 2, this program reads 1"),
        (lambda plan: plan.pop("schema_version"), "schema version None"),
        (lambda plan: plan.pop("base"), "base is missing or not of type dict"),
        (put([], "base"), "base is missing or not of type dict"),
        (put({}, "base"), "model_type is None in the plan"),
        (put(7, "base", "layers", 1), "layer 1 num_heads is None in the plan"),
        (put("x", "layers"), "layers is missing or not of type list"),
        (lambda plan: plan["layers"].pop(), "layers are not 0 to 2 in order"),
        (put(1, "layers", 0, "layer"), "layers are not 0 to 2 in order"),
        (put(None, "layers", 0), "layer is missing"),
        (put([0, 2], "layers", 1, "kept_kv_heads"), "layer 1 kept_kv_heads holds something other than whole numbers"),
        (put([-1, 1], "layers", 1, "kept_kv_heads"), "from 0 to 1"),
        (put([True], "layers", 1, "kept_kv_heads"), "from 0 to 1"),
        (put([0.0, 1], "layers", 1, "kept_kv_heads"), "from 0 to 1"),
        (put([10**30], "layers", 1, "kept_kv_heads"), "from 0 to 1"),
        (put([1, 1], "layers", 1, "kept_kv_heads"), "is not ascending, or holds an index twice"),
        (put([1, 0], "layers", 1, "kept_kv_heads"), "is not ascending, or holds an index twice"),
        (put(1, "layers", 1, "num_kv_heads"), "layer 1 num_kv_heads is 1, but kept_kv_heads holds 2"),
        (put(True, "layers", 1, "intermediate_size"), "intermediate_size is missing or not of type int"),
        (lambda plan: plan["layers"][1].update(kept_channels=[], intermediate_size=0), "kept_channels is empty"),
        (put([], "removed_layers"), "layer 0 kept_kv_heads is empty, but the layer is not in removed_layers"),
        (put([0, 1], "removed_layers"), "layer 1 is in removed_layers, but kept_kv_heads holds 2"),
        (put([0, 0], "removed_layers"), "removed_layers is not ascending, or holds an index twice"),
        (put([3], "removed_layers"), "removed_layers holds something other than whole numbers from 0 to 2"),
        (put([0, 1, 2], "removed_layers"), "removed_layers names every layer"),
        (put(45, "achieved", "removed_params"), "removed_params is 45, but the plan adds up to 46"),
        (put(3, "achieved", "budget_gap_params"), "budget_gap_params is 3, but the plan adds up to 2"),
        (put(None, "achieved", "gap_reason"), "gap_reason is missing or not of type str"),
        (put(49, "request", "budget_params"), "budget_params is 49, but the plan adds up to 48"),
        (put(0.6, "request", "pruning_ratio"), "budget_params is 48, but the plan adds up to 57"),
        (put(float("nan"), "request", "pruning_ratio"), "requests nan of 'prunable'"),
        (put(1.5, "request", "pruning_ratio"), "requests 1.5 of 'prunable'"),
        (put("half", "request", "pruning_ratio"), "pruning_ratio is missing or not of type float"),
        (put("layers", "request", "ratio_of"), "requests 0.5 of 'layers'"),
        (keep_one_more, "removed_params is 46, but the plan adds up to 43"),
        (exceed_the_budget, "removes 49 parameters, above its budget of 48"),
    ],
)
def test_a_plan_that_does_not_add_up(path: Path, change: Callable[[dict[str, Any]], object], complaint: str) -> None:
    with pytest.raises(PlanError) as caught:
        read_plan(changed(path, change), MODEL)
    assert complaint in str(caught.value)
    assert str(caught.value).startswith(f"plan {path}: ")
    assert "\n" not in str(caught.value)


def test_rewriting_without_a_change_is_no_tampering(path: Path) -> None:
    assert read_plan(changed(path, lambda _: None), MODEL).removed_params == 46
