"""A saved model proves itself against the zeroed dense one; a broken one is caught by the check made for it."""

import copy
import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from test_checkpoint import tokenizer
from tiny_models import build, plan_keeping, random_plan
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from core.errors import NumericalError, VerificationError
from core.plan import PruningPlan
from core.windows import TokenWindows
from models import expected
from models.architecture import architecture_of
from models.expected import NEW_TOKENS, Reference, reference, reference_of, verification_windows
from models.family_table import family_of
from models.loading_afresh import load_afresh
from models.narrow import empty_narrow_model
from models.saving import save_checkpoint
from models.stock import save_stock_checkpoint, stock_model
from models.verification import Check, Verification, insist, verify, write_verification
from pruning.surgery import operate

CPU = torch.device("cpu")
WINDOWS = np.random.default_rng(0).integers(3, 97, (3, 24))


@pytest.fixture(autouse=True)
def fresh_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Auto classes remember the classes of the first folder; a run loads one folder, these tests load many."""
    monkeypatch.setattr(MODEL_FOR_CAUSAL_LM_MAPPING, "_extra_content", {})


class Saved(NamedTuple):
    folder: Path
    family: Any
    reference: Reference

    def verify(self, dtype: torch.dtype = torch.float32) -> Verification:
        return verify(self.folder, self.family, self.reference, device=CPU, dtype=dtype)


def prune(model: Any, plan: PruningPlan, folder: Path, stored: torch.dtype = torch.float32) -> Saved:
    family = family_of(model.config.model_type)
    wanted = reference(model, family, plan, WINDOWS)
    narrow = operate(model, empty_narrow_model(model, family, plan), family, plan)
    return Saved(save_checkpoint(narrow, family, tokenizer(), folder, stored), family, wanted)


def plan_of(model: Any, removed_layers: tuple[int, ...] = ()) -> PruningPlan:
    return random_plan(architecture_of(model, family_of(model.config.model_type)), 3, removed_layers)


@pytest.mark.parametrize("removed_layers", [(), (1,)])
def test_every_family_proves_itself(family_model: Any, tmp_path: Path, removed_layers: tuple[int, ...]) -> None:
    saved = prune(family_model, plan_of(family_model, removed_layers), tmp_path / "model")
    result = saved.verify()
    assert result.failed == []
    eager_only = family_model.config.model_type == "gemma2"
    names = ["head mapping", "load", "logits", "generation", "left padding"]
    assert [check.name for check in result.checks] == names + ([] if eager_only else ["attention"])
    assert list(result.not_run) == (["attention"] if eager_only else [])
    assert all(check.error < 3e-6 for check in result.checks)  # ten times below the bound
    assert result.line().startswith("verified: ")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_proves_itself_within_its_own_bound(tmp_path: Path, dtype: torch.dtype) -> None:
    model = build("qwen3").to(dtype)
    result = prune(model, plan_of(model), tmp_path / "model", dtype).verify(dtype)
    assert result.passed
    assert max(check.error for check in result.checks) < {torch.bfloat16: 2e-2, torch.float16: 2e-3}[dtype]


def test_a_model_that_carries_rounding_far_may_differ_by_more(tmp_path: Path) -> None:
    """By twice what other positions change in the reference, but by no more than four times the bound for others."""
    model = build("qwen3").bfloat16()
    saved = prune(model, plan_of(model), tmp_path / "model", torch.bfloat16)
    usual = saved.verify(torch.bfloat16)
    padding = next(check for check in usual.checks if check.name == "left padding")
    assert 0 < saved.reference.rounding < 2e-2
    assert padding.error == pytest.approx(saved.reference.rounding, rel=0.5)
    assert usual.to_json()["rounding"] == saved.reference.rounding
    for rounding, tolerance in {0.0: 5e-2, 0.04: 8e-2, 3.0: 0.2}.items():
        found = saved._replace(reference=replace(saved.reference, rounding=rounding)).verify(torch.bfloat16)
        assert {check.tolerance for check in found.checks[2:]} == {tolerance}


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("not that much"), TypeError("no position_ids")])
def test_a_reference_without_other_positions_is_one_all_the_same(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    compute = expected.logits_of

    def fail(model: Any, ids: torch.Tensor, **inputs: Any) -> torch.Tensor:
        if inputs:
            raise error
        return compute(model, ids)

    monkeypatch.setattr(expected, "logits_of", fail)
    model = build("llama")
    assert reference(model, family_of("llama"), plan_of(model), WINDOWS).rounding == 0.0


def test_a_reference_that_is_deaf_to_masks_excuses_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As that of a trained model, which is compared with itself."""
    model = build("llama", std=0.15).bfloat16()
    saved = prune(model, plan_of(model), tmp_path / "model", torch.bfloat16)
    deaf_to_masks(saved.folder)
    folder = load_afresh(saved.folder, saved.family, CPU, torch.bfloat16, None)[0]
    itself = saved._replace(reference=reference_of(folder, saved.family, WINDOWS)).verify(torch.bfloat16)
    assert [check.name for check in itself.failed] == ["left padding"]
    assert itself.failed[0].tolerance == 5e-2


