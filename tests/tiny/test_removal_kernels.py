"""The kernel that removes inputs on a GPU, interpreted by Triton."""

from types import ModuleType

import pytest
import torch

from benchmarks.elimination import problem
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


def test_rows_that_lie_side_by_side_are_as_good(kernels: ModuleType) -> None:
    """As ``torch.linalg.inv`` leaves them."""
    inverse, gram = matrices(20, outputs=9)
    expected, found = cheapest(inverse, gram, 20), Removals.room_for(20, gram)
    kernels.remove(inverse.T, gram.T, found)
    assert torch.equal(found.gone, expected.gone)
    torch.testing.assert_close(found.cost, expected.cost, rtol=1e-9, atol=1e-12)


def test_of_equal_inputs_the_lowest_goes_first(kernels: ModuleType) -> None:
    """Nothing stands in for anything; the equal ones lie in different programs."""
    gram = torch.diag(torch.tensor([2.0, 1.0, *[2.0] * 64, 1.0], dtype=torch.float64))
    found = Removals.room_for(3, gram)
    kernels.remove(torch.eye(len(gram), dtype=torch.float64), gram, found)
    assert found.gone.tolist() == [1, 66, 0]
