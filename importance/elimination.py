"""Greedy removal of a linear map's inputs when the outputs may be refitted: optimal brain surgeon, group by group.

A map y = V x has n inputs in groups of ``run`` neighbours. H = E[x x^T] + lambda I, lambda = RIDGE * mean diagonal,
so the error of another map U is E|Vx - Ux|^2 + lambda |V - U|^2. Without the inputs c the best U leaves the error

    tr( V_c [ (H^-1)_cc ]^-1 V_c^T )         with        U = V - V_c [ (H^-1)_cc ]^-1 (H^-1)_c,:

(Hassibi and Stork 1993; Frantar and Alistarh 2022, arXiv:2208.11580; for structures Kurtic et al. 2023, ZipLM,
arXiv:2302.04089). The group of the smallest error goes, V becomes U, H^-1 becomes that of the inputs left,

    H^-1  <-  H^-1 - (H^-1)_:c [ (H^-1)_cc ]^-1 (H^-1)_c,:

and the search begins again, until nothing is left. The errors add up: after any number of removals their sum is the
error of the best map on the inputs left, so an input that others can stand in for costs next to nothing, until
those others go.

Single inputs need no outputs: the error of c is G_cc / (H^-1)_cc with G = V^T V, and with s = (H^-1)_c,: / (H^-1)_cc,
g = G_c,: and h = g - g_c s / 2 a removal makes

    H^-1  <-  H^-1 - (H^-1)_cc s^T s        G  <-  G - s^T h - h^T s

Only diagonals are kept up to date at each step (``removals``); after a block of removals their vectors update both
matrices at once, as products. That is exact and takes about 4 n^3 operations with the inverse, half of them where
symmetric products are computed by halves (``core.symmetric``). On a GPU no step waits for the host. Everything is
float64, up to four matrices (n, n) at once.
"""

from dataclasses import dataclass

import numpy as np
import torch

from core import symmetric
from importance.removals import Room, cheapest, is_host

RIDGE = 0.01  # of the mean diagonal of H
# Removals between two updates of the matrices. A GPU reads twice as many vectors while the next kernel is launched.
BLOCK, BLOCK_ON_GPU = 128, 256


@dataclass(frozen=True)
class Elimination:
    """order: int64 (G,), groups in the order they go. cost: float64 (G,), the error that each removal added."""

    order: np.ndarray
    cost: np.ndarray


@torch.no_grad()
def eliminate(moment: torch.Tensor, weight: torch.Tensor, run: int, *, ridge: float = RIDGE) -> Elimination:
    """Remove all groups, the cheapest first; of equal ones that with the lowest index.

    moment: (n, n), E[x x^T], any float dtype. weight: (C, n), V. run: inputs a group, n = G * run. A moment that
    is all zeros takes a ridge of 1 in its place.
    """
    inverse = _damped_inverse(moment, ridge)
    order, cost = _single_inputs(inverse, weight.double()) if run == 1 else _groups(inverse, weight.double(), run)
    return Elimination(order.cpu().numpy(), cost.cpu().numpy())


def _damped_inverse(moment: torch.Tensor, ridge: float) -> torch.Tensor:
    """H^-1, float64 (n, n)."""
    hessian = moment.double()  # a copy, unless it is float64 already
    hessian = hessian.clone() if hessian is moment else hessian
    mean = hessian.diagonal().mean()
    hessian.diagonal().add_(torch.where(mean > 0, ridge * mean, torch.ones_like(mean)))
    return symmetric.invert(hessian)


