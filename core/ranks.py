"""Several processes at work on one run, as ``torchrun`` starts them. A process that is alone is rank 0 of 1.

Every rank walks the same way, and torch.distributed joins what they find: windows are dealt out, sums are added up,
what one rank decides reaches the others. Elsewhere the program reads as for one process; alone, this does nothing.

Ranks meet before they exchange anything: a rank that waits can still be interrupted, learns that another has ended, and
finds out if it is at another place of the program than the others. torch is imported where it is used.
"""

import hashlib
import io
import os
import sys
import time
import traceback
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from contextvars import ContextVar
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from core.errors import DataError, PruningError, reason_of

if TYPE_CHECKING:
    import torch

T = TypeVar("T")
ENVIRONMENT = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
PATIENCE = timedelta(days=30)  # a rank waits as long as the first one saves or runs tasks; who starts them ends them
PATIENCE_TO_MEET = timedelta(minutes=5)
SHORTEST_NAP_S, LONGEST_NAP_S = 1e-4, 2e-2  # between two looks at whether the others have come


class LostRankError(PruningError):
    """Another process of the run has ended, and says why itself, unless it was killed."""


@dataclass(frozen=True)
class Ranks:
    """rank: of this process. count: of processes. local, local_count: the same among those on this machine. store: what
    all of them can write a word into, None before they have met."""

    rank: int = 0
    count: int = 1
    local: int = 0
    local_count: int = 1
    store: Any = None


ALONE = Ranks()
_ranks: ContextVar[Ranks] = ContextVar("ranks", default=ALONE)


def here() -> Ranks:
    return _ranks.get()


def count() -> int:
    return here().count


def is_first() -> bool:
    """Whether this process is the one that writes and speaks."""
    return here().rank == 0


# Dealing out


