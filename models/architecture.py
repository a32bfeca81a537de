"""The decoder of a model as functions; ``core/decoder.py`` holds what they say."""

from typing import Any

from core.decoder import Decoder
from core.families import Family
from core.groups import Architecture


def decoder_layers(model: Any, family: Family) -> list[Any]:
    """The decoder layer modules in order."""
    return Decoder(model, family).layers


def architecture_of(model: Any, family: Family) -> Architecture:
    """Count every group's parameters from the tensors, biases included; tied weights count once.

    Raises ModelError when a layer lacks a module that the family's row names (a mixture of experts, say).
    """
    return Decoder(model, family).architecture
