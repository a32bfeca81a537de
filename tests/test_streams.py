"""Windows carried through a model layer by layer: the same hidden states as in its own forward."""

from typing import Any

import pytest
import torch
from repairs import IDS, family, hidden_states

from core.families import OUT
from models.architecture import decoder_layers
from pruning.streams import LayerRunner


@pytest.mark.parametrize("batch_size", [None, 5, 1])
@torch.no_grad()
def test_streams_are_the_models_own_hidden_states(family_model: Any, batch_size: int | None) -> None:
    expected = hidden_states(family_model, IDS)
    runner = LayerRunner(family_model, family(family_model), IDS.numpy(), batch_size)
    hidden = runner.embed()
    torch.testing.assert_close(hidden, expected[0])
    for index in range(3):
        runner.advance(index, hidden)
        torch.testing.assert_close(hidden, expected[index + 1], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_runner_gives_inputs_and_outputs_of_modules(family_model: Any) -> None:
    row = family(family_model)
    seen: dict[str, torch.Tensor] = {}
    layer = decoder_layers(family_model, row)[0]
    outputs, reads = (row.attention_output, row.mlp_output), [m.path for m in row.members if m.axis == OUT]
    for path in (*outputs, *reads):
        layer.get_submodule(path).register_forward_hook(
            lambda _m, args, out, p=path: seen.update({p: args[0], p + " out": out})
        )
    family_model(input_ids=IDS)
    wanted = dict(seen)
    runner = LayerRunner(family_model, row, IDS.numpy(), 10)
    hidden = runner.embed()
    for path in (*outputs, *reads):
        found = runner.input_of(path, 0, hidden, slice(3, 9))
        torch.testing.assert_close(found, wanted[path][3:9], rtol=1e-5, atol=1e-5)
    written, read = runner.advance(0, hidden, outputs, reads)
    for found, name in zip((*written, *read), [*(f"{path} out" for path in outputs), *reads], strict=True):
        torch.testing.assert_close(found, wanted[name], rtol=1e-5, atol=1e-5)
