"""Models of the streamed engine: the weights of a model in memory, at hand only while a layer is visited."""

import copy
from pathlib import Path
from typing import Any

import torch

from models.family_table import family_of
from models.loading import hollow_model
from models.streamed import StreamedWeights


def streamed(model: Any, scratch: Path | None = None) -> Any:
    """The same model, its weights (as they are now) elsewhere."""
    return _bound(StreamedWeights, model, scratch)


def sharded(model: Any) -> Any:
    """The same model, its weights (as they are now) dealt out to all processes of the run."""
    from models.sharded import ShardedWeights

    return _bound(ShardedWeights, model, None)


def _bound(engine: Any, model: Any, scratch: Path | None) -> Any:
    family = family_of(model.config.model_type)
    hollow = hollow_model(model.config, family, model.dtype)
    engine(hollow, family, _Copies(copy.deepcopy(model).state_dict()), torch.device("cpu"), scratch)
    return hollow


class _Copies(dict[str, torch.Tensor]):
    """As a file does, it gives a tensor of its own each time."""

    def __getitem__(self, name: str) -> torch.Tensor:
        return super().__getitem__(name).clone()


def is_empty(model: Any) -> bool:
    return all(parameter.is_meta for parameter in model.parameters())
