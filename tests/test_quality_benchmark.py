"""The comparison of losses: models are left as found, repairs repair, results are resumed, texts hold no prose."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import build, token_ids, windows_of

from benchmarks.quality.cells import DENSE, Cell, Setting, append_cell, read_cells
from benchmarks.quality.methods import METHODS, Case, pruned
from benchmarks.quality.picture import draw_losses
from benchmarks.quality.stream import Stream, feature_mask, input_moments, output_members
from benchmarks.quality.table import tables
from benchmarks.quality.texts import without_prose
from models.architecture import architecture_of
from models.families import family_of

IDS = token_ids(6, 16)
RATIO = 0.4


def case_of(name: str) -> Case:
    model = build(name)
    family = family_of(model.config.model_type)
    return Case(model, family, architecture_of(model, family), windows_of(IDS), 0)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS, use_cache=False).logits


def output_inputs(case: Case) -> dict[tuple[int, int], torch.Tensor]:
    """(layer, kind) -> what o_proj and down_proj get from a plain forward, float32 (tokens, in)."""
    found: dict[tuple[int, int], torch.Tensor] = {}
    handles = [
        layer.get_submodule(member.path).register_forward_pre_hook(
            lambda _m, args, key=(index, kind): found.__setitem__(key, args[0].flatten(0, 1))
        )
        for index, layer in enumerate(case.model.get_submodule(case.family.layers))
        for kind, member in enumerate(output_members(case.family))
    ]
    logits(case.model)
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["llama-biased-tied-mha", "gemma3_text", "phi3"])
def test_a_method_spends_the_budget_and_leaves_the_model_as_found(name: str, method: str) -> None:
    case = case_of(name)
    before, state = logits(case.model), {key: value.clone() for key, value in case.model.state_dict().items()}
    ratio = 0.4 if method == "shortgpt" else 0.25  # of 3 layers
    with pruned(METHODS[method], case, ratio) as keep:
        inside = logits(case.model)
    groups = case.architecture.groups
    gap = ratio * case.architecture.prunable_params - groups.cost[~keep].sum()
    largest = case.architecture.layers[0].prunable_params if method == "shortgpt" else groups.cost.max()
    assert 0 <= gap < largest
    assert not torch.equal(inside, before)
    after = case.model.state_dict()
    assert list(after) == list(state)
    assert all(torch.equal(after[key], state[key]) for key in state)


def test_a_layer_without_groups_adds_nothing() -> None:
    case = case_of("llama-biased-tied-mha")
    with pruned(METHODS["shortgpt"], case, RATIO) as keep:
        found = logits(case.model)
    (gone,) = set(case.architecture.groups.layer[~keep].tolist())
    layers = case.model.model.layers
    case.model.model.layers = torch.nn.ModuleList(layer for index, layer in enumerate(layers) if index != gone)
    assert torch.allclose(found, logits(case.model), atol=1e-4)


@pytest.mark.parametrize("name", ["qwen2", "gemma3_text"])
def test_the_stream_sees_what_a_forward_sees(name: str) -> None:
    case, seen = case_of(name), output_inputs(case_of(name))
    stream = Stream(case.model, case.family, IDS.numpy())
    moments = input_moments(case.model, case.family, IDS.numpy())
    for layer in range(case.architecture.num_layers):
        for kind, member in enumerate(output_members(case.family)):
            x = seen[layer, kind].double()
            assert torch.allclose(stream.gram(layer, member.path), x.T @ x, rtol=1e-4, atol=1e-4)
            mean, variance = moments[layer, kind]
            assert mean == pytest.approx(x.mean(0).numpy(), rel=1e-4, abs=1e-6)
            assert variance == pytest.approx(x.var(0).numpy(), rel=1e-4, abs=1e-6)
        stream.advance(layer)


@pytest.mark.parametrize("repair", ["flap", "flap+refit"])
def test_a_repair_brings_the_first_block_nearer_to_the_dense_output(repair: str) -> None:
    """The first o_proj's inputs are those of the dense model, so its error is the repair's alone."""
    case = case_of("llama")
    x, module = output_inputs(case)[0, 0], case.model.model.layers[0].self_attn.o_proj
    dense, weight = module(x), module.weight.clone()
    with pruned(METHODS[repair], case, 0.6) as keep:
        kept = feature_mask(output_members(case.family)[0], case.architecture, 0, keep)
        repaired = module(x)
    assert not kept.all()
    assert float((repaired - dense).norm()) < float((x @ (weight * kept).T - dense).norm())


def setting(method: str, ratio: float = 0.3, seed: int = 0) -> Setting:
    return Setting("demo", "0" * 32, method, ratio, seed, 64, 256, 48, "3.11.7")


CELLS = [
    Cell(setting(DENSE, 0.0), 0.0, {"pydoc": 3.0, "code": 4.0}, 0.0, 0),
    Cell(setting("flap"), 0.3, {"pydoc": 3.5, "code": 4.25}, 2.0, 1 << 20),
    Cell(setting("flap", seed=1), 0.3, {"pydoc": 3.7, "code": 4.25}, 4.0, 2 << 20),
    Cell(setting("taylor"), 0.299, {"pydoc": 3.125, "code": 4.5}, 1.0, 0),
]


def test_results_survive_a_killed_run(tmp_path: Path) -> None:
    file = tmp_path / "new" / "quality.jsonl"
    append_cell(file, CELLS[0])
    append_cell(file, CELLS[1])
    file.write_text(file.read_text(encoding="utf-8")[:-30], encoding="utf-8")
    assert list(read_cells(file)) == [CELLS[0].setting]
    append_cell(file, CELLS[1])
    assert list(read_cells(file).values()) == CELLS[:2]
    assert json.loads(file.read_text(encoding="utf-8").splitlines()[-1])["setting"]["method"] == "flap"


def test_the_table_gives_mean_and_spread_over_seeds() -> None:
    """flap: 0.5 and 0.7 on pydoc, so 0.6 ± 0.141; 0.25 twice on code. The best of a column is bold."""
    text = tables(CELLS)
    assert "| flap | 0.600 ± 0.141 |" in text
    assert "| taylor | **0.125** |" in text
    assert "| flap | **0.250 ± 0.000** |" in text
    assert "| flap | 30.00 % | 3.0 | 2 |" in text


def test_the_verdict_holds_ours_against_the_best_of_either_sort() -> None:
    """pydoc: ours 0.25 of taylor's 0.125 is 2 ×. code: 0.0625 is 0.25 × flap's 0.25; no method with refit but one."""
    ours = Cell(setting("ours"), 0.3, {"pydoc": 3.25, "code": 4.0625}, 1.0, 0)
    refit = Cell(setting("flap+refit"), 0.3, {"pydoc": 3.5, "code": 4.125}, 1.0, 0)
    text = tables([*CELLS, ours])
    assert "| pydoc | 30% | 0.2500 | taylor 0.1250 | **no**, 2.00 × |  |  |" in text
    assert "| code | 30% | 0.0625 | flap 0.2500 | yes, 0.25 × |  |  |" in text
    assert "| taylor 0.1250 | **no**, 2.00 × | flap+refit 0.5000 | yes, 0.50 × |" in tables([*CELLS, ours, refit])


def test_where_the_best_loses_little_not_being_worse_suffices() -> None:
    """taylor loses 0.01: 0.0125 is within the spread of its seeds (0.0028), 0.016 is not."""
    taylor = [Cell(setting("taylor", seed=s), 0.3, {"pydoc": 3.008 + 0.004 * s}, 1.0, 0) for s in (0, 1)]
    dense = dataclasses.replace(CELLS[0], nll={"pydoc": 3.0})
    for loss, answer in ((3.0125, "not worse"), (3.016, "**no**, 1.60 ×"), (3.005, "yes, 0.50 ×")):
        text = tables([dense, *taylor, Cell(setting("ours"), 0.3, {"pydoc": loss}, 1.0, 0)])
        assert f"| taylor 0.0100 | {answer} |" in text
    lucky = [Cell(setting("taylor", seed=s), 0.3, {"pydoc": 2.99 + 0.004 * s}, 1.0, 0) for s in (0, 1)]
    for loss, answer in ((3.0025, "not worse"), (3.005, "**no**"), (2.999, "yes")):
        text = tables([dense, *lucky, Cell(setting("ours"), 0.3, {"pydoc": loss}, 1.0, 0)])
        assert f"| taylor 0.0000 | {answer} |" in text


def test_the_picture_is_a_function_of_the_cells(tmp_path: Path) -> None:
    first, second = (draw_losses(tmp_path / name, CELLS).read_bytes() for name in ("a.png", "b.png"))
    assert first == second
    other = [dataclasses.replace(CELLS[1], nll={"pydoc": 9.0, "code": 9.0}) if c is CELLS[1] else c for c in CELLS]
    assert draw_losses(tmp_path / "c.png", other).read_bytes() != first


def test_code_is_left_without_prose() -> None:
    source = (
        '"""Module."""\n'
        "# a comment\n"
        "import os  # why\n\n"
        "class A:\n"
        "    '''Two\n    lines.'''\n\n"
        "    def f(self): 'é'; return \"# no comment\"\n"
        "    def g(self):\n"
        '        "one" "doc"\n'
        "        return '''no\n  docstring'''\n"
    )
    assert without_prose(source) == (
        "import os\nclass A:\n    def f(self): ; return \"# no comment\"\n    def g(self):\n        return '''no\n"
        "  docstring'''\n"
    )
    assert "Module" not in without_prose(without_prose('"""Module."""\nx = 1\n'))


def test_random_depends_on_the_seed_alone() -> None:
    first, second = case_of("llama"), case_of("llama")
    second.seed = 1
    keeps = [METHODS["random"].keep(case, RATIO) for case in (first, case_of("llama"), second)]
    assert np.array_equal(keeps[0], keeps[1])
    assert not np.array_equal(keeps[0], keeps[2])
