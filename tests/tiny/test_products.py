"""Products in float32, also where a device multiplies halves: here it is pretended, exact products and all."""

from typing import Any

import pytest
import torch
from repairs import plan_for, repaired

from core import products
from core.products import product

BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32


def random(*shape: int, seed: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.fixture
def tensor_cores(monkeypatch: pytest.MonkeyPatch) -> list[torch.dtype]:
    """The dtype of every product on them."""
    seen: list[torch.dtype] = []

    def half_product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        assert a.dtype == b.dtype
        seen.append(a.dtype)
        return a.float() @ b.float()

    monkeypatch.setattr(products, "multiplies_halves", lambda _device: True)
    monkeypatch.setattr(products, "half_product", half_product)
    return seen


@pytest.mark.parametrize(("dtype", "calls"), [(BF16, [BF16]), (F16, [F16]), (F32, [])])
def test_two_operands_of_the_models_dtype_are_multiplied_as_they_are(
    tensor_cores: list[torch.dtype], dtype: torch.dtype, calls: list[torch.dtype]
) -> None:
    a, b = random(5, 30, seed=0, dtype=dtype), random(30, 4, seed=1, dtype=dtype)
    torch.testing.assert_close(product(a, b, dtype), a.float() @ b.float(), rtol=0, atol=0)
    assert tensor_cores == calls


@pytest.mark.parametrize(("dtypes", "count"), [((F32, BF16), 2), ((BF16, F32), 2), ((F32, F32), 3)])
def test_a_float32_operand_beside_bfloat16_is_split_in_two(
    tensor_cores: list[torch.dtype], dtypes: tuple[torch.dtype, torch.dtype], count: int
) -> None:
    """Sixteen bits are left of its mantissa: 2^-16 of |a| |b|, where bfloat16 alone would leave 2^-8."""
    a, b = random(5, 30, seed=0, dtype=dtypes[0]), random(30, 4, seed=1, dtype=dtypes[1])
    exact, scale = a.double() @ b.double(), a.double().abs() @ b.double().abs()
    found = product(a, b, BF16)
    assert found.dtype == F32
    assert float(((found - exact).abs() / scale).max()) < 2**-16
    assert tensor_cores == [BF16] * count


def test_float16_has_no_range_for_small_parts(tensor_cores: list[torch.dtype]) -> None:
    a, b = 1e-6 * random(5, 30, seed=0, dtype=F32), random(30, 4, seed=1, dtype=F16)
    torch.testing.assert_close(product(a, b, F16), a @ b.float(), rtol=0, atol=0)
    assert tensor_cores == []


def test_halves_are_cast_where_no_device_multiplies_them() -> None:
    a, b = random(5, 30, seed=0, dtype=BF16), random(30, 4, seed=1, dtype=BF16)
    assert torch.equal(product(a, b, BF16), a.float() @ b.float())


def test_a_repair_in_bfloat16_does_the_same_on_tensor_cores(llama: Any, request: pytest.FixtureRequest) -> None:
    plan, half = plan_for(llama), llama.bfloat16()
    model, wanted = repaired(half, plan)
    seen = request.getfixturevalue("tensor_cores")
    again, found = repaired(half, plan)
    assert seen
    assert [block.ridge for block in found.blocks] == [block.ridge for block in wanted.blocks]
    errors = [[block.error_after for block in report.blocks] for report in (found, wanted)]
    assert errors[0] == pytest.approx(errors[1], rel=0.02)  # roundings of bfloat16 that fell the other way, carried on
    first = [net.model.layers[0].mlp.down_proj.weight.float() for net in (again, model)]
    torch.testing.assert_close(*first, rtol=2**-7, atol=1e-3)
