"""Greedy removal with refit: worked out by hand, by brute-force least squares, in blocks of removals, made convex."""

from itertools import permutations
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks import elimination as benchmark
from core import symmetric
from importance import elimination, removals
from importance.elimination import Elimination, convex, eliminate, in_order


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The way of a GPU, done here: removals by operators alone, products whole."""
    monkeypatch.setattr(removals, "is_host", lambda _device: False)
    monkeypatch.setattr(symmetric, "halves_pay", lambda _device: False)


@pytest.fixture(params=["cpu", "gpu"])
def either_way(request: pytest.FixtureRequest) -> None:
    if request.param == "gpu":
        request.getfixturevalue("as_on_a_gpu")


def problem(tokens: int = 40, inputs: int = 8, outputs: int = 5, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Correlated inputs X float64 (tokens, inputs), and a weight (outputs, inputs)."""
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.randn(inputs, inputs, generator=generator, dtype=torch.float64) + 2 * torch.eye(inputs)
    x = torch.randn(tokens, inputs, generator=generator, dtype=torch.float64) @ mixed
    return x, torch.randn(outputs, inputs, generator=generator, dtype=torch.float64)


def refit_error(x: torch.Tensor, weight: torch.Tensor, gone: list[int]) -> float:
    """E|Wx - Ux|^2 with the best U on the inputs that stay, by an independent least-squares solver."""
    target = x @ weight.T
    stays = [j for j in range(x.shape[1]) if j not in gone]
    if not stays:
        return float(target.square().sum() / len(x))
    best = np.linalg.lstsq(x[:, stays].numpy(), target.numpy(), rcond=None)[0]
    return float(np.square(target.numpy() - x[:, stays].numpy() @ best).sum() / len(x))


def test_two_inputs_by_hand() -> None:
    """H = [[2, 1], [1, 2]], V = [3, 4]. H^-1 = [[2, -1], [-1, 2]] / 3, so removing one costs V_j^2 / (2/3):
    9 * 1.5 = 13.5 or 16 * 1.5 = 24. Input 0 goes; the other becomes 4 + 3 * H_01 / H_11 = 5.5 and costs
    5.5^2 * H_11 = 60.5. Together 74 = V H V^T = 9*2 + 2*12*1 + 16*2."""
    moment = torch.tensor([[2.0, 1.0], [1.0, 2.0]])
    found = eliminate(moment, torch.tensor([[3.0, 4.0]]), 1, ridge=0.0)
    assert found.order.tolist() == [0, 1]
    np.testing.assert_allclose(found.cost, [13.5, 60.5])


def test_uncorrelated_inputs_cost_what_they_carry() -> None:
    """H diagonal: nothing stands in for anything, the cost is h_j * |V_j|^2: 4*1, 1*9, 2*2, and 0 for a dead one.
    Inputs 0 and 2 tie: the lower index goes first."""
    moment = torch.diag(torch.tensor([4.0, 1.0, 2.0, 3.0]))
    weight = torch.tensor([[1.0, 3.0, 1.0, 0.0], [0.0, 0.0, 1.0, 0.0]])
    found = eliminate(moment, weight, 1, ridge=0.0)
    assert found.order.tolist() == [3, 0, 2, 1]
    np.testing.assert_allclose(found.cost, [0, 4, 4, 9], atol=1e-12)


def test_the_ridge_is_a_share_of_the_mean_diagonal() -> None:
    """H = diag(1, 3), mean 2, a quarter of it 0.5: costs 1.5 * 1 and 3.5 * 1."""
    found = eliminate(torch.diag(torch.tensor([1.0, 3.0])), torch.ones(1, 2), 1, ridge=0.25)
    np.testing.assert_allclose(found.cost, [1.5, 3.5])


