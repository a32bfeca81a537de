"""Sums over gradients, in float32 whatever the gradients come in.

On a GPU time goes into reading and into launches. One kernel reads a gradient for all its sums
(``reduction_kernels``), where Triton can compile it. Elsewhere halves are cast inside the kernels that reduce them, so
that no float32 copy is written, and where a gradient can be had in pieces (``piece_rows``) all reductions of a piece
find it in the card's cache.
"""

from functools import cache

import torch

from core import kernels

PIECE_BYTES = 32 << 20  # float32; an H100's cache holds 50 MiB
PIECE_BYTES_READ_ONCE = 256 << 20
KERNEL = ("importance.reduction_kernels", "products_summed")


def reads_are_dear(device: torch.device) -> bool:
    """Whether a sum that casts and squares as it reads is worth its rounding; on a CPU such sums are slower."""
    return device.type != "cpu"


def products_summed(gradient: torch.Tensor, factor: torch.Tensor, dim: int, *, absolute: bool) -> "Sums":
    """(sums over ``dim`` of gradient * factor, or of its absolute value; L1 and L2 norm of gradient), by window.

    gradient (B, R, C), which may be overwritten where it is float32; factor (R, C) or (B, R, C); dim 1 or 2. float32
    (B, C or R), (B,), (B,).
    """
    by_kernel = kernels.have(gradient.device) and _kernel_is_right(
        gradient.device, gradient.dtype, factor.dtype, absolute
    )
    found = _by_kernel(gradient, factor, dim, absolute) if by_kernel else None
    return _by_operators(gradient, factor, dim, absolute) if found is None else found


Sums = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def _by_kernel(gradient: torch.Tensor, factor: torch.Tensor, dim: int, absolute: bool) -> Sums | None:
    found: Sums | None = kernels.attempt(*KERNEL, gradient, factor, dim, absolute)
    return found


def _by_operators(gradient: torch.Tensor, factor: torch.Tensor, dim: int, absolute: bool) -> Sums:
    norms = window_norms(gradient)
    products = gradient.mul_(factor) if gradient.dtype == torch.float32 and absolute else times(gradient, factor)
    return (sums_of_absolutes(products, dim) if absolute else products.sum(dim)), *norms


@cache
@torch.no_grad()
def _kernel_is_right(
    device: torch.device, gradient_dtype: torch.dtype, factor_dtype: torch.dtype, absolute: bool
) -> bool:
    """Whether the kernel, as compiled for this card and these dtypes, gives what operators give, on random values of
    several tiles. Like the sizes of most models theirs are multiples of 16, for which Triton compiles a kernel of its
    own, so the run uses what was tried and waits for no compiler again."""
    generator = torch.Generator().manual_seed(0)
    sizes, dtypes = ((2, 80, 1104), (80, 1104)), (gradient_dtype, factor_dtype)
    gradient, factor = (
        torch.randn(*size, generator=generator).to(device, dtype) for size, dtype in zip(sizes, dtypes, strict=True)
    )
    for dim in (1, 2):
        found = _by_kernel(gradient, factor, dim, absolute)
        if found is None:
            return False
        expected = _by_operators(gradient.clone(), factor, dim, absolute)
        if not all(_agree(values, exact) for values, exact in zip(found, expected, strict=True)):
            kernels.give_up("they give other sums than torch's own operators")
            return False
    return True


def _agree(values: torch.Tensor, exact: torch.Tensor) -> bool:
    """Within rounding, of sums of 80 products of normal numbers or more; those with signs may be near 0."""
    return torch.allclose(values, exact, rtol=1e-3, atol=1e-2)


def times(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """float32, a * b by element: one kernel that casts what it reads."""
    return torch.addcmul(torch.zeros((1,) * a.ndim, device=a.device), a, b)


def window_norms(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """L1 and L2 norm of each window's values (B, ...), float32 (B,) each."""
    flat = values.flatten(1)
    l1, l2 = (torch.linalg.vector_norm(flat, order, dim=1, dtype=torch.float32) for order in (1, 2))
    return l1, l2


def column_squares(values: torch.Tensor) -> torch.Tensor:
    """float64 (C,): sums of squares over the first two dimensions of (B, T, C)."""
    if not reads_are_dear(values.device):
        return values.float().square().sum((0, 1), dtype=torch.float64)
    return torch.linalg.vector_norm(values, 2, dim=(0, 1), dtype=torch.float32).double().square()


def sums_of_absolutes(values: torch.Tensor, dim: int) -> torch.Tensor:
    """float32, without ``dim``; values, float32, may be overwritten."""
    if not reads_are_dear(values.device):
        return values.abs_().sum(dim)
    return torch.linalg.vector_norm(values, 1, dim=dim)


def piece_rows(rows: int, row_bytes: int, device: torch.device, *, read_once: bool) -> list[range]:
    """Of a gradient with so many rows of so many bytes: rows that are computed and reduced together, all on a CPU.

    read_once: whether ``products_summed`` is all that reads them.
    """
    most = PIECE_BYTES_READ_ONCE if read_once and kernels.have(device) else PIECE_BYTES
    step = rows if not reads_are_dear(device) else max(1, most // row_bytes)
    return [range(start, min(start + step, rows)) for start in range(0, rows, step)]
