"""Which attention implementation a model is measured with."""

from typing import Any


def runnable_attention(name: str, config: Any) -> tuple[str, ...]:
    """Set ``config`` to eager attention where it asks for that, else to the best its class has; notes.

    Kernels like flash_attention_2 compute the same faster, need packages and devices of their own, and an unknown name
    would stop the loading of a model that is fine.
    """
    asked = config._attn_implementation
    config._attn_implementation = "eager" if asked == "eager" else None
    if asked in (None, "eager", "sdpa"):
        return ()
    return (f"{name} asks for {asked} attention; it is measured with transformers' own, which computes the same",)
