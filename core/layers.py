"""Decoder layers taken out of a model's own forward pass, so that others can be run alone. Needs no torch."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any


@contextmanager
def bypassed(layers: Sequence[Any], restart: Any = None) -> Iterator[None]:
    """Inside, these layers hand their input on; given ``restart``, the last of them hands over that stream instead.

    The model's own forward still builds masks and positions and ends with its own norm and head, so this needs to
    know nothing about a family. With no layer to bypass the model starts from its embeddings.
    """
    try:
        for layer in layers:
            layer.forward = lambda hidden, *_args, **_kwargs: hidden
        if layers and restart is not None:
            layers[-1].forward = lambda _hidden, *_args, **_kwargs: restart
        yield
    finally:
        for layer in layers:
            layer.__dict__.pop("forward", None)
