"""The text of a distillation: windows of every text that calibrates, by its share, and some held out to judge by."""

from collections.abc import Callable

import numpy as np
import torch

from calibration import training_windows
from core.names import SELF
from core.sources import Source, windows_by_share
from run.self_windows import written_to_distil
from run.session import Session

HELD_OUT = 16
# Times that a window is read at most: of a text that the model's own can take the place of, and of its own where
# writing takes as long as training, as on a CPU, or for a model of which a GPU writes few rows at once.
MOST_READS = 4
WRITES_FAST = 2_000_000_000  # parameters up to which a GPU writes in a fraction of the time that training takes
Divided = tuple[np.ndarray, np.ndarray]  # int64 (N, T) to train on, (M, T) that share no token with them


def distillation_windows(session: Session, tokens: int) -> Divided:
    """Windows for so many tokens, fewer where a text alone has fewer, and some to judge by.

    Texts that exist are drawn from anew, and the dense model writes anew. Raises DataError for a text too short to be
    divided.
    """
    text = session.settings.calibration

    def read(name: str, count: int, held: int) -> Divided:
        train, check = training_windows(
            name,
            session.tokenizer,
            count,
            held,
            text.seq_len,
            text.seed,
            text_column=text.text_column,
            vocab_rows=session.source.config.get_text_config().vocab_size,
        )
        return train.ids, check.ids

    times = times_read(session.device, session.architecture.total_params)
    return divided(text.sources, tokens, text.seq_len, read, lambda count: written_to_distil(session, count), times)


def times_read(device: torch.device, params: int) -> int:
    """How often a window of the model's own text is read: new text teaches more, where it is written fast."""
    return 1 if device.type == "cuda" and params <= WRITES_FAST else MOST_READS


def divided(
    sources: tuple[Source, ...],
    tokens: int,
    seq_len: int,
    read: Callable[[str, int, int], Divided],
    write: Callable[[int], np.ndarray],
    times: int,
) -> Divided:
    """The same of any sources. read: (name, windows to train on, windows to judge by) of a text that exists. write: so
    many windows of the model's own, each of which is read so many times.

    A short text keeps its share by being read again. Where the model writes as well, its text fills up what a short one
    would have to be read for more than MOST_READS times.
    """
    total = max(1, tokens // seq_len)
    wanted, aside = ([max(1, count) for count in windows_by_share(sources, count)] for count in (total, HELD_OUT))
    writes = any(source.name == SELF for source in sources)
    found: dict[int, Divided] = {}
    for place, source in enumerate(sources):
        if source.name != SELF:
            ids, check = read(source.name, wanted[place], aside[place])
            again = -(-wanted[place] // len(ids))
            if writes:
                again = min(again, MOST_READS)
            if len(sources) > 1:  # else the others would take more than their share
                ids = np.tile(ids, (again, 1))[: wanted[place]]
            found[place] = ids, check
    for place, source in enumerate(sources):
        if source.name == SELF:
            count = max(wanted[place], total - sum(len(ids) for ids, _ in found.values()))
            different = -(-count // times)
            ids, check = np.split(write(different + aside[place]), [different])
            found[place] = np.tile(ids, (times, 1))[:count], check
    every = [found[place] for place in range(len(sources))]
    return np.concatenate([ids for ids, _ in every]), np.concatenate([check for _, check in every])
