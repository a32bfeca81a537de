"""Windows carried through a model by layers and by blocks: the same hidden states as in its own forward."""

from typing import Any

import pytest
import torch
from repairs import IDS, family, hidden_states, plan_for, repaired
from tiny_models import build

from core import memory
from models.architecture import decoder_layers
from pruning.streams import LayerRunner


@pytest.mark.parametrize("batch_size", [None, 5, 1])
@torch.no_grad()
def test_streams_are_the_models_own_hidden_states(family_model: Any, batch_size: int | None) -> None:
    """Layer by layer, and block by block."""
    expected = hidden_states(family_model, IDS)
    runner = LayerRunner(family_model, family(family_model), IDS.numpy(), batch_size)
    whole = runner.embed()
    by_block = runner.copy_of(whole)
    torch.testing.assert_close(whole, expected[0])
    for index in range(3):
        runner.advance(index, whole)
        for block in runner.blocks(index):
            runner.advance_block(block, by_block)
        torch.testing.assert_close(whole, expected[index + 1], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(by_block, expected[index + 1], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_block_alone_gives_what_its_modules_see_in_the_model(family_model: Any) -> None:
    """What the projections read, what the writing module receives and gives, and the stream behind; rows 3 to 8."""
    row, rows = family(family_model), slice(3, 9)
    layer = decoder_layers(family_model, row)[0]
    seen: dict[str, torch.Tensor] = {}
    for member in row.members:
        layer.get_submodule(member.path).register_forward_hook(
            lambda _m, args, out, p=member.path: seen.update({p: args[0][rows], f"{p} out": out[rows]})
        )
    layer.get_submodule(row.pre_mlp_norm).register_forward_pre_hook(lambda _m, args: seen.update(mid=args[0][rows]))
    states = [state[rows] for state in hidden_states(family_model, IDS)]
    wanted = dict(seen)
    runner = LayerRunner(family_model, row, IDS.numpy(), 10)
    streams = (states[0], wanted["mid"], states[1])
    for block, before, behind in zip(runner.blocks(0), streams, streams[1:], strict=False):
        writer = block.writer.path
        whole = runner.through(block, before)
        found = (runner.read(block, before), runner.inputs(block, before), *whole)
        for value, name in zip(found, (block.readers[0].path, writer, writer, f"{writer} out"), strict=False):
            torch.testing.assert_close(value, wanted[name], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(whole.stream, behind, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(runner.behind(block, before, whole.output), whole.stream, rtol=0, atol=0)
    for module in layer.modules():
        assert "forward" not in module.__dict__


@torch.no_grad()
def test_a_forward_that_others_wrapped_is_put_back(llama: Any) -> None:
    attention = llama.model.layers[0].self_attn
    wrapped = attention.forward
    attention.forward = lambda *args, **kwargs: wrapped(*args, **kwargs)
    mine = attention.__dict__["forward"]
    runner = LayerRunner(llama, family(llama), IDS.numpy())
    runner.advance_block(runner.blocks(0)[1], runner.embed())
    assert attention.__dict__["forward"] is mine


@pytest.mark.parametrize("name", ["llama", "gemma2", "llama-biased-tied-mha"])
@pytest.mark.parametrize("target", ["stream", "pruned"])
def test_what_has_no_room_is_computed_again_with_the_same_result(
    name: str, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Inputs of o_proj and down_proj stay in memory while it lasts; none is left here, or nobody can tell."""
    model = build(name)
    plan = plan_for(model)
    wanted, report = repaired(model, plan, target=target, ridges=(0.1,))
    for free in (0, None):
        monkeypatch.setattr(memory, "free_bytes", lambda _device, left=free: left)
        found, same = repaired(model, plan, target=target, ridges=(0.1,))
        for a, b in zip(found.parameters(), wanted.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
        assert [block.repaired for block in same.blocks] == [block.repaired for block in report.blocks]


@torch.no_grad()
def test_streams_rest_where_they_have_room(llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pretended device: 24 windows of 14 tokens, 64 float32 each, are 86,016 bytes a stream; half of what is free
    may be taken."""
    stream = 24 * 14 * 64 * 4
    runner = LayerRunner(llama, family(llama), IDS.numpy())
    hidden = runner.embed()
    runner.device = torch.device("meta")
    for free, copies, device in ((4 * stream, 2, "meta"), (4 * stream - 1, 2, "cpu"), (2 * stream, 1, "meta")):
        monkeypatch.setattr(memory, "free_bytes", lambda _device, left=free: left)
        resting = runner._resting(runner.take(hidden, slice(0, 2)), copies)
        assert isinstance(resting, torch.Tensor)
        assert (resting.device.type, resting.shape) == (device, hidden.shape)
    assert (runner.room_for(64) is None, runner.room_for(65) is None) == (False, True)


def test_batches_of_a_gpu_are_as_wide_as_the_widest_module_allows(llama: Any) -> None:
    """2^28 bytes of float32 are 2^26 values: of 64 inputs of o_proj, 2^20 tokens; never fewer than on a CPU."""
    runner = LayerRunner(llama, family(llama), IDS.numpy())
    assert runner.size == 2048 // 14
    runner.device = torch.device("meta")
    assert runner._first_tokens() == 2**20
    llama.model.layers[0].mlp.down_proj.in_features = 2**20
    assert runner._first_tokens() == 2048
