"""The walk through a model: what changes, what must not, and what is reported."""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from repairs import IDS, WINDOWS, family, plan_for, repaired
from tables import architecture
from tiny_models import build, plan_keeping, windows_of

from core.errors import NumericalError, UsageError
from core.families import IN, OUT, member_rows
from models.architecture import architecture_of, decoder_layers
from models.expected import reference
from models.narrow import empty_narrow_model
from pruning.refit import choose
from pruning.repair import RepairSettings, repair, repaired_for_now
from pruning.repair_report import OUTPUT, write_repair_report
from pruning.repair_windows import check_windows, shuffled_tokens, shuffled_windows
from pruning.streams import LayerRunner
from pruning.surgery import operate


@pytest.mark.parametrize("target", ["stream", "dense", "pruned"])
@pytest.mark.parametrize("removed_layers", [(), (1,)])
def test_sliced_repaired_model_equals_the_masked_one(
    family_model: Any, target: str, removed_layers: tuple[int, ...]
) -> None:
    """Surgery on the repaired model computes what the repaired dense model does with the removed groups silenced."""
    row, plan = family(family_model), plan_for(family_model, removed_layers)
    model, done = repaired(family_model, plan, target=target)
    assert done.num_repaired >= 2
    changed = {
        name for name, tensor in model.state_dict().items() if not torch.equal(tensor, family_model.state_dict()[name])
    }
    written, read = ([member.path for member in row.members if member.axis == axis] for axis in (IN, OUT))
    allowed = {f"{row.layers}.{i}.{path}.{part}" for i in range(3) for path in written for part in ("weight", "bias")}
    readers = {f"{row.layers}.{i}.{path}.weight" for i in range(3) for path in read}
    assert bool(changed & readers) == (target != "pruned")
    assert changed <= allowed | readers
    for index, layer in enumerate(decoder_layers(model, row)):
        for member in row.members:
            if member.axis == IN and index not in removed_layers:
                kept = member_rows(member, plan.architecture.layers[index], plan.kept(index, member.kind))
                weight = layer.get_submodule(member.path).weight
                assert not weight[:, np.setdiff1d(np.arange(weight.shape[1]), kept)].any()
    expected = reference(model, row, plan, IDS[:3].numpy()).logits
    narrow = operate(model, empty_narrow_model(model, row, plan), row, plan)
    with torch.no_grad():
        actual = narrow(input_ids=IDS[:3], use_cache=False).logits
    assert float((actual - expected).norm() / expected.norm()) <= 1e-5


@pytest.mark.parametrize("target", ["stream", "dense", "pruned"])
def test_a_plan_that_removes_nothing_changes_nothing(family_model: Any, target: str) -> None:
    architecture = architecture_of(family_model, family(family_model))
    plan = plan_keeping(architecture, np.ones(len(architecture.groups), dtype=bool))
    model, done = repaired(family_model, plan, target=target)
    assert done.blocks == ()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), family_model.parameters(), strict=True))


