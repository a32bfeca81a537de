"""What ``--dataset`` names: one text, or several that are mixed, each with its share.

    pydoc                  one text
    notes.txt,self         two, in equal shares
    notes.txt:0.7,self:0.3 two, by share

A file or folder that exists wins over every other reading, so a path may hold commas and colons.
"""

import math
import re
from dataclasses import dataclass
from pathlib import Path

from core.errors import UsageError
from core.names import DATASETS

_SHARE = re.compile(r"(.+):(\d+(?:\.\d*)?|\.\d+)")


@dataclass(frozen=True)
class Source:
    """name: of a known text, or a path. share: of the windows, in (0, 1]; the shares of a mixture sum to 1."""

    name: str
    share: float = 1.0


def sources_of(dataset: str) -> tuple[Source, ...]:
    """The texts of a ``--dataset``, in its order.

    UsageError for an empty name, a name that comes twice, a share of 0, and shares that only some of the texts have.
    """
    named = [_with_weight(item) for item in _items(dataset)]
    names = [name for name, _ in named]
    if not all(name.strip() for name in names):
        raise UsageError(f"--dataset {dataset!r}: a name is empty between its commas")
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UsageError(f"--dataset {dataset!r} names {twice} twice; name it once")
    given = [weight for _, weight in named if weight is not None]
    if given and len(given) < len(named):
        without = next(name for name, weight in named if weight is None)
        raise UsageError(f"--dataset {dataset!r}: {without} has no share and another text has; give all of them one")
    if any(weight == 0 for weight in given):
        raise UsageError(f"--dataset {dataset!r}: a share of 0 reads nothing; leave that text out")
    total = math.fsum(given) or len(named)
    return tuple(Source(name, (1.0 if weight is None else weight) / total) for name, weight in named)


def named_sources(dataset: str) -> tuple[str, ...]:
    """Their names alone, for texts that are not mixed. Shares that would do in a mixture mean nothing here, so that one
    value serves both; UsageError for others."""
    weights = [weight for _, weight in map(_with_weight, _items(dataset))]
    if None in weights and any(weight is not None for weight in weights):
        names = ",".join(name for name, _ in map(_with_weight, _items(dataset)))
        raise UsageError(f"{dataset!r}: texts that are evaluated take no shares, each is evaluated whole; use {names}")
    return tuple(source.name for source in sources_of(dataset))


def in_equal_shares(sources: tuple[Source, ...]) -> bool:
    return all(math.isclose(source.share, sources[0].share) for source in sources)


def windows_by_share(sources: tuple[Source, ...], total: int) -> tuple[int, ...]:
    """How many of ``total`` windows each source gives: whole numbers nearest to its share that sum to ``total``.

    Of what rounding leaves over, the largest remainders get one each, the first named first.
    """
    exact = [source.share * total for source in sources]
    # A share such as 0.7 of 10 windows is 7, not the 6 below 6.999999.
    counts = [math.floor(value + 1e-9) for value in exact]
    order = sorted(range(len(sources)), key=lambda i: (counts[i] - exact[i], i))
    for i in order[: total - sum(counts)]:
        counts[i] += 1
    return tuple(counts)


def _items(dataset: str) -> list[str]:
    """Cut at commas, but not inside a path that exists: the longest such path wins."""
    parts = dataset.split(",")
    items, start = [], 0
    while start < len(parts):
        candidates = ((",".join(parts[start:end]), end) for end in range(len(parts), start + 1, -1))
        found = next(((item, end) for item, end in candidates if _is_known(_with_weight(item)[0])), None)
        item, start = found or (parts[start], start + 1)
        items.append(item)
    return items


def _with_weight(item: str) -> tuple[str, float | None]:
    """(name, its weight or None). ``C:\\text`` and a file that is named ``a:1`` have none. UsageError for what
    follows a text as its share and is none."""
    if _is_known(item):
        return item, None
    found = _SHARE.fullmatch(item)
    if found is not None:
        return found[1], float(found[2])
    name, colon, share = item.rpartition(":")
    if colon and _is_known(name) and not re.search(r"[/\\,]", share):  # else several, or a drive's path
        raise UsageError(f"{item!r}: the share of {name} is {share!r}, which is no number above 0; use {name}:0.5")
    return item, None


def _is_known(name: str) -> bool:
    if name in DATASETS:
        return True
    try:
        return bool(name.strip()) and Path(name).expanduser().exists()
    except (OSError, RuntimeError, ValueError):  # too long for a name, a home that is nobody's, a zero byte
        return False
