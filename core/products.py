"""Matrix products with float32 results, whatever the operands come in.

A GPU multiplies bfloat16 and float16 several times faster than float32 and adds up in float32, so such operands are
handed over as they are: a product of two of them is exact. Beside bfloat16 a float32 operand is written as the sum of
two bfloat16 matrices, which together hold 16 of its 24 bits; the product of the two small parts is left out. Elsewhere,
and beside float16, whose range is too short for that, operands are cast to float32. TF32 plays no part.
"""

import torch

HALF = (torch.bfloat16, torch.float16)


def product(a: torch.Tensor, b: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """float32 (m, n): a (m, k) times b (k, n). dtype: what the model computes in."""
    if multiplies_halves(a.device) and dtype in HALF:
        if a.dtype == b.dtype == dtype:
            return half_product(a, b)
        if dtype == torch.bfloat16:
            return _of_parts(_parts(a), _parts(b))
    return a.float() @ b.float()


def window_products(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """float32 (B, m, n): a (B, m, k) times b (B, k, n), for each of B windows; both of the model's dtype."""
    if multiplies_halves(a.device) and a.dtype == b.dtype and a.dtype in HALF:
        return half_products(a, b)
    return torch.bmm(a.float(), b.float())


def multiplies_halves(device: torch.device) -> bool:
    return device.type == "cuda"


def half_product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """float32: both operands of one half precision, added up in float32."""
    return torch.mm(a, b, out_dtype=torch.float32)


def half_products(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """The same for (B, m, k) and (B, k, n)."""
    return torch.bmm(a, b, out_dtype=torch.float32)


def _parts(values: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """bfloat16 matrices whose sum is ``values``, the larger first."""
    large = values.bfloat16()
    return (large,) if values.dtype == torch.bfloat16 else (large, (values.float() - large.float()).bfloat16())


def _of_parts(a: tuple[torch.Tensor, ...], b: tuple[torch.Tensor, ...]) -> torch.Tensor:
    total = half_product(a[0], b[0])
    for small in a[1:]:
        total += half_product(small, b[0])
    for small in b[1:]:
        total += half_product(a[0], small)
    return total
