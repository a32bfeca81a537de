"""A block of single inputs removed one after another, without touching the matrices (``elimination`` has the formulas).

Of H^-1 and G only the diagonals, a and g, are kept up to date. A removed input c leaves its pivot a_c and two vectors

    s = (H^-1)_c,: / a_c        h = G_c,: - g_c s / 2

so that H^-1 loses a_c s^T s and G loses s^T h + h^T s. The next input's rows are those of the matrices as they were
when the block began, less what these vectors take. On a GPU nothing waits for the host, and one kernel does it all
where Triton can compile it (``removal_kernels``). On a CPU numpy does the same in less than half the time: torch takes
longer to call an operator than to compute it.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from core import kernels

KERNEL = ("importance.removal_kernels", "remove")
COMPARED: set[torch.device] = set()  # GPUs on which kernels were found to do what operators do


@dataclass(frozen=True)
class Removals:
    """Of ``size`` inputs, in the order they went. gone: int64 (size,), places along the matrices. cost: (size,), the
    errors that they added. pivots: (size,), a_c. s, h: (size, R). Floats are float64, on the matrices' device; all of
    it is overwritten by the next block in the same room."""

    gone: torch.Tensor
    cost: torch.Tensor
    pivots: torch.Tensor
    s: torch.Tensor
    h: torch.Tensor


class Room:
    """For the removals of one block after another, each from what the one before left of the matrices, in their memory.

    most: removals of a block. gram: the first, (R, R). kernels: what ``removal_kernels`` keeps from block to block.
    """

    def __init__(self, most: int, gram: torch.Tensor) -> None:
        self.gone = torch.empty(most, dtype=torch.int64, device=gram.device)
        self.cost, self.pivots = gram.new_empty(2, most)
        self.s, self.h = gram.new_empty(2, most, len(gram))
        self.kernels: Any = None

    def of(self, size: int, left: int) -> Removals:
        """The part that a block of ``size`` removals from matrices (left, left) fills."""
        return Removals(
            self.gone[:size], self.cost[:size], self.pivots[:size], self.s[:size, :left], self.h[:size, :left]
        )


def cheapest(inverse: torch.Tensor, gram: torch.Tensor, size: int, room: Room | None = None) -> Removals:
    """Remove the cheapest input, of equal ones that with the lowest index, ``size`` times. inverse, gram: (R, R)."""
    room = room or Room(size, gram)
    found = room.of(size, len(gram))
    if is_host(gram.device):
        _on_host(inverse, gram, found)
    elif not _by_kernels(inverse, gram, room, size):
        _on_device(inverse, gram, found)
    return found


def _by_kernels(inverse: torch.Tensor, gram: torch.Tensor, room: Room, size: int) -> bool:
    """Whether kernels did it. The first block of a process is compared with what operators give for its beginning."""
    if not kernels.have(gram.device) or not kernels.attempt(*KERNEL, inverse, gram, room, size):
        return False
    if gram.device in COMPARED:
        return True
    few = min(size, 32)
    expected = Room(few, gram).of(few, len(gram))
    _on_device(inverse, gram, expected)
    # Of equal inputs either may go first, for the same cost.
    near = 1e-9 * float(expected.cost.nan_to_num().max())
    if torch.allclose(room.cost[:few], expected.cost, rtol=1e-6, atol=near, equal_nan=True):
        COMPARED.add(gram.device)
        return True
    kernels.give_up("they remove other inputs than torch's own operators")
    return False


def is_host(device: torch.device) -> bool:
    return device.type == "cpu"


def _on_host(inverse: torch.Tensor, gram: torch.Tensor, found: Removals) -> None:
    matrices = inverse.numpy(), gram.numpy()
    a, g = (matrix.diagonal().copy() for matrix in matrices)
    gone, cost, pivots = found.gone.numpy(), found.cost.numpy(), found.pivots.numpy()
    all_s, all_h = found.s.numpy(), found.h.numpy()
    for step, (s, h) in enumerate(zip(all_s, all_h, strict=True)):
        errors = np.maximum(g / a, 0)
        c = errors.argmin()
        gone[step], cost[step], pivots[step] = c, errors[c], a[c]
        row, g_row = (matrix[c] for matrix in matrices)
        if step:
            s_c, h_c = all_s[:step, c], all_h[:step, c]
            row = row - (pivots[:step] * s_c) @ all_s[:step]
            g_row = g_row - h_c @ all_s[:step] - s_c @ all_h[:step]
        np.divide(row, a[c], out=s)
        np.subtract(g_row, g[c] / 2 * s, out=h)
        a -= row * s
        g -= 2 * s * h
        a[c], g[c] = 1, np.inf  # never the cheapest again


def _on_device(inverse: torch.Tensor, gram: torch.Tensor, found: Removals) -> None:
    a, g = inverse.diagonal().clone(), gram.diagonal().clone()
    places = [values.split(1) for values in (found.gone, found.cost, found.pivots)]
    for step, (c, cost, pivot) in enumerate(zip(*places, strict=True)):
        errors = (g / a).clamp_(min=0)
        torch.argmin(errors, 0, keepdim=True, out=c)
        torch.index_select(errors, 0, c, out=cost)
        torch.index_select(a, 0, c, out=pivot)
        row, g_row = (matrix.index_select(0, c)[0] for matrix in (inverse, gram))
        if step:
            s, h = found.s[:step], found.h[:step]
            s_c, h_c = (vectors.index_select(1, c)[:, 0] for vectors in (s, h))
            row.addmv_(s.T, found.pivots[:step] * s_c, alpha=-1)
            g_row.addmv_(s.T, h_c, alpha=-1).addmv_(h.T, s_c, alpha=-1)
        s = torch.div(row, pivot, out=found.s[step])
        h = torch.addcmul(g_row, s, g.index_select(0, c), value=-0.5, out=found.h[step])
        a.addcmul_(s, row, value=-1).index_fill_(0, c, 1.0)
        g.addcmul_(s, h, value=-2).index_fill_(0, c, torch.inf)  # never the cheapest again
