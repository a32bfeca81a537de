"""The kernel that removes inputs on a GPU, interpreted by Triton; what happens where it cannot be compiled."""

from types import ModuleType

import pytest
import torch

from benchmarks.elimination import problem
from core.say import heard_by
from importance import removals
from importance.removals import Removals, cheapest


@pytest.fixture
def kernels() -> ModuleType:
    """tests/conftest.py has told Triton to interpret."""
    pytest.importorskip("triton")
    from importance import removal_kernels

    return removal_kernels


def matrices(inputs: int, outputs: int) -> tuple[torch.Tensor, torch.Tensor]:
    """H^-1, whose rows lie further apart than they are long, as those of what an earlier block left; G."""
    moment, weight = problem(inputs, outputs)
    inverse = torch.empty(inputs, inputs + 3, dtype=torch.float64)[:, :inputs]
    inverse.copy_(torch.linalg.inv(moment.double() + 0.01 * torch.eye(inputs)))
    return inverse, weight.T @ weight


@pytest.mark.parametrize(("inputs", "size"), [(40, 40), (70, 21), (1, 1)])
def test_the_kernel_removes_what_operators_remove(kernels: ModuleType, inputs: int, size: int) -> None:
    """Several programs, the last one with columns to spare; more removals than are read at a time."""
    inverse, gram = matrices(inputs, outputs=9)
    expected, found = cheapest(inverse, gram, size), Removals.room_for(size, gram)
    kernels.remove(inverse, gram, found)
    assert torch.equal(found.gone, expected.gone)
    for name in ("cost", "pivots", "s", "h"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=1e-9, atol=1e-12)


def test_of_equal_inputs_the_lowest_goes_first(kernels: ModuleType) -> None:
    """Nothing stands in for anything; the equal ones lie in different programs."""
    gram = torch.diag(torch.tensor([2.0, 1.0, *[2.0] * 64, 1.0], dtype=torch.float64))
    found = Removals.room_for(3, gram)
    kernels.remove(torch.eye(len(gram), dtype=torch.float64), gram, found)
    assert found.gone.tolist() == [1, 66, 0]


def test_a_kernel_that_cannot_be_compiled_is_said_and_done_without(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_compiler(*_: object) -> None:
        raise RuntimeError("Failed to find C compiler")

    tried = [no_compiler]
    monkeypatch.setattr(removals, "is_host", lambda _device: False)
    monkeypatch.setattr(removals, "_kernels", lambda: tried)
    inverse, gram = matrices(12, outputs=4)
    said: list[str] = []
    with heard_by(said.append):
        found = [cheapest(inverse, gram, 12).gone.tolist() for _ in range(2)]
    assert found[0] == found[1]
    assert len(said) == 1
    assert "Failed to find C compiler" in said[0]


def test_memory_that_does_not_suffice_is_no_fault_of_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    def too_large(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    tried = [too_large]
    monkeypatch.setattr(removals, "is_host", lambda _device: False)
    monkeypatch.setattr(removals, "_kernels", lambda: tried)
    with pytest.raises(torch.OutOfMemoryError):
        cheapest(*matrices(12, outputs=4), 12)
    assert tried == [too_large]
