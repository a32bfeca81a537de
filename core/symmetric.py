"""Symmetric matrices as products, (n, n): on a CPU only what lies on and above the diagonal is computed, then mirrored.

That halves the arithmetic. A GPU takes the whole product at once: there it would take as long to mirror one.
"""

import torch

PANELS, LEAST_ROWS = 6, 128


def halves_pay(device: torch.device) -> bool:
    return device.type == "cpu"


def panels(n: int, device: torch.device) -> list[slice]:
    """Rows that are computed together, each from the panel's place on the diagonal to the last column."""
    rows = max(LEAST_ROWS, -(-n // PANELS)) if halves_pay(device) else max(n, 1)
    return [slice(first, min(first + rows, n)) for first in range(0, n, rows)]


def add_product(matrix: torch.Tensor, x: torch.Tensor, y: torch.Tensor, *, alpha: float = 1.0) -> torch.Tensor:
    """``matrix`` += alpha x^T y, in place. x, y: (k, n), their product as symmetric as the matrix."""
    return mirror(add_upper(matrix, x, y, alpha=alpha))


def add_upper(matrix: torch.Tensor, x: torch.Tensor, y: torch.Tensor, *, alpha: float = 1.0) -> torch.Tensor:
    """The same, not mirrored yet: for sums of many products."""
    for rows in panels(len(matrix), matrix.device):
        matrix[rows, rows.start :].addmm_(x[:, rows].T, y[:, rows.start :], alpha=alpha)
    return matrix


def mirror(matrix: torch.Tensor) -> torch.Tensor:
    """In place: what lies below the panels becomes what lies to the right of them."""
    for rows in panels(len(matrix), matrix.device):
        matrix[rows.stop :, rows] = matrix[rows, rows.stop :].T
    return matrix


def invert(matrix: torch.Tensor, *, least: int | None = None) -> torch.Tensor:
    """The inverse of a positive definite matrix, in its place. LinAlgError where it is not, or holds NaN or Inf.

    Down to ``least`` rows (256 on a CPU, 2,048 on a GPU) by halves, as products: with A = [[P, R^T], [R, Q]],
    T = R P^-1 and the Schur complement S = Q - T R^T,

        A^-1 = [[P^-1 + T^T S^-1 T, -T^T S^-1], [-S^-1 T, S^-1]]

    which takes n^3 operations like Cholesky factors and their inverse, but at the speed of products.
    """
    n, least = len(matrix), least or (256 if halves_pay(matrix.device) else 2048)
    if n <= least:
        return matrix.copy_(torch.cholesky_inverse(torch.linalg.cholesky(matrix)))
    first, rest = slice(n // 2), slice(n // 2, n)
    p, r, q = matrix[first, first], matrix[rest, first], matrix[rest, rest]
    t = r @ invert(p, least=least)
    invert(add_product(q, t.T, r.T, alpha=-1), least=least)
    torch.mm(q, t, out=r)
    add_product(p, t, r)
    matrix[first, rest] = r.neg_().T
    return matrix
