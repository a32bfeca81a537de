"""What surrounds a capture, on a GPU that is not there."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from core import graphs
from core.graphs import CannotCaptureError, Captured, worth_capturing

CARD = torch.device("cuda", 0)
WAIT = "called a synchronizing CUDA operation"


class Card:
    """What is done with it, in order."""

    def __init__(self) -> None:
        self.steps: list[str] = []
        self.mode: int | str = 0

    def waits(self, file: str) -> None:
        if self.mode == "warn":
            warnings.warn_explicit(WAIT, UserWarning, file, 7)

    def step(self, name: str) -> Callable[..., None]:
        return lambda *_, **__: self.steps.append(name)


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Iterator[Card]:
    found = Card()

    class Graph:
        def capture_begin(self, **_: Any) -> None:
            found.steps.append("begin")

        def capture_end(self) -> None:
            found.steps.append("end")
            if "broken" in found.steps:
                raise RuntimeError("capture was invalidated")

        def replay(self) -> None:
            found.steps.append("replay")

    stream = SimpleNamespace(wait_stream=lambda _other: None)
    current = SimpleNamespace(wait_stream=lambda _other: found.steps.append("go on"))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _device: current)
    monkeypatch.setattr(torch.cuda, "stream", lambda _stream: nullcontext())
    monkeypatch.setattr(torch.cuda, "empty_cache", found.step("empty"))
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: found.mode)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", lambda mode: setattr(found, "mode", mode))
    monkeypatch.setattr(graphs, "_stream", lambda _device: stream)
    yield found
    graphs._BROKEN.clear()


def test_work_is_warmed_up_captured_and_replayed(card: Card) -> None:
    graph = Captured(card.step("work"), CARD, card.step("warm up"))
    assert card.steps == ["warm up", "warm up", "empty", "begin", "work", "end", "go on"]
    graph.replay()
    assert card.steps[-1] == "replay"
    assert worth_capturing(CARD)
    assert not worth_capturing(torch.device("cpu"))


def test_work_that_waits_is_not_captured_and_nothing_is_broken(card: Card) -> None:
    with pytest.raises(CannotCaptureError, match=r"waits for the device in modeling_rope_utils.py:7"):
        Captured(card.step("work"), CARD, lambda: card.waits("modeling_rope_utils.py"))
    assert card.steps == ["go on"]
    assert card.mode == 0
    assert worth_capturing(CARD)


def test_what_waits_only_the_first_time_is_captured(card: Card) -> None:
    """transformers sends the length of a cache to the device when the first token comes."""
    files = iter(["cache_utils.py"])

    def first_waits() -> None:
        for file in files:
            warnings.warn_explicit(WAIT, UserWarning, file, 7)
            return

    Captured(card.step("work"), CARD, first_waits, takes_memory=False)
    assert card.steps == ["begin", "work", "end", "go on"]


def test_what_transformers_does_not_ask_while_capturing_is_no_wait(card: Card) -> None:
    Captured(card.step("work"), CARD, lambda: card.waits("/somewhere/masking_utils.py"), takes_memory=False)
    assert card.steps == ["begin", "work", "end", "go on"]


def test_a_broken_capture_is_the_last_and_says_why(card: Card) -> None:
    def broken() -> None:
        card.steps.append("broken")
        raise RuntimeError("operation not permitted when stream is capturing")

    with pytest.raises(RuntimeError, match="not permitted"):
        Captured(broken, CARD, card.step("warm up"))
    assert card.steps[-3:] == ["broken", "end", "go on"]
    assert not worth_capturing(CARD)


def test_memory_that_runs_out_breaks_nothing(card: Card) -> None:
    def crowded() -> None:
        raise torch.OutOfMemoryError("not that much")

    with pytest.raises(torch.OutOfMemoryError):
        Captured(crowded, CARD, card.step("warm up"))
    assert card.steps[-2:] == ["end", "go on"]
    assert worth_capturing(CARD)
