"""What criteria do on a GPU, done here: halves multiplied as they are, sums that cast as they read, gradients in
pieces, several windows a pass. Only speed differs there, so results are those of a CPU."""

import warnings
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from operators import Operators
from test_importance import IDS, measured
from tiny_models import build, windows_of

from calibration import self_text
from core import products
from core.batching import busy_tokens, is_out_of_memory
from core.errors import UsageError
from core.ranks import Ranks
from core.sampling import drawn_tokens
from evaluation.seeding import seeded
from importance import obs_moments, over_windows, passes, reductions
from importance.obs_moments import MomentMeter
from importance.passes import Backward, Batch, Forward
from importance.reductions import column_squares, piece_rows, sums_of_absolutes, times, window_norms
from importance.sums import rows_at_a_time
from models.architecture import architecture_of
from models.family_table import family_of
from models.loading import choose_device

BF16 = torch.bfloat16


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> list[torch.dtype]:
    """dtypes of the operands that tensor cores would have multiplied. Pieces hold 2,048 values."""
    multiplied: list[torch.dtype] = []

    def exact(a: torch.Tensor, b: torch.Tensor, out_dtype: torch.dtype | None = None) -> torch.Tensor:
        assert a.dtype == b.dtype
        multiplied.append(a.dtype)
        return a.float() @ b.float()

    monkeypatch.setattr(products, "multiplies_halves", lambda _device: True)
    monkeypatch.setattr(obs_moments, "multiplies_halves", lambda _device: True)
    monkeypatch.setattr(products, "half_products", exact)
    monkeypatch.setattr(products, "half_product", exact)
    monkeypatch.setattr(obs_moments, "half_product", exact)
    monkeypatch.setattr(reductions, "reads_are_dear", lambda _device: True)
    monkeypatch.setattr(reductions, "PIECE_BYTES", 8192)
    return multiplied


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)


@pytest.mark.parametrize("name", ["llama", "llama-biased-tied-mha", "phi3"])
@pytest.mark.parametrize("criterion", ["taylor", "taylor_2nd"])
def test_windows_share_a_pass_and_gradients_come_in_pieces(
    as_on_a_gpu: list[torch.dtype], name: str, criterion: str
) -> None:
    model = build(name)
    with pytest.MonkeyPatch.context() as context:
        context.setattr(reductions, "reads_are_dear", lambda _device: False)
        alone = measured(model, criterion, batch_size=1)
    together = measured(model, criterion, batch_size=3)
    np.testing.assert_allclose(together.values, alone.values, rtol=1e-4)
    np.testing.assert_allclose(together.halves, alone.halves, rtol=1e-4)
    for field in ("mean", "norm", "min", "max"):
        one, other = (getattr(found.gradients, field) for found in (together, alone))
        np.testing.assert_allclose(one, other, rtol=1e-4)


def test_on_a_cpu_a_window_has_its_own_pass_unless_asked(llama: Any) -> None:
    alone, unasked = measured(llama, "taylor", batch_size=1), measured(llama, "taylor")
    np.testing.assert_array_equal(alone.values, unasked.values)


def test_a_sum_of_gradients_comes_in_pieces_too(as_on_a_gpu: list[torch.dtype], llama: Any) -> None:
    found = measured(llama, "taylor", gradient_reduction="sum", batch_size=4)
    as_on_a_gpu.clear()
    with pytest.MonkeyPatch.context() as context:
        context.setattr(reductions, "reads_are_dear", lambda _device: False)
        np.testing.assert_allclose(found.values, measured(llama, "taylor", gradient_reduction="sum").values, rtol=1e-4)


@pytest.mark.parametrize("criterion", ["taylor", "fisher", "obs"])
def test_halves_are_multiplied_as_they_are_with_the_same_result(as_on_a_gpu: list[torch.dtype], criterion: str) -> None:
    model = build("llama", std=0.1).to(BF16)
    with pytest.MonkeyPatch.context() as context:
        context.setattr(reductions, "reads_are_dear", lambda _device: False)
        for module in (products, obs_moments):
            context.setattr(module, "multiplies_halves", lambda _device: False)
        cast = measured(model, criterion)
    found = measured(model, criterion)
    np.testing.assert_allclose(found.values, cast.values, rtol=1e-3)
    assert (set(as_on_a_gpu) == {BF16}) == (criterion != "fisher")


def test_fused_sums_equal_those_in_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(3, 7, 5, generator=generator).to(BF16) for _ in range(2))
    assert torch.equal(times(a, b), a.float() * b.float())
    l1, l2 = window_norms(a)
    torch.testing.assert_close(l1.double(), a.double().abs().sum((1, 2)))
    torch.testing.assert_close(l2.double(), a.double().square().sum((1, 2)).sqrt())
    for dear in (False, True):
        monkeypatch.setattr(reductions, "reads_are_dear", lambda _device, dear=dear: dear)
        torch.testing.assert_close(column_squares(a), a.double().square().sum((0, 1)), rtol=1e-6, atol=0)
        for dim in (1, 2):
            torch.testing.assert_close(sums_of_absolutes(a.float(), dim), a.float().abs().sum(dim))