@pytest.mark.parametrize(("run", "seed"), [(1, 0), (1, 1), (2, 2), (4, 3)])
def test_costs_add_up_to_the_error_of_the_best_refit(run: int, seed: int) -> None:
    x, weight = problem(seed=seed)
    found = eliminate(x.T @ x / len(x), weight, run, ridge=0.0)
    assert sorted(found.order) == list(range(8 // run))
    for count in range(1, len(found.order) + 1):
        gone = [group * run + j for group in found.order[:count] for j in range(run)]
        assert found.cost[:count].sum() == pytest.approx(refit_error(x, weight, gone), rel=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_every_step_is_the_cheapest_by_brute_force(seed: int) -> None:
    x, weight = problem(inputs=6, seed=seed)
    order: list[int] = []
    while len(order) < 6:
        rest = [j for j in range(6) if j not in order]
        order.append(min(rest, key=lambda j: refit_error(x, weight, [*order, j])))
    assert eliminate(x.T @ x / len(x), weight, 1, ridge=0.0).order.tolist() == order


def test_a_combination_of_others_goes_for_nothing_and_then_they_are_dear() -> None:
    x, weight = problem()
    x[:, 3] = x[:, 1] - 2 * x[:, 6]
    found = eliminate(x.T @ x / len(x), weight, 1, ridge=1e-9)
    assert found.order[0] in (1, 3, 6)
    assert found.cost[0] < 1e-6 * found.cost[1]
    assert found.cost[0] >= 0


def one_at_a_time(moment: torch.Tensor, weight: torch.Tensor, ridge: float) -> tuple[list[int], list[float]]:
    """The definition, with the outputs themselves refitted and both matrices updated after each removal."""
    hessian = moment + ridge * moment.diagonal().mean() * torch.eye(len(moment), dtype=torch.float64)
    inverse, u, left = torch.linalg.inv(hessian), weight.clone(), list(range(len(moment)))
    order, cost = [], []
    while left:
        errors = u.square().sum(0) / inverse.diagonal()
        c = int(errors.argmin())
        order.append(left.pop(c))
        cost.append(float(errors[c]))
        s = inverse[c] / inverse[c, c]
        stays = [j for j in range(len(s)) if j != c]
        u = (u - u[:, c : c + 1] * s)[:, stays]
        inverse = (inverse - torch.outer(inverse[c], s))[stays][:, stays]
    return order, cost


@pytest.mark.usefixtures("either_way")
@pytest.mark.parametrize("inputs", [64, 129, 300, 512])  # one block of removals, and several, and a rest
@pytest.mark.parametrize("tokens", [40, 2000])  # fewer tokens than inputs: the ridge alone makes H regular
def test_blocks_of_removals_equal_one_at_a_time(inputs: int, tokens: int) -> None:
    x, weight = problem(tokens=tokens, inputs=inputs, outputs=12)
    moment = x.T @ x / len(x)
    order, cost = one_at_a_time(moment, weight, 0.01)
    found = eliminate(moment, weight, 1)
    assert found.order.tolist() == order
    np.testing.assert_allclose(found.cost, cost, rtol=1e-10, atol=1e-10 * max(cost))


@pytest.mark.usefixtures("either_way")
def test_equal_inputs_go_by_index_in_every_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """Uncorrelated inputs that cost 1, 2, 1, 2, ...: all ones by index, then all twos, whatever the blocks."""
    monkeypatch.setattr(elimination, "BLOCK", 3)
    monkeypatch.setattr(elimination, "BLOCK_ON_GPU", 3)
    found = eliminate(torch.eye(10), torch.tensor([[1.0, 2.0**0.5] * 5]), 1, ridge=0.0)
    assert found.order.tolist() == [0, 2, 4, 6, 8, 1, 3, 5, 7, 9]
    np.testing.assert_allclose(found.cost, [1] * 5 + [2] * 5)


@pytest.mark.usefixtures("either_way")
def test_dead_inputs_go_first_and_for_nothing() -> None:
    """Inputs without moment and without weight: rounding never makes a cost negative."""
    x, weight = problem(tokens=200, inputs=32)
    x[:, 5], weight[:, 9] = 0, 0
    x[:, 9] = 0
    found = eliminate(x.T @ x / len(x), weight, 1)
    assert set(found.order[:2]) == {5, 9}
    assert (found.cost >= 0).all()


@pytest.mark.usefixtures("as_on_a_gpu")
@pytest.mark.parametrize("run", [1, 4])
def test_no_removal_waits_for_the_host(run: int) -> None:
    """Operators that hand a value to Python: as many for 64 inputs as for 256, none of them in the loop."""

    class Counter(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.count += function in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
            return function(*args, **(kwargs or {}))

    counts = []
    for inputs in (64, 256):
        x, weight = problem(tokens=300, inputs=inputs)
        with Counter() as counter:
            eliminate(x.T @ x, weight, run)
        counts.append(counter.count)
    assert counts == [0, 0]


@pytest.mark.usefixtures("as_on_a_gpu")
def test_a_removal_costs_few_operators() -> None:
    """Each is a kernel on a GPU, where thousands of removals take as long as their launches."""

    class Counter(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.count += not function.is_view
            return function(*args, **(kwargs or {}))

    counts = []
    for inputs in (2 * elimination.BLOCK_ON_GPU, 4 * elimination.BLOCK_ON_GPU):
        x, weight = problem(tokens=600, inputs=inputs)
        with Counter() as counter:
            eliminate(x.T @ x, weight, 1)
        counts.append(counter.count)
    assert (counts[1] - counts[0]) / (2 * elimination.BLOCK_ON_GPU) < 24


@pytest.mark.parametrize("halves", [True, False])
@pytest.mark.parametrize("n", [1, 5, 40, 301])
def test_symmetric_products_and_inverses_in_panels(monkeypatch: pytest.MonkeyPatch, n: int, halves: bool) -> None:
    """Panels of 16 rows at least; the inverse by halves down to 8. Beside its panels a product is exactly symmetric."""
    monkeypatch.setattr(symmetric, "LEAST_ROWS", 16)
    monkeypatch.setattr(symmetric, "halves_pay", lambda _device: halves)
    x, _ = problem(tokens=n + 60, inputs=n)
    found = symmetric.add_product(torch.eye(n, dtype=torch.float64), x, x, alpha=0.5)
    expected = torch.eye(n, dtype=torch.float64) + 0.5 * x.T @ x
    torch.testing.assert_close(found, expected)
    inverse = symmetric.invert(found.clone(), least=8)
    torch.testing.assert_close(inverse, torch.linalg.inv(expected), rtol=1e-8, atol=1e-12)
    if halves:
        below = torch.ones(n, n, dtype=torch.bool).tril(-max(16, -(-n // 6)))
        assert torch.equal(found[below], found.T[below])


def test_what_has_no_inverse_is_refused() -> None:
    with pytest.raises(RuntimeError, match="positive-definite"):
        symmetric.invert(-torch.eye(4, dtype=torch.float64), least=2)


def test_the_benchmark_tells_the_time_of_one_block(capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.setattr(benchmark, "SIDE", 64)
    assert benchmark.main(["--inputs", "40", "--outputs", "6"]) == 0
    assert capsys.readouterr().out.startswith("40 inputs, 6 outputs: 0.0")


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_the_unit_of_the_inputs_changes_no_order(scale: float) -> None:
    x, weight = problem()
    found, scaled = (eliminate(factor * x.T @ x, weight, 1) for factor in (1.0, scale))
    assert found.order.tolist() == scaled.order.tolist()
    np.testing.assert_allclose(scaled.cost, scale * found.cost, rtol=1e-9)


def test_the_moment_is_not_changed_and_a_zero_one_is_no_error() -> None:
    x, weight = problem()
    moment = x.T @ x
    before = moment.clone()
    eliminate(moment, weight, 1)
    assert torch.equal(moment, before)
    found = eliminate(torch.zeros(8, 8), torch.zeros(5, 8), 2)
    assert found.order.tolist() == [0, 1, 2, 3]
    assert found.cost.tolist() == [0, 0, 0, 0]


def test_convex_pools_what_falls() -> None:
    """3 1 pools to 2 2; then 5 4 3 to 4 4 4; 6 stays. A 0 at the end pulls 6, 3, 4 and 5 down to
    18 / 5."""
    np.testing.assert_allclose(convex(np.array([3.0, 1, 5, 4, 3, 6])), [2, 2, 4, 4, 4, 6])
    np.testing.assert_allclose(convex(np.array([3.0, 1, 5, 4, 3, 6, 0])), [2, 2, 3.6, 3.6, 3.6, 3.6, 3.6])
    np.testing.assert_allclose(convex(np.array([1.0, 2, 2, 8])), [1, 2, 2, 8])


def test_convex_is_the_largest_convex_minorant_of_the_running_sum() -> None:
    cost = np.random.default_rng(0).exponential(size=40).cumsum() + np.random.default_rng(1).exponential(9, size=40)
    pooled = convex(cost)
    assert (np.diff(pooled) >= -1e-12).all()
    total = np.concatenate([[0], np.cumsum(cost)])
    under = [
        min(total[i] + (total[j] - total[i]) * (k - i) / (j - i) for i in range(k + 1) for j in range(k, 41) if i < j)
        for k in range(41)
    ]
    np.testing.assert_allclose(np.concatenate([[0], np.cumsum(pooled)]), under, rtol=1e-9, atol=1e-9)


def test_values_rank_in_the_order_of_removal_also_where_pooled() -> None:
    for order in permutations(range(4)):
        values = in_order(Elimination(np.array(order), np.array([3.0, 1.0, 2.0, 7.0])))
        assert np.argsort(values, kind="stable").tolist() == list(order)
        np.testing.assert_allclose(values[list(order)], [2, 2, 2, 7])
