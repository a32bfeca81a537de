"""A model seen as layers of blocks: every family's modules by layer and kind, and what they hold."""

from typing import Any

import pytest
import torch
from tiny_models import build

from core.decoder import Decoder
from core.errors import ModelError
from core.families import member_rows
from core.groups import ATTENTION, MLP
from models.family_table import family_of


def decoder(model: Any) -> Decoder:
    return Decoder(model, family_of(model.config.model_type))


def test_outputs_and_readers_of_every_family(family_model: Any) -> None:
    seen = decoder(family_model)
    assert len(seen.layers) == 3
    for index, layer in enumerate(family_model.model.layers):
        assert seen.output(index, ATTENTION) is layer.self_attn.o_proj
        assert seen.output(index, MLP) is layer.mlp.down_proj
        readers = [module for kind in (ATTENTION, MLP) for module in seen.readers(index, kind)]
        writers = [seen.output(index, kind) for kind in (ATTENTION, MLP)]
        linears = [module for module in layer.modules() if isinstance(module, torch.nn.Linear)]
        assert {id(module) for module in [*readers, *writers]} == {id(module) for module in linears}


def test_blocks_account_for_every_parameter_of_a_layer(family_model: Any) -> None:
    seen = decoder(family_model)
    for index, layer in enumerate(seen.layers):
        held = sum(parameter.numel() for parameter in layer.parameters())
        assert seen.architecture.layers[index].total_params == held
        assert [block.kind for block in seen.blocks(index)] == [ATTENTION, MLP]
        for block in seen.blocks(index):
            assert block.width * block.columns_per_group == seen.output(index, block.kind).in_features


def test_all_groups_of_a_block_own_every_row_of_its_members(family_model: Any) -> None:
    """The parts of the kinds' table and of the families' table are the same ones."""
    seen = decoder(family_model)
    for member in seen.family.members:
        for index, layer in enumerate(seen.layers):
            shape = seen.architecture.layers[index]
            rows = member_rows(member, shape, torch.arange(shape.block(member.kind).width).numpy())
            assert rows.tolist() == list(range(layer.get_submodule(member.path).weight.shape[member.axis]))


def test_the_device_is_each_layers_own() -> None:
    model = build("llama")
    model.model.layers[1].to("meta")
    seen = decoder(model)
    assert [seen.device_of(index).type for index in range(3)] == ["cpu", "meta", "cpu"]
    assert seen.architecture == decoder(build("llama")).architecture  # no weight is read


def test_a_layer_that_lacks_a_member_is_refused() -> None:
    model = build("llama")
    del model.model.layers[2].mlp.up_proj
    with pytest.raises(ModelError, match=r"layer 2 is not laid out like a llama layer .*up_proj"):
        _ = decoder(model).architecture
