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
ON_A_CPU = 4  # times that a window of the model's own text is read, since writing takes as long as training there
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

    times = times_read(session.device)
    return divided(text.sources, tokens, text.seq_len, read, lambda count: written_to_distil(session, count), times)


def times_read(device: torch.device) -> int:
    """How often a window of the model's own text is read: new text teaches more, where writing it costs little."""
    return ON_A_CPU if device.type == "cpu" else 1


def divided(
    sources: tuple[Source, ...],
    tokens: int,
    seq_len: int,
    read: Callable[[str, int, int], Divided],
    write: Callable[[int], np.ndarray],
    times: int,
) -> Divided:
    """The same of any sources. read: (name, windows to train on, windows to judge by) of a text that exists. write: so
    many windows of the model's own, each of which is read so many times."""
    wanted, aside = (windows_by_share(sources, count) for count in (max(1, tokens // seq_len), HELD_OUT))
    train, check = [], []
    for source, *counts in zip(sources, wanted, aside, strict=True):
        count, held = (max(1, number) for number in counts)
        if source.name == SELF:
            different = -(-count // times)
            ids, judge = np.split(write(different + held), [different])
            ids = np.tile(ids, (times, 1))[:count]
        else:
            ids, judge = read(source.name, count, held)
            if len(sources) > 1:  # else the others would take more than their share
                ids = np.tile(ids, (-(-count // len(ids)), 1))[:count]
        train.append(ids)
        check.append(judge)
    return np.concatenate(train), np.concatenate(check)
