"""Kernels of a GPU: those that reduce gradients, interpreted by Triton; what happens where none can be compiled."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from threading import Thread
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from test_importance import measured
from tiny_models import build

from core import kernels
from core.say import heard_by
from importance import reductions, removals
from importance.reductions import products_summed
from importance.removals import cheapest

KERNEL_IS_RIGHT = reductions._kernel_is_right  # tests put another in its place


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Kernels as on a GPU, interpreted (tests/conftest.py); the names of those that ran."""
    pytest.importorskip("triton")
    ran: list[str] = []
    attempt = kernels.attempt

    def noted(module: str, function: str, *arguments: Any) -> Any:
        ran.append(function)
        return attempt(module, function, *arguments)

    monkeypatch.setattr(kernels, "have", lambda _device: True)
    monkeypatch.setattr(kernels, "attempt", noted)
    monkeypatch.setattr(reductions, "_kernel_is_right", lambda *_: True)
    return ran


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Callable[[Exception], list[str]]:
    """Kernels of which each fails with a given error; the names of those that have failed for good."""

    def make(error: Exception) -> list[str]:
        class Module:
            def __getattr__(self, _name: str) -> Callable[..., Any]:
                return self.fail

            def fail(self, *_: Any) -> None:
                raise error

        reductions._kernel_is_right.cache_clear()
        failed: list[str] = []
        monkeypatch.setattr(kernels, "_FAILED", failed)
        monkeypatch.setattr(kernels, "have", lambda _device: not failed)
        monkeypatch.setattr(kernels, "import_module", lambda _name: Module())
        return failed

    return make


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dim", [1, 2])
@pytest.mark.parametrize("rows_are_neighbours", [False, True])
def test_one_reading_gives_sums_and_norms(
    compiled: list[str], dtype: torch.dtype, dim: int, rows_are_neighbours: bool
) -> None:
    """More rows than one program adds up, and sizes that no tile divides."""
    torch.manual_seed(0)
    gradient, weight = torch.randn(2, 1031, 21).to(dtype), torch.randn(1031, 21).to(dtype)
    if rows_are_neighbours:
        gradient = gradient.transpose(1, 2).contiguous().transpose(1, 2)
    sums, l1, l2 = products_summed(gradient, weight, dim, absolute=True)
    exact = gradient.double()
    np.testing.assert_allclose(sums, (exact * weight.double()).abs().sum(dim), rtol=1e-4)
    np.testing.assert_allclose(l1, exact.abs().sum((1, 2)), rtol=1e-4)
    np.testing.assert_allclose(l2, exact.square().sum((1, 2)).sqrt(), rtol=1e-4)
    inputs = torch.randn(2, 1031, 21).to(dtype)
    signed, _, _ = products_summed(gradient, inputs, dim, absolute=False)
    np.testing.assert_allclose(signed, (exact * inputs.double()).sum(dim), rtol=1e-4, atol=1e-3)
    assert compiled == ["products_summed"] * 2


