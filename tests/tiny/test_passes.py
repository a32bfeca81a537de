"""One pass through the model: its loss, what it keeps for backward, how often the host waits, what outlives it."""

from typing import Any

import pytest
import torch
from test_importance import IDS, measured
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from core.criteria import CRITERIA
from core.memory import free_gpu_bytes
from importance import passes, sums
from models.architecture import architecture_of
from models.family_table import family_of


def test_the_loss_is_the_sum_over_predicted_tokens(llama: Any) -> None:
    logits = llama(input_ids=IDS).logits
    expected = sum(F.cross_entropy(logits[b, :-1], IDS[b, 1:], reduction="sum") for b in range(len(IDS)))
    assert sums.summed_nll(llama, IDS).item() == pytest.approx(float(expected), rel=1e-5)


def test_what_is_kept_for_backward_is_bounded(llama: Any) -> None:
    """C = 64, F = 24, float32: (448 + 96) * 4 = 2,176 bytes a token and layer; 384 MiB hold 185,042 of them."""
    architecture = architecture_of(llama, family_of("llama"))
    assert passes.layers_to_recompute(llama, architecture, tokens=1000) == 0
    assert passes.layers_to_recompute(llama, architecture, tokens=90_000) == 1
    assert passes.layers_to_recompute(llama, architecture, tokens=185_000) == 2
    assert passes.layers_to_recompute(llama, architecture, tokens=186_000) == 3


def test_a_device_that_says_what_is_free_bounds_by_that(llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """2,176 bytes a token and layer, 2 * 97 * 4 = 776 for logits and their gradient: at 1,000 tokens and 10 MB free,
    0.7 * (10 - 0.776) MB = 6.46 MB hold two layers of 2.176 MB, and 10.2 MB free hold all three (6.6 > 6.53)."""
    architecture = architecture_of(llama, family_of("llama"))
    for free, recomputed in ((10_000_000, 1), (10_200_000, 0), (0, 3)):
        monkeypatch.setattr(passes, "free_gpu_bytes", lambda _device, free=free: free)
        assert passes.layers_to_recompute(llama, architecture, tokens=1000) == recomputed


def test_free_gpu_bytes_counts_what_the_allocator_holds_and_keeps_to_a_cap(monkeypatch: pytest.MonkeyPatch) -> None:
    """A card of 100 with 20 free, of which 30 are held here and 10 of those used: 40 may be taken. Under a cap of a
    quarter, 25 less the 10 used."""
    card = {"mem_get_info": (20, 100), "memory_allocated": 10, "memory_reserved": 30}
    for name, value in card.items():
        monkeypatch.setattr(torch.cuda, name, lambda _device, value=value: value)
    for share, free in ((1.0, 40), (0.25, 15), (0.05, 0)):
        monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda _device, share=share: share)
        assert free_gpu_bytes(torch.device("cuda", 0)) == free
    assert free_gpu_bytes(torch.device("cpu")) is None


@pytest.mark.parametrize("criterion", [name for name in CRITERIA if CRITERIA[name].reads_text])
def test_the_host_waits_once_a_window(llama: Any, criterion: str) -> None:
    """No value is handed to Python between a pass and the one copy that says whether it was finite."""

    class Counter(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.count += function is torch.ops.aten._local_scalar_dense.default
            return function(*args, **(kwargs or {}))

    def counted(run: Any) -> int:
        with Counter() as counter:
            run()
        return counter.count

    of_the_model = counted(lambda: llama(input_ids=IDS[:1], use_cache=False))
    two, five = (counted(lambda ids=ids: measured(llama, criterion, ids, batch_size=1)) for ids in (IDS[:2], IDS))
    assert five - two == 3 * of_the_model


def test_no_graph_outlives_its_window(llama: Any) -> None:
    """A hook that held its own tensor would form a cycle and keep activations until the garbage collector runs."""
    import gc

    gc.collect()
    gc.disable()
    try:
        before = sum(type(item) is torch.Tensor for item in gc.get_objects())
        for criterion in ("fisher", "taylor", "obs"):
            measured(llama, criterion)
        after = sum(type(item) is torch.Tensor for item in gc.get_objects())
    finally:
        gc.enable()
    assert after <= before + 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_gradient_of_the_loss_is_that_of_cross_entropy(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Softmax minus one-hot, in rows of two at a time, also where a position predicts nothing."""
    monkeypatch.setattr(sums, "rows_at_a_time", lambda _logits: 2)
    logits = torch.randn(5, 11, generator=torch.Generator().manual_seed(0)).to(dtype)
    targets = torch.tensor([3, 10, sums.IGNORED, 0, 7])
    ours, theirs = (logits.clone().requires_grad_() for _ in range(2))
    loss = sums._SummedNLL.apply(ours * 1.0, targets)
    expected = F.cross_entropy(theirs.float() * 1.0, targets, ignore_index=sums.IGNORED, reduction="sum")
    (3.0 * loss).backward()
    (3.0 * expected).backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    tolerance = 1e-6 if dtype == torch.float32 else 1e-2
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=tolerance, atol=tolerance)
    assert ours.grad is not None
    assert (ours.grad[2] == 0).all()
