"""Windows of several texts as one set: mixed in an order that no text's share of a part depends on."""

from collections.abc import Mapping, Sequence

import numpy as np

from core.errors import UsageError
from core.sources import Source, windows_by_share
from core.windows import TokenWindows


def counts_of(sources: Sequence[Source], num_samples: int) -> dict[str, int]:
    """Calibration windows by text. UsageError where a text would get none."""
    counts = dict(zip((s.name for s in sources), windows_by_share(tuple(sources), num_samples), strict=True))
    without = next((name for name, count in counts.items() if not count), None)
    if without is not None and num_samples:
        raise UsageError(
            f"--num_samples {num_samples} leaves no window for {without} of --dataset: use more, or give it a larger "
            "share"
        )
    return counts


def mixed(parts: Mapping[str, TokenWindows], dataset: str, seed: int) -> TokenWindows:
    """The windows of every part in one order, drawn by seed: importance is compared between even and odd windows, the
    repair holds some out, and a prior takes the first, so no regular order would do. One part stays as it is.

    dataset: as it was asked for.
    """
    if len(parts) == 1:
        return next(iter(parts.values()))
    ids = np.concatenate([part.ids for part in parts.values()])
    order = np.random.default_rng([seed, len(ids)]).permutation(len(ids))
    sizes = "; ".join(f"{len(part)} window{'s' * (len(part) != 1)}: {part.source}" for part in parts.values())
    return TokenWindows(ids[order], dataset, next(iter(parts.values())).split, sizes)