def test_pieces_cover_all_rows_and_a_cpu_takes_them_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of 100 bytes, pieces of 250: two rows each, the last of one. A row larger than a piece is a piece."""
    monkeypatch.setattr(reductions, "PIECE_BYTES", 250)
    assert piece_rows(5, 100, torch.device("meta"), read_once=False) == [range(2), range(2, 4), range(4, 5)]
    assert piece_rows(2, 1000, torch.device("meta"), read_once=False) == [range(1), range(1, 2)]
    assert piece_rows(5, 100, torch.device("cpu"), read_once=False) == [range(5)]


@pytest.mark.parametrize(("criterion", "most"), [("taylor", 80), ("taylor_2nd", 105), ("fisher", 30), ("obs", 30)])
def test_a_batch_costs_few_operators_and_one_wait(
    as_on_a_gpu: list[torch.dtype], monkeypatch: pytest.MonkeyPatch, llama: Any, criterion: str, most: int
) -> None:
    """most: a layer and batch, beyond forward and backward; no more for five windows than for one."""
    monkeypatch.setattr(reductions, "PIECE_BYTES", 1 << 20)
    waits: list[int] = []
    original = over_windows.on_host

    def counted(tensors: list[torch.Tensor]) -> list[np.ndarray]:
        waits.append(len(tensors))
        return original(tensors)

    monkeypatch.setattr(over_windows, "on_host", counted)

    def beyond_the_pass(windows: int) -> float:
        """Operators of a batch, from two batches and four, less those of a plain pass."""
        seen = []
        for batches in (2, 4):
            waits.clear()
            with Operators() as operators:
                measured(llama, criterion, IDS[:windows].repeat(batches, 1), batch_size=windows)
            assert len(waits) == batches
            seen.append(operators)
        plain = plain_pass(llama, windows)
        assert seen[1].waits - seen[0].waits == 2 * plain.waits  # transformers asks once whether windows are packed
        return ((seen[1].seen.total() - seen[0].seen.total()) / 2 - plain.seen.total()) / 3

    assert beyond_the_pass(1) <= most
    assert beyond_the_pass(5) <= most


def plain_pass(model: Any, windows: int) -> Operators:
    """Forward and backward to the embeddings' output."""
    family = family_of("llama")
    run = Backward(model, family, architecture_of(model, family))
    handle = model.model.embed_tokens.register_forward_hook(lambda _m, _args, output: output.requires_grad_())
    with Operators() as operators:
        run(Batch(IDS[:windows].numpy(), 0))
    handle.remove()
    return operators


