"""Graphs of a GPU, done here: what would be replayed is computed again, with masks as transformers makes them there."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers.masking_utils


class Replayed:
    """In place of ``core.graphs.Captured``."""

    captures = 0
    result: Any = None

    def __init__(self, work: Callable[[], Any], device: torch.device, warm_up: Callable[[], object]) -> None:
        warm_up()
        self.work = work
        Replayed.captures += 1

    def replay(self) -> None:
        with pytest.MonkeyPatch.context() as context:
            context.setattr(transformers.masking_utils, "is_tracing", lambda _tensor=None: True)
            self.result = self.work()


@pytest.fixture
def as_captured(monkeypatch: pytest.MonkeyPatch) -> type[Replayed]:
    """Inside, launches are dear."""
    from core import one_at_a_time
    from pruning.recovery import captured_step, trainer

    Replayed.captures = 0
    for module in (one_at_a_time, trainer):
        monkeypatch.setattr(module, "launches_are_dear", lambda _device: True)
    for module in (one_at_a_time, captured_step):
        monkeypatch.setattr(module, "Captured", Replayed)
    return Replayed