def share(total: int) -> slice:
    """This rank's part of so many things in order: neighbours, as many as the others have, or one more. Where there
    are fewer things than ranks, the first rank has one."""
    ranks = here()
    start, stop = (-(-total * rank // ranks.count) for rank in (ranks.rank, ranks.rank + 1))
    return slice(start, stop)


def has(number: int) -> bool:
    """Whether a thing that is dealt out in turn, 0, 1, 2, ..., is this rank's."""
    return number % count() == here().rank


# Joining what was found


def add_up(tensors: "Iterable[torch.Tensor]", what: str) -> None:
    """Replace each tensor by its sum over all ranks, the same to the last bit on each. what: is summed, for bugs."""
    if count() == 1:
        return
    import torch.distributed as dist

    for tensor in tensors:
        _exchange(tensor, dist.all_reduce, what)


def gathered(value: T, what: str) -> list[T]:
    """The value of every rank, by rank. For what is small."""
    if count() == 1:
        return [value]
    import torch.distributed as dist

    found: list[Any] = [None] * count()
    with meeting(what):
        dist.all_gather_object(found, value)
    return found


def from_first(value: T, what: str) -> T:
    """What the first rank has, on every rank. For what is small."""
    if count() == 1:
        return value
    import torch.distributed as dist

    held = [value if is_first() else None]
    with meeting(what):
        dist.broadcast_object_list(held, src=0)
    found: Any = held[0]
    return found


def send(tensors: "Iterable[torch.Tensor]", number: int, what: str) -> None:
    """Overwrite each tensor by that of the rank which has thing ``number`` of those dealt out in turn."""
    if count() == 1:
        return
    import torch.distributed as dist

    for tensor in tensors:
        _exchange(tensor, partial(dist.broadcast, src=number % count()), what)


def _exchange(tensor: "torch.Tensor", collective: Callable[..., Any], what: str) -> None:
    whole = tensor.contiguous()  # itself, mostly
    with meeting(f"{what} {tuple(tensor.shape)} {tensor.dtype}"):
        collective(whole)
    if whole is not tensor:
        tensor.copy_(whole)


def insist_on_same(value: bytes, what: str, way_out: str) -> None:
    """DataError on every rank where not all have the same."""
    digests = gathered(hashlib.sha256(value).hexdigest(), what)
    other = next((rank for rank, digest in enumerate(digests) if digest != digests[0]), None)
    if other is not None:
        raise DataError(f"the {what} of process {other} is not that of process 0: {way_out}")


@contextmanager
def meeting(place: str) -> Iterator[None]:
    """Inside, all ranks are at the same place and exchange something. LostRankError where one has ended; RuntimeError
    where one is elsewhere, which is a bug."""
    import torch
    import torch.distributed as dist

    mark = zlib.crc32(place.encode())
    extremes = torch.tensor([mark, -mark])
    with while_all_are_here():
        work = dist.all_reduce(extremes, dist.ReduceOp.MAX, async_op=True)
        nap_s = SHORTEST_NAP_S
        while not work.is_completed():  # naps, and no wait() that no signal could end
            time.sleep(nap_s)
            nap_s = min(2 * nap_s, LONGEST_NAP_S)
        work.wait()
    if extremes[0] != -extremes[1]:
        raise RuntimeError(f"processes of one run are at different places; process {here().rank} is at {place!r}")
    with while_all_are_here():
        yield


@contextmanager
def while_all_are_here() -> Iterator[None]:
    """Inside, this rank waits for what others do as well. LostRankError where one of them has ended."""
    try:
        yield
    except RuntimeError as error:  # what torch raises where it loses a connection
        from core.batching import is_out_of_memory

        if is_out_of_memory(error):
            raise
        raise LostRankError("another process of this run has ended, so all of them end; run again") from error


# Beginning and ending


def started() -> Ranks:
    """What the environment says of this process, which has not met the others yet; alone where it names one process,
    and where something else than ``torchrun`` left words there that are no numbers."""
    found = {name: os.environ.get(name, "") for name in (*ENVIRONMENT, "LOCAL_RANK", "LOCAL_WORLD_SIZE")}
    numbers = {name: int(text) for name, text in found.items() if text.isdecimal()}
    count = numbers.get("WORLD_SIZE", 1)
    if count < 2 or "RANK" not in numbers or not all(found[name] for name in ENVIRONMENT):
        return ALONE
    rank = numbers["RANK"]
    return Ranks(rank, count, numbers.get("LOCAL_RANK", rank), numbers.get("LOCAL_WORLD_SIZE", count))


@contextmanager
def one_speaks_on_each_machine() -> Iterator[None]:
    """For what all processes find out alike before they meet: inside, one on each machine writes to the console, and
    where that one leaves with an exit code, the others leave with 0."""
    if started().local == 0:
        yield
        return
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        try:
            yield
        except SystemExit:
            raise SystemExit(0) from None


def meet() -> None:
    """From here on the processes that ``started`` tells of are one run. Nothing changes where there is one alone.

    Tensors on GPUs go by NCCL, everything else by gloo. PruningError where the others cannot be reached.
    """
    ranks = started()
    if ranks.count == 1:
        return
    import torch
    import torch.distributed as dist
    from torch.distributed.rendezvous import rendezvous

    on_gpus = torch.cuda.is_available() and dist.is_nccl_available()
    backend = "cpu:gloo,cuda:nccl" if on_gpus else "gloo"
    try:
        store, rank, size = next(iter(rendezvous("env://", timeout=PATIENCE_TO_MEET)))
        _ranks.set(replace(ranks, store=store))
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=PATIENCE)
    except (RuntimeError, ValueError) as error:
        raise PruningError(f"the processes of this run cannot reach one another: {reason_of(error, 160)}") from error


def speaks() -> bool:
    """Whether this process tells why the run ends: of those that ask, the first. One that is alone always does."""
    store = here().store
    if store is None:
        return True
    try:
        return bool(store.add("told why the run ends", 1) == 1)
    except RuntimeError:  # the process that held it has ended, and has told
        return False


def part(code: int) -> None:
    """The end of the run in this process. With a code other than 0 the process ends here and now: what torch still has
    under way would keep it waiting for the others. Nothing happens where there is one alone."""
    if count() == 1:
        return
    import torch.distributed as dist

    if code == 0:
        dist.destroy_process_group()
        _ranks.set(ALONE)
        return
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)


def end_by_bug() -> None:
    """In the handler of an exception that nobody expected: show it once and end this process, where there are
    several."""
    if count() > 1:
        if speaks():
            traceback.print_exc()
        part(1)