def _single_inputs(inverse: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Order and costs, both (n,), on the device."""
    gram = symmetric.add_product(torch.zeros_like(inverse), weight, weight)
    left, most = torch.arange(len(gram), device=gram.device), BLOCK if is_host(gram.device) else BLOCK_ON_GPU
    room, order, cost = Room(min(most, len(left)), gram), [], []
    while len(left):
        block = cheapest(inverse, gram, min(most, len(left)), room)
        order.append(left[block.gone])
        cost.append(block.cost.clone())
        stays = _stays(block.gone, len(left))
        left, s, h = left[stays], block.s.index_select(1, stays), block.h.index_select(1, stays)
        inverse = _take(inverse, block.pivots[:, None] * s, s, stays)
        gram = _take(gram, torch.cat([s, h]), torch.cat([h, s]), stays)
    return torch.cat(order), torch.cat(cost)


def _stays(gone: torch.Tensor, size: int) -> torch.Tensor:
    """int64, places of those left, ascending; their number is known without asking the device."""
    marked = torch.zeros(size, dtype=torch.uint8, device=gone.device).index_fill_(0, gone, 1)
    return marked.argsort(stable=True)[: size - len(gone)]


def _take(matrix: torch.Tensor, x: torch.Tensor, y: torch.Tensor, stays: torch.Tensor) -> torch.Tensor:
    """(R, R), in the memory of ``matrix``: the rows and columns of those left, less x^T y, which is symmetric.

    x, y: (size, R). Places only move up and to the left, so a panel overwrites nothing that a later one reads.
    """
    left = matrix[: len(stays), : len(stays)]
    for rows in symmetric.panels(len(stays), matrix.device):
        part, right = left[rows, rows.start :], matrix[:, rows.start :].index_select(0, stays[rows])
        torch.gather(right, 1, (stays[rows.start :] - rows.start).expand(part.shape), out=part)
        part.addmm_(x[:, rows].T, y[:, rows.start :], alpha=-1)
    return symmetric.mirror(left)


def _groups(inverse: torch.Tensor, weight: torch.Tensor, run: int) -> tuple[torch.Tensor, torch.Tensor]:
    """As ``_single_inputs`` for groups of several inputs, of which a block has a few: everything anew at each step."""
    left = torch.arange(weight.shape[1] // run, device=weight.device)
    order, cost = [], []
    while len(left):
        inverses, errors = _group_errors(inverse, weight, run)
        gone = errors.argmin(keepdim=True)
        order.append(left[gone])
        cost.append(errors[gone])
        places = torch.arange(len(left) - 1, device=left.device)
        stays = places + (places >= gone)
        c, k = _inputs(gone, run), _inputs(stays, run)
        left = left[stays]
        across, weight_c = inverse[c][:, k], weight[:, c]
        solved = inverses.index_select(0, gone)[0] @ across  # [(H^-1)_cc]^-1 (H^-1)_ck
        inverse, weight = inverse[k][:, k] - across.T @ solved, weight[:, k] - weight_c @ solved
    return torch.cat(order), torch.cat(cost)


def _inputs(groups: torch.Tensor, run: int) -> torch.Tensor:
    """Positions along n of groups, given by their place among those left."""
    return (groups[:, None] * run + torch.arange(run, device=groups.device)).flatten()


def _group_errors(inverse: torch.Tensor, weight: torch.Tensor, run: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Of each group [(H^-1)_cc]^-1, float64 (R, run, run), and tr(U_c [(H^-1)_cc]^-1 U_c^T) >= 0, float64 (R,), by way
    of U_c^T U_c, as there are more outputs than inputs."""
    groups = weight.shape[1] // run
    blocks = inverse.view(groups, run, groups, run).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
    columns = weight.view(-1, groups, run).permute(1, 2, 0)  # (R, run, C)
    inverses, _ = torch.linalg.inv_ex(blocks)  # which does not wait to see whether there is an inverse
    return inverses, (inverses * (columns @ columns.mT)).sum((1, 2)).clamp(min=0)


def convex(cost: np.ndarray) -> np.ndarray:
    """float64 (G,): the nearest non-decreasing sequence, by pooling neighbours that violate it (PAV).

    The sum of the first k costs, as a function of k, becomes its largest convex minorant: taking groups from
    several blocks by ascending value then spends a budget as well as any choice along the blocks' orders can, at
    the corners of those minorants.
    """
    means: list[float] = []
    counts: list[int] = []
    for value in cost.tolist():
        means.append(value)
        counts.append(1)
        while len(means) > 1 and means[-2] > means[-1]:
            last, size = means.pop(), counts.pop()
            means[-1] = (means[-1] * counts[-1] + last * size) / (counts[-1] + size)
            counts[-1] += size
    return np.repeat(means, counts)


def in_order(elimination: Elimination) -> np.ndarray:
    """float64 (G,), by group: its convex cost, raised by 1e-12 of itself a place, so that pooled groups, which share
    one value, rank in the order they were removed in. Costs of 0 stay 0: such groups may go in any order."""
    values = np.empty(len(elimination.cost))
    values[elimination.order] = convex(elimination.cost) * (1 + 1e-12 * np.arange(len(values)))
    return values
