"""Outlier channels, blocks measured alone, and the check of a plan against what its scores promised."""

import json
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from diagnostics_cases import found, importance_of, issues, plan_of, scores_of
from tables import cheap_groups
from tiny_models import build, random_plan, token_ids, windows_of
from workspace import Workspace, call, observe

from core.errors import NumericalError
from core.groups import ATTENTION, MLP
from core.kinds import TABLE
from core.measured import Outliers
from core.plan_check import PlanCheck, check_of
from diagnostics.findings.diagnosis import diagnose
from diagnostics.findings.quantities import Extras
from diagnostics.findings.remedies import ActiveRemedies
from importance.block_losses import measure_block_losses
from importance.outliers import find_outliers, outliers_among
from importance.sums import summed_nll
from models.architecture import architecture_of, decoder_layers
from models.family_table import family_of
from run.refine.caps import halved_caps

IDS = token_ids(rows=5, length=9)
CHANNEL = 7  # planted in layer 1


# Outliers


def test_outliers_by_hand() -> None:
    # Median of 1, 2, 3, 4, 100 is 3; 100 is 33.3 of it, 4 is 1.3.
    positions, factors = outliers_among(np.array([1.0, 2.0, 100.0, 3.0, 4.0]))
    assert (positions.tolist(), factors.tolist()) == ([2], [100 / 3])
    assert outliers_among(np.array([1.0, 1.0, 30.0]))[0].tolist() == []  # strictly above 30
    assert outliers_among(np.array([0.0, 0.0, 5.0]))[0].tolist() == []


def plant(model: Any, factor: float = 1000.0) -> None:
    """One channel of layer 1 becomes huge: its up row, and so its input to down_proj, is scaled."""
    family = family_of(model.config.model_type)
    with torch.no_grad():
        decoder_layers(model, family)[1].get_submodule("mlp.up_proj").weight[CHANNEL] *= factor


def test_a_planted_super_weight_is_found_in_one_pass() -> None:
    model, family = build("llama"), family_of("llama")
    architecture = architecture_of(model, family)
    assert len(find_outliers(model, family, architecture, windows_of(IDS)).rows) == 0
    plant(model)
    outliers = find_outliers(model, family, architecture, windows_of(IDS), batch_size=2)
    assert outliers.rows.tolist() == [architecture.groups.rows(1, MLP).start + CHANNEL]
    # The norm itself, from what the channel adds to the block's output.
    inputs: list[torch.Tensor] = []
    down = model.model.layers[1].mlp.down_proj
    handle = down.register_forward_pre_hook(lambda _module, args: inputs.append(args[0]))
    model(input_ids=IDS)
    handle.remove()
    norms = [float(torch.outer(inputs[0][..., j].flatten(), down.weight[:, j]).norm()) for j in range(24)]
    np.testing.assert_allclose(outliers.factor, norms[CHANNEL] / np.median(norms), rtol=1e-5)
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_nan_in_a_block_is_named(llama: Any) -> None:
    with torch.no_grad():
        llama.model.layers[2].mlp.up_proj.weight[0, 0] = float("nan")
    with pytest.raises(NumericalError, match="layer 2"):
        find_outliers(llama, family_of("llama"), architecture_of(llama, family_of("llama")), windows_of(IDS))


# Blocks alone