@pytest.mark.parametrize("criterion", ["taylor", "fisher", "obs"])
def test_criteria_by_kernels_are_those_by_operators(
    compiled: list[str], criterion: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build("llama")
    with pytest.MonkeyPatch.context() as context:
        context.setattr(kernels, "have", lambda _device: False)
        expected = measured(model, criterion)
    monkeypatch.setattr(removals, "is_host", lambda _device: False)
    found = measured(model, criterion)
    np.testing.assert_allclose(found.values, expected.values, rtol=1e-4, atol=1e-12)
    np.testing.assert_allclose(found.gradients.norm, expected.gradients.norm, rtol=1e-4)
    assert set(compiled) == {"remove" if criterion == "obs" else "products_summed"}


def test_a_kernel_that_cannot_be_compiled_is_said_once_and_done_without(
    failing: Callable[[Exception], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = failing(RuntimeError("Failed to find C compiler"))
    monkeypatch.setattr(removals, "is_host", lambda _device: False)
    gradient, weight, matrix = torch.full((1, 2, 3), 2.0), torch.full((2, 3), -3.0), torch.eye(4, dtype=torch.float64)
    said: list[str] = []
    with heard_by(said.append):
        sums, l1, _ = products_summed(gradient, weight, 1, absolute=True)
        order = cheapest(matrix, matrix.clone(), 4).gone
    assert (sums.tolist(), l1.tolist(), order.tolist()) == ([[12.0] * 3], [12.0], [0, 1, 2, 3])
    assert failed == ["Failed to find C compiler"]
    later: list[str] = []
    with heard_by(later.append):
        kernels.remind(torch.device("cuda", 0))
        kernels.remind(torch.device("cpu"))
    assert later == said
    assert len(said) == 1
    assert "Failed to find C compiler" in said[0]


@pytest.mark.parametrize("absolute", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("wrong", [0.0, 0.01])
def test_a_kernel_that_gives_other_sums_than_operators_is_not_used(
    monkeypatch: pytest.MonkeyPatch, wrong: float, dtype: torch.dtype, absolute: bool
) -> None:
    """As could be on a card that nobody tried: the first use compares, in the dtypes of that use."""
    used: list[tuple[Any, ...]] = []

    def kernel(_module: str, _function: str, *arguments: Any) -> Any:
        gradient, factor, _, absolutes = arguments
        used.append((len(gradient), gradient.dtype, factor.dtype, absolutes))
        sums, l1, l2 = reductions._by_operators(arguments[0].clone(), *arguments[1:])
        return sums * (1 + wrong), l1, l2

    failed: list[str] = []
    monkeypatch.setattr(kernels, "_FAILED", failed)
    monkeypatch.setattr(kernels, "have", lambda _device: not failed)
    monkeypatch.setattr(kernels, "attempt", kernel)
    reductions._kernel_is_right.cache_clear()
    said: list[str] = []
    with heard_by(said.append):
        sums, _, _ = products_summed(torch.full((1, 2, 3), 2.0), torch.ones(2, 3, dtype=dtype), 1, absolute=absolute)
    reductions._kernel_is_right.cache_clear()
    assert sums.tolist() == [[4.0] * 3]
    assert [windows for windows, *_ in used] == ([2, 2, 1] if wrong == 0 else [2])
    assert {tuple(kind) for _, *kind in used} == {(torch.float32, dtype, absolute)}
    assert [("other sums" in line) for line in said] == ([True] if wrong else [])


@pytest.mark.parametrize("absolute", [True, False])
@pytest.mark.parametrize("dtypes", [(torch.float32, torch.bfloat16), (torch.bfloat16, torch.bfloat16)])
def test_the_kernel_passes_its_own_trial(
    compiled: list[str], dtypes: tuple[torch.dtype, torch.dtype], absolute: bool
) -> None:
    assert KERNEL_IS_RIGHT.__wrapped__(torch.device("cpu"), *dtypes, absolute)
    assert compiled == ["products_summed"] * 2


def test_memory_that_does_not_suffice_is_no_fault_of_the_kernels(failing: Callable[[Exception], list[str]]) -> None:
    failed = failing(torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(torch.OutOfMemoryError):
        products_summed(torch.ones(1, 2, 3), torch.ones(2, 3), 1, absolute=False)
    assert failed == []


def test_a_gradient_that_is_read_once_comes_in_larger_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reductions, "PIECE_BYTES", 100)
    monkeypatch.setattr(reductions, "PIECE_BYTES_READ_ONCE", 300)
    pieces = partial(reductions.piece_rows, 6, 100, torch.device("meta"))
    assert len(pieces(read_once=True)) == 6
    monkeypatch.setattr(kernels, "have", lambda _device: True)
    assert len(pieces(read_once=True)) == 2
    assert len(pieces(read_once=False)) == 6


@pytest.mark.parametrize(("criterion", "once"), [("taylor", True), ("taylor_2nd", False)])
def test_larger_pieces_are_for_those_who_read_them_once(
    monkeypatch: pytest.MonkeyPatch, criterion: str, once: bool
) -> None:
    asked: set[bool] = set()

    def noted(rows: int, *_: Any, read_once: bool) -> list[range]:
        asked.add(read_once)
        return [range(rows)]

    monkeypatch.setattr("importance.taylor.piece_rows", noted)
    measured(build("llama"), criterion)
    assert asked == {once}


@pytest.mark.parametrize("criterion", ["taylor", "fisher"])
def test_what_hooks_say_in_a_thread_of_autograd_is_heard(
    monkeypatch: pytest.MonkeyPatch, failing: Callable[[Exception], list[str]], criterion: str
) -> None:
    """On a GPU backward calls hooks in a thread of each device, where nobody listens."""
    failing(RuntimeError("Failed to find C compiler"))
    backward = torch.Tensor.backward

    def elsewhere(*given: Any) -> None:
        thread = Thread(target=backward, args=given)
        thread.start()
        thread.join()

    monkeypatch.setattr(torch.Tensor, "backward", elsewhere)
    said: list[str] = []
    with heard_by(said.append):
        measured(build("llama"), criterion)
    assert [line for line in said if "Failed to find C compiler" in line] == said[:1] != []


def test_kernels_are_launched_on_the_gpu_of_their_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton launches on the current one, which is another where a model's layers lie on several."""
    current: list[torch.device] = []

    @contextmanager
    def becomes(device: torch.device) -> Iterator[None]:
        current.append(device)
        yield
        current.pop()

    monkeypatch.setattr(torch.cuda, "device", becomes)
    monkeypatch.setattr(
        kernels, "import_module", lambda _name: SimpleNamespace(launch=lambda _tensor: [str(one) for one in current])
    )
    tensor = SimpleNamespace(device=torch.device("cuda:1"))
    assert kernels.attempt("module", "launch", tensor) == ["cuda:1"]
    assert current == []
