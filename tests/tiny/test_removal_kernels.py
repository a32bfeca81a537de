"""The kernel that removes inputs on a GPU, interpreted by Triton."""

from types import ModuleType

import numpy as np
import pytest
import torch

from benchmarks.elimination import problem
from core import kernels
from importance import elimination, removals
from importance.elimination import eliminate
from importance.removals import Room, cheapest


@pytest.fixture
def by_triton() -> ModuleType:
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
def test_the_kernel_removes_what_operators_remove(by_triton: ModuleType, inputs: int, size: int) -> None:
    """Several programs, the last one with columns to spare; more removals than are read at a time."""
    inverse, gram = matrices(inputs, outputs=9)
    expected, room = cheapest(inverse, gram, size), Room(size, gram)
    assert by_triton.remove(inverse, gram, room, size)
    found = room.of(size, inputs)
    assert torch.equal(found.gone, expected.gone)
    for name in ("cost", "pivots", "s", "h"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=1e-9, atol=1e-12)


def test_rows_that_lie_side_by_side_are_as_good(by_triton: ModuleType) -> None:
    """As ``torch.linalg.inv`` leaves them."""
    inverse, gram = matrices(20, outputs=9)
    expected, room = cheapest(inverse, gram, 20), Room(20, gram)
    by_triton.remove(inverse.T, gram.T, room, 20)
    assert torch.equal(room.gone, expected.gone)
    torch.testing.assert_close(room.cost, expected.cost, rtol=1e-9, atol=1e-12)


def test_of_equal_inputs_the_lowest_goes_first(by_triton: ModuleType) -> None:
    """Nothing stands in for anything; the equal ones lie in different programs."""
    gram = torch.diag(torch.tensor([2.0, 1.0, *[2.0] * 64, 1.0], dtype=torch.float64))
    room = Room(3, gram)
    by_triton.remove(torch.eye(len(gram), dtype=torch.float64), gram, room, 3)
    assert room.gone.tolist() == [1, 66, 0]


@pytest.fixture
def on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its way, done here, from the first block of a process on."""
    pytest.importorskip("triton")
    for module in (elimination, removals):
        monkeypatch.setattr(module, "is_host", lambda _device: False)
    monkeypatch.setattr(kernels, "have", lambda _device: True)
    monkeypatch.setattr(removals, "COMPARED", set())


@pytest.mark.usefixtures("on_a_gpu")
@pytest.mark.parametrize("wrong", [0.0, 1e-3])
def test_kernels_that_remove_other_inputs_than_operators_are_not_used(
    monkeypatch: pytest.MonkeyPatch, wrong: float
) -> None:
    """As could be on a card that nobody tried: the first block compares, and those after it do not."""
    inverse, gram = matrices(60, outputs=9)
    given_up: list[str] = []
    attempts: list[int] = []

    def attempt(_module: str, _function: str, inverse: torch.Tensor, gram: torch.Tensor, room: Room, size: int) -> bool:
        removals._on_device(inverse, gram, room.of(size, len(gram)))
        room.cost.mul_(1 + wrong)
        attempts.append(size)
        return True

    expected = Room(40, gram).of(40, len(gram))
    removals._on_device(inverse, gram, expected)
    monkeypatch.setattr(kernels, "attempt", attempt)
    monkeypatch.setattr(kernels, "give_up", given_up.append)
    found = [cheapest(inverse, gram, 40) for _ in range(2)]
    assert len(attempts) == 2
    assert bool(given_up) == bool(wrong)
    assert len(removals.COMPARED) == (not wrong)
    for block in found:
        torch.testing.assert_close(block.cost, expected.cost)


@pytest.mark.parametrize("inputs", [48, 53])  # blocks alone, and blocks with a rest
def test_blocks_follow_one_another_in_one_room(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, inputs: int
) -> None:
    """The launches know no size: each block reads how many inputs are left, and fewer programs have any."""
    moment, weight = problem(inputs, outputs=9)
    expected = eliminate(moment, weight, 1)
    request.getfixturevalue("on_a_gpu")
    monkeypatch.setattr(elimination, "BLOCK_ON_GPU", 16)
    found = eliminate(moment, weight, 1)
    assert found.order.tolist() == expected.order.tolist()
    np.testing.assert_allclose(found.cost, expected.cost, rtol=1e-9)