def test_a_layer_that_loses_nothing_keeps_its_weights_behind_others_that_do(llama: Any) -> None:
    plan = plan_for(llama)
    keep = plan.keep.copy()
    keep[plan.groups.layer == 2] = True
    model, done = repaired(llama, plan_keeping(plan.architecture, keep))
    assert {block.layer for block in done.blocks} == {0, 1}
    pairs = zip(model.model.layers[2].parameters(), llama.model.layers[2].parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_a_whole_block_is_refitted_where_its_layer_lost_something_and_its_inputs_changed() -> None:
    """One KV head: attention loses nothing. Its inputs are still dense in layer 0 and no longer so in layer 1."""
    model = build("llama-mqa")
    changed, unchanged = [(0, "mlp"), (1, "attention")], [(0, "mlp"), (1, "mlp")]
    for target, expected in (("stream", changed), ("dense", changed), ("pruned", unchanged)):
        _, done = repaired(model, plan_for(model), target=target)
        assert [(block.layer, block.kind) for block in done.of(OUTPUT)][:2] == expected


def test_errors_are_those_of_the_blocks_outputs_on_check_windows(llama: Any) -> None:
    """The first two blocks, with nothing pruned before the first, against outputs taken by hooks."""
    keep = plan_for(llama).keep.copy()
    keep[:10] = np.arange(10) % 2 == 0  # of layer 0: 2 of 4 KV heads, 3 of the first 6 channels
    model, done = repaired(llama, plan_keeping(plan_for(llama).architecture, keep), target="dense")
    first = done.of(OUTPUT)[:2]
    assert [(block.layer, block.kind) for block in first] == [(0, "attention"), (0, "mlp")]
    assert first[0].repaired
    check = IDS[torch.from_numpy(check_windows(len(IDS)))]
    outputs: list[torch.Tensor] = []
    for net in (llama, model):
        for path in ("self_attn.o_proj", "mlp.down_proj"):
            module = net.model.layers[0].get_submodule(path)
            module.register_forward_hook(lambda _m, _a, out: outputs.append(out.double()))
        with torch.no_grad():
            net(input_ids=check)
    for block, target, output in zip(first, outputs[:2], outputs[2:], strict=True):
        error = float((target - output).square().sum() / target.square().sum())
        assert block.error_after == pytest.approx(error, rel=1e-4)
        assert (block.error_after < block.error_before) == block.repaired
    assert done.windows_fitted + done.windows_held_out == len(IDS)


@pytest.mark.parametrize("name", ["llama", "gemma3_text", "llama-biased-tied-mha"])
def test_batches_do_not_show(name: str) -> None:
    model = build(name)
    plan = plan_for(model)
    results = [repaired(model, plan, batch_size=size, ridges=(0.1,)) for size in (1, 7, None)]
    for other, done in results[1:]:
        for a, b in zip(other.parameters(), results[0][0].parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
        assert [block.ridge for block in done.blocks] == [block.ridge for block in results[0][1].blocks]


def test_running_out_of_memory_halves_the_batch_and_counts_nothing_twice(llama: Any) -> None:
    plan = plan_for(llama)
    _, wanted = repaired(llama, plan)
    victim = copy.deepcopy(llama)

    def full(_module: Any, args: Any) -> None:
        if len(args[0]) > 3:
            raise torch.OutOfMemoryError("pretended")

    victim.model.layers[1].mlp.down_proj.register_forward_pre_hook(full)
    done = repair(victim, family(llama), plan, WINDOWS)
    assert [block.error_after for block in done.blocks] == pytest.approx(
        [block.error_after for block in wanted.blocks], rel=1e-3
    )
    with pytest.raises(UsageError, match="--batch_size 8"):
        repair(copy.deepcopy(victim), family(llama), plan, WINDOWS, RepairSettings(batch_size=8))


@pytest.mark.parametrize(("target", "failures"), [("stream", 1), ("pruned", 1), ("pruned", 2)])
def test_what_is_kept_gives_way_where_there_is_no_memory_to_solve(
    llama: Any, monkeypatch: pytest.MonkeyPatch, target: str, failures: int
) -> None:
    """Inputs that were kept are computed again, then streams rest elsewhere; the weights are the same."""
    plan, tries, away = plan_for(llama), [], []
    wanted, _ = repaired(llama, plan, target=target)

    def crowded(*arguments: Any, **settings: Any) -> Any:
        tries.append(arguments)
        if len(tries) % (failures + 1):
            raise torch.OutOfMemoryError("pretended")
        return choose(*arguments, **settings)

    def put_away(_runner: LayerRunner, stream: Any) -> Any:
        away.append(stream)
        return stream

    monkeypatch.setattr("pruning.repair.choose", crowded)
    monkeypatch.setattr(LayerRunner, "away", put_away)
    found, done = repaired(llama, plan, target=target)
    assert len(tries) == (failures + 1) * len(done.blocks)
    assert bool(away) == (target == "stream" or failures == 2)
    for a, b in zip(found.parameters(), wanted.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_a_repair_that_nothing_gives_way_to_ends(llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_arguments: Any, **_settings: Any) -> Any:
        raise torch.OutOfMemoryError("pretended")

    monkeypatch.setattr("pruning.repair.choose", full)
    with pytest.raises(torch.OutOfMemoryError):
        repaired(llama, plan_for(llama))


@torch.no_grad()
def test_a_repair_for_now_is_taken_back_also_after_an_exception(family_model: Any) -> None:
    plan, row = plan_for(family_model), family(family_model)
    before = {name: value.clone() for name, value in family_model.state_dict().items()}
    lasting, done = repaired(family_model, plan)
    with repaired_for_now(family_model, row, plan, WINDOWS) as found:
        assert found == done
        assert torch.equal(family_model(input_ids=IDS).logits, lasting(input_ids=IDS).logits)
    assert all(torch.equal(value, before[name]) for name, value in family_model.state_dict().items())

    def interrupted() -> None:
        with repaired_for_now(family_model, row, plan, WINDOWS):
            raise KeyError

    with pytest.raises(KeyError):
        interrupted()
    assert all(torch.equal(value, before[name]) for name, value in family_model.state_dict().items())


def test_the_same_again_gives_the_same_bytes(llama: Any, tmp_path: Path) -> None:
    runs = [repaired(llama, plan_for(llama)) for _ in range(2)]
    for a, b in zip(*(model.parameters() for model, _ in runs), strict=True):
        assert torch.equal(a, b)
    files = [write_repair_report(tmp_path / f"{i}.json", done) for i, (_, done) in enumerate(runs)]
    assert files[0].read_bytes() == files[1].read_bytes()
    found = json.loads(files[0].read_text())
    assert found["num_repaired"] == sum(b["repaired"] for b in found["blocks"] if b["side"] == OUTPUT) > 0
    assert set(found["blocks"][0]) == {"layer", "kind", "side", "repaired", "ridge", "error_before", "error_after"}


def test_weights_are_rounded_to_what_they_are_saved_in(llama: Any) -> None:
    with torch.no_grad():
        for parameter in llama.parameters():
            parameter.copy_(parameter.bfloat16().float())
    model, done = repaired(llama, plan_for(llama), stored_dtype=torch.bfloat16)
    assert done.num_repaired
    assert all(torch.equal(p, p.bfloat16().float()) for p in model.parameters())


def test_a_bfloat16_model_is_repaired_in_float32_sums(llama: Any) -> None:
    plan = plan_for(llama)
    _, exact = repaired(llama, plan)
    model, half = repaired(llama.bfloat16(), plan)
    assert model.model.layers[0].mlp.down_proj.weight.dtype == torch.bfloat16
    assert half.blocks[0].error_after == pytest.approx(exact.blocks[0].error_after, rel=0.05)


def test_two_windows_are_needed_and_finite_streams(llama: Any) -> None:
    with pytest.raises(UsageError, match="--num_samples 1"):
        repair(llama, family(llama), plan_for(llama), windows_of(IDS[:1]))
    assert check_windows(2).tolist() == [False, True]
    assert check_windows(8).tolist() == [False, False, False, True] * 2
    with torch.no_grad():
        llama.model.layers[1].mlp.up_proj.weight[0, 0] = float("nan")
    with pytest.raises(NumericalError, match="layer 1"):
        repair(llama, family(llama), plan_for(llama), WINDOWS)
    for module in llama.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
        assert "forward" not in module.__dict__


def test_shuffled_windows_hold_the_same_tokens_and_begin_alike() -> None:
    ids = np.arange(40).reshape(4, 10)
    mixed = shuffled_tokens(ids)
    first, second = np.split(mixed, 2)
    for half in (first, second):
        assert half[:, 0].tolist() == ids[:, 0].tolist()
        assert sorted(half.reshape(-1).tolist()) == list(range(40))
        assert not np.array_equal(half, ids)
    assert not np.array_equal(first, second)
    assert np.array_equal(mixed, shuffled_tokens(ids))
    assert np.array_equal(ids, np.arange(40).reshape(4, 10))


@pytest.mark.parametrize(
    ("fitted", "seq_len", "widest", "shuffled"),
    [
        (96, 256, 1536, 192),  # the default: twice as many
        (48, 512, 1536, 96),
        (192, 256, 1536, 96),  # up to 73,728 tokens in all
        (144, 512, 1536, 0),
        (384, 256, 1536, 0),
        (144, 512, 14336, 288),  # 48 tokens for each input of a wide module
        (1000, 512, 14336, 344),
    ],
)
def test_shuffled_windows_fill_up_what_the_text_is_short_of(
    fitted: int, seq_len: int, widest: int, shuffled: int
) -> None:
    assert shuffled_windows(fitted, seq_len, architecture((2, 8), (2, widest))) == shuffled


def test_text_says_what_is_fitted_beside_the_windows(llama: Any) -> None:
    """The windows that decide are the same; the weights are not."""
    plan = plan_for(llama)
    mixed, with_shuffled = repaired(llama, plan)
    plain, without = repaired(llama, plan, text="calibration")
    assert (with_shuffled.windows_fitted, with_shuffled.windows_shuffled) == (18, 36)
    assert (without.windows_fitted, without.windows_shuffled) == (18, 0)
    assert with_shuffled.windows_held_out == without.windows_held_out == 6
    assert with_shuffled.blocks[0].error_before == pytest.approx(without.blocks[0].error_before, rel=1e-6)
    assert not torch.equal(mixed.model.layers[0].mlp.down_proj.weight, plain.model.layers[0].mlp.down_proj.weight)
    assert "18 calibration windows and 36 with their tokens in random order" in with_shuffled.sentence()
    assert "random order" not in without.sentence()