def test_weights_stored_in_bfloat16_are_compared_in_float32(tmp_path: Path) -> None:
    model = build("llama")
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16().float()
    saved = prune(model, plan_of(model), tmp_path / "model", torch.bfloat16)
    assert saved.verify().passed


@pytest.mark.parametrize("name", ["llama", "qwen3", "phi3"])
def test_a_folder_of_the_familys_own_class_proves_itself_too(name: str, tmp_path: Path) -> None:
    """The first KV head and the first two channels of every layer go; llama's 6 heads are written as mistral."""
    model = build(name)
    family = family_of(model.config.model_type)
    shape = architecture_of(model, family)
    keep = ~((shape.groups.index < 1) | ((shape.groups.index < 2) & (shape.groups.kind == 1)))
    plan = plan_keeping(shape, keep)
    wanted = reference(model, family, plan, WINDOWS)
    stock, _ = stock_model(operate(model, empty_narrow_model(model, family, plan), family, plan), family)
    folder = save_stock_checkpoint(stock, tokenizer(), tmp_path / "model", torch.float32)
    result = verify(folder, family, wanted, device=CPU, dtype=torch.float32)
    assert result.failed == []
    edit_config(folder, lambda config: config.update(num_key_value_heads=2))
    assert "head mapping" in [check.name for check in Saved(folder, family, wanted).verify().failed]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    model = build("llama")
    return prune(model, plan_of(model), tmp_path_factory.mktemp("sound") / "model")


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def edit_config(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


def edit_python(folder: Path, old: str, new: str) -> None:
    path = folder / "modeling_pruned.py"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def swap_channels(folder: Path) -> None:
    name = "model.layers.1.mlp.down_proj.weight"

    def swap(tensors: dict[str, torch.Tensor]) -> None:
        tensors[name] = tensors[name][:, [1, 0, *range(2, tensors[name].shape[1])]].contiguous()

    edit_weights(folder, swap)


def shift_kv_head(folder: Path) -> None:
    """Layer 1 keeps 3 KV heads of 8 rows; its keys move on by one head."""
    name = "model.layers.1.self_attn.k_proj.weight"
    edit_weights(folder, lambda tensors: tensors.update({name: tensors[name].roll(8, 0).contiguous()}))


def other_rope(folder: Path) -> None:
    edit_config(folder, lambda config: config["rope_parameters"].update(rope_theta=10_000.0))


def other_head_counts(folder: Path) -> None:
    edit_config(folder, lambda config: config["per_layer_config"]["1"].update(num_attention_heads=3))


def double_ratio(folder: Path) -> None:
    """Twice the query heads of half the width: every tensor fits, no head is what it was."""

    def change(config: dict[str, Any]) -> None:
        config["head_dim"] //= 2
        for widths in config["per_layer_config"].values():
            widths["num_attention_heads"] *= 2
            widths["num_key_value_heads"] *= 2

    edit_config(folder, change)


def not_a_number(folder: Path) -> None:
    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.layers.2.mlp.up_proj.weight"][0, 0] = math.nan

    edit_weights(folder, spoil)


def missing_tensor(folder: Path) -> None:
    def lose(tensors: dict[str, torch.Tensor]) -> None:
        del tensors["model.norm.weight"]

    edit_weights(folder, lose)


def no_python(folder: Path) -> None:
    (folder / "modeling_pruned.py").unlink()


def other_norm(folder: Path) -> None:
    edit_weights(folder, lambda tensors: tensors["model.norm.weight"].mul_(1.01))


def one_cache_for_all(folder: Path) -> None:
    edit_python(folder, "LayerConfig(config, index), index)", "LayerConfig(config, index), 0)")


def deaf_to_masks(folder: Path) -> None:
    path = folder / "modeling_pruned.py"
    path.write_text(
        path.read_text()
        + "\n\ndef deaf(self, *args, attention_mask=None, **kwargs):\n"
        + "    return LlamaForCausalLM.forward(self, *args, **kwargs)\n\n\nPrunedLlamaForCausalLM.forward = deaf\n"
    )


def frozen_attention(folder: Path) -> None:
    """Layers that scale differently where they are asked for eager attention."""
    path = folder / "modeling_pruned.py"
    path.write_text(
        path.read_text()
        + "\n\nfrom transformers.models.llama.modeling_llama import LlamaAttention\n\n\n"
        + "class Scaled(LlamaAttention):\n"
        + "    def forward(self, *args, **kwargs):\n"
        + "        self.scaling = self.head_dim ** (-0.4 if self.config._attn_implementation == 'eager' else -0.5)\n"
        + "        return super().forward(*args, **kwargs)\n\n\n"
        + "def build(config, index):\n"
        + "    layer = LlamaDecoderLayer(config, index)\n"
        + "    layer.self_attn = Scaled(config, index)\n"
        + "    return layer\n"
    )
    edit_python(folder, "            LlamaDecoderLayer(LayerConfig", "            build(LayerConfig")


# (what is broken, checks that must fail and no others, words of the first one's detail)
BREAKS: list[tuple[Callable[[Path], None], list[str], str]] = [
    (swap_channels, ["logits", "generation"], "layer 1 mlp is the first block that differs"),
    (shift_kv_head, ["logits", "generation"], "layer 1 attention is the first block that differs"),
    (other_rope, ["logits", "generation"], "layer 0 attention is the first block that differs"),
    (other_norm, ["logits", "generation"], "final norm"),
    (not_a_number, ["logits", "generation", "left padding", "attention"], "layer 2 mlp"),
    (other_head_counts, ["head mapping", "load"], "layer 1 has 3 query heads"),
    (double_ratio, ["head mapping", "logits", "generation"], "where the plan leaves"),
    (missing_tensor, ["load", "logits", "generation"], "model.norm.weight"),
    (no_python, ["load"], "modeling_pruned.py"),
    (one_cache_for_all, ["generation"], ""),
    (deaf_to_masks, ["left padding"], ""),
    (frozen_attention, ["attention"], ""),
]


@pytest.mark.parametrize(("spoil", "failing", "words"), BREAKS, ids=[spoil.__name__ for spoil, _, _ in BREAKS])
def test_a_broken_folder_is_caught_by_the_check_made_for_it(
    sound: Saved, tmp_path: Path, spoil: Callable[[Path], None], failing: list[str], words: str
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(sound.folder, folder)
    spoil(folder)
    result = sound._replace(folder=folder).verify()
    assert [check.name for check in result.failed] == failing
    assert words in result.failed[0].detail
    assert words in result.line()
    assert result.line().startswith(f"verification failed at {failing[0]}: ")


def test_a_failed_model_is_set_aside_and_the_report_stays(sound: Saved, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(sound.folder, folder)
    (tmp_path / "model.failed").mkdir()
    (tmp_path / "model.failed" / "earlier").touch()
    not_a_number(folder)
    result = sound._replace(folder=folder).verify()
    path = write_verification(tmp_path / "analysis" / "verification.json", result)
    with pytest.raises(VerificationError, match=r"model\.failed") as caught:
        insist(result, folder)
    assert caught.value.exit_code == 4
    assert "\n" not in str(caught.value)
    assert not folder.exists()
    assert (tmp_path / "model.failed" / "config.json").exists()
    assert not (tmp_path / "model.failed" / "earlier").exists()
    report = json.loads(path.read_text())
    assert report["passed"] is False
    logits = next(check for check in report["checks"] if check["name"] == "logits")
    assert logits["error"] is None  # NaN is no JSON
    assert (logits["passed"], logits["tolerance"]) == (False, 3e-5)


def test_a_sound_model_stays_where_it_is(sound: Saved) -> None:
    insist(sound.verify(), sound.folder)
    assert sound.folder.exists()


def test_the_dense_model_is_left_as_found(llama: Any) -> None:
    before = copy.deepcopy(llama.state_dict())
    reference(llama, family_of("llama"), plan_of(llama, (1,)), WINDOWS)
    assert hooks(llama) == 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in llama.state_dict().items())


def test_no_hook_is_left_after_an_exception(llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_args: Any, **_kwargs: Any) -> None:
        assert hooks(llama) > 0
        raise RuntimeError("in the middle")

    monkeypatch.setattr(llama, "forward", fail)
    with pytest.raises(RuntimeError, match="in the middle"):
        reference(llama, family_of("llama"), plan_of(llama, (1,)), WINDOWS)
    assert hooks(llama) == 0


def hooks(model: Any) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def test_a_removed_channel_that_overflows_does_no_harm(tmp_path: Path) -> None:
    """What is removed may be Inf or NaN: its zero is a zero."""
    model = build("llama")
    shape = architecture_of(model, family_of("llama"))
    keep = np.ones(len(shape.groups), dtype=bool)
    keep[shape.groups.rows(1, 1)][0] = False
    model.model.layers[1].mlp.up_proj.weight[0] = math.inf
    assert prune(model, plan_keeping(shape, keep), tmp_path / "model").verify().passed


def test_a_reference_that_is_not_finite_is_no_reference(llama: Any) -> None:
    llama.model.norm.weight[0] = math.nan
    with pytest.raises(NumericalError, match="float32"):
        reference(llama, family_of("llama"), plan_of(llama), WINDOWS)


def test_a_tie_between_two_tokens_is_no_failure(sound: Saved) -> None:
    """The continuation counts up to the first token chosen differently; there the logits must agree, and do."""
    changed = sound.reference.continuation.clone()
    changed[0, 2] = 5 if int(changed[0, 2]) != 5 else 6
    assert sound._replace(reference=replace(sound.reference, continuation=changed)).verify().passed
    steps = sound.reference.step_logits.clone()
    steps[0, 2] += 1.0
    wrong = sound._replace(reference=replace(sound.reference, continuation=changed, step_logits=steps)).verify()
    assert [check.name for check in wrong.failed] == ["generation"]
    assert wrong.failed[0].error > 1e-2


def test_windows_come_from_the_run_or_from_random_ids() -> None:
    ids = np.arange(600, dtype=np.int64).reshape(6, 100)
    windows = TokenWindows(ids, "pydoc", "calibration", "")
    assert np.array_equal(verification_windows(windows, 1000, 2048), ids[:4, :64])
    assert verification_windows(windows, 1000, 32).shape == (4, 32 - NEW_TOKENS)
    drawn = verification_windows(None, 97, 2048, seed=5)
    assert drawn.shape == (4, 64)
    assert drawn.dtype == np.int64
    assert 0 <= drawn.min() <= drawn.max() < 97
    assert np.array_equal(drawn, verification_windows(None, 97, 2048, seed=5))


def test_nan_never_passes() -> None:
    assert not Check("logits", math.nan, 1.0).passed
    assert not Check("logits", math.inf, 1.0).passed
    assert Check("load", 0.0, 0.0).passed
