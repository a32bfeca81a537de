"""``reductions`` on a GPU that read a gradient once, in Triton, which torch brings along there (``core.kernels``)."""

from typing import Any

import torch
import triton
import triton.language as tl

CHUNK = 1024  # values along the dimension that is summed, at most, that one program adds up


def products_summed(
    gradient: torch.Tensor, factor: torch.Tensor, dim: int, absolute: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(sums over ``dim`` of gradient * factor, or of its absolute value; L1 and L2 norm of gradient), by window.

    gradient (B, R, C) and factor (R, C) or (B, R, C), of any float dtype; dim 1 or 2. float32 (B, C or R), (B,), (B,).
    """
    batch, kept, summed = gradient.shape[0], gradient.shape[3 - dim], gradient.shape[dim]
    factor = factor.expand(gradient.shape)
    along_rows = gradient.stride(3 - dim) == 1  # neighbours in memory belong to different sums
    tile = {"KEPT": 128, "SUMMED": 16} if along_rows else {"KEPT": 16, "SUMMED": 128}
    chunks = -(-summed // CHUNK)
    grid = (-(-kept // tile["KEPT"]), chunks, batch)
    sums = gradient.new_empty((batch, chunks, kept), dtype=torch.float32)
    norms = gradient.new_empty((2, batch, chunks * grid[0]), dtype=torch.float32)
    sizes: dict[str, Any] = {**tile, "CHUNK": CHUNK, "ABSOLUTE": absolute}
    strides = [tensor.stride(place) for tensor in (gradient, factor) for place in (0, 3 - dim, dim)]
    _sum[grid](gradient, factor, sums, norms, kept, summed, *strides, **sizes)
    l1, squares = norms.sum(2)
    return sums.sum(1), l1, squares.sqrt()


@triton.jit
def _sum(  # type: ignore[no-untyped-def]
    gradient,
    factor,
    sums,
    norms,
    kept,
    summed,
    gradient_batch,
    gradient_kept,
    gradient_summed,
    factor_batch,
    factor_kept,
    factor_summed,
    KEPT: tl.constexpr,
    SUMMED: tl.constexpr,
    CHUNK: tl.constexpr,
    ABSOLUTE: tl.constexpr,
):
    """One program: KEPT sums over a CHUNK of one window."""
    part, chunk, window = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    parts, chunks, batch = tl.num_programs(0), tl.num_programs(1), tl.num_programs(2)
    k = part * KEPT + tl.arange(0, KEPT)
    k_inside = k < kept
    g_start = gradient + window.to(tl.int64) * gradient_batch + k.to(tl.int64)[:, None] * gradient_kept
    f_start = factor + window.to(tl.int64) * factor_batch + k.to(tl.int64)[:, None] * factor_kept
    products = tl.zeros((KEPT, SUMMED), tl.float32)
    absolutes = tl.zeros((KEPT, SUMMED), tl.float32)
    squares = tl.zeros((KEPT, SUMMED), tl.float32)
    for first in range(0, CHUNK, SUMMED):
        s = chunk * CHUNK + first + tl.arange(0, SUMMED)
        inside = k_inside[:, None] & (s < summed)[None, :]
        g = tl.load(g_start + s.to(tl.int64)[None, :] * gradient_summed, inside, 0.0).to(tl.float32)
        f = tl.load(f_start + s.to(tl.int64)[None, :] * factor_summed, inside, 0.0).to(tl.float32)
        product = g * f
        if ABSOLUTE:
            product = tl.abs(product)
        products += product
        absolutes += tl.abs(g)
        squares += g * g
    tl.store(sums + (window * chunks + chunk).to(tl.int64) * kept + k, tl.sum(products, 1), k_inside)
    place = window * chunks * parts + chunk * parts + part
    tl.store(norms + place, tl.sum(tl.sum(absolutes, 1), 0))
    tl.store(norms + batch * chunks * parts + place, tl.sum(tl.sum(squares, 1), 0))
