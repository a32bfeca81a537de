"""Models of the streamed engine: the weights of a model in memory, at hand only while a layer is visited."""

from pathlib import Path
from typing import Any

import torch

from models.family_table import family_of
from models.loading import hollow_model
from models.streamed import StreamedWeights


def streamed(model: Any, scratch: Path | None = None) -> Any:
    """The same model, its weights (as they are now) elsewhere."""
    family = family_of(model.config.model_type)
    hollow = hollow_model(model.config, family, model.dtype)
    weights = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    StreamedWeights(hollow, family, weights, torch.device("cpu"), scratch)
    return hollow


def is_empty(model: Any) -> bool:
    return all(parameter.is_meta for parameter in model.parameters())
