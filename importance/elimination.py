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

More than EXACT groups go in chunks of m = 1/100 of them. Only among the 2 m cheapest is every removal
followed by an update; the rest is updated once a chunk. With n inputs and C outputs that takes, in all,

    2 n^3 (inverse) + 2/3 n^3 + C n^2 (updates) + 8 m n (2 m + C) (inside chunks)       floating point operations

whatever m is, but as products of matrices instead of n passes over the memory H^-1 takes. Everything is float64, up
to three matrices (n, n) at once.
"""

from dataclasses import dataclass

import numpy as np
import torch

RIDGE = 0.01  # of the mean diagonal of H
EXACT = 1024  # up to so many groups go one at a time
CHUNKS = 100


@dataclass(frozen=True)
class Elimination:
    """order: int64 (G,), groups in the order they go. cost: float64 (G,), the error that each removal added."""

    order: np.ndarray
    cost: np.ndarray


@torch.no_grad()
def eliminate(
    moment: torch.Tensor,
    weight: torch.Tensor,
    run: int,
    *,
    ridge: float = RIDGE,
    chunk: int | None = None,
) -> Elimination:
    """Remove all groups, the cheapest first; of equal ones that with the lowest index.

    moment: (n, n), E[x x^T], any float dtype. weight: (C, n), V. run: inputs a group, n = G * run. chunk: groups
    removed between two updates of everything; None: 1 up to EXACT groups, else G / CHUNKS. A moment that
    is all zeros takes a ridge of 1 in its place.
    """
    groups = weight.shape[1] // run
    size = chunk or (1 if groups <= EXACT else one_percent(groups))
    state = _State.of(moment, weight, run, ridge)
    order, cost = [], []
    while len(state.left):
        gone, errors = _cheapest(state, min(size, len(state.left)))
        order.append(state.left[gone].cpu().numpy())
        cost.append(errors)
        state = state.without(gone)
    return Elimination(np.concatenate(order), np.concatenate(cost))


def one_percent(groups: int) -> int:
    """The size of a chunk, of which it takes CHUNKS to remove all groups; 1 up to so many groups."""
    return -(-groups // CHUNKS)


@dataclass(frozen=True)
class _State:
    """What is left: left int64 (R,) the groups, inverse float64 (R * run, R * run) H^-1, weight (C, R * run) U."""

    left: torch.Tensor
    inverse: torch.Tensor
    weight: torch.Tensor
    run: int

    @staticmethod
    def of(moment: torch.Tensor, weight: torch.Tensor, run: int, ridge: float) -> "_State":
        hessian = moment.double()  # a copy, unless it is float64 already
        hessian = hessian.clone() if hessian is moment else hessian
        mean = hessian.diagonal().mean()
        hessian.diagonal().add_(ridge * mean if mean > 0 else 1.0)
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian))
        return _State(torch.arange(weight.shape[1] // run, device=weight.device), inverse, weight.double(), run)

    def errors(self) -> torch.Tensor:
        """float64 (R,): tr(U_c [(H^-1)_cc]^-1 U_c^T) of each group."""
        if self.run == 1:
            return self.weight.square().sum(0) / self.inverse.diagonal()
        groups, run = len(self.left), self.run
        blocks = self.inverse.view(groups, run, groups, run).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
        columns = self.weight.view(-1, groups, run).permute(1, 2, 0)  # (R, run, C)
        return (columns * torch.linalg.solve(blocks, columns)).sum((1, 2))

    def inputs(self, groups: torch.Tensor) -> torch.Tensor:
        """Positions along n of groups, given by their place among those left."""
        return (groups[:, None] * self.run + torch.arange(self.run, device=groups.device)).flatten()

    def part(self, groups: torch.Tensor) -> "_State":
        """The same problem, looking at some of the groups alone."""
        columns = self.inputs(groups)
        inverse = self.inverse.index_select(0, columns).index_select(1, columns)
        return _State(self.left[groups], inverse, self.weight.index_select(1, columns), self.run)

    def without(self, groups: torch.Tensor) -> "_State":
        """After the removal of groups and the refit of the others."""
        stays = torch.ones(len(self.left), dtype=torch.bool, device=groups.device)
        stays[groups] = False
        kept, c = self.part(stays.nonzero()[:, 0]), self.inputs(groups)
        k = self.inputs(stays.nonzero()[:, 0])
        rows = self.inverse.index_select(0, c)
        across = rows.index_select(1, k)
        solved = torch.linalg.solve(rows.index_select(1, c), across)  # [(H^-1)_cc]^-1 (H^-1)_ck
        kept.inverse.addmm_(across.T, solved, alpha=-1)
        kept.weight.addmm_(self.weight.index_select(1, c), solved, alpha=-1)
        return kept


def _cheapest(state: _State, count: int) -> tuple[torch.Tensor, np.ndarray]:
    """Places of the next ``count`` groups to go among those left, in order, and their errors float64 (count,)."""
    errors = state.errors()
    if count == 1:
        place = errors.argmin()
        return place[None], errors[place].clamp(min=0)[None].cpu().numpy()
    near = errors.argsort(stable=True)[: 2 * count].sort().values
    part, places, added = state.part(near), [], []
    for _ in range(count):
        gone, error = _cheapest(part, 1)
        places.append(near[gone])
        near = near[torch.arange(len(near), device=near.device) != gone]
        added.append(error)
        part = part.without(gone)
    return torch.cat(places), np.concatenate(added)


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