def test_each_block_alone_equals_zeroed_columns_in_the_whole_model(family_model: Any) -> None:
    family = family_of(family_model.config.model_type)
    architecture = architecture_of(family_model, family)
    plan = random_plan(architecture)
    measured = measure_block_losses(family_model, family, architecture, windows_of(IDS), plan.keep, batch_size=2)
    tokens = IDS.shape[0] * (IDS.shape[1] - 1)

    def nll() -> float:
        with torch.no_grad():
            return summed_nll(family_model, IDS).item() / tokens

    dense = nll()
    for layer, module in enumerate(decoder_layers(family_model, family)):
        for kind, path in enumerate((family.attention_output, family.mlp_output)):
            weight = module.get_submodule(path).weight
            saved = weight.clone()
            keep = plan.keep[architecture.groups.rows(layer, kind)]
            with torch.no_grad():
                weight[:, torch.from_numpy(np.repeat(~keep, weight.shape[1] // len(keep)))] = 0
            assert measured[layer, kind] == pytest.approx(nll() - dense, rel=1e-3, abs=2e-5)
            with torch.no_grad():
                weight.copy_(saved)


def test_whole_blocks_cost_nothing_to_measure(llama: Any) -> None:
    family, architecture = family_of("llama"), architecture_of(llama, family_of("llama"))
    keep = np.ones(len(architecture.groups), dtype=bool)
    assert not measure_block_losses(llama, family, architecture, windows_of(IDS), keep).any()
    keep[architecture.groups.rows(2, MLP)] = False
    only = measure_block_losses(llama, family, architecture, windows_of(IDS), keep)
    assert np.argwhere(only).tolist() == [[2, MLP]]


# The check, by hand


def check(promise: list[float], measured: list[float], planned: list[int] | None = None) -> PlanCheck:
    gone = [4] * len(promise) if planned is None else planned
    blocks = cheap_groups(*[(1, 1)] * len(promise))
    return PlanCheck(np.array(gone), np.array(promise), np.array(measured), blocks)


def test_a_block_far_above_its_promise_is_flagged() -> None:
    # Measured over promise: 0.1, 0.1, 1.0, 0.1; κ their median 0.1; factors 1, 1, 10, 1; shares 2/14, 2/14, 8/14, 2/14.
    found = check([20, 20, 8, 20], [2, 2, 8, 2])
    assert found.kappa == pytest.approx(0.1)
    assert found.factor.tolist() == pytest.approx([1, 1, 10, 1])
    assert found.flagged.tolist() == [2]


def test_four_times_the_promise_is_still_spread_and_a_small_share_is_left_alone() -> None:
    assert check([1, 1, 1], [1, 1, 4.0]).flagged.tolist() == []
    assert check([1, 1, 1], [1, 1, 4.1]).flagged.tolist() == [2]
    # A factor of 10, but 0.1 of 3.1 is 3 %.
    assert check([1, 1, 1, 0.01], [1, 1, 1, 0.1]).flagged.tolist() == []


def test_losses_without_a_promise_and_helpful_removals() -> None:
    found = check([1, 1, 0, 1, 1], [1, 1, 1, -3, 0], [4, 4, 4, 4, 0])
    assert found.kappa == 1
    assert found.flagged.tolist() == [2]
    assert np.isinf(found.factor[2])
    assert np.isnan(found.factor[4])
    assert [row["groups_removed"] for row in found.to_json()] == [4, 4, 4, 4]
    assert check([0, 0], [-1, 0]).kappa is None
    assert check([0, 0], [-1, 0]).flagged.tolist() == []


def test_caps_are_half_of_what_was_planned_and_never_rise() -> None:
    widths = np.array([8, 8, 8, 8])
    flagging = check([20, 20, 8, 20], [2, 2, 8, 2], [4, 4, 5, 4])
    assert halved_caps(flagging, widths, ()) == (8, 8, 2, 8)
    assert halved_caps(flagging, widths, (8, 3, 1, 8)) == (8, 3, 1, 8)


def test_promise_is_the_removed_importance() -> None:
    plan = plan_of([30, 0])
    found = check_of(plan, np.arange(len(plan.groups), dtype=float), np.array([[0.0, 0.5], [0.0, 0.0]]))
    assert found.planned.tolist() == [0, 30, 0, 0]
    assert found.promise.tolist() == [0, sum(range(2, 32)), 0, 0]  # rows 0 and 1 are the KV groups


# Findings


def judge_with(extras: Extras) -> Any:
    plan = plan_of([30, 20, 25, 22, 28, 20])
    frozen = np.zeros(len(plan.groups), dtype=bool)
    return diagnose(
        plan.architecture, importance_of(plan), scores_of(plan), plan, None, frozen, ActiveRemedies(), extras
    )


def test_outliers_are_named_whether_they_go_or_stay() -> None:
    # Layers hold 2 KV groups and 98 channels: row 2 is channel 0 of layer 0 and goes; row 190 is channel 88 of layer 1.
    both = judge_with(Extras(outliers=Outliers(np.array([2, 190]), np.array([40.0, 95.4]), 30.0, 16)))
    finding = found(both, "outliers_pruned")
    assert finding.severity == "high"
    assert "channel 0 of layer 0 (40 times)" in finding.description
    assert "layer 1" not in finding.description
    assert finding.flags == "--protect outliers"
    kept = judge_with(Extras(outliers=Outliers(np.array([190]), np.array([95.4]), 30.0, 16)))
    assert "channel 88 of layer 1 (95 times)" in found(kept, "outliers_kept").description
    none = judge_with(Extras(outliers=Outliers(np.zeros(0, dtype=np.int64), np.zeros(0), 30.0, 16)))
    assert not {"outliers_kept", "outliers_pruned"} & issues(none)


def test_flagged_blocks_are_named_with_their_numbers() -> None:
    checked = check([1] * 12, [1, 1, 9, *[1] * 9], [4] * 12)
    finding = found(judge_with(Extras(check=checked)), "blocks_lose_more_than_promised")
    assert "attention of layer 1 9.0 times what was promised, 45.0 % of all" in finding.description
    assert "blocks_lose_more_than_promised" not in issues(judge_with(Extras(check=check([1] * 12, [1] * 12))))


# Runs


def test_outliers_protects_what_would_be_pruned(workspace: Workspace) -> None:
    """A channel that wanda keeps and ``magnitude`` prunes: its down column is tiny, its up row huge only in effect."""
    from transformers import AutoModelForCausalLM

    folder = workspace.root / "planted"
    model = AutoModelForCausalLM.from_pretrained(workspace.model, dtype=torch.float32)
    with torch.no_grad():
        mlp = model.model.layers[1].mlp
        mlp.gate_proj.weight[CHANNEL] *= 1e-3
        mlp.up_proj.weight[CHANNEL] *= 1e-3
        mlp.down_proj.weight[:, CHANNEL] *= 1e-3
        # All tokens share a direction that the norm before the MLP amplifies; the channel reads only that.
        model.model.layers[1].post_attention_layernorm.weight[0] = 3e4
        for other in (mlp.gate_proj, mlp.up_proj):
            other.weight[:, 0] = 0.0
            other.weight[CHANNEL, 0] = 0.5
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((workspace.model / name).read_bytes())
    arguments = [
        "--base_model",
        str(folder),
        "--importance_method",
        "magnitude",
        "--dry_run",
        "--run_evaluation",
        "none",
    ]
    plans = {}
    for protect in ("none", "measured", "outliers"):
        run = workspace.run(f"planted-{protect}", *arguments, "--protect", protect)
        plan = json.loads((run / "analysis" / "pruning_plan.json").read_text())
        plans[protect] = plan["layers"][1]["kept_channels"]
        diagnosis = json.loads((run / "analysis" / "gradient_diagnosis.json").read_text())["diagnosis"]
        told = {finding["issue"] for finding in diagnosis}
        assert ("outliers_kept" in told) == (protect == "outliers")
        if protect == "measured":
            assert ("outliers_pruned" in told) == (CHANNEL not in plans[protect])
    assert CHANNEL not in plans["none"]
    assert CHANNEL in plans["outliers"]


def test_outliers_are_kept_in_the_cache(workspace: Workspace) -> None:
    arguments = ["--protect", "outliers", "--dry_run", "--run_evaluation", "none"]
    arguments += ["--cache_dir", str(workspace.root / "kept")]
    outcomes = []
    for name in ("cold", "warm"):
        run = workspace.run(f"outliers-{name}", *arguments)
        outcomes.append(json.loads((run / "run.json").read_text())["facts"]["cache"]["outliers"])
    assert outcomes == ["miss", "hit"]


def test_stock_protects_outliers_and_refuses_single_caps(workspace: Workspace) -> None:
    run = workspace.run("stock", "--protect", "outliers", "--target", "stock", "--dry_run")
    assert (run / "run.json").is_file()
    code, _, error = call(
        [*workspace.base_arguments(), "--protect", "measured", "--target", "stock", "--output", "never"]
    )
    assert (code, len(error.splitlines())) == (2, 1)
    assert "--protect measured" in error
    assert "--target stock" in error


def test_a_check_is_written_and_repeats_byte_for_byte(workspace: Workspace) -> None:
    runs = [workspace.run(f"check-{i}", "--protect", "measured", "--dry_run") for i in range(2)]
    assert observe(runs[0]) == observe(runs[1])
    first, second = ((run / "analysis" / "plan_check.json").read_bytes() for run in runs)
    assert first == second
    record = json.loads(first)
    (taken,) = [trial for trial in record["tried"] if trial["taken"]]
    assert taken["nll_nats_per_token"] <= record["tried"][0]["nll_nats_per_token"]
    assert {row["kind"] for row in taken["blocks"]} <= {TABLE[ATTENTION].name, TABLE[MLP].name}


def test_a_flagged_block_is_capped_and_kept_only_if_nothing_is_lost(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first block is said to lose ten times its promise, whatever the plan: it is halved, or the plan stays."""
    from run.refine import caps

    def misjudged(*arguments: Any, **_options: Any) -> np.ndarray:
        losses = np.full((3, 2), 1.0)
        losses[0, 1] = 1e6
        return losses

    monkeypatch.setattr(caps, "measure_block_losses", misjudged)
    run = workspace.run("misjudged", "--protect", "measured", "--dry_run", "--run_evaluation", "none")
    tried = json.loads((run / "analysis" / "plan_check.json").read_text())["tried"]
    lost = [{(row["layer"], row["kind"]): row["groups_removed"] for row in t["blocks"]} for t in tried if t["blocks"]]
    for before, after in pairwise(lost):
        assert after.get((0, "mlp"), 0) <= before[0, "mlp"] // 2
    losses = [trial["nll_nats_per_token"] for trial in tried if trial["blocks"]]
    assert losses == sorted(losses, reverse=True)
    removed = [trial["removed_params"] for trial in tried if trial["blocks"]]
    total = json.loads((run / "analysis" / "pruning_plan.json").read_text())["base"]["total_params"]
    assert min(removed) >= removed[0] - total / 1000
