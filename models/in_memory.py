"""A model that the caller has loaded already, in the place of a checkpoint's name."""

from pathlib import Path
from typing import Any

import transformers
from torch import nn

from core.errors import ModelError
from models.architecture import architecture_of
from models.family_table import family_of
from models.loading import ModelSource


def source_of(model: Any, tokenizer: Any) -> ModelSource:
    """A source for a transformers causal LM in memory; nothing is read from disk.

    Raises ModelError for an object that is no such model, an unsupported family, a quantised or adapted model, weights
    on several devices, and a missing tokenizer.
    """
    config = getattr(model, "config", None)
    if hasattr(model, "_orig_mod"):
        raise ModelError("the model is compiled; give what was compiled, model._orig_mod")
    is_module = isinstance(model, nn.Module)  # in a name of its own: the model stays Any to the type checker
    if not isinstance(config, transformers.PretrainedConfig) or not is_module:
        raise ModelError(
            f"{type(model).__name__} is not a transformers model; give a model, a folder, a hub id, or demo"
        )
    if hasattr(model, "peft_config"):
        raise ModelError("the model has an adapter attached; merge it first: model = model.merge_and_unload()")
    if getattr(config, "quantization_config", None):
        raise ModelError("the model is quantised; prune the unquantised one, then quantise the result")
    if tokenizer is None:
        raise ModelError("a model in memory needs its tokenizer: tokenizer=AutoTokenizer.from_pretrained(...)")
    family = family_of(config.model_type)
    if model.get_output_embeddings() is None:
        raise ModelError(f"{type(model).__name__} has no language-model head; load it with AutoModelForCausalLM")
    devices = {str(parameter.device) for parameter in model.parameters()}
    if len(devices) != 1 or "meta" in devices:
        raise ModelError(f"the model's weights lie on {', '.join(sorted(devices))}; move it to one device first")
    name = str(getattr(config, "_name_or_path", "") or type(model).__name__)
    source = ModelSource(
        path=name,
        folder=Path(name),
        name=Path(name).name,
        family=family,
        architecture=architecture_of(model, family),
        stored_dtype=model.dtype,
        context=int(getattr(config, "max_position_embeddings", 2048)),
        vocab_rows=config.get_text_config().vocab_size,
        trust_remote_code=False,
    )
    return source.holding(config, tokenizer)