def test_first_batches_are_what_keeps_a_gpu_busy_and_memory_holds(llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """64 inputs of o_proj at most: 2^28 / (4 * 64) = 2^20 tokens. Activations: 3 layers of 7 * 64 + 4 * 24 = 544 values
    a token, logits and their gradient 2 * 97, so 7,304 bytes; half of what a card has beside the weights."""
    architecture = architecture_of(llama, family_of("llama"))
    card, weights = torch.device("meta"), 4 * architecture.total_params
    assert [busy_tokens(device, 64) for device in (torch.device("cpu"), card)] == [2048, 2**20]
    assert busy_tokens(card, 14336) == 4681
    assert busy_tokens(card, 10**9) == 2048
    run, forward = Backward(llama, family_of("llama"), architecture), Forward(llama)
    assert (run.first_windows(256), forward.first_windows(256), run.first_windows(4096)) == (8, 8, 1)
    run.device = forward.device = card
    monkeypatch.setattr(passes, "gpu_capacity", lambda _device: weights + 2 * 7304 * 10_000)
    assert run.first_windows(100) == 100
    monkeypatch.setattr(passes, "gpu_capacity", lambda _device: weights)
    assert run.first_windows(100) == 20
    assert forward.first_windows(1024) == 1024
    forward.compute = lambda ids: ids.sum()  # all logits: 2^30 / (4 * 97) = 2,767,376 tokens, so no bound here
    assert forward.first_windows(1024) == 1024
    monkeypatch.setattr(passes, "LOGITS_BYTES", 4 * 97 * 5000)
    assert forward.first_windows(1000) == 5


def test_a_gpu_writes_many_rows_at_once_as_far_as_keys_and_values_have_room(
    llama: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row of 100 tokens: 2 for keys and values, 3 layers, 2 KV heads of 16 float32, 76,800 bytes; on a GPU 26 more
    for each of 97 words."""
    heads, width = llama.config.num_key_value_heads, llama.config.head_dim
    assert 2 * 3 * heads * width * 100 * 4 == 76_800
    weights = sum(parameter.nbytes for parameter in llama.parameters())
    assert self_text._first_rows(llama, 100) == 192
    row = 76_800 + 26 * 97
    monkeypatch.setattr(self_text, "CACHE_BYTES", row)
    for capacity, rows in ((weights, 1), (weights + 8 * row * 3, 3), (10**12, 2048)):
        monkeypatch.setattr(self_text, "gpu_capacity", lambda _device, capacity=capacity: capacity)
        assert self_text._first_rows(llama, 100) == rows


def test_a_gpu_takes_larger_pieces_of_logits() -> None:
    assert rows_at_a_time(torch.empty(5000, 4096)) == 1024
    assert rows_at_a_time(torch.empty(5000, 4096, device="meta")) == 8192


def test_moments_of_all_layers_share_a_pass_where_a_gpu_has_room(llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of what is free holds them; whether both halves are held follows from what the card has beside weights."""
    architecture = architecture_of(llama, family_of("llama"))
    weights = 4 * architecture.total_params

    def meter(free: int, capacity: int) -> MomentMeter:
        monkeypatch.setattr(obs_moments, "free_gpu_bytes", lambda _device: free)
        monkeypatch.setattr(obs_moments, "gpu_capacity", lambda _device: capacity)
        return MomentMeter(llama, family_of("llama"), architecture, windows_of(IDS), batch_size=1, halves=True)

    each = sum(obs_moments.layer_bytes(shape, 64, 2048, 4, 2) for shape in architecture.layers)
    wide = meter(2 * each, weights + 2 * each)
    assert (wide.sets, wide.passes()) == (2, [range(3)])
    busy = meter(2 * each // 3, weights + 2 * each)
    assert (busy.sets, busy.passes()) == (2, [range(1), range(1, 2), range(2, 3)])
    small = meter(2 * each, weights + 2 * each - 2)
    assert (small.sets, small.passes()) == (1, [range(3)])


def test_drawing_tokens_warns_of_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU has no deterministic cumsum, and torch is told to warn of such; warnings are errors here."""
    cumsum = torch.Tensor.cumsum

    def warning(values: torch.Tensor, dim: int) -> torch.Tensor:
        warnings.warn(f"cumsum_cuda_kernel does not have a deterministic implementation, but {dim}", stacklevel=1)
        return cumsum(values, dim)

    monkeypatch.setattr(torch.Tensor, "cumsum", warning)
    logits = torch.tensor([[0.0, 0.0, 0.0, 0.0], [0.0, 0.0, torch.nan, 0.0]])
    assert drawn_tokens(logits, torch.tensor([0.6, 0.6], dtype=torch.float64)).tolist() == [2, -1]


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("Triton Error [CUDA]: out of memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `cusolverDnCreate`"), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
    ],
)
def test_libraries_that_have_no_memory_left_are_out_of_memory(error: RuntimeError, expected: bool) -> None:
    assert is_out_of_memory(error) is expected


def test_the_generators_of_all_gpus_are_named(two_gpus: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch warns where there are several and none is named."""
    asked: list[list[int]] = []

    def fork(devices: Any = None) -> AbstractContextManager[None]:
        asked.append(list(devices))
        return nullcontext()

    monkeypatch.setattr(torch.random, "fork_rng", fork)
    with seeded(1):
        pass
    assert asked == [[0, 1]]


@pytest.mark.parametrize(
    ("name", "here", "expected"),
    [
        ("auto", Ranks(), "cuda:1"),
        ("cuda", Ranks(), "cuda:1"),
        ("cuda:0", Ranks(), "cuda:0"),
        ("auto", Ranks(rank=3, count=4, local=0, local_count=2), "cuda:0"),
        ("cuda", Ranks(rank=1, count=2, local=1, local_count=2), "cuda:1"),
        ("cpu", Ranks(rank=1, count=2, local=1, local_count=2), "cpu"),
    ],
)
def test_a_gpu_comes_with_its_number(two_gpus: None, name: str, here: Ranks, expected: str) -> None:
    """torch refuses to tell the memory of a GPU without one. Alone: the current one, here the second."""
    assert str(choose_device(name, here)) == expected


@pytest.mark.parametrize(
    ("name", "here", "words"),
    [
        ("cuda:2", Ranks(), "has 2 CUDA devices"),
        ("cuda:0", Ranks(count=2, local_count=2), "names one GPU for 2 processes"),
        ("auto", Ranks(rank=2, count=3, local=2, local_count=3), "--nproc_per_node 2"),
    ],
)
def test_a_gpu_that_is_not_there_or_not_free_is_refused(two_gpus: None, name: str, here: Ranks, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        choose_device(name, here)
