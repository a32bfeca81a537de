"""Attention of few queries by products: what torch's own gives, in half precision on a CPU and nowhere else."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from calibration.self_text import CALIBRATING, Beginnings, written_windows
from core.few_queries import FEW, FewQueriesOnCpu

FUSED = "_scaled_dot_product_flash_attention_for_cpu"
BATCH, HEADS, GROUPS, TOKENS, WIDTH = 2, 6, 3, 21, 8
BLIND = torch.ones(2, TOKENS, dtype=torch.bool).index_fill(0, torch.tensor([1]), False)  # the second query sees nothing
BOUND = {torch.bfloat16: 2**-6, torch.float16: 2**-9, torch.float32: 0.0}


class Called(TorchDispatchMode):
    """Counts torch's operators by name."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


def drawn(heads: int, tokens: int, dtype: torch.dtype, seed: int) -> torch.Tensor:
    values = torch.randn(BATCH, heads, tokens, WIDTH, generator=torch.Generator().manual_seed(seed))
    return values.to(dtype)


def in_dtype(how: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """Masks that are added have the queries' dtype."""
    mask = how.get("attn_mask")
    return how if mask is None or mask.dtype == torch.bool else how | {"attn_mask": mask.to(dtype)}


@pytest.mark.parametrize("dtype", BOUND)
@pytest.mark.parametrize(
    ("queries", "groups", "how"),
    [
        (1, GROUPS, {"enable_gqa": True}),
        (1, GROUPS, {"enable_gqa": True, "scale": 0.3}),
        (1, HEADS, {}),
        (3, HEADS, {"scale": 0.05}),
        (1, HEADS, {"attn_mask": torch.arange(TOKENS)[None] > 4}),
        (2, HEADS, {"attn_mask": torch.linspace(-3, 0, TOKENS)[None]}),
        (2, HEADS, {"attn_mask": BLIND}),
        (2, HEADS, {"attn_mask": torch.zeros(2, TOKENS).masked_fill(~BLIND, -torch.inf)}),
        (1, GROUPS, {"enable_gqa": True, "attn_mask": torch.arange(TOKENS)[None] > 4}),
        (3, HEADS, {"is_causal": True}),
        (3, GROUPS, {"enable_gqa": True}),
        (FEW + 1, HEADS, {}),
    ],
)
def test_it_is_the_attention_that_torch_computes(
    dtype: torch.dtype, queries: int, groups: int, how: dict[str, Any]
) -> None:
    given = drawn(HEADS, queries, dtype, 0), drawn(groups, TOKENS, dtype, 1), drawn(groups, TOKENS, dtype, 2)
    query, key, value = (values.float() for values in given)
    expected = F.scaled_dot_product_attention(query, key, value, **in_dtype(how, torch.float32))
    with FewQueriesOnCpu():
        found = F.scaled_dot_product_attention(*given, **in_dtype(how, dtype))
    assert found.dtype == dtype
    assert (found.float() - expected).abs().max() <= BOUND[dtype] * 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("texts", [(1, BATCH), (BATCH, 1)])
def test_texts_that_stand_for_several_are_left_to_torch(texts: tuple[int, int], dtype: torch.dtype) -> None:
    query, key = drawn(HEADS, 1, dtype, 0)[: texts[0]], drawn(HEADS, TOKENS, dtype, 1)[: texts[1]]
    expected = F.scaled_dot_product_attention(query, key, key)
    with FewQueriesOnCpu():
        assert torch.equal(F.scaled_dot_product_attention(query, key, key), expected)


def test_scores_beyond_float16_are_no_matter() -> None:
    query, key, value = (torch.full((1, 1, n, 128), x).half() for n, x in ((1, 30.0), (5, 20.0), (5, 1.0)))
    with FewQueriesOnCpu():
        assert torch.equal(F.scaled_dot_product_attention(query, key, value), value[:, :, :1])


@pytest.mark.parametrize(("dtype", "fused"), [(torch.bfloat16, False), (torch.float32, True)])
def test_a_model_writes_by_it_in_half_precision(llama: Any, dtype: torch.dtype, fused: bool) -> None:
    model = llama.to(dtype)
    with Called() as called:
        rows = written_windows(model, Beginnings(((1,),), (), (2,), 97), 2, 6, 0, CALIBRATING)
    assert rows.shape == (2, 6)
    assert np.all((rows >= 0) & (rows < 97))
    assert (called.counts[FUSED] > 0) == fused
