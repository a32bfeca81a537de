"""A uniformly pruned model as the family's own class: a checkpoint that loads without remote code.

All layers have the same widths, so the family's own configuration can name them once. Some configurations refuse
numbers of heads that do not divide hidden_size although head_dim is explicit; a Llama without biases is then
written as ``mistral``, whose layers compute the same and whose configuration has no such check.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers

from core.errors import ModelError
from core.families import Family
from core.groups import Architecture, LayerShape
from models.architecture import architecture_of
from models.saving import fill_folder, in_place_of
from models.tensors import MAX_SHARD_SIZE

_NOT_CARRIED = (
    "model_type",
    "architectures",
    "auto_map",
    "transformers_version",
    "per_layer_config",
    "allow_global_per_layer_attribute_access",
    "_name_or_path",
)
_NOT_IN_MISTRAL = ("attention_bias", "mlp_bias", "pretraining_tp")  # the first two are false where mistral is exact


def stock_config(config: Any, family: Family, shape: LayerShape, num_layers: int) -> Any:
    """The family's own configuration with these widths in all layers, or mistral's where that is exact.

    config: of the dense or the narrow model. ModelError with the reason where neither can name the widths.
    """
    values = {key: value for key, value in config.to_dict().items() if key not in _NOT_CARRIED} | {
        "num_hidden_layers": num_layers,
        "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_kv_heads,
        "head_dim": shape.head_dim,
        "intermediate_size": shape.intermediate_size,
    }
    own, reason = _accepted(family.model_type, values)
    if own is not None:
        return own
    if family.model_type != "llama":
        raise ModelError(f"{family.config_class} refuses these widths: {reason}")
    biases = [name for name in ("attention_bias", "mlp_bias") if values.get(name)]
    if biases:
        raise ModelError(
            f"{family.config_class} refuses these widths: {reason} mistral would accept them, but has no biases "
            f"({' and '.join(biases)})"
        )
    kept = {key: value for key, value in values.items() if key not in _NOT_IN_MISTRAL}
    mistral, mistral_reason = _accepted("mistral", kept | {"sliding_window": None})
    if mistral is None:
        raise ModelError(f"neither llama nor mistral accepts these widths: {reason} {mistral_reason}")
    return mistral


def _accepted(model_type: str, values: dict[str, Any]) -> tuple[Any | None, str]:
    """The configuration, or None and its class's reason for refusing the values."""
    try:
        return transformers.AutoConfig.for_model(model_type, **values), ""
    except Exception as error:  # each release refuses with a type of its own
        return None, (str(error.__cause__ or error).strip() or type(error).__name__).splitlines()[-1].strip()


def possible_kv_widths(config: Any, family: Family, architecture: Architecture) -> tuple[int, ...]:
    """Numbers of KV groups per layer that a stock checkpoint can have, ascending: every one is tried.

    ModelError where there is none.
    """
    first = architecture.layers[0]
    per_group = first.num_heads // first.num_kv_heads
    possible, refusal = [], None
    for kv in range(1, min(shape.num_kv_heads for shape in architecture.layers) + 1):
        shape = LayerShape(kv * per_group, kv, first.head_dim, first.intermediate_size, 1, 1)
        try:
            stock_config(config, family, shape, architecture.num_layers)
            possible.append(kv)
        except ModelError as error:
            refusal = error
    if refusal is not None and not possible:
        raise refusal
    return tuple(possible)


def stock_model(narrow: Any, family: Family) -> tuple[Any, str]:
    """``narrow`` as a model of the family's own class (or mistral's), and its model_type.

    Both share their tensors, nothing is copied. ModelError where layers differ in width, or no class takes them.
    """
    shapes = architecture_of(narrow, family).layers
    for index, shape in enumerate(shapes):
        if (shape.num_heads, *shape.widths) != (shapes[0].num_heads, *shapes[0].widths):
            raise ModelError(
                f"layer 0 has {_widths(shapes[0])}, layer {index} has {_widths(shape)}: a stock checkpoint names one "
                "pair of widths for all layers; plan with --target stock"
            )
    config = stock_config(narrow.config, family, shapes[0], len(shapes))
    config._attn_implementation = narrow.config._attn_implementation
    with torch.device("meta"):
        stock = transformers.AutoModelForCausalLM.from_config(config)
    for name, module in narrow.named_modules():
        _share_tensors(module, stock.get_submodule(name))
    stock.generation_config = narrow.generation_config
    return stock.train(narrow.training), config.model_type


def save_stock_checkpoint(
    model: Any,
    tokenizer: Any,
    folder: Path,
    dtype: torch.dtype,
    max_shard_size: str = MAX_SHARD_SIZE,
    tensors: Mapping[str, torch.Tensor] | None = None,
    base: Path | None = None,
) -> Path:
    """Write safetensors in ``dtype``, config, generation config and tokenizer; no Python.

    Replaces an earlier folder only when complete. tensors: the weights, one at a time, of a ``model`` that is empty.
    base, and what is raised: as in ``save_checkpoint``.
    """
    with in_place_of(folder) as temporary:
        weights = model.state_dict() if tensors is None else tensors
        fill_folder(temporary, weights, model, tokenizer, dtype, max_shard_size, base, {})
    return folder


def _share_tensors(source: Any, target: Any) -> None:
    """The parameters and buffers that ``source`` declares itself, the same objects, tied ones included."""
    assert source._parameters.keys() == target._parameters.keys()
    assert source._buffers.keys() == target._buffers.keys()
    target._parameters.update(source._parameters)
    target._buffers.update(source._buffers)
    for name, value in vars(source).items():  # older rotary modules keep a table as a plain attribute
        if isinstance(value, torch.Tensor):
            setattr(target, name, value)


def _widths(shape: LayerShape) -> str:
    return f"{shape.num_kv_heads} KV groups and {shape.intermediate_size} channels"
