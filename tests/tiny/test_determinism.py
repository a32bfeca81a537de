"""Same GPU, same seed, same bytes: what torch is told, and that it is told back. float32 stays float32."""

from contextlib import suppress
from typing import Any

import numpy as np
import pytest
import torch
from test_importance import measured
from tiny_models import build

import global_pruning as gp
from core import determinism
from core.determinism import full_float32, is_refusal, only_deterministic
from core.say import heard_by
from importance import passes
from run.surroundings import surroundings

CUDA = torch.device("cuda")
REFUSED = (
    "cumsum_cuda_kernel does not have a deterministic implementation, but you set "
    "'torch.use_deterministic_algorithms(True)'. You can turn off determinism just for this operation"
)


def told() -> tuple[bool, bool, bool, bool]:
    """Determinism, whether it only warns, whether it fills memory; and cuDNN's attention, which is never the same."""
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.utils.deterministic.fill_uninitialized_memory,  # type: ignore[attr-defined]
        torch.backends.cuda.cudnn_sdp_enabled(),
    )


def test_a_gpu_refuses_what_is_not_deterministic_and_is_told_back() -> None:
    before = told()
    assert before[3]
    with surroundings(0):
        outside = told()
        with suppress(KeyError), only_deterministic(CUDA):
            assert told() == (True, False, False, False)
            raise KeyError
        for device, strict in ((CUDA, False), (torch.device("cpu"), True)):
            with only_deterministic(device, strict):
                assert told() == outside == (True, True, False, False)
        assert told() == outside
    assert told() == before


@pytest.mark.parametrize("reduction", ["sequence", "sum"])
def test_a_refused_operation_is_said_once_and_done_without(
    llama: Any, monkeypatch: pytest.MonkeyPatch, reduction: str
) -> None:
    """A GPU is pretended: an operation inside a layer that has no deterministic algorithm there."""
    expected = measured(llama, "taylor", gradient_reduction=reduction).values
    monkeypatch.setattr(
        passes, "only_deterministic", lambda _device, strict: determinism.only_deterministic(CUDA, strict)
    )

    def refused(_module: Any, _args: Any, output: torch.Tensor) -> None:
        if torch.are_deterministic_algorithms_enabled() and not torch.is_deterministic_algorithms_warn_only_enabled():
            raise RuntimeError(REFUSED)

    llama.model.layers[1].mlp.register_forward_hook(refused)
    said: list[str] = []
    with heard_by(said.append):
        found = measured(llama, "taylor", gradient_reduction=reduction).values
    np.testing.assert_array_equal(found, expected)
    assert [line.split(":")[1].strip() for line in said] == ["gradients differ in their last digits from run to run"]


def test_a_gradient_pass_is_strict_forward_and_backward(llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(
        passes, "only_deterministic", lambda _device, strict: determinism.only_deterministic(CUDA, strict)
    )

    def watch(_module: Any, _args: Any, output: torch.Tensor) -> None:
        seen.append(told())
        if output.requires_grad:
            output.register_hook(lambda _gradient: seen.append(told()))

    llama.model.layers[2].mlp.register_forward_hook(watch)
    measured(llama, "fisher")
    assert set(seen) == {(True, False, False, False)}
    assert len(seen) == 2


def test_only_refusals_are_taken_for_refusals() -> None:
    assert is_refusal(RuntimeError(REFUSED))
    assert not is_refusal(RuntimeError("CUDA out of memory"))


def precision() -> tuple[str, str, str]:
    return (
        torch.get_float32_matmul_precision(),
        torch.backends.cuda.matmul.fp32_precision,
        torch.backends.mkldnn.matmul.fp32_precision,  # type: ignore[attr-defined]
    )


@pytest.mark.parametrize("chosen", ["highest", "high", "medium"])
def test_float32_is_not_multiplied_in_less_and_the_callers_choice_is_back(chosen: str) -> None:
    default = precision()
    try:
        torch.set_float32_matmul_precision(chosen)
        before = precision()
        with suppress(KeyError), surroundings(0):
            assert precision() == ("highest", "ieee", "ieee")
            assert not torch.backends.cuda.matmul.allow_tf32
            raise KeyError
        assert precision() == before
    finally:
        torch.set_float32_matmul_precision(default[0])
        torch.backends.cuda.matmul.fp32_precision, torch.backends.mkldnn.matmul.fp32_precision = default[1:]  # type: ignore[attr-defined]
    assert precision() == default


def test_a_choice_by_the_newer_switch_is_back_as_well() -> None:
    default = torch.backends.cuda.matmul.fp32_precision
    try:
        torch.backends.cuda.matmul.fp32_precision = "tf32"
        with full_float32():
            assert torch.backends.cuda.matmul.fp32_precision == "ieee"
        assert torch.backends.cuda.matmul.fp32_precision == "tf32"
    finally:
        torch.backends.cuda.matmul.fp32_precision = default


def test_the_gradient_of_the_loss_takes_no_operation_that_adds_in_any_order() -> None:
    """softmax - onehot, as before: scatter-add has no fixed order on a GPU in general, so it is not used."""
    from importance.sums import summed_nll

    model = build("llama").requires_grad_(True)
    ids = torch.randint(3, 97, (2, 9), generator=torch.Generator().manual_seed(0))
    summed_nll(model, ids).backward()
    found = model.lm_head.weight.grad.clone()
    model.zero_grad()
    logits = model(input_ids=ids).logits[:, :-1].flatten(0, 1)
    torch.nn.functional.cross_entropy(logits, ids[:, 1:].flatten(), reduction="sum").backward()
    torch.testing.assert_close(found, model.lm_head.weight.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("criterion", ["obs", "taylor", "fisher"])
def test_bfloat16_ranks_as_float32_does(criterion: str) -> None:
    """At 30 % of the trained embedded model at least 98 % of the groups that either keeps, both keep."""
    kept = []
    for dtype in ("float32", "bfloat16"):
        options = {"device": "cpu", "num_samples": 32, "seq_len": 128, "cache_dir": "none", "dtype": dtype}
        session = gp.open("demo", dataset="pydoc", say=gp.silent, **options)
        kept.append(session.plan(session.score(criterion), 0.3).keep)
    assert (kept[0] & kept[1]).sum() >= 0.98 * max(kept[0].sum(), kept[1].sum())
