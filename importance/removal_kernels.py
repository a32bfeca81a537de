"""``removals`` on a GPU with one kernel a removal, in Triton, which torch brings along there (``core.kernels``).

The two dozen small operators of a removal take ten times as long to launch as to compute. Here every program keeps some
columns up to date. It begins with the best columns that all programs left behind in the step before, so that no step
has a second part that waits for the first, and the host waits for none. To launch a kernel takes longer than to run it,
so a block of removals is captured as one CUDA graph, which is replayed for every block of an elimination.
"""

from contextlib import suppress
from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

from core.graphs import Captured, worth_capturing

if TYPE_CHECKING:
    from importance.removals import Room

PROGRAMS = 256  # at most, a power of two
COLUMNS = (32, 128, 512, 2048)  # of a program: as few as PROGRAMS allow
ROWS = 16  # of s and h that are read at a time
NOWHERE = tl.constexpr(2**31 - 1)


def remove(inverse: torch.Tensor, gram: torch.Tensor, room: "Room", size: int) -> bool:
    """Fill ``room`` with ``size`` removals; True. inverse, gram: float64 (R, R), symmetric; R at most 524,288."""
    if room.kernels is None or not room.kernels.serves(inverse, gram):
        room.kernels = _Block(inverse, gram, room)
    room.kernels.remove(len(gram), size)
    return True


