"""A structurally pruned Llama: the family's own decoder layers, each built with its own widths.

Nothing is computed differently from Llama. Only the number of KV groups and MLP channels differs from layer to
layer, so the constructor builds the layers one by one; forward, generation and saving are inherited.
"""

import copy

from torch import nn
from transformers import LlamaForCausalLM, LlamaModel
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from .configuration_pruned import WIDTHS, PrunedLlamaConfig


class LayerConfig:
    """The model's configuration as one layer sees it: own widths, everything else read through, live.

    Reading through (rather than copying) is what lets ``set_attn_implementation`` reach every layer.
    """

    def __init__(self, config, layer_idx):
        self.__dict__.update(config.layer_widths(layer_idx), model_config=config)

    def __getattr__(self, name):
        if name.startswith("__") or "model_config" not in self.__dict__:
            raise AttributeError(name)
        return getattr(self.model_config, name)


def _skeleton(config):
    """A copy with one head and one channel a layer: lets the inherited constructors run at no cost in memory."""
    skeleton = copy.copy(config)
    skeleton.per_layer_config = None
    for name in WIDTHS:
        setattr(skeleton, name, 1)
    return skeleton


def _adopt(model, skeleton, config):
    """Give the model and its parts the real configuration in place of the skeleton's."""
    config._attn_implementation = skeleton._attn_implementation
    for module in model.modules():
        if getattr(module, "config", None) is skeleton:
            module.config = config


class PrunedLlamaModel(LlamaModel):
    config_class = PrunedLlamaConfig

    def __init__(self, config):
        skeleton = _skeleton(config)
        super().__init__(skeleton)
        _adopt(self, skeleton, config)
        self.layers = nn.ModuleList(
            LlamaDecoderLayer(LayerConfig(config, index), index) for index in range(config.num_hidden_layers)
        )
        self.post_init()


class PrunedLlamaForCausalLM(LlamaForCausalLM):
    config_class = PrunedLlamaConfig

    def __init__(self, config):
        skeleton = _skeleton(config)
        super().__init__(skeleton)
        _adopt(self, skeleton, config)
        self.model = PrunedLlamaModel(config)
        self.post_init()
