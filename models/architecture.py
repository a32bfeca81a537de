"""Measure an Architecture from a model's modules; a model on the meta device will do, no weights are read."""

from collections.abc import Iterator
from typing import Any

from torch import nn

from core.errors import ModelError
from core.families import IN, Family
from core.groups import Architecture, LayerShape


def decoder_layers(model: Any, family: Family) -> list[Any]:
    """The decoder layer modules in order."""
    return list(model.get_submodule(family.layers))


def architecture_of(model: Any, family: Family) -> Architecture:
    """Count every group's parameters from the tensors, biases included; tied weights count once.

    Raises ModelError when a layer lacks a module that the family's row names (a mixture of experts, say).
    """
    layers = tuple(_layer_shape(layer, index, family) for index, layer in enumerate(decoder_layers(model, family)))
    return Architecture(
        model_type=family.model_type,
        hidden_size=model.config.hidden_size,
        total_params=sum(parameter.numel() for parameter in model.parameters()),
        layers=layers,
    )


def _layer_shape(layer: nn.Module, index: int, family: Family) -> LayerShape:
    try:
        attention = layer.get_submodule(family.attention)
        head_dim = _whole(attention.head_dim)
        heads = _whole(layer.get_submodule(family.attention_output).in_features) // head_dim
        kv_heads = heads // _whole(attention.num_key_value_groups)
        channels = _whole(layer.get_submodule(family.mlp_output).in_features)
        owned = [0, 0]  # parameters held by groups, by kind
        for kind, size in _member_sizes(layer, family):
            owned[kind] += size
    except AttributeError as error:
        raise ModelError(
            f"layer {index} is not laid out like a {family.model_type} layer ({error}); "
            "only dense decoder layers of the supported families can be pruned"
        ) from error
    return LayerShape(
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        intermediate_size=channels,
        kv_group_params=owned[0] // kv_heads,
        channel_params=owned[1] // channels,
        attention_fixed_params=_size(layer.get_submodule(family.attention)) - owned[0],
        mlp_fixed_params=_size(layer.get_submodule(family.mlp)) - owned[1],
        norm_params=_size(layer)
        - _size(layer.get_submodule(family.attention))
        - _size(layer.get_submodule(family.mlp)),
    )


def _member_sizes(layer: nn.Module, family: Family) -> Iterator[tuple[int, int]]:
    for member in family.members:
        linear = layer.get_submodule(member.path)
        assert isinstance(linear, nn.Linear)
        bias = linear.bias.numel() if linear.bias is not None and member.axis != IN else 0
        yield member.kind, linear.weight.numel() + bias


def _whole(value: Any) -> int:
    return int(value)


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