class _Block:
    """The launches of a block of removals, from matrices that shrink in their place: the same whatever is left."""

    def __init__(self, inverse: torch.Tensor, gram: torch.Tensor, room: "Room") -> None:
        n = len(gram)
        # Kernels want the columns of a row side by side, and ``torch.linalg.inv`` lays rows side by side.
        self.matrices = [matrix if matrix.stride(1) == 1 else matrix.T for matrix in (inverse, gram)]
        columns = next(columns for columns in COLUMNS if n <= PROGRAMS * columns)
        self.grid, self.sizes = (-(-n // columns),), {"COLUMNS": columns, "PROGRAMS": PROGRAMS}
        self.left = torch.empty(1, dtype=torch.int64, device=gram.device)
        self.diagonals = gram.new_empty(2, n)
        # What a step leaves to the next one, which leaves it in the other half: of each program's cheapest column the
        # error, a and g; its place. Programs that are not there have an infinite error.
        self.best = torch.full((2, 3, PROGRAMS), torch.inf, dtype=torch.float64, device=gram.device)
        self.places = torch.zeros((2, PROGRAMS), dtype=torch.int64, device=gram.device)
        self.results = room.gone, room.cost, room.pivots, room.s, room.h, room.s.stride(0)
        self.most = len(room.gone)
        self.graph: Captured[None] | None = None
        if worth_capturing(gram.device) and n >= 2 * self.most:
            block, first = (lambda: self._launch(None, self.most)), (lambda: self._launch(n, 1))
            with suppress(RuntimeError):  # then they are launched one by one
                self.graph = Captured(block, gram.device, first, takes_memory=False)

    def serves(self, inverse: torch.Tensor, gram: torch.Tensor) -> bool:
        """Whether these are what is left of the matrices there were."""
        return all(
            ours.data_ptr() == theirs.data_ptr() and max(ours.stride()) == max(theirs.stride())
            for ours, theirs in zip(self.matrices, (inverse, gram), strict=True)
        )

    def remove(self, left: int, size: int) -> None:
        if self.graph is None or size != self.most:
            self._launch(left, size)
        else:
            self.left.fill_(left)
            self.graph.replay()

    def _launch(self, left: int | None, size: int) -> None:
        """left: inputs there are; None: as many as ``self.left`` says when the launches are replayed."""
        if left is not None:
            self.left.fill_(left)
        (inverse, gram), (a, g) = self.matrices, self.diagonals
        matrices = inverse, inverse.stride(0), gram, gram.stride(0)
        shared = a, g, self.best, self.places, self.left
        _begin[self.grid](*matrices, *shared, **self.sizes)
        for step in range(size):
            _remove_one[self.grid](*matrices, *shared, *self.results, step, ROWS=ROWS, **self.sizes)


@triton.jit
def _leave_best(a, g, columns, inside, best, places, half, PROGRAMS: tl.constexpr):  # type: ignore[no-untyped-def]
    """The cheapest of a program's columns; of equal ones the lowest."""
    errors = tl.where(inside, tl.maximum(g / a, 0.0), float("inf"))
    error = tl.min(errors, 0)
    place = tl.min(tl.where(errors == error, columns, NOWHERE), 0)
    own = best + half * 3 * PROGRAMS + tl.program_id(0)
    tl.store(own, error)
    tl.store(own + PROGRAMS, tl.sum(tl.where(columns == place, a, 0.0), 0))
    tl.store(own + 2 * PROGRAMS, tl.sum(tl.where(columns == place, g, 0.0), 0))
    tl.store(places + half * PROGRAMS + tl.program_id(0), place.to(tl.int64))


@triton.jit(do_not_specialize=["inverse_stride", "gram_stride"])
def _begin(  # type: ignore[no-untyped-def]
    inverse,
    inverse_stride,
    gram,
    gram_stride,
    all_a,
    all_g,
    best,
    places,
    inputs_left,
    COLUMNS: tl.constexpr,
    PROGRAMS: tl.constexpr,
):
    columns = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    inside = columns < tl.load(inputs_left)
    a = tl.load(inverse + columns.to(tl.int64) * (inverse_stride + 1), inside, 1.0)
    g = tl.load(gram + columns.to(tl.int64) * (gram_stride + 1), inside, 0.0)
    tl.store(all_a + columns, a, inside)
    tl.store(all_g + columns, g, inside)
    _leave_best(a, g, columns, inside, best, places, 0, PROGRAMS)


@triton.jit(do_not_specialize=["inverse_stride", "gram_stride", "width", "step"])
def _remove_one(  # type: ignore[no-untyped-def]
    inverse,
    inverse_stride,
    gram,
    gram_stride,
    all_a,
    all_g,
    best,
    places,
    inputs_left,
    gone,
    cost,
    pivots,
    all_s,
    all_h,
    width,
    step,
    COLUMNS: tl.constexpr,
    PROGRAMS: tl.constexpr,
    ROWS: tl.constexpr,
):
    """all_a, all_g: (n,). all_s, all_h: (.., width), of which the rows before ``step`` are there."""
    n = tl.load(inputs_left)
    programs = tl.arange(0, PROGRAMS)
    left = best + (step % 2) * 3 * PROGRAMS + programs
    errors = tl.load(left)
    error = tl.min(errors, 0)
    candidates = tl.load(places + (step % 2) * PROGRAMS + programs)
    c = tl.min(tl.where(errors == error, candidates, NOWHERE), 0)
    mine = (errors == error) & (candidates == c)
    a_c = tl.sum(tl.where(mine, tl.load(left + PROGRAMS), 0.0), 0)
    g_c = tl.sum(tl.where(mine, tl.load(left + 2 * PROGRAMS), 0.0), 0)
    c = tl.minimum(c, n - 1).to(tl.int64)  # NaN has no place

    columns = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    inside = columns < n
    row = tl.load(inverse + c * inverse_stride + columns, inside, 0.0)
    g_row = tl.load(gram + c * gram_stride + columns, inside, 0.0)
    steps = tl.where(tl.program_id(0) * COLUMNS < n, step, 0)  # none where no column is left
    for first in range(0, steps, ROWS):
        rows = first + tl.arange(0, ROWS)
        before = rows < step
        start = rows.to(tl.int64) * width
        s_c = tl.load(all_s + start + c, before, 0.0)
        h_c = tl.load(all_h + start + c, before, 0.0)
        scaled = tl.load(pivots + rows, before, 0.0) * s_c
        tile = start[:, None] + columns[None, :]
        both = before[:, None] & inside[None, :]
        s = tl.load(all_s + tile, both, 0.0)
        h = tl.load(all_h + tile, both, 0.0)
        row -= tl.sum(scaled[:, None] * s, 0)
        g_row -= tl.sum(h_c[:, None] * s + s_c[:, None] * h, 0)

    s = row / a_c
    h = g_row - 0.5 * g_c * s
    own = step.to(tl.int64) * width + columns
    tl.store(all_s + own, s, inside)
    tl.store(all_h + own, h, inside)
    a = tl.load(all_a + columns, inside, 1.0) - row * s
    g = tl.load(all_g + columns, inside, 0.0) - 2.0 * s * h
    a = tl.where(columns == c, 1.0, a)
    g = tl.where(columns == c, float("inf"), g)  # never the cheapest again
    tl.store(all_a + columns, a, inside)
    tl.store(all_g + columns, g, inside)
    if tl.program_id(0) == 0:
        tl.store(gone + step, c)
        tl.store(cost + step, error)
        tl.store(pivots + step, a_c)
    _leave_best(a, g, columns, inside, best, places, (step + 1) % 2, PROGRAMS)
