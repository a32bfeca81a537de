"""Configuration of a structurally pruned Llama: every layer keeps its own number of heads and MLP channels.

The widths are in ``per_layer_config`` of config.json: layer index -> num_attention_heads, num_key_value_heads,
intermediate_size. Transformers 5.14 and newer turn that key into one configuration a layer; older releases hand it
over as the plain JSON object. ``layer_widths`` reads either.
"""

from transformers import LlamaConfig

WIDTHS = ("num_attention_heads", "num_key_value_heads", "intermediate_size")


class PrunedLlamaConfig(LlamaConfig):
    model_type = "pruned_llama"

    def validate_architecture(self):
        """A layer's heads need not divide hidden_size: head_dim is explicit."""

    def layer_widths(self, layer_idx: int) -> dict[str, int]:
        layers = self.per_layer_config
        if isinstance(layers, dict):
            own = {int(key): value for key, value in layers.items()}.get(layer_idx, {})
            return {name: own.get(name, getattr(self, name)) for name in WIDTHS}
        return {name: getattr(layers[layer_idx], name) for name in WIDTHS}
