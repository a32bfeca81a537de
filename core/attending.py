"""Kinds of attention that a model has for a while, beside those that transformers knows."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

SDPA = "sdpa"  # torch's own, which these kinds stand in for


def attends_by_torch(*models: Any) -> bool:
    return all(model.config._attn_implementation == SDPA for model in models)


@contextmanager
def attending(kind: str, attend: Callable[..., Any], mask: Callable[..., Any], *models: Any) -> Iterator[None]:
    """Inside, the models, which attend by torch, attend by ``attend``, and ``mask`` makes what it is told to leave out;
    both are called as transformers calls them. kind: a name for the two."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(kind, attend)
    AttentionMaskInterface.register(kind, mask)
    with ExitStack() as after:
        for model in models:
            after.callback(model.set_attn_implementation, model.config._attn_implementation)
            model.set_attn_implementation(kind)
        yield
