"""Where a model's weights live while it is worked on. Whoever measures asks the engine for layers, and no more.

    resident   all weights are in the model, on its devices
    streamed   a layer's weights come when the layer is visited and go when the next one is (``models/streamed.py``)
    sharded    the same, and each of several processes holds a part of every layer meanwhile (``models/sharded.py``)

A streamed model is an ordinary module too: a module whose weights are not at hand fetches them for the time of its own
forward. So whatever runs a whole model works with it as with a resident one, and whatever visits layers works at any
size. A sharded model runs only by visits, which all processes make in the same order.
"""

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from core.memory import has_room

_ATTRIBUTE = "_global_pruning_engine"


class Engine:
    """All weights in the model: nothing comes, nothing goes.

    streams: whether layers must be visited for their weights to be at hand. family: of the model, and tensors: its
    weights by name, each read when it is asked for; both where it streams. together: whether all processes visit the
    same layers at the same time. device: where a batch is sent.
    """

    streams = together = False
    family: Any = None
    tensors: Any = None

    def __init__(self, model: Any) -> None:
        self.model = model

    @property
    def device(self) -> Any:
        return next(self.model.parameters()).device

    def visit(self, layers: Iterable[int]) -> Iterator[int]:
        """Each of these layers in turn, its weights at hand until the next one is asked for."""
        yield from layers

    def keeping(self, module: Any) -> AbstractContextManager[None]:
        """Inside, embeddings or head, whichever ``module`` is, may run: it, like any module outside the layers, holds
        on to the weights it fetched."""
        return nullcontext()

    def begins_sweep(self, *, is_late: bool = False) -> bool:
        """Where processes make different numbers of sweeps: said before each of them. Whether any process is late, of
        those that visit layers together."""
        return False

    def takes_part(self) -> bool:
        """Where processes make different numbers of sweeps: said after the last of them. Visits layers along with the
        others until none sweeps any more; False where one of them is late."""
        return True

    def at_hand(self, module: Any) -> AbstractContextManager[None]:
        """Inside, a module outside the layers has its weights."""
        return nullcontext()

    def changed(self, modules: Iterable[Any]) -> None:
        """The weights of these modules of the layer being visited are others now, and stay so."""

    def let_go(self) -> None:
        """The model is not run again; of its weights only ``tensors`` are asked for."""

    @contextmanager
    def restoring(self, parameters: Iterable[Any]) -> Iterator[None]:
        """Afterwards these weights, and whatever else was ``changed`` inside, are what they were; meanwhile they rest
        on the device, where they have room."""
        import torch

        touched, device = list(parameters), self.device
        stay = self.has_room(sum(parameter.nbytes for parameter in touched), device)
        before = [parameter.detach().to(parameter.device if stay else "cpu", copy=True) for parameter in touched]
        try:
            yield
        finally:
            with torch.no_grad():
                for parameter, values in zip(touched, before, strict=True):
                    parameter.copy_(values)

    def has_room(self, needed_bytes: int, device: Any, beside: int = 0) -> bool:
        """Whether so much may rest on a device beside the work, of which ``beside`` bytes are known."""
        return has_room(needed_bytes, device, beside)

    def fits(self, needed_bytes: int) -> bool:
        """Whether so much can rest anywhere at all: on the device, in main memory or in files."""
        return True

    def scratch_for(self, needed_bytes: int) -> Path | None:
        """The folder whose files are to hold so much that has no room on the device; None: main memory is."""
        return None


def engine_of(model: Any) -> Engine:
    """The engine that brought a model's weights; a model that nobody bound to one holds them itself."""
    found = getattr(model, _ATTRIBUTE, None)
    return found if isinstance(found, Engine) else Engine(model)


def bind(model: Any, engine: Engine) -> None:
    """From now on ``engine_of(model)`` is this one."""
    object.__setattr__(model, _ATTRIBUTE, engine)
