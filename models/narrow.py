"""Build the empty narrow model that surgery fills: the shipped classes, on the meta device, with the plan's widths."""

from typing import Any

import torch

from core.families import Family
from core.plan import PruningPlan
from models.family_table import PRUNED_PREFIX
from models.shipped import ShippedClasses, shipped_classes

_NOT_CARRIED = (
    "model_type",
    "architectures",
    "auto_map",
    "transformers_version",
    "per_layer_config",
    "_name_or_path",
)


def pruned_config(config: Any, family: Family, plan: PruningPlan) -> Any:
    """The configuration of the pruned model: the dense one's, with widths per layer and lists that follow the layers.

    The global widths stay the dense model's: no layer is wider, and the families' own checks (LlamaConfig wants
    hidden_size to divide by num_attention_heads) passed them.
    """
    values = {key: value for key, value in config.to_dict().items() if key not in _NOT_CARRIED}
    for name in family.per_layer_lists:
        if isinstance(values.get(name), list):
            values[name] = [values[name][layer] for layer in plan.remaining_layers]
    shapes = plan.pruned_architecture.layers
    widths = [
        {
            "num_attention_heads": shape.num_heads,
            "num_key_value_heads": shape.num_kv_heads,
            "intermediate_size": shape.intermediate_size,
        }
        for shape in shapes
    ]
    values |= {
        "num_hidden_layers": len(shapes),
        "head_dim": shapes[0].head_dim,
        "per_layer_config": dict(enumerate(widths)),
        "auto_map": auto_map(shipped_classes(family)),
        # Code that asks the global configuration for a width gets the dense model's instead of an exception.
        "allow_global_per_layer_attribute_access": True,
    }
    return shipped_classes(family).config(**values)


def auto_map(classes: ShippedClasses) -> dict[str, str]:
    return {
        "AutoConfig": f"configuration_pruned.{classes.config.__name__}",
        "AutoModel": f"modeling_pruned.{classes.model.__name__}",
        "AutoModelForCausalLM": f"modeling_pruned.{classes.causal_lm.__name__}",
    }


def empty_narrow_model(model: Any, family: Family, plan: PruningPlan) -> Any:
    """A causal LM of the shipped class with the plan's widths and no storage, for ``pruning.surgery`` to fill."""
    config = pruned_config(model.config, family, plan)
    config._attn_implementation = model.config._attn_implementation
    with torch.device("meta"):
        return shipped_classes(family).causal_lm(config).eval()


def is_pruned_type(model_type: str) -> bool:
    return model_type.startswith(PRUNED_PREFIX)
