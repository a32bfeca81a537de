"""Models whose weights come and go: the dense one from its checkpoint, the pruned one from what a plan leaves of it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from core.engine import engine_of
from core.plan import PruningPlan
from models.away import WeightsAway
from models.loading import ModelSource, generation_config_of, hollow_model
from models.narrow import empty_narrow_model
from models.rounding import check_tensor_range
from models.saving import save_tensors
from models.stock import save_stock_checkpoint, stock_model
from models.streamed import StreamedWeights
from models.tensors import open_tensors
from pruning.pruned_tensors import PrunedTensors


@dataclass(frozen=True)
class Streaming:
    """How weights come and go. device, dtype: where and in what layers compute. rounded_to: weights are rounded to it
    as they are read; None: taken as stored. saved_dtype: of the pruned checkpoint. scratch: the folder that the user
    named for what rests meanwhile; beside: where it rests otherwise, once memory is short; None: among the system's
    temporary files. sharded: between visits the processes of a run hold them together."""

    device: torch.device
    dtype: torch.dtype
    rounded_to: torch.dtype | None
    saved_dtype: torch.dtype
    scratch: Path | None
    beside: Path | None
    sharded: bool = False


def streamed_dense(source: ModelSource, how: Streaming) -> Any:
    """The dense model, none of whose weights is held. ModelError as for a model that is loaded."""
    model = hollow_model(source.config, source.family, how.dtype)
    model.generation_config = generation_config_of(source)
    return _bound(_engine(how), model, source.family, open_tensors(source.folder, model, how.rounded_to), how)


def streamed_pruned(dense: Any, plan: PruningPlan, how: Streaming, *, stock: bool) -> Any:
    """The narrow model, each of whose weights is read, cut and rounded to ``saved_dtype`` when it is asked for.

    dense: of ``streamed_dense``, repaired or not; it may go on being used. stock: of the family's own class.
    """
    engine = engine_of(dense)
    assert isinstance(engine, WeightsAway)
    narrow = empty_narrow_model(dense, engine.family, plan)
    config = (stock_model(narrow, engine.family)[0] if stock else narrow).config
    model = hollow_model(config, engine.family, how.dtype)
    model.generation_config = dense.generation_config
    cut = PrunedTensors(engine.tensors, engine.family, plan)
    return _bound(type(engine), model, engine.family, _Rounded(cut, how.saved_dtype), how)


def for_one_process(model: Any, how: Streaming) -> Any:
    """A model whose weights come and go, as it is now, for the first of several processes alone to run; itself, where
    each process runs it alone in any case."""
    engine = engine_of(model)
    if not engine.together:
        return model
    alone = hollow_model(model.config, engine.family, how.dtype)
    alone.generation_config = model.generation_config
    return _bound(StreamedWeights, alone, engine.family, engine.tensors, how)


def save_streamed(
    model: Any, tokenizer: Any, folder: Path, dtype: torch.dtype, max_shard_size: str, base: Path | None, *, stock: bool
) -> Path:
    """Write what ``streamed_pruned`` gave, tensor by tensor. base: the dense model's folder, for the files that
    travel."""
    engine = engine_of(model)
    if stock:
        return save_stock_checkpoint(model, tokenizer, folder, dtype, max_shard_size, engine.tensors, base)
    return save_tensors(engine.tensors, model, engine.family, tokenizer, folder, dtype, max_shard_size, base)


def _engine(how: Streaming) -> type[WeightsAway]:
    if not how.sharded:
        return StreamedWeights
    from models.sharded import ShardedWeights  # torch's part for it takes a second to import

    return ShardedWeights


def _bound(
    engine: type[WeightsAway], model: Any, family: Any, tensors: Mapping[str, torch.Tensor], how: Streaming
) -> Any:
    engine(model, family, tensors, how.device, how.scratch, how.beside, how.saved_dtype)
    return model


class _Rounded(Mapping[str, torch.Tensor]):
    """Weights as the checkpoint will hold them: what is measured is what is delivered."""

    def __init__(self, tensors: Mapping[str, torch.Tensor], dtype: torch.dtype) -> None:
        self.tensors, self.dtype = tensors, dtype

    def __getitem__(self, name: str) -> torch.Tensor:
        tensor = self.tensors[name]
        check_tensor_range(name, tensor, self.dtype)
        return tensor.to(self.dtype)

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)
